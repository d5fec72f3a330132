"""Weights of any generation from start parameters and a journal: checking a run, or sharing one.

A fine-tune is published as the journal alone (`--export`); whoever has the base model gets its weights by replaying.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import tyro

from eggroll.core.errors import UsageError
from eggroll.runs import snapshots
from eggroll.runs.environment import environment
from eggroll.runs.folder import RunError, RunFolder, shown
from eggroll.runs.frames import JournalError
from eggroll.runs.job import FORMAT, Learner
from eggroll.runs.journal import Journal
from eggroll.runs.progress import GenerationBar
from eggroll.runs.trees import (
    as_arrays,
    check_start,
    digest,
    filled,
    first_difference,
    largest_difference,
    sha256_by_leaf,
)


@dataclass(frozen=True)
class ReplayConfig:
    """Rebuild the weights of a run from its start parameters and its journal, and check its snapshots on the way."""

    run: tyro.conf.Positional[Path]
    """Folder of a run, or a journal file."""
    to: int | None = None
    """Generations to replay; none: all that the journal has."""
    base: Path | None = None
    """Start parameters: a run, a snapshot or a .safetensors file; none: those that the job starts from by itself."""
    out: Path | None = None
    """Folder to write, with the weights as a snapshot; must not exist."""
    export: Path | None = None
    """File to write, with the journal alone up to that generation; must not exist."""

    def __post_init__(self) -> None:
        if self.to is not None and self.to < 0:
            raise UsageError(f"expected --to of at least 0, got {self.to}; give a number of generations")


@dataclass
class Replayed:
    """What a replay found."""

    parameters: Any
    optimizer: Any
    generation: int
    verified: list[int] = field(default_factory=list)  # snapshots whose hashes agreed
    differing: list[int] = field(default_factory=list)  # snapshots that agree to rounding only
    largest_difference: float = 0.0  # between a weight and the snapshot's
    seconds: float = 0.0


def replay(
    journal: Journal,
    learner_of: Callable[[dict[str, Any]], Learner[Any]],
    *,
    to: int | None = None,
    folder: RunFolder | None = None,
) -> Replayed:
    """Apply the journal's weights, generation by generation.

    Args:
      learner_of: header → the job's learner; asked again where a header changes the settings midway.
      to: generations to make; default all.
      folder: of the run, whose snapshots are compared on the way.
    Raises:
      RunError: another start, a longer way than the journal goes, an unknown version, or a snapshot that differs though
        the same bits are promised.
    """
    upto = journal.generations if to is None else to
    if upto > journal.generations:
        raise RunError(f"expected --to up to {journal.generations}, which {journal.path} has, got {upto}; lower it")
    present = set(snapshots.generations(folder)) if folder is not None else set()
    start, segment = time.perf_counter(), journal.segments[0]
    learner = _learner(segment.header, learner_of)
    check_start(segment.header.get("start_sha256"), sha256_by_leaf(learner.parameters), str(journal.path))
    found = Replayed(learner.parameters, learner.optimizer, 0)
    with GenerationBar("replay", upto) as bar:
        while found.generation < upto:
            if journal.segment_of(found.generation) is not segment:
                segment = journal.segment_of(found.generation)
                learner = _learner(segment.header, learner_of)
            weights = journal.record(found.generation).weights
            found.parameters, found.optimizer, _ = learner.update(
                found.parameters, found.optimizer, weights, found.generation
            )
            found.generation += 1
            if found.generation in present and folder is not None:
                _verify(found, folder, exact=learner.is_integer or _same_machine(segment.header, learner))
            bar.move(1)
    jax.block_until_ready(found.parameters)
    found.seconds = time.perf_counter() - start
    return found


def _learner(header: dict[str, Any], learner_of: Callable[[dict[str, Any]], Learner[Any]]) -> Learner[Any]:
    if header.get("format") != FORMAT:
        raise JournalError(
            f"expected a journal's header of format {FORMAT}, got {shown(header.get('format'))}; "
            "use the version of eggroll that wrote it"
        )
    learner = learner_of(header)
    written, own = header.get("strategy"), learner.settings
    if not isinstance(written, dict) or written.keys() != own.keys():
        raise JournalError(
            f"expected strategy settings {', '.join(own)} in the header, got {shown(written)}; "
            "use the version of eggroll that wrote it"
        )
    if (header.get("frames"), header.get("weights")) != (learner.frames, learner.weights):
        raise JournalError(
            f"expected {learner.weights} {learner.frames} weights a generation, got {header.get('weights')} "
            f"{header.get('frames')}; the header does not fit its own settings"
        )
    for name, value in own.items():
        if written[name] != value:
            raise JournalError(
                f"expected {name} {shown(written[name])}, as the journal says, got {shown(value)}; "
                "use the settings and the version that wrote it"
            )
    return learner


def _same_machine(header: dict[str, Any], learner: Learner[Any]) -> bool:
    """Whether float runs are to come out the same: devices, versions and processor are those of the run."""
    return bool(header.get("environment") == environment() | learner.environment)


def _verify(found: Replayed, folder: RunFolder, *, exact: bool) -> None:
    tree = snapshots.load(folder, found.generation, only="parameters")[1]["parameters"]
    path = first_difference(sha256_by_leaf(tree), sha256_by_leaf(found.parameters))
    if path is None:
        found.verified.append(found.generation)
        return
    what = f"the snapshot of generation {found.generation}"
    difference = largest_difference(found.parameters, filled(found.parameters, as_arrays(tree), what))
    if exact:
        raise RunError(
            f"expected the bits of {what} in leaf {path!r}, got others (largest difference {difference:.3g}); "
            "the journal or the snapshot is not of this run"
        )
    found.differing.append(found.generation)
    found.largest_difference = max(found.largest_difference, difference)


def replay_command(
    config: ReplayConfig, learner_for: Callable[[dict[str, Any], Path | None], Learner[Any]]
) -> dict[str, Any]:
    """`eggroll replay`: returns what it found, having written what was asked for.

    Args:
      learner_for: header and `--base` → the job's learner.
    Raises:
      UsageError: as `replay`; or something that is to be written exists.
    """
    is_file = config.run.is_file()
    folder = None if is_file else RunFolder.open(config.run)
    for path in (config.out, config.export):
        if path is not None and path.exists():
            raise RunError(f"expected a path that does not exist yet, got {path}; choose another one")
    with Journal.open(config.run if folder is None else folder.journal) as journal:
        found = replay(journal, lambda header: learner_for(header, config.base), to=config.to, folder=folder)
        summary = _summary(journal, found)
        if config.export is not None:
            journal.export(config.export, found.generation)
            summary["exported"] = str(config.export)
        if config.out is not None:
            _write_out(config.out, journal, found, summary)
    return summary


def _summary(journal: Journal, found: Replayed) -> dict[str, Any]:
    return {
        "job": journal.header.get("job"),
        "generation": found.generation,
        "verified": found.verified,
        "differing": found.differing,
        "largest_difference": found.largest_difference,
        "seconds": round(found.seconds, 3),
        "journal_bytes": journal.size,
        "torn_bytes": journal.torn,
        "sha256": digest(found.parameters),
    }


def _write_out(path: Path, journal: Journal, found: Replayed, summary: dict[str, Any]) -> None:
    config = dict(journal.segment_of(max(found.generation - 1, 0)).header.get("config", {}))
    out = RunFolder.create(path, "replay", config)
    snapshots.save(out, found.generation, {"parameters": found.parameters, "optimizer": found.optimizer}, keep=1)
    summary["out"] = str(path)
    out.write_json("summary.json", summary)
