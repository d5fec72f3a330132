"""What a run folder tells about its run, read so that nothing in it can stop the reader.

Files may be damaged, hostile, or growing while they are read. What cannot be understood is left out and counted in
`Run.notes`; only a folder without a readable `config.json` is refused.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from eggroll.runs.folder import RunError, RunFolder
from eggroll.runs.report.series import Series, thinned

LARGEST_JSON = 2**20
"""Bytes of `config.json`, of `summary.json` and of a line, beyond which something is wrong with them."""
LARGEST_NUMBER = 1e60
"""A number further out is treated like NaN: no axis could show it beside others."""
MOST_METRICS = 64
MOST_SAMPLES = 16
LONGEST_SAMPLE = 2000
_TIMINGS = ("seconds", "_seconds", "_per_second")


@dataclass(frozen=True)
class Sample:
    """Text that the model wrote, cut to `LONGEST_SAMPLE` characters."""

    generation: int
    text: str


@dataclass(frozen=True)
class Run:
    """A run as far as its folder tells.

    Args:
      name: the folder's name; not unique.
      summary: None where there is no readable `summary.json`.
      generations: of the last line of metrics, counted from 1; 0 without any.
      lines: lines of metrics that were understood.
      series: metrics in the order in which they appear.
      samples: ascending, thinned to about `MOST_SAMPLES`; the last is always there.
      changed: when metrics were last written.
      notes: what is missing or could not be read, for a person.
    """

    name: str
    path: Path
    config: dict[str, Any]
    summary: dict[str, Any] | None
    generations: int
    lines: int
    series: dict[str, Series]
    samples: tuple[Sample, ...]
    changed: datetime | None
    notes: tuple[str, ...]

    @property
    def state(self) -> str:
        """How the run stands: finished, interrupted, or something without a last word."""
        if self.summary is None:
            return "no summary: still running, or killed"
        if self.summary.get("finished") is True:
            return "finished"
        if self.generations > (number(self.summary.get("generations")) or 0):
            return "went on after an interruption: still running, or killed"
        return "interrupted"


def number(value: Any) -> float | None:
    """A JSON value as a number; None for what is none, or no number that can be drawn."""
    if type(value) in (int, float) and -LARGEST_NUMBER <= value <= LARGEST_NUMBER:
        return float(value)
    return None


def read_run(path: Path, *, bins: int) -> Run:
    """Read the run in a folder.

    Args:
      bins: most points of a metric; see `series`.
    Raises:
      RunError: this is no run folder, or its `config.json` cannot be read.
    """
    config = _config(path)
    notes: list[str] = []
    summary = _summary(path, notes)
    metrics = _Metrics()
    for line in json_lines(path / "metrics.jsonl", notes):
        metrics.take(line)
    notes += metrics.notes()
    return Run(
        name=path.resolve().name or str(path),
        path=path,
        config=config,
        summary=summary,
        generations=metrics.generations,
        lines=metrics.lines,
        series=metrics.series(bins, summary or {}),
        samples=_samples(path / "samples.jsonl", notes),
        changed=_changed(path / "metrics.jsonl"),
        notes=tuple(notes),
    )


class _Metrics:
    """Collects the lines of `metrics.jsonl` into columns."""

    def __init__(self) -> None:
        self.columns: dict[str, tuple[array[int], array[float]]] = {}
        self.generations = self.lines = self.replayed = self.left_out = 0

    def take(self, line: dict[str, Any]) -> None:
        generation = line.pop("generation", None)
        if type(generation) is not int or not 0 <= generation < 2**53:
            return
        self.lines += 1
        self.generations = max(self.generations, generation + 1)
        if line.get("replayed") is True:
            self.replayed += 1
            # Replaying a journal is no evaluation: its times would pass for those of training.
            line = {name: value for name, value in line.items() if not name.endswith(_TIMINGS)}
        columns = self.columns
        for name, value in line.items():
            # `number` written out: ten million calls are seconds.
            kind = type(value)
            if (kind is float or kind is int) and -LARGEST_NUMBER <= value <= LARGEST_NUMBER:
                column = columns.get(name) or self._new_column(name)
                if column is not None:
                    column[0].append(generation)
                    column[1].append(value)

    def _new_column(self, name: str) -> tuple[array[int], array[float]] | None:
        if len(self.columns) < MOST_METRICS:
            return self.columns.setdefault(name, (array("q"), array("d")))
        self.left_out += 1
        return None

    def series(self, bins: int, summary: dict[str, Any]) -> dict[str, Series]:
        found = {}
        for name, (generation, value) in self.columns.items():
            # Measured before generation 0, while a line tells what holds after its own update.
            if (start := number(summary.get(f"start_{name}"))) is not None and 0 not in generation[:1]:
                generation.insert(0, 0)
                value.insert(0, start)
            found[name] = thinned(np.frombuffer(generation, np.int64), np.frombuffer(value), limit=bins)
        return found

    def notes(self) -> list[str]:
        notes = [] if self.lines else ["no metrics yet"]
        if self.replayed:
            notes.append(f"{self.replayed:,} generations replayed from the journal; their times are left out")
        if self.left_out:
            notes.append(f"only the first {MOST_METRICS} metrics are shown")
        return notes


def _config(path: Path) -> dict[str, Any]:
    folder = RunFolder.open(path)
    try:
        size = (path / "config.json").stat().st_size
        if size > LARGEST_JSON:
            raise RunError(
                f"expected a config.json of at most {LARGEST_JSON:,} bytes in {path}, got {size:,}; the file is damaged"
            )
        return folder.read_json("config.json")
    except OSError as error:
        raise RunError(f"expected a readable config.json in {path}, got {error}; give the folder of a run") from None


def _summary(path: Path, notes: list[str]) -> dict[str, Any] | None:
    file = path / "summary.json"
    try:
        if not file.exists():
            return None
        if file.is_file() and file.stat().st_size <= LARGEST_JSON:
            return RunFolder(path).read_json("summary.json")
    except (OSError, RunError):
        pass
    notes.append("summary.json cannot be read")
    return None


def json_lines(path: Path, notes: list[str]) -> Iterator[dict[str, Any]]:
    """Every line that is a JSON object. The others are counted in `notes`, but for a last one that is being written."""
    bad = 0
    try:
        # A pipe under this name would keep the reader waiting for ever.
        if not path.is_file():
            return
        with path.open("rb") as file:
            # A limit, so that a file without a line break is not taken into memory at once.
            while line := file.readline(LARGEST_JSON):
                if (value := _parsed(line)) is not None:
                    yield value
                elif line.endswith(b"\n") and line.strip():
                    bad += 1
    except OSError as error:
        notes.append(f"{path.name} cannot be read: {error.strerror}")
    if bad:
        notes.append(f"{bad:,} damaged line{'s' * (bad > 1)} of {path.name} left out")


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _samples(path: Path, notes: list[str]) -> tuple[Sample, ...]:
    kept: list[Sample] = []
    last = None
    for line in json_lines(path, notes):
        generation, text = line.get("generation"), line.get("text")
        if type(generation) is int and 0 <= generation < 2**53 and isinstance(text, str):
            last = Sample(generation, text[:LONGEST_SAMPLE])
            kept.append(last)
        if len(kept) > 2 * MOST_SAMPLES:
            kept = kept[::2]
    if last is not None and kept[-1] is not last:
        kept.append(last)
    # A resumed run may note a generation again.
    distinct = {sample.generation: sample for sample in kept}
    return tuple(sorted(distinct.values(), key=lambda sample: sample.generation)[-2 * MOST_SAMPLES :])


def _changed(path: Path) -> datetime | None:
    try:
        return datetime.fromtimestamp(path.stat().st_mtime, UTC)
    except (OSError, OverflowError, ValueError):
        return None
