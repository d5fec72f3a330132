"""The tables of a report: how the runs ended, and where their settings differ."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np

from eggroll.runs.report.charts import main_metrics
from eggroll.runs.report.curves import colour, dashes
from eggroll.runs.report.groups import ABSENT, Group, differences, mean_and_error, settings, shortened
from eggroll.runs.report.history import Run, number
from eggroll.runs.report.markup import Markup, element, join, note
from eggroll.runs.report.wording import duration, measured, size, whole

MOST_ROWS = 200
_VERSIONS = ("eggroll", "jax", "python")


@dataclasses.dataclass(frozen=True)
class _Column:
    """A column of the final table: what a run has in it, and how a number is written."""

    name: str
    of: Callable[[Run], float | None]
    shown: Callable[..., str] = measured


def table(label: str, head: Sequence[object], rows: Sequence[Markup]) -> Markup:
    """A table in a container of its own, which scrolls where the page is too narrow."""
    top = element("tr", *(element("th", name, scope="col") for name in head))
    whole = element("table", element("thead", top), element("tbody", *rows))
    return element("div", whole, class_="scroll", role="region", aria_label=label, tabindex="0")


def swatch(index: int) -> Markup:
    """A piece of a group's line."""
    pattern = " ".join(f"{1.6 * length:.1f}" for length in dashes(index)) or None
    line = element("path", d="M0 5H34", stroke_dasharray=pattern, style=f"stroke:{colour(index)}")
    return element("svg", line, class_="swatch", viewBox="0 0 34 10", aria_hidden="true")


def runs_table(groups: Sequence[Group]) -> Markup:
    """Which runs: job, state, generations, device and versions."""
    rows = [_run_row(index, group, run) for index, group in enumerate(groups) for run in group.runs]
    return table("Runs", ("", "run", "job", "state", "generations", "device", "versions", "last metrics (UTC)"), rows)


def _run_row(index: int, group: Group, run: Run) -> Markup:
    summary = run.summary or {}
    versions = [f"{name} {shortened(str(summary[name]))}" for name in _VERSIONS if name in summary]
    wanted = number(run.config.get("generations"))
    reached = f"{run.generations:,}" + (f" of {wanted:,.0f}" if wanted is not None else "")
    cells = (
        shortened(str(summary.get("job", run.config.get("job", ABSENT)))),
        run.state,
        reached,
        shortened(_device(run)),
        ", ".join(versions) or ABSENT,
        f"{run.changed:%Y-%m-%d %H:%M}" if run.changed else ABSENT,
    )
    name = element("th", shortened(run.name), scope="row")
    return element(
        "tr", element("td", swatch(index), " ", group.letter), name, *(element("td", cell) for cell in cells)
    )


def _device(run: Run) -> str:
    """The accelerator, or the processor that stands behind `cpu`."""
    summary = run.summary or {}
    device, processor = (summary.get(name) for name in ("device", "processor"))
    known = f"{processor} (cpu)" if str(device).startswith("cpu") and isinstance(processor, str) else device
    count = number(summary.get("devices"))
    return f"{count:.0f} × {known}" if known and count and count > 1 else str(known or ABSENT)


def final_table(groups: Sequence[Group], runs: Sequence[Run]) -> Markup:
    """How it ended: each run, and of several seeds the mean ± standard error of those that finished."""
    columns = _columns(runs)
    rows = []
    for index, group in enumerate(groups):
        if len(group.runs) > 1:
            rows.append(_group_row(index, group, columns))
        for run in group.runs:
            cells = [element("td", column.shown(column.of(run))) for column in columns]
            state = None if run.state == "finished" else element("small", " not finished")
            name = element("th", shortened(run.name), state, scope="row")
            rows.append(element("tr", element("td", swatch(index), " ", group.letter), name, *cells))
    several = any(len(group.runs) > 1 for group in groups)
    return join(
        table("Results", ("", "run", *(shortened(column.name) for column in columns)), rows),
        note("Mean ± standard error over seeds, of the runs that finished.") if several else None,
        _summaries(runs),
    )


