"""A job of a few integers whose every answer depends on parameters, generation, pair and carry; and a fleet in a box.

The box moves messages between a real coordinator and real workers without sockets, under a clock of its own, so that
deaths, silence and lateness happen where a test wants them.
"""

from collections import deque

import jax.numpy as jnp
import numpy as np

from eggroll.distributed.coordinator import Coordinator
from eggroll.distributed.peers import Fleet
from eggroll.distributed.ranges import cut
from eggroll.distributed.streams import fingerprint
from eggroll.distributed.wire import MESSAGE_LIMIT, Inbox, Message, WireError, run_number
from eggroll.distributed.worker import Built, DismissedError, Worker
from eggroll.runs.frames import Frame, Kind, encode_weights
from eggroll.runs.frames import pack as pack_frame
from eggroll.runs.job import Evaluated, Job, Learner, Part, RangeWork

PAIRS = 40
TOKEN = b"secret"


def evaluate(state, generation, first, pairs):
    """Signs that nobody guesses; the carry remembers them."""
    index = np.arange(first, first + pairs)
    carry = np.zeros(pairs, np.int64) if state.carry is None else np.asarray(state.carry["n"], np.int64)
    mixed = (index * 2654435761 + generation * 40503 + int(np.sum(state.parameters["w"])) * 97 + carry * 31) % 1009
    values = (mixed % 3 - 1).astype(np.int8)
    after = None if state.carry is None else {"n": jnp.asarray((carry * 5 + mixed) % 251, jnp.int32)}
    return Part(values, np.array([pairs, int(mixed.sum())], np.int64), after)


def combine(values, tallies, state, generation):
    members, total = (int(sum(column)) for column in zip(*tallies, strict=True))
    return Evaluated(values, None, {"fitness_mean": total / members}, state.shared)


def range_work(carries=True):
    start = (lambda first, pairs: {"n": jnp.full(pairs, 3, jnp.int32)}) if carries else None
    return RangeWork(
        evaluate,
        combine,
        start,
        cut=lambda carry, first, pairs: {"n": carry["n"][first : first + pairs]},
        join=lambda carries: {"n": np.concatenate([np.asarray(carry["n"]) for carry in carries])},
    )


def update(parameters, optimizer, weights, generation):
    moved = (np.asarray(parameters["w"]) * 3 + np.asarray(weights)[:8].astype(np.int32) + generation) % 1000
    return {"w": jnp.asarray(moved, jnp.int32)}, {"count": optimizer["count"] + 1}, {}


def learner():
    start = {"w": jnp.arange(8, dtype=jnp.int32)}
    return Learner(start, {"count": jnp.zeros((), jnp.int32)}, update, "ternary", PAIRS, {"law": "none"})


def job(carries=True, generations=6, **settings):
    work = range_work(carries)
    carry = work.start_carry(0, PAIRS) if carries else None
    shape = {"validate_every": 3, "snapshot_every": 2, "config": {"job": "fake"}} | settings

    def whole(state, generation):
        part = evaluate(state, generation, 0, PAIRS)
        return combine(part.values, [part.tally], state, generation)._replace(carry=part.carry)

    return Job(
        name="fake",
        learner=learner(),
        evaluate=whole,
        validate=lambda state: {"loss": float(np.sum(state.parameters["w"]))},
        main_metric="loss",
        units=("things", 2 * PAIRS),
        generations=generations,
        carry=carry,
        **shape,
    )


def build(welcome):
    """What a worker makes of WELCOME."""
    return Built(learner(), range_work(welcome["checks"]["carries"]), (), dict(welcome["checks"]))


def alone(generations, carries=True):
    """The weights of each generation and the last state, of a run in one process."""
    own, found = job(carries), []
    state = own.start()
    for generation in range(generations):
        evaluated = own.evaluate(state, generation)
        found.append(evaluated.weights)
        state = step(own, state._replace(carry=evaluated.carry), evaluated.weights, generation)
    return found, state


def step(own, state, weights, generation):
    parameters, optimizer, _ = own.learner.update(state.parameters, state.optimizer, weights, generation)
    return state._replace(parameters=parameters, optimizer=optimizer)


