"""The one loop that every job runs: evaluate, write down, update; go on where a killed run stood.

The loop knows no application: see `job`. The order within a generation is that of a write-ahead log: evaluate → encode,
append, fsync → decode → update. A resumed run starts from the newest whole snapshot and takes the weights that the
journal already has; a job whose evaluation keeps state for each member evaluates these generations again, and what it
gets must equal the journal. Several processes go through it together (see `peers`): only process 0 has the folder.

What a job computes, the loop asks for by yielding `Call`s, so that `run_together` answers those of several runs (seeds
of one setting) with one program.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np

from eggroll.runs.environment import environment
from eggroll.runs.folder import RunFolder
from eggroll.runs.following import ledger_of
from eggroll.runs.frames import JournalError
from eggroll.runs.job import Evaluated, Job, RunState
from eggroll.runs.journal import Record
from eggroll.runs.metrics import Metrics
from eggroll.runs.peers import Alone, Peers, agreed_to_stop, told
from eggroll.runs.progress import GenerationBar, Shown
from eggroll.runs.shared_state import pack_shared, unpack_shared
from eggroll.runs.signals import stop_requests
from eggroll.runs.stops import check_fitness, memory_of
from eggroll.runs.tracking import Trackers

STATUS_INTERRUPTED = 130
T = TypeVar("T")


class Call(NamedTuple):
    """What the loop wants of its job: a function of it by name, and the arguments."""

    of: Literal["evaluate", "update", "validate"]
    arguments: tuple[Any, ...]


Calls = Generator[Call, Any, T]
"""Yields calls, is sent what they return, and comes to a T."""


def answer(job: Job[Any], call: Call) -> Any:
    """What the job itself says to a call."""
    function = job.learner.update if call.of == "update" else getattr(job, call.of)
    return function(*call.arguments)


def finish_alone(job: Job[Any], calls: Calls[T]) -> T:
    """Answer all calls by the job itself."""
    try:
        call = next(calls)
        while True:
            call = calls.send(answer(job, call))
    except StopIteration as end:
        result: T = end.value
        return result


@dataclass
class Outcome:
    """How a run ended: `summary.json`, the exit status, and the last state."""

    summary: dict[str, Any]
    exit_status: int
    state: RunState


class Loop:
    """A job in its folder, from its newest snapshot on. The folder is locked as long as it is open.

    Args:
      folder: the run's; none at processes other than 0, which have nothing on the disk.
      say: takes lines for a person: a torn tail that was cut, a snapshot that was passed over.
      peers: the processes of the run; all call the same methods.
    Raises:
      RunError: the folder is in use, cannot be written, or holds another run than this job's.
    """

    def __init__(
        self, job: Job[Any], folder: RunFolder | None, *, say: Callable[[str], None], peers: Peers | None = None
    ) -> None:
        self.job, self.peers, self.environment = job, peers or Alone(), environment() | job.learner.environment
        self.weights: np.ndarray | None = None  # of the last update
        self.spent = 0.0  # seconds of training, in this process
        with ExitStack() as stack:
            self.ledger = ledger_of(job, folder, self.environment, self.peers, say)
            stack.callback(self.ledger.close)
            self.generation, self.state = self.ledger.standing()
            self._open = stack.pop_all()

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
        return finish_alone(self.job, self.advancing())

    def advancing(self) -> Calls[Metrics]:
        """One generation, in calls."""
        job, generation, start = self.job, self.generation, time.perf_counter()
        known = self.ledger.record(generation) if generation < self.ledger.generations else None
        if known is not None and self.state.carry is None:
            weights, measured = known.weights, Metrics(replayed=True)
            self.state = self.state._replace(shared=unpack_shared(self.state.shared, known.shared))
        else:
            evaluated = yield Call("evaluate", (self.state, generation))
            if known is None:
                check_fitness(evaluated, generation)
            weights, measured = self._settle(evaluated, known), evaluated.metrics
            self.state = self.state._replace(carry=evaluated.carry, shared=evaluated.shared)
        settled, self.weights = time.perf_counter(), weights
        arguments = (self.state.parameters, self.state.optimizer, weights, generation)
        parameters, optimizer, stepped = yield Call("update", arguments)
        self.state = self.state._replace(parameters=parameters, optimizer=optimizer)
        self.generation += 1
        end = time.perf_counter()
        name, amount = job.units
        processed = measured.get(amount, 0) if isinstance(amount, str) else amount
        speed = {
            f"{name}_per_second": processed / (end - start),
            "seconds": end - start,
            "update_seconds": end - settled,
        }
        return {"generation": generation, **measured, **stepped, **speed}

    def _settle(self, evaluated: Evaluated, known: Record | None) -> np.ndarray:
        """The weights to update with: on the disk, and those that the journal has where it has them."""
        lost = known.lost if known is not None else evaluated.lost
        weights = np.array(evaluated.weights)
        if lost:
            weights[np.array(lost, np.int64) // 2] = 0
        shared = pack_shared(evaluated.shared)
        if known is None:
            return self.ledger.append(weights, lost, shared)
        if not np.array_equal(self.ledger.decoded(weights, self.generation), known.weights) or shared != known.shared:
            raise JournalError(
                f"expected generation {self.generation} to evaluate as the journal says, got other weights; the data, "
                "the device or the versions are not those of the run"
            )
        return known.weights

    def stopping(self, stop: list[int]) -> bool:
        """Whether this generation was the last: all processes say the same."""
        asked = agreed_to_stop(self.peers, bool(stop) or self.is_over, self.generation - 1, self.weights)
        return self.generation >= self.job.generations or asked

    @property
    def may_reach(self) -> bool:
        """Whether a target counts here: where every such run is evaluated, not where one happens to be stopped."""
        return self.generation % self.job.validate_every == 0 or self.generation == self.job.generations

    @property
    def is_over(self) -> bool:
        """Whether the run has had all the seconds that it was given."""
        return 0 < self.job.most_seconds <= self.spent

    def is_new(self, line: Metrics) -> bool:
        """Whether `metrics.jsonl` lacks this generation; it has those that a resumed run goes through again."""
        return line["generation"] >= self.ledger.next_generation

    def whole_state(self) -> RunState:
        """The state with all of its carry in this process; every process calls it."""
        return self.state if self.job.gather is None else self.job.gather(self.state)

    def snapshot(self) -> None:
        """Have the state on the disk."""
        self.ledger.save(self.generation, self.whole_state(), self.job.snapshots_kept)


def run(
    job: Job[Any],
    folder: RunFolder | None,
    *,
    extra: dict[str, Any],
    prefix_seconds: float = 0.0,
    say: Callable[[str], None] | None = None,
    peers: Peers | None = None,
) -> Outcome:
    """Train to the end, or to the end of the generation in which Ctrl-C or SIGTERM came, and write `summary.json`.

    A folder that already holds a part of the run is gone on with.

    Args:
      folder: the run's; none at processes other than 0.
      extra: the job's own entries of the summary.
      prefix_seconds: what the job spent before the loop; reported as `startup_seconds`. The first generation's
        seconds, reported beside it, are mostly compilation.
      say: takes lines for a person.
      peers: the processes of the run; none: this one alone. The summary is that of process 0 at each of them.
    """
    peers = peers or Alone()
    with ExitStack() as stack:
        stack.enter_context(memory_of(job.config))
        stop = stack.enter_context(stop_requests())
        hidden = peers.process > 0
        bar = stack.enter_context(GenerationBar(job.name, job.generations, job.log_every, hidden))
        shown, say = bar.of("", job.generations), say or (lambda line: None)
        calls = running(job, folder, stop, shown, extra=extra, prefix_seconds=prefix_seconds, say=say, peers=peers)
        stack.callback(calls.close)
        return finish_alone(job, calls)


def run_together(
    jobs: Sequence[Job[Any]],
    folders: Sequence[RunFolder],
    answers: Callable[[Literal["evaluate", "update", "validate"], dict[int, tuple[Any, ...]]], dict[int, Any]],
    *,
    extra: dict[str, Any],
    prefix_seconds: float = 0.0,
    say: Callable[[str], None] | None = None,
) -> list[Outcome]:
    """Several runs of one setting, such as its seeds, each in a folder of its own, as `run` would make them.

    Args:
      jobs, folders: one for each run.
      answers: (name of a job's function, arguments by run) → results by run; what all runs that want the same at the
        moment ask for comes in one call. A result must not depend on which others are asked for.
    """
    with ExitStack() as stack:
        stack.enter_context(memory_of(jobs[0].config))
        stop = stack.enter_context(stop_requests())
        total = sum(job.generations for job in jobs)
        bar = stack.enter_context(GenerationBar(f"{jobs[0].name} × {len(jobs)}", total, jobs[0].log_every))
        shown = [bar.of(folder.path.name, job.generations) for job, folder in zip(jobs, folders, strict=True)]
        common: dict[str, Any] = {"extra": extra, "prefix_seconds": prefix_seconds, "say": say or (lambda line: None)}
        runs = [
            running(job, folder, stop, part, peers=Alone(), **common)
            for job, folder, part in zip(jobs, folders, shown, strict=True)
        ]
        for calls in runs:
            stack.callback(calls.close)
        return _in_step(runs, answers)


def _in_step(runs: Sequence[Calls[Outcome]], answers: Callable[[Any, dict[int, Any]], dict[int, Any]]) -> list[Outcome]:
    """Send the runs on, those that want the same together: first the ones that are behind in the order of a
    generation, so that all meet again."""
    waiting: dict[int, Call] = {}
    outcomes: dict[int, Outcome] = {}

    def send(index: int, value: Any) -> None:
        try:
            waiting[index] = runs[index].send(value)
        except StopIteration as end:
            waiting.pop(index, None)
            outcomes[index] = end.value

    for index in range(len(runs)):
        send(index, None)
    while waiting:
        wanted = next(
            name for name in ("update", "validate", "evaluate") if any(c.of == name for c in waiting.values())
        )
        asked = {index: call.arguments for index, call in waiting.items() if call.of == wanted}
        for index, value in answers(wanted, asked).items():
            send(index, value)
    return [outcomes[index] for index in range(len(runs))]


def running(
    job: Job[Any],
    folder: RunFolder | None,
    stop: list[int],
    bar: Shown,
    *,
    extra: dict[str, Any],
    prefix_seconds: float,
    say: Callable[[str], None],
    peers: Peers,
) -> Calls[Outcome]:
    """`run` in calls, under signals and a bar that are somebody else's."""
    begun = time.perf_counter()
    with ExitStack() as stack:
        loop = stack.enter_context(Loop(job, folder, say=say, peers=peers))
        bar.begin(loop.generation)
        names = () if peers.process else job.trackers
        trackers = stack.enter_context(Trackers(names, folder, job.config, say=bar.note))
        resumed_at = loop.generation
        first, latest, first_seconds = yield from _train(loop, bar, trackers, stop)
        reached, over = loop.may_reach and job.reaches(latest), loop.is_over
        summary = {
            "job": job.name,
            "finished": loop.generation == job.generations or reached or over,
            "generations": loop.generation,
            **({"target": job.target} if reached else {}),
            **({"most_seconds": job.most_seconds} if over else {}),
            "seconds": round(time.perf_counter() - begun, 3),
            "startup_seconds": round(prefix_seconds, 3),
            "first_generation_seconds": round(first_seconds, 3),
            **({"resumed_at": resumed_at} if resumed_at else {}),
            **{f"start_{name}": value for name, value in first.items()},
            **latest,
            **extra,
            **loop.environment,
            **({"processes": peers.count} if peers.count > 1 else {}),
            **loop.ledger.facts,
        }
        trackers.finish(summary)
        loop.ledger.finish(summary)
        summary = told(peers, summary)
    return Outcome(summary, 0 if summary["finished"] else STATUS_INTERRUPTED, loop.state)


def _train(loop: Loop, bar: Shown, trackers: Trackers, stop: list[int]) -> Calls[tuple[Metrics, Metrics, float]]:
    """Generations up to the last; returns the first and the last validation, and the first generation's seconds."""
    job, first_seconds = loop.job, 0.0
    first = dict((yield Call("validate", (job.start(),))))
    latest = first if loop.generation == 0 else {}
    last = loop.stopping(stop)
    if job.target is not None and loop.generation and loop.may_reach:
        latest = dict((yield Call("validate", (loop.state,))))  # it may have ended here, and not yet have said so
        last = last or job.reaches(latest)
    if last:
        latest = latest or dict((yield Call("validate", (loop.state,))))
        loop.snapshot()
    if job.sample is not None and loop.ledger.next_generation == 0:
        loop.ledger.sample(0, job.sample(job.learner.parameters))
    while not last:
        line = yield from loop.advancing()
        loop.spent += line["seconds"] if first_seconds else 0.0  # the first one compiles
        first_seconds = first_seconds or line["seconds"]
        last = loop.stopping(stop)
        if last or loop.generation % job.validate_every == 0:
            latest = dict((yield Call("validate", (loop.state,))))
            line |= latest
            last = last or (loop.may_reach and job.reaches(latest))
            if job.sample is not None and loop.is_new(line):
                loop.ledger.sample(loop.generation, job.sample(loop.state.parameters))
        if loop.is_new(line):
            loop.ledger.note(line)
            trackers.write(line)
        if last or loop.generation % job.snapshot_every == 0:
            loop.snapshot()
        throughput = f"{line[f'{job.units[0]}_per_second']:,.0f} {job.units[0]}/s"
        bar.advance(_metric(job.main_metric, line | latest), throughput)
    return first, latest, first_seconds


def _metric(name: str, metrics: Metrics) -> str:
    return f"{name} {metrics[name]:.3f}" if name in metrics else ""