def _summaries(runs: Sequence[Run]) -> Markup | None:
    """Everything that the jobs themselves put down at the end, such as what their results are to be compared with."""
    told = [(run, settings(run.summary)) for run in runs if run.summary]
    if not told:
        return None
    names = list(dict.fromkeys(name for _, summary in told for name in summary))[:MOST_ROWS]
    rows = [_row(name, [summary.get(name, ABSENT) for _, summary in told]) for name in names]
    head = ("", *(shortened(run.name) for run, _ in told))
    return element("details", element("summary", "All of summary.json"), table("Summaries", head, rows))


def _group_row(index: int, group: Group, columns: Sequence[_Column]) -> Markup:
    finished = [run for run in group.runs if run.state == "finished"]
    cells = []
    for column in columns:
        values = [value for run in finished if (value := column.of(run)) is not None]
        mean, error = mean_and_error(values)
        if column.shown is measured:
            text = measured(mean, error)
        else:
            text = column.shown(mean) + (f" ± {column.shown(error)}" if error else "")
        missing = f" (n = {len(values)})" if len(values) != len(finished) else ""
        cells.append(element("td", text + missing))
    head = element("th", f"mean ± SE, n = {len(finished)}" if finished else "none has finished", scope="row")
    return element("tr", element("td", swatch(index), " ", group.letter), head, *cells, class_="group")


def _columns(runs: Sequence[Run]) -> list[_Column]:
    main = main_metrics(runs) or [name for name in ("fitness_mean",) if any(name in run.series for run in runs)]
    rates = dict.fromkeys(name for run in runs for name in run.series if name.endswith("_per_second"))
    columns = []
    for name in main[:12]:
        columns += [_Column(f"final {name}", functools.partial(_final, name=name))]
        columns += [_Column(f"start {name}", functools.partial(_told, name=f"start_{name}"))]
    columns.append(_Column("generations", lambda run: float(run.generations), whole))
    columns.append(_Column("wall time", functools.partial(_told, name="seconds"), duration))
    columns += [_Column(f"{name}, median", functools.partial(_rate, name=name)) for name in list(rates)[:4]]
    columns.append(_Column("peak memory", functools.partial(_told, name="peak_memory_bytes"), size))
    return [column for column in columns if any(column.of(run) is not None for run in runs)]


def _told(run: Run, name: str) -> float | None:
    return number((run.summary or {}).get(name))


def _final(run: Run, name: str) -> float | None:
    """What the summary tells; without one, the last value of the metrics."""
    told = _told(run, name)
    return told if told is not None or name not in run.series else run.series[name].last


def _rate(run: Run, name: str) -> float | None:
    """The median is not moved by the generations that compile."""
    return float(np.median(run.series[name].mean)) if name in run.series else None


def settings_section(runs: Sequence[Run]) -> Markup:
    """Where the settings differ, run by run, and below what all have in common."""
    differing, common = differences([settings(run.config) for run in runs])
    parts = []
    if differing:
        rows = [_row(name, values) for name, values in list(differing.items())[:MOST_ROWS]]
        parts.append(table("Settings that differ", ("setting", *(shortened(run.name) for run in runs)), rows))
    elif len(runs) > 1:
        parts.append(element("p", "The runs have the same settings."))
    if common:
        title = "All settings" if len(runs) == 1 else f"{len(common):,} settings that are common to all runs"
        rows = [_row(name, [value]) for name, value in list(common.items())[:MOST_ROWS]]
        parts.append(element("details", element("summary", title), table(title, ("setting", "value"), rows)))
    if max(len(differing), len(common)) > MOST_ROWS:
        parts.append(note(f"Only the first {MOST_ROWS} settings are shown."))
    return join(*parts)


def _row(name: str, values: Sequence[str]) -> Markup:
    cells = (element("td", element("code", shortened(value))) for value in values)
    return element("tr", element("th", element("code", shortened(name)), scope="row"), *cells)
