"""A job whose population a fleet evaluates: the same loop, journal and snapshots around a `Coordinator`."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from eggroll.distributed.coordinator import Coordinator
from eggroll.distributed.peers import Fleet
from eggroll.distributed.ranges import cut
from eggroll.distributed.server import Server
from eggroll.distributed.streams import fingerprint
from eggroll.distributed.wire import run_number
from eggroll.runs import snapshots
from eggroll.runs.folder import RunError, RunFolder
from eggroll.runs.frames import WEIGHTS, encode_weights, pack_generation
from eggroll.runs.job import Evaluated, Job, RangeWork, RunState
from eggroll.runs.metrics import Metrics
from eggroll.runs.shared_state import pack_shared
from eggroll.runs.trees import as_arrays, filled

START_SECONDS = 120.0
"""How long the first generation waits for all workers that were asked for."""
EMPTY_SECONDS = 600.0
"""How long a run waits with no worker at all."""


class Away(NamedTuple):
    """Stands for the carry as long as the workers have it."""


class FleetOptions(NamedTuple):
    """How a fleet is run.

    Args:
      workers: that the first generation waits for; also decides how many ranges there are.
      listen: host and port to bind to.
      ranges_per_worker: into how many parts a worker's share is cut.
      lease_seconds: after which a range is given to another worker too, at least.
    """

    workers: int
    token: bytes
    listen: tuple[str, int] = ("127.0.0.1", 0)
    ranges_per_worker: int = 2
    lease_seconds: float = 10.0


class _Evaluation:
    """Evaluates and updates through a coordinator; see `on_fleet`."""

    def __init__(self, job: Job[Any], work: RangeWork, server: Server, folder: RunFolder, workers: int) -> None:
        self.job, self.work, self.folder, self.workers = job, work, folder, workers
        self.server, self.coordinator = server, server.coordinator
        self._opened, self._gathered = False, -1
        self._evaluated: Evaluated | None = None
        self._seen = dataclasses.asdict(self.coordinator.traffic)

    def _wait(self, done: Callable[[], bool], seconds: float, what: str) -> None:
        """Until `done`, which is asked with the lock held.

        Raises:
          RunError: the coordinator has failed, or no worker was there for so many seconds.
        """
        empty_since = looked_at = time.monotonic()
        while not done():
            if self.coordinator.fault is not None:
                raise self.coordinator.fault
            now = time.monotonic()
            if now - looked_at > 0.5:  # counting takes a while where there are ten thousand
                looked_at, empty_since = now, now if self.coordinator.ready else empty_since
            if now - empty_since > seconds:
                raise RunError(f"expected workers {what}, got none for {seconds:g} s; start some, go on with --resume")
            self.server.lock.wait(0.5)

    def evaluate(self, state: RunState, generation: int) -> Evaluated:
        """The whole population, by whoever is there."""
        with self.server.lock:
            if not self._opened:
                self._open(state, generation)
            elif self._gathered == generation and generation in snapshots.generations(self.folder):
                self.coordinator.rebase(lambda: self._snapshot(generation))
            self._gathered = -1
            self.server.wake()
            self._wait(self.coordinator.is_complete, EMPTY_SECONDS, f"for generation {generation}")
            results = [self.coordinator.results[index] for index in range(len(self.coordinator.fleet.spans))]
        values = np.concatenate([result.values for result in results])
        evaluated = self.work.combine(values, [result.tally for result in results], state, generation)
        self._evaluated = evaluated._replace(carry=None if self.work.start_carry is None else Away())
        return self._evaluated

    def _open(self, state: RunState, generation: int) -> None:
        self._opened = True
        print_of = fingerprint((state.parameters, state.optimizer, state.shared))
        self.coordinator.open(generation, state, print_of, time.monotonic(), fresh=generation == 0)
        self.server.wake()
        deadline = time.monotonic() + START_SECONDS

        def all_here() -> bool:
            return self.coordinator.ready >= self.workers or (
                time.monotonic() > deadline and self.coordinator.ready > 0
            )

        self._wait(all_here, EMPTY_SECONDS, "to begin")
        if self.coordinator.ready < self.workers:
            self.coordinator.say(f"beginning with {self.coordinator.ready} of {self.workers} workers")
        self.coordinator.begin(time.monotonic())

    def _snapshot(self, generation: int) -> RunState:
        tree = snapshots.load(self.folder, generation)[1]
        return filled(self.job.start(), as_arrays(tree), f"the snapshot of generation {generation}")

    def update(self, parameters: Any, optimizer: Any, weights: Any, generation: int) -> tuple[Any, Any, Metrics]:
        """The workers hear of the generation first, and update while this process does."""
        inner, evaluated = self.job.learner.update, self._evaluated
        if not self._opened or evaluated is None:  # a replay, before anything was evaluated
            return inner(parameters, optimizer, weights, generation)
        frames = self._frames(np.asarray(weights), evaluated, generation)
        with self.server.lock:
            workers = self.coordinator.ready
            traffic = self.coordinator.finish(frames, time.monotonic(), more=generation + 1 < self.job.generations)
        self.server.wake()
        parameters, optimizer, metrics = inner(parameters, optimizer, weights, generation)
        state = RunState(parameters, optimizer, evaluated.shared)
        print_of = fingerprint((parameters, optimizer, evaluated.shared))
        with self.server.lock:
            self.coordinator.expect(print_of, state, time.monotonic())
        self.server.wake()
        return parameters, optimizer, metrics | {"workers": workers} | traffic | self._events()

    def _events(self) -> dict[str, int]:
        """What has happened since the last generation, in numbers."""
        now = dataclasses.asdict(self.coordinator.traffic) | {
            "resent_ranges": self.coordinator.book.resent,
            "duplicate_answers": self.coordinator.book.duplicates,
        }
        new = {name: value - self._seen.get(name, 0) for name, value in now.items()}
        self._seen = now
        return new

    def _frames(self, weights: np.ndarray, evaluated: Evaluated, generation: int) -> bytes:
        """What the journal has just been given."""
        kind = WEIGHTS[self.job.learner.frames]
        payload, shared = encode_weights(kind, weights), pack_shared(evaluated.shared)
        return pack_generation(kind, generation, payload, evaluated.lost, shared)

    def gather(self, state: RunState) -> RunState:
        """The state with the carry that the workers have, for a snapshot."""
        if self._opened and isinstance(state.carry, Away):
            with self.server.lock:
                self.coordinator.carry.collect(time.monotonic())
                self.server.wake()
                self._wait(lambda: self.coordinator.carry.has_collected, EMPTY_SECONDS, "to hand their carry over")
                state = state._replace(carry=self.work.join(self.coordinator.carry.collected()))
        if self._opened:
            with self.server.lock:
                self.coordinator.rebase(lambda: state)
                self._gathered = self.coordinator.generation
        return state


@contextmanager
def on_fleet(
    job: Job[Any],
    work: RangeWork,
    folder: RunFolder,
    options: FleetOptions,
    *,
    checks: dict[str, Any],
    say: Callable[[str], None],
) -> Iterator[tuple[Job[Any], Server]]:
    """The job, evaluated by workers, and the server that waits for them; they are sent away at the end.

    Args:
      work: the same evaluation in ranges.
      checks: JSON about the data, which every worker compares with its own.
      say: takes lines for a person.
    Raises:
      UsageError: the address cannot be bound to.
    """
    header = job.header({})
    spans = cut(job.learner.weights, max(1, options.workers) * options.ranges_per_worker)
    fleet = Fleet(
        run=run_number(header),
        pairs=job.learner.weights,
        spans=spans,
        work=work,
        welcome={"header": header, "checks": checks},
        token=options.token,
        lease_seconds=options.lease_seconds,
    )
    with Server(Coordinator(fleet, say=say), options.listen) as server:
        evaluation = _Evaluation(job, work, server, folder, options.workers)
        learner = dataclasses.replace(job.learner, update=evaluation.update)
        yield dataclasses.replace(job, learner=learner, evaluate=evaluation.evaluate, gather=evaluation.gather), server
