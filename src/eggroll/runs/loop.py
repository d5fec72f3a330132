"""The one loop that every job runs: evaluate, write down, update; go on where a killed run stood.

The loop knows no application: see `job`. The order within a generation is that of a write-ahead log: evaluate → encode,
append, fsync → decode → update. A resumed run starts from the newest whole snapshot and takes the weights that the
journal already has; a job whose evaluation keeps state for each member evaluates these generations again, and what it
gets must equal the journal.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from eggroll.runs import snapshots
from eggroll.runs.environment import environment
from eggroll.runs.folder import RunError, RunFolder, shown
from eggroll.runs.frames import JournalError, decode_weights, encode_weights
from eggroll.runs.job import Evaluated, Job, RunState
from eggroll.runs.journal import Journal, Record
from eggroll.runs.metrics import Metrics, MetricsFile
from eggroll.runs.progress import GenerationBar
from eggroll.runs.samples import append_sample
from eggroll.runs.shared_state import pack_shared, unpack_shared
from eggroll.runs.signals import stop_requests
from eggroll.runs.tracking import Trackers
from eggroll.runs.trees import as_arrays, check_start, filled

STATUS_INTERRUPTED = 130


@dataclass
class Outcome:
    """How a run ended: `summary.json`, the exit status, and the last state."""

    summary: dict[str, Any]
    exit_status: int
    state: RunState


class Loop:
    """A job in its folder, from its newest snapshot on. The folder is locked as long as it is open.

    Args:
      say: takes lines for a person: a torn tail that was cut, a snapshot that was passed over.
    Raises:
      RunError: the folder is in use, cannot be written, or holds another run than this job's.
    """

    def __init__(self, job: Job[Any], folder: RunFolder, *, say: Callable[[str], None]) -> None:
        self.job, self.folder, self.say = job, folder, say
        self.environment = environment() | job.learner.environment
        with ExitStack() as stack:
            stack.enter_context(folder.locked())
            self.journal = stack.enter_context(self._journal())
            self._settle_config()
            self.generation, self.state = self._standing()
            self.metrics = MetricsFile.open(folder.path / "metrics.jsonl", self.journal.generations)
            stack.callback(self.metrics.close)
            self._open = stack.pop_all()

    def _journal(self) -> Journal:
        path, header = self.folder.journal, self.job.header(self.environment)
        if not path.exists():
            return Journal.create(path, header)
        journal = Journal.open(path, writable=True)
        try:
            _check_header(journal, header)
            check_generations(journal, self.job.generations)
        except BaseException:
            journal.close()
            raise
        if not self.job.learner.is_integer and journal.header.get("environment") != self.environment:
            self.say("another device or version than this run had: floats go on the same to rounding only")
        if journal.torn:
            self.say(f"{path}: cut {journal.torn:,} bytes of a torn tail after {journal.generations:,} generations")
        return journal

    def _settle_config(self) -> None:
        """A kill after a header of changed settings, before their `config.json`, leaves the old one there."""
        recorded = self.journal.header.get("config")
        try:
            same = self.folder.read_json("config.json") == recorded
        except RunError:
            same = False
        if not same and isinstance(recorded, dict):
            self.folder.write_json("config.json", recorded)

    def _standing(self) -> tuple[int, RunState]:
        """Generation and state of the newest whole snapshot that the journal reaches; else the start."""
        snapshots.tidy(self.folder)
        start = self.job.start()
        for generation in reversed(snapshots.generations(self.folder)):
            if generation > self.journal.generations:
                aside = snapshots.set_aside(self.folder, generation)  # these generations may come out otherwise
                self.say(f"the journal does not reach the snapshot of generation {generation}, which is now {aside}")
                continue
            try:
                tree = snapshots.load(self.folder, generation)[1]
            except RunError as error:
                self.say(f"passed over the snapshot of generation {generation}: {error}")
                continue
            what = f"the snapshot of generation {generation} in {self.folder.path}"
            return generation, filled(start, as_arrays(tree), what)
        return 0, start

    def close(self) -> None:
        """Let the folder go."""
        self._open.close()

    def __enter__(self) -> Loop:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ── a generation ──

    def advance(self) -> Metrics:
        """One generation; returns its line of metrics."""
        job, generation, start = self.job, self.generation, time.perf_counter()
        known = self.journal.record(generation) if generation < self.journal.generations else None
        if known is not None and self.state.carry is None:
            weights, measured = known.weights, Metrics(replayed=True)
            self.state = self.state._replace(shared=unpack_shared(self.state.shared, known.shared))
        else:
            evaluated = job.evaluate(self.state, generation)
            weights, measured = self._settle(evaluated, known), evaluated.metrics
            self.state = self.state._replace(carry=evaluated.carry, shared=evaluated.shared)
        settled = time.perf_counter()
        parameters, optimizer, stepped = job.learner.update(
            self.state.parameters, self.state.optimizer, weights, generation
        )
        self.state = self.state._replace(parameters=parameters, optimizer=optimizer)
        self.generation += 1
        end = time.perf_counter()
        name, amount = job.units
        speed = {f"{name}_per_second": amount / (end - start), "seconds": end - start, "update_seconds": end - settled}
        return {"generation": generation, **measured, **stepped, **speed}

    def _settle(self, evaluated: Evaluated, known: Record | None) -> np.ndarray:
        """The weights to update with: on the disk, and those that the journal has where it has them."""
        lost = known.lost if known is not None else evaluated.lost
        weights = np.array(evaluated.weights)
        if lost:
            weights[np.array(lost, np.int64) // 2] = 0
        shared = pack_shared(evaluated.shared)
        if known is None:
            return self.journal.append(weights, lost, shared)
        segment = self.journal.segment_of(self.generation)
        again = decode_weights(segment.kind, encode_weights(segment.kind, weights), segment.weights)
        if not np.array_equal(again, known.weights) or shared != known.shared:
            raise JournalError(
                f"expected generation {self.generation} to evaluate as the journal says, got other weights; the data, "
                "the device or the versions are not those of the run"
            )
        return known.weights

    def is_new(self, line: Metrics) -> bool:
        """Whether `metrics.jsonl` lacks this generation; it has those that a resumed run goes through again."""
        return line["generation"] >= self.metrics.next_generation

    def whole_state(self) -> RunState:
        """The state with all of its carry in this process."""
        return self.state if self.job.gather is None else self.job.gather(self.state)

    def snapshot(self) -> None:
        """Have the state on the disk."""
        self.metrics.sync()
        snapshots.save(self.folder, self.generation, self.whole_state()._asdict(), keep=self.job.snapshots_kept)


def check_generations(journal: Journal, generations: int) -> None:
    """Refuse to end before the journal does.

    Raises:
      RunError: it has more generations than these.
    """
    if journal.generations > generations:
        raise RunError(
            f"expected at least the {journal.generations} generations that the run has, got {generations}; "
            "to go back, use eggroll replay --to"
        )


def _comparable(header: dict[str, Any]) -> dict[str, Any]:
    """What must be the same to go on: settings of the strategy one by one."""
    strategy = header.get("strategy")
    parts = {key: header.get(key) for key in ("format", "job", "frames", "weights", "optimizer_state")}
    return parts | (strategy if isinstance(strategy, dict) else {"strategy": strategy})


def _check_header(journal: Journal, header: dict[str, Any]) -> None:
    """The journal is this job's: what frames look like and what they update."""
    written, own = _comparable(journal.header), _comparable(header)
    for key in [*own, *written]:
        if written.get(key) != own.get(key):
            raise RunError(
                f"expected a journal with {key[:80]!r} {shown(own.get(key))}, got {shown(written.get(key))} in "
                f"{journal.path}; use the settings that made it"
            )
    check_start(journal.segments[0].header.get("start_sha256"), header["start_sha256"], str(journal.path.parent))


