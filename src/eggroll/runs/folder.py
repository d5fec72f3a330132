"""The run folder: what every job leaves behind, and in which order it becomes true.

`config.json` is written first and `summary.json` last, each whole or not at all; `metrics.jsonl` grows by one flushed
line per generation. Nothing that exists is overwritten.
"""

from __future__ import annotations

import json
import math
import os
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from eggroll.core.errors import UsageError

_WORDS = (  # noqa: SIM905 (a list would take 50 lines)
    "amber aspen birch brook cedar cliff cloud coral crane delta ember fern field finch flint frost grove harbor heron "
    "hazel iris ivory juniper lark laurel linden lotus maple marsh meadow mesa moss oak olive opal otter pearl pine "
    "plover quartz raven reed ridge river robin sage shore sparrow spruce stone swift thistle tulip valley willow wren"
).split()


class RunError(UsageError):
    """A run folder cannot be used; one line: what was expected, what was got, how to mend it."""


def fresh_name(job: str) -> str:
    """A name for a run without one: job, date, a word and two digits, such as `pretrain-2026-01-31-heron-07`."""
    day = datetime.now(UTC).date().isoformat()
    return f"{job}-{day}-{secrets.choice(_WORDS)}-{secrets.randbelow(100):02d}"


def _unused(parent: Path, job: str) -> Path:
    """A fresh name under `parent` that nothing has yet."""
    while (target := parent / fresh_name(job)).exists():
        pass
    return target


class RunFolder:
    """One run's folder, just created (`create`) or opened to read (`open`)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.snapshots = path / "snapshots"

    @classmethod
    def create(cls, path: Path | None, job: str, config: dict[str, Any]) -> RunFolder:
        """Make the folder (a fresh one under `runs/` without a path) and write its `config.json`.

        Raises:
          RunError: the path exists or cannot be made; nothing was written.
        """
        target = path if path is not None else _unused(Path("runs"), job)
        try:
            target.mkdir(parents=True)
        except FileExistsError:
            raise RunError(
                f"expected a run folder that does not exist yet, got {target}; choose another --run-dir or remove it"
            ) from None
        except OSError as error:
            raise RunError(
                f"expected a run folder that can be made, got {target}: {error.strerror}; choose another --run-dir"
            ) from None
        folder = cls(target)
        folder.write_json("config.json", config)
        return folder

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """A run that exists.

        Raises:
          RunError: there is no `config.json` under the path.
        """
        if not (path / "config.json").is_file():
            raise RunError(f"expected a run folder with a config.json, got {path}; give the folder of a run")
        return cls(path)

    def write_json(self, name: str, value: dict[str, Any]) -> None:
        """Write a JSON file whole or not at all: to a temporary name, synced, then renamed."""
        temporary = self.path / f".{name}.partial"
        with temporary.open("w", encoding="utf-8") as file:
            file.write(json.dumps(value, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.path / name)

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON object of the run.

        Raises:
          RunError: the file is missing or is no JSON object.
        """
        try:
            value = json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(
                f"expected a readable {name} in {self.path}, got {error}; give the folder of a run"
            ) from None
        if not isinstance(value, dict):
            raise RunError(f"expected an object in {self.path / name}, got {type(value).__name__}; the file is damaged")
        return value

    def append_metrics(self, line: dict[str, Any]) -> None:
        """Append one generation's line to `metrics.jsonl`; numbers that JSON lacks (NaN, ±inf) become null."""
        clean = {key: None if _is_not_finite(value) else value for key, value in line.items()}
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(clean) + "\n")


def _is_not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