class Box:
    """A coordinator and workers; `now` is the clock."""

    def __init__(self, *, ranges=6, carries=True, lease=10.0):
        header = job(carries).header({})
        welcome = {"header": header, "checks": {"carries": carries}}
        self.said = []
        self.carries = carries
        spans = cut(PAIRS, ranges)
        fleet = Fleet(run_number(header), PAIRS, spans, range_work(carries), welcome, TOKEN, lease)
        self.coordinator = Coordinator(fleet, say=self.said.append)
        self.now, self.count = 0.0, 0
        self.workers = {}
        self.frozen = set()
        self.to_worker, self.to_coordinator = {}, {}
        self.inboxes = {}
        self.sent = {}

    def join(self, kind=Worker, **settings):
        number, self.count = self.count, self.count + 1
        self.workers[number] = kind(build, **({"token": TOKEN, "name": f"w{number}"} | settings))
        self.to_worker[number], self.to_coordinator[number] = deque(), deque()
        self.inboxes[number] = (Inbox(), Inbox(MESSAGE_LIMIT))
        self.sent[number] = []
        self.coordinator.connected(number)
        return number

    def kill(self, number, why="killed"):
        self.workers.pop(number)
        self.frozen.discard(number)
        self.coordinator.closed(number, why, self.now)

    def pump(self, rounds=10**6):
        """Move messages until nothing moves, or for so many messages."""
        while rounds > 0:
            moved = self._deliver_out()
            for number in list(self.workers):
                if number not in self.frozen:
                    moved += self._one(number)
            self._cut_off()
            rounds -= max(moved, 1)
            if not moved:
                return

    def _cut_off(self):
        for number, why in list(self.coordinator.closing.items()):
            if not self.to_worker.get(number) or number not in self.workers:
                del self.coordinator.closing[number]
                if number in self.workers:
                    self.kill(number, why)

    def _deliver_out(self):
        out, moved = self.coordinator.out, 0
        while out:
            number, data = out.popleft()
            if number in self.workers:
                self.to_worker[number].extend([data] if isinstance(data, bytes) else data)
                moved += 1
        return moved

    def _one(self, number):
        """One message to a worker, with its replies."""
        queue = self.to_worker[number]
        if not queue:
            return 0
        data = queue.popleft()
        for message in self.inboxes[number][1].feed(data):
            self.sent[number].append(message)
            try:
                replies = list(self.workers[number].take(message))
            except DismissedError:
                del self.workers[number]
                return 1
            for reply in replies:
                self._answer(number, reply)
        return 1

    def _answer(self, number, reply):
        try:
            for message in self.inboxes[number][0].feed(reply):
                if number in self.workers:
                    self.coordinator.received(number, message, len(message.body) + 25, self.now)
                    self.inboxes[number][0].limit = self.coordinator.limit(number)
        except WireError as error:
            self.said.append(str(error))
            self.kill(number, str(error))

    def wait(self, seconds):
        self.now += seconds
        self.coordinator.tick(self.now)

    # ── a run ──

    def open(self, state=None, generation=0):
        self.job = job(self.carries)
        self.state = self.job.start() if state is None else state
        self.coordinator.open(generation, self.state, self.print(), self.now, fresh=generation == 0)
        self.coordinator.begin(self.now)

    def print(self):
        return fingerprint((self.state.parameters, self.state.optimizer, self.state.shared))

    def end_generation(self, more=True, meanwhile=0):
        """Everything is answered: weights, frames, update; returns the weights.

        `meanwhile` messages move before the run has made its own update, as they do where that takes a while.
        """
        assert self.coordinator.is_complete(), self.said
        results = [self.coordinator.results[index] for index in range(len(self.coordinator.fleet.spans))]
        weights = np.concatenate([result.values for result in results])
        generation = self.coordinator.generation
        frames = pack_frame(Frame(Kind.TERNARY, generation, encode_weights(Kind.TERNARY, weights)))
        self.traffic = self.coordinator.finish(frames, self.now, more=more)
        self.pump(rounds=meanwhile)
        self.state = step(self.job, self.state, weights, generation)
        self.coordinator.expect(self.print(), self.state, self.now)
        return weights

    def snapshot(self):
        """Collect the carry, and have the snapshot be what whoever comes starts from."""
        if self.carries:
            self.coordinator.carry.collect(self.now)
            self.pump()
            assert self.coordinator.carry.has_collected, self.said
            carry = range_work().join(self.coordinator.carry.collected())
            self.state = self.state._replace(carry=carry)
        state = self.state
        self.coordinator.rebase(lambda: state)

    def kinds(self, number):
        return [message.kind for message in self.sent[number]]


class Drifting(Worker):
    """Its parameters are wrong after generation 1, once."""

    def _frame(self, message):
        yield from super()._frame(message)
        if message.generation == 1 and not getattr(self, "drifted", False):
            self.drifted = True
            self.state = self.state._replace(parameters={"w": self.state.parameters["w"] + 1})
            self._fingerprint = None


def sent_kinds(box, number, kind: Message):
    return box.kinds(number).count(kind)
