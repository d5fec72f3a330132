"""`--tune N`: a queue of short runs with settings drawn at random, and which of them is best.

The folder of a queue holds `tune.json` (the settings that all trials share), `trials/000`, `trials/001`, … (ordinary
run folders) and `tuned.json` (a row for each trial, written anew after every one). Trials are made one after the other
by the code of an ordinary run, so that a queue is gone on with as a run is: finished trials stay, the one that was
stopped goes on through its journal, the others follow.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax

from eggroll.core.errors import UsageError
from eggroll.rl.config import SearchConfig
from eggroll.rl.draws import command_line, draw, drawn_of, in_words
from eggroll.rl.strategy import setup
from eggroll.rl.trials import Row, best_first, returned, table
from eggroll.runs.environment import peak_memory
from eggroll.runs.folder import RunError, RunFolder, fresh_folder, reason
from eggroll.runs.going_on import recorded_settings
from eggroll.runs.settings import from_json

BASE, ROWS = "tune.json", "tuned.json"
FREE = ("log_every", "track", "devices", "update")
"""Settings that may be others when a queue is gone on with."""
Say = Callable[[str], None]
C = TypeVar("C", bound=SearchConfig)


@runtime_checkable
class Train(Protocol):
    """How a trial is run, as an ordinary run is: `rl.job.train`."""

    def __call__(self, config: Any, /, *, report: Say) -> tuple[dict[str, Any], int]:
        """Returns summary and exit status."""
        ...


def tune(config: Any, train: Train, *, report: Say) -> tuple[dict[str, Any], int]:
    """Make `config.tune` trials, or go on with them, and tell which is best.

    Args:
      config: `RlConfig` or `MarlConfig`; what is not drawn holds for every trial.
      train: makes the run of a trial.
      report: takes the lines that are for a person to read.
    Returns:
      The summary, and the exit status: 130 where a trial was stopped.
    Raises:
      UsageError: the settings cannot be tuned (nothing was written), or every trial failed.
    """
    started = time.perf_counter()
    check_tunable(config)
    home = config.run_dir if config.run_dir is not None else fresh_folder(f"{config.job}-tune")
    folder = _go_on(home, config) if config.resume else _create(home, config)
    report(f"{config.tune} trials of {config.generations} generations in {home}")
    rows: list[Row] = []
    with folder.locked():
        folder.write_json(BASE, {"job": config.job, "tune": config.tune, "settings": config.as_json()})
        for number in range(config.tune):
            rows.append(_trial(config, home, number, train, report))
            folder.write_json(ROWS, {"trials": rows})
            if rows[-1]["status"] == "unfinished":
                break
        for line in table(rows):
            report(line)
        _refuse_none(config, rows)
        summary = summary_of(config, home, rows) | {"seconds": round(time.perf_counter() - started, 3)}
        best = summary["best_trial"]
        if config.render is not None and best is not None and summary["finished"]:
            again = dataclasses.replace(_settings(config, home, best), resume=True, render=config.render)
            summary["rendered"] = train(again, report=lambda line: None)[0]["rendered"]
    return summary, 0 if summary["finished"] else 130


def check_tunable(config: Any) -> None:
    """Refuse what would fail in every trial.

    Raises:
      UsageError: a baseline, several processes, or no such environment or policy.
    """
    if config.is_baseline:
        raise UsageError(
            f"expected --tune with eggroll or openes, whose settings it draws, got {config.algorithm_name}; leave "
            "--tune out"
        )
    if config.is_fleet or config.coordinator:
        raise UsageError("expected --tune in one process, got --coordinator, --ray or --listen; leave these out")
    setup(config)


# ── the folder ──


def recorded_base(path: Path, kind: type[C], job: str) -> C | None:
    """The settings of the queue in a folder, `tune` among them; None where it holds no queue.

    Raises:
      UsageError: they are damaged, or of another job.
    """
    if not (path / BASE).exists():
        return None
    recorded = _read_base(path, job)
    return from_json(kind, recorded["settings"] | {"tune": recorded["tune"]}, str(path / BASE))


def _read_base(path: Path, job: str) -> dict[str, Any]:
    recorded = RunFolder(path).read_json(BASE)
    settings, count = recorded.get("settings"), recorded.get("tune")
    if not isinstance(settings, dict) or not isinstance(count, int):
        raise RunError(f"expected settings and a number of trials in {path / BASE}, got none; the file is damaged")
    if recorded.get("job") != job:
        raise RunError(f"expected the folder of eggroll {job} --tune, got {path} of another job; choose its own")
    return recorded


def _create(home: Path, config: Any) -> RunFolder:
    try:
        home.mkdir(parents=True)
    except OSError as error:
        raise RunError(
            f"expected a folder for the trials that can be made, got {home}: {error.strerror}; choose another "
            "--run-dir, or go on with it with --resume"
        ) from None
    return RunFolder(home)


def _go_on(home: Path, config: Any) -> RunFolder:
    recorded, given = _read_base(home, config.job)["settings"], config.as_json()
    other = {name: new for name, new in given.items() if name not in FREE and recorded.get(name) != new}
    changes = [f"{name} {recorded.get(name)!r} → {new!r}" for name, new in other.items()]
    if changes:
        raise RunError(
            f"expected the settings that {home / BASE} records, got {', '.join(changes)}; leave these flags out, or "
            "start another queue in another --run-dir"
        )
    return RunFolder(home)


# ── a trial ──


def _place(home: Path, number: int) -> Path:
    return home / "trials" / f"{number:03d}"


def _settings(config: Any, home: Path, number: int) -> Any:
    """Those of the trial's run.

    Raises:
      UsageError: they do not go together, such as the population with --devices.
    """
    own = {"run_dir": _place(home, number), "resume": False, "on_change": "refuse", "tune": 0, "render": None}
    return dataclasses.replace(config, **own, **draw(config, number))


def _trial(config: Any, home: Path, number: int, train: Train, report: Say) -> Row:
    """Run it, or what is left of it; a finished one is read."""
    place, name = _place(home, number), f"trial {number:03d}"
    row: Row = {"trial": number, "settings": draw(config, number)}
    try:
        trial = _settings(config, home, number)
        row["command"] = command_line(trial)
        summary = _finished(config, place)
        if summary is None:
            again = dataclasses.replace(trial, resume=place.exists())
            summary, _ = train(again, report=lambda line: report(f"{name}: {line}"))
        else:
            row["settings"] = drawn_of(recorded_settings(RunFolder.open(place), type(config), config.job))
    except RunError:  # of the disk, not of the settings
        raise
    except (ValueError, jax.errors.JaxRuntimeError) as error:  # refused, or no memory for it
        report(f"{name} failed: {reason(error)}")
        return row | {"status": "failed", "reason": reason(error)}
    row["status"] = "finished" if summary["finished"] else "unfinished"
    row |= {key: summary[key] for key in ("return", "return_error", "start_return", "generations", "seconds")}
    report(f"{name} {row['status']}: {returned(row)} from {row['start_return']:.3f}; {in_words(row['settings'])}")
    return row


def _finished(config: Any, place: Path) -> dict[str, Any] | None:
    """The summary of a trial that is through: its generations, its seconds, or at its target."""
    if not (place / "summary.json").exists():
        return None
    summary = RunFolder(place).read_json("summary.json")
    return summary if summary.get("finished") is True else None


# ── what they come to ──


def summary_of(config: Any, home: Path, rows: Sequence[Row]) -> dict[str, Any]:
    """The closing line: the best trial, and how many there are of each kind."""
    count = {status: sum(row["status"] == status for row in rows) for status in ("finished", "failed")}
    best = next((row for row in best_first(rows) if row["status"] == "finished"), {})
    return {
        "job": config.job,
        "finished": sum(count.values()) == config.tune,
        "trials": config.tune,
        **{f"trials_{status}": number for status, number in count.items()},
        "best_trial": best.get("trial"),
        **{name: best.get(name) for name in ("return", "return_error", "start_return", "settings", "command")},
        "peak_memory_bytes": peak_memory(),
        "run_dir": str(home),
    }


def _refuse_none(config: Any, rows: Sequence[Row]) -> None:
    """Where all have failed, there is nothing to tell."""
    if len(rows) == config.tune and all(row["status"] == "failed" for row in rows):
        raise UsageError(f"expected a trial that runs, got {len(rows)} that failed, the first as: {rows[0]['reason']}")
