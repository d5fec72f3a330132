"""Workers that evaluate nothing: they prove the token, get in step and answer every range with made-up signs.

What they send is what a worker sends, to the byte; only the signs, the tallies and the fingerprints are made up. They
serve `coordinator.py` and `fleet_simulation.py`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from eggroll._version import __version__
from eggroll.distributed.coordinator import Coordinator, Fleet
from eggroll.distributed.ranges import cut
from eggroll.distributed.streams import NO_SPAN, stream
from eggroll.distributed.wire import (
    PROTOCOL,
    Message,
    Received,
    Result,
    Span,
    Tree,
    pack,
    pack_json,
    pack_result,
    pack_span,
    proof,
    run_number,
    unpack_json,
    unpack_piece,
    unpack_span,
)
from eggroll.pretrain.config import preset
from eggroll.runs.environment import environment
from eggroll.runs.frames import Frame, Kind, encode_weights
from eggroll.runs.frames import pack as pack_frame
from eggroll.runs.job import Evaluated, RangeWork, RunState

TOKEN = b"of the benchmark"
_SPAN_SIZE = len(pack_span(NO_SPAN))
_FINGERPRINT = struct.Struct("<Q")
_FINGERPRINT_AT = 8  # in the body of a RESULT, after first pair and pairs


def fingerprint_of(generation: int) -> int:
    """Another number for every generation, as a state's would be."""
    return (generation + 1) * 0x9E3779B97F4A7C15 % 2**64


def range_work(carries: bool, carry_bytes: int = 4) -> RangeWork:
    """Of a job with signs; nothing of it is evaluated.

    Args:
      carries: members keep state.
      carry_bytes: of a pair.
    """
    start = (lambda first, pairs: np.zeros((pairs, carry_bytes), np.uint8)) if carries else None

    def evaluate(*_: Any) -> Any:
        raise NotImplementedError

    def combine(values: np.ndarray, tallies: Any, state: RunState) -> Evaluated:
        return Evaluated(values, None, {})

    return RangeWork(
        evaluate, combine, start, cut=lambda carry, first, pairs: carry[first : first + pairs], join=np.concatenate
    )