def run(
    job: Job[Any],
    folder: RunFolder,
    *,
    extra: dict[str, Any],
    prefix_seconds: float = 0.0,
    say: Callable[[str], None] | None = None,
) -> Outcome:
    """Train to the end, or to the end of the generation in which Ctrl-C or SIGTERM came, and write `summary.json`.

    A folder that already holds a part of the run is gone on with.

    Args:
      extra: the job's own entries of the summary.
      prefix_seconds: what the job spent before the loop; reported as `startup_seconds`. The first generation's
        seconds, reported beside it, are mostly compilation.
      say: takes lines for a person.
    """
    begun = time.perf_counter()
    with ExitStack() as stack:
        stop = stack.enter_context(stop_requests())
        loop = stack.enter_context(Loop(job, folder, say=say or (lambda line: None)))
        bar = stack.enter_context(GenerationBar(job.name, job.generations, loop.generation, job.log_every))
        trackers = stack.enter_context(Trackers(job.trackers, folder, job.config, say=bar.note))
        resumed_at = loop.generation
        first, latest, first_seconds = _train(loop, bar, trackers, stop)
        summary = {
            "job": job.name,
            "finished": loop.generation == job.generations,
            "generations": loop.generation,
            "seconds": round(time.perf_counter() - begun, 3),
            "startup_seconds": round(prefix_seconds, 3),
            "first_generation_seconds": round(first_seconds, 3),
            **({"resumed_at": resumed_at} if resumed_at else {}),
            **{f"start_{name}": value for name, value in first.items()},
            **latest,
            "journal_bytes": loop.journal.size,
            **extra,
            **loop.environment,
            "run_dir": str(folder.path),
        }
        trackers.finish(summary)
        folder.write_json("summary.json", summary)
    return Outcome(summary, 0 if summary["finished"] else STATUS_INTERRUPTED, loop.state)


def _train(loop: Loop, bar: GenerationBar, trackers: Trackers, stop: list[int]) -> tuple[Metrics, Metrics, float]:
    """Generations up to the last; returns the first and the last validation, and the first generation's seconds."""
    job, first_seconds = loop.job, 0.0
    first = dict(job.validate(job.learner.parameters))
    latest = first if loop.generation == 0 else {}
    last = loop.generation >= job.generations or bool(stop)
    if last:
        latest = dict(job.validate(loop.state.parameters))
        loop.snapshot()
    if job.sample is not None and loop.metrics.next_generation == 0:
        append_sample(loop.folder, 0, job.sample(job.learner.parameters))
    while not last:
        line = loop.advance()
        first_seconds = first_seconds or line["seconds"]
        last = loop.generation == job.generations or bool(stop)
        if last or loop.generation % job.validate_every == 0:
            latest = dict(job.validate(loop.state.parameters))
            line |= latest
            if job.sample is not None and loop.is_new(line):
                append_sample(loop.folder, loop.generation, job.sample(loop.state.parameters))
        if loop.is_new(line):
            loop.metrics.append(line)
            trackers.write(line)
        if last or loop.generation % job.snapshot_every == 0:
            loop.snapshot()
        throughput = f"{line[f'{job.units[0]}_per_second']:,.0f} {job.units[0]}/s"
        bar.advance(_metric(job.main_metric, line | latest), throughput)
    return first, latest, first_seconds


def _metric(name: str, metrics: Metrics) -> str:
    return f"{name} {metrics[name]:.3f}" if name in metrics else ""
