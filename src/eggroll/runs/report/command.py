"""`eggroll report`: what one run did, or how several compare, on one page of HTML that needs nothing beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from eggroll.core.errors import UsageError
from eggroll.runs.folder import RunError, put_whole
from eggroll.runs.report.charts import make_charts
from eggroll.runs.report.groups import grouped, shortened
from eggroll.runs.report.history import Run, read_run
from eggroll.runs.report.markup import Markup
from eggroll.runs.report.page import make_page

MOST_BINS = 256
_BINS_OF_ALL = 3072


@dataclass(frozen=True)
class ReportConfig:
    """Show one run, or compare several, on a page of HTML."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of runs; those that differ in the seed alone are shown as one setting."""
    out: Path = Path("report.html")
    """Page to write; replaced if it exists."""
    png: Path | None = None
    """Picture of the curves to write beside it, and NAME-rl.png or NAME-finetune.png of such runs; none: none."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise UsageError("expected the folder of a run, got none; name one or several")
        # A run's own files end otherwise, so that a slip cannot overwrite them.
        if self.out.suffix.lower() not in (".html", ".htm"):
            raise UsageError(f"expected --out to end in .html, got {self.out}; name the page to write")
        if self.png is not None and self.png.suffix.lower() != ".png":
            raise UsageError(f"expected --png to end in .png, got {self.png}; name the picture to write")


@dataclass(frozen=True)
class Extra:
    """What an application adds to a report of its own runs.

    Args:
      name: a word that tells its picture apart: beside `--png curves.png` comes `curves-NAME.png`.
      sections: titles and contents, shown before the report's own; ids in them must not begin with `c` and a digit.
      picture: draws the application's picture, as the bytes of a PNG; None where there is nothing to draw.
    """

    name: str
    sections: tuple[tuple[str, Markup], ...]
    picture: Callable[[], bytes] | None = None


def no_extras(runs: Sequence[Run]) -> tuple[Extra, ...]:
    """A report of what every run has, and nothing else."""
    return ()


def report(config: ReportConfig, extras: Callable[[Sequence[Run]], Sequence[Extra]] = no_extras) -> dict[str, Any]:
    """Write the page, and the pictures if there are to be any.

    Args:
      extras: what applications add, given the runs.
    Returns:
      Paths and sizes of what was written, and the runs in their groups.
    Raises:
      RunError: a folder is no run, its configuration cannot be read, or a file cannot be written.
    """
    # One folder may come under several names, through a link for example.
    distinct: dict[Path, Path] = {}
    for path in config.runs:
        distinct.setdefault(path.resolve(), path)
    paths = list(distinct.values())
    runs = [read_run(path, bins=max(48, min(MOST_BINS, _BINS_OF_ALL // len(paths)))) for path in paths]
    groups = grouped(runs)
    charts = make_charts(groups, runs)
    title = (
        shortened(runs[0].name)
        if len(runs) == 1
        else _counted(len(runs), "run") + " of " + _counted(len(groups), "setting")
    )
    added = extras(runs)
    page = make_page(title, runs, groups, charts, [one for extra in added for one in extra.sections]).encode()
    written: dict[str, Any] = {
        "runs": [run.name for run in runs],
        "groups": [{"name": group.letter, "runs": [run.name for run in group.runs]} for group in groups],
        "out": str(config.out),
        "bytes": len(page),
    }
    _write(config.out, page)
    if config.png is not None:
        from eggroll.runs.report.curves import png

        picture = png(charts, groups, title)
        _write(config.png, picture)
        written |= {"png": str(config.png), "png_bytes": len(picture)}
        for extra in added:
            if extra.picture is not None:
                beside = config.png.with_stem(f"{config.png.stem}-{extra.name}")
                _write(beside, extra.picture())
                written[f"{extra.name}_png"] = str(beside)
    return written


def _counted(count: int, name: str) -> str:
    return f"{count} {name}{'s' * (count != 1)}"


def _write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, replacing what is there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        put_whole(path, [content])
    except OSError as error:
        raise RunError(f"expected a file that can be written, got {path}: {error.strerror}; name another") from None