def fleet_of(
    *, workers: int, population: int, ranges_per_worker: int = 2, carries: bool = False, lease_seconds: float = 10.0
) -> Fleet:
    """A run of the demo's settings, in ranges as `distributed.fleet` cuts them."""
    header = {"config": preset("demo").as_json(), "weights": population // 2, "environment": environment()}
    spans = cut(population // 2, workers * ranges_per_worker)
    welcome = {"header": header, "checks": {"carries": carries}}
    return Fleet(
        run_number(header), population // 2, spans, range_work(carries), welcome, TOKEN, lease_seconds=lease_seconds
    )


def state_of(parameter_bytes: int) -> RunState:
    """A state of so many bytes."""
    return RunState({"w": np.zeros(parameter_bytes, np.uint8)})


def frames_of(coordinator: Coordinator) -> bytes:
    """What the journal would be given of a generation that is complete."""
    results = [coordinator.results[index] for index in range(len(coordinator.fleet.spans))]
    weights = np.concatenate([result.values for result in results])
    return pack_frame(Frame(Kind.TERNARY, coordinator.generation, encode_weights(Kind.TERNARY, weights)))


class Answers:
    """What all stand-ins of a process answer, made once for each range.

    Args:
      run: `fleet.run`.
      carries: members keep state; of `carry_bytes` a pair.
      state: that of the run, for how many pieces it comes in.
    """

    def __init__(self, run: int, carries: bool, state: RunState, carry_bytes: int = 4) -> None:
        self.run, self.carries, self.carry_bytes = run, carries, carry_bytes
        trees = (state.parameters, state.optimizer, state.shared)
        self.pieces = sum(1 for tree in trees for _ in stream(tree, Tree.PARAMETERS, NO_SPAN, run=run, generation=0))
        self._bodies: dict[Span, bytes] = {}

    def result(self, span: Span, generation: int) -> bytes:
        """RESULT, with the fingerprint of the generation; numbers of the size that the demo's are."""
        if span not in self._bodies:
            signs = (np.arange(span.first, span.first + span.pairs) % 3 - 1).astype(np.int8)
            members = 2 * span.pairs
            tally = np.array([members, -1500 * members, 2_300_000 * members, -2500, -800, span.pairs // 9], np.int64)
            self._bodies[span] = pack_result(Result(span, 0, signs, tally))
        body = bytearray(self._bodies[span])  # packed once: a stand-in should cost little beside the coordinator
        _FINGERPRINT.pack_into(body, _FINGERPRINT_AT, fingerprint_of(generation))
        return pack(Message.RESULT, self.run, generation, bytes(body))

    def carry(self, span: Span, generation: int) -> Iterator[bytes]:
        """The carry of a range, piece by piece."""
        carry = np.zeros((span.pairs, self.carry_bytes), np.uint8)
        return stream(carry, Tree.CARRY, span, run=self.run, generation=generation)

    def carry_is_whole(self, data: Received) -> bool:
        """Whether this is the last piece of a range's carry."""
        piece = unpack_piece(data.body)
        return piece.offset + len(piece.data) == piece.span.pairs * self.carry_bytes


class StandIn:
    """The worker's side of a conversation: a message in, replies out."""

    __slots__ = ("answered", "answers", "generation", "held", "missing", "next_held", "syncing")

    def __init__(self, answers: Answers) -> None:
        self.answers = answers
        self.generation, self.answered = 0, True
        self.missing = 0  # pieces of the state
        self.syncing = 0  # its generation
        self.held: set[Span] = set()  # ranges whose carry is here, at this generation
        self.next_held: set[Span] = set()  # and at the next

    def take(self, message: Received) -> list[bytes]:
        """The replies to a message."""
        return _HANDLERS[message.kind](self, message)

    def needs_carry(self, span: Span) -> bool:
        """Whether a range of this generation cannot be evaluated here yet."""
        return self.answers.carries and self.generation > 0 and span not in self.held

    def _reply(self, kind: Message, body: bytes) -> list[bytes]:
        return [pack(kind, self.answers.run, self.generation, body)]

    def _challenge(self, message: Received) -> list[bytes]:
        hello = {
            "proof": proof(TOKEN, message.body, "worker"),
            "nonce": "0" * 32,
            "name": "machine-000:000000",
            "protocol": PROTOCOL,
            "eggroll": __version__,
        }
        return [pack(Message.HELLO, 0, 0, pack_json(hello))]

    def _welcome(self, message: Received) -> list[bytes]:
        unpack_json(message.body)
        return self._reply(Message.NEED, pack_span(NO_SPAN))

    def _sync(self, message: Received) -> list[bytes]:
        span, sent = unpack_span(message.body[:_SPAN_SIZE]), message.body[_SPAN_SIZE:] == b"\1"
        if span != NO_SPAN:
            return []
        self.held, self.next_held, self.answered = set(), set(), True
        self.syncing, self.missing = message.generation, self.answers.pieces if sent else 0
        return [] if self.missing else self._in_step(self.syncing)

    def _in_step(self, generation: int) -> list[bytes]:
        self.generation = generation
        return self._reply(Message.READY, _FINGERPRINT.pack(fingerprint_of(generation)))

    def _piece(self, message: Received) -> list[bytes]:
        if self.missing:
            self.missing -= 1
            return [] if self.missing else self._in_step(self.syncing)
        piece = unpack_piece(message.body)
        if piece.tree is Tree.CARRY and message.generation == self.generation and self.answers.carry_is_whole(message):
            self.held.add(piece.span)
        return []

    def _frame(self, message: Received) -> list[bytes]:
        assert message.generation == self.generation, (message.generation, self.generation)
        self.generation += 1
        self.held, self.next_held = self.next_held, set()
        replies = [] if self.answered else self._in_step(self.generation)
        self.answered = False
        return replies

    def _replay(self, message: Received) -> list[bytes]:
        if message.generation + 1 == self.generation:
            self.held.add(unpack_span(message.body[:_SPAN_SIZE]))
        return []

    def _work(self, message: Received) -> list[bytes]:
        span = unpack_span(message.body)
        if message.generation != self.generation:
            return []
        if self.needs_carry(span):
            return self._reply(Message.NEED, message.body)
        self.answered = True
        self.held.add(span)
        self.next_held.add(span)
        return [self.answers.result(span, self.generation)]

    def _collect(self, message: Received) -> list[bytes]:
        span = unpack_span(message.body)
        if message.generation != self.generation:
            return []
        if self.needs_carry(span):
            return self._reply(Message.DROP, message.body)
        return list(self.answers.carry(span, self.generation))

    def _drop(self, message: Received) -> list[bytes]:
        for held in (self.held, self.next_held):
            held.discard(unpack_span(message.body))
        return []

    def _bye(self, message: Received) -> list[bytes]:
        return []


_HANDLERS = {
    Message.CHALLENGE: StandIn._challenge,
    Message.WELCOME: StandIn._welcome,
    Message.SYNC: StandIn._sync,
    Message.PIECE: StandIn._piece,
    Message.FRAME: StandIn._frame,
    Message.REPLAY: StandIn._replay,
    Message.WORK: StandIn._work,
    Message.COLLECT: StandIn._collect,
    Message.DROP: StandIn._drop,
    Message.BYE: StandIn._bye,
}


class Opened:
    """A coordinator whose run stands at generation 0, and what the run does with a generation.

    Args:
      parameter_bytes: of the state that whoever joins later is sent.
      kind: another coordinator to compare with.
    """

    def __init__(self, fleet: Fleet, *, parameter_bytes: int = 11_344, kind: type[Coordinator] = Coordinator) -> None:
        self.said: list[str] = []
        self.coordinator = kind(fleet, say=self.said.append)
        self.state = state_of(parameter_bytes)
        self.answers = Answers(fleet.run, fleet.carries, self.state)
        self.coordinator.open(0, self.state, fingerprint_of(0), 0.0, fresh=True)

    def expect(self, now: float) -> None:
        """The run has made its own update."""
        self.coordinator.expect(fingerprint_of(self.coordinator.generation), self.state, now)

    def rebase(self) -> None:
        """A snapshot has been written, with the carry of every member."""
        pairs = self.coordinator.fleet.pairs
        state = self.state._replace(carry=np.zeros((pairs, self.answers.carry_bytes), np.uint8))
        self.coordinator.rebase(lambda: jax.tree.map(lambda leaf: leaf, state))
