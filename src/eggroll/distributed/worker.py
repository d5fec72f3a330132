"""A worker's side of a fleet: a message in, its replies out. No socket here; see `connection`.

It holds a copy of the run's state, which every finished generation moves on by the same update that the run makes, and
the carry of the ranges that it evaluates. What it cannot know it asks for; it never makes a carry up.
"""

from __future__ import annotations

import hmac
import os
import secrets
import socket
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from eggroll._version import __version__
from eggroll.distributed.streams import NO_SPAN, Arriving, described, fingerprint, stream
from eggroll.distributed.wire import (
    PROTOCOL,
    Message,
    Received,
    Result,
    Span,
    Tree,
    WireError,
    pack,
    pack_json,
    pack_result,
    pack_span,
    proof,
    unpack_json,
    unpack_piece,
    unpack_span,
)
from eggroll.runs.folder import shown
from eggroll.runs.frames import WEIGHTS, Kind, decode_weights, split
from eggroll.runs.job import Learner, RangeWork, RunState
from eggroll.runs.shared_state import unpack_shared
from eggroll.runs.trees import check_start, sha256_by_leaf

_SPAN_SIZE = len(pack_span(NO_SPAN))


class Built(NamedTuple):
    """A job as a worker makes it of a run's settings."""

    learner: Learner[Any]
    work: RangeWork
    shared: Any
    checks: dict[str, Any]  # of the data, as JSON; must equal the run's


class DismissedError(WireError):
    """The coordinator has ended the connection, with a reason."""


class _Arrival:
    """A state that arrives tree by tree."""

    def __init__(self, generation: int, state: RunState, carry: Any) -> None:
        trees = {Tree.PARAMETERS: state.parameters, Tree.OPTIMIZER: state.optimizer, Tree.SHARED: state.shared}
        self.generation = generation
        self.trees = {kind: Arriving(described(tree)) for kind, tree in (trees | {Tree.CARRY: carry}).items()}

    @property
    def is_whole(self) -> bool:
        return all(tree.is_whole for tree in self.trees.values())

    def state(self) -> RunState:
        return RunState(*(self.trees[kind].tree() for kind in Tree))


class Worker:
    """See the module.

    Args:
      build: settings of the run, as WELCOME has them → the job.
      token: of the fleet.
      name: shown to people.
    """

    def __init__(self, build: Callable[[dict[str, Any]], Built], token: bytes, name: str = "") -> None:
        self._build, self._token = build, token
        self.name = name or f"{socket.gethostname()}:{os.getpid()}"
        self.was_welcome = False
        self._welcome: dict[str, Any] | None = None
        self.run, self.generation = 0, 0
        self._nonce = secrets.token_hex(16)
        self.state = RunState(())
        self._fingerprint: int | None = None
        self._answered = True  # in this generation
        self.carries: dict[Span, dict[int, Any]] = {}
        self._arrival: _Arrival | None = None
        self._rebuilding: dict[Span, _Arrival | RunState] = {}
        self._carry_arriving: dict[Span, Arriving] = {}
        self._handlers: dict[Message, Callable[[Received], Iterator[bytes]]] = {
            Message.CHALLENGE: self._challenge,
            Message.WELCOME: self._take_welcome,
            Message.SYNC: self._sync,
            Message.PIECE: self._piece,
            Message.FRAME: self._frame,
            Message.REPLAY: self._replay,
            Message.WORK: self._work,
            Message.COLLECT: self._collect,
            Message.DROP: self._drop,
            Message.BYE: self._bye,
        }

    def take(self, message: Received) -> Iterator[bytes]:
        """The replies to a message, made as they are asked for.

        Raises:
          WireError: it is none that may come now, or of another run.
          UsageError: the job cannot be built here.
        """
        handler = self._handlers.get(message.kind)
        if handler is None:
            raise WireError(f"expected no {message.kind.name} from a coordinator, got one; use one version of eggroll")
        early = (Message.CHALLENGE, Message.WELCOME, Message.BYE)
        if message.kind not in early and (self._welcome is None or message.run != self.run):
            raise WireError(f"expected messages of run {self.run:016x}, got {message.run:016x}; join that run")
        yield from handler(message)

    # ── joining ──

    def _challenge(self, message: Received) -> Iterator[bytes]:
        hello = {
            "proof": proof(self._token, message.body, "worker"),
            "nonce": self._nonce,
            "name": self.name,
            "protocol": PROTOCOL,
            "eggroll": __version__,
        }
        yield pack(Message.HELLO, 0, 0, pack_json(hello))

    def _take_welcome(self, message: Received) -> Iterator[bytes]:
        welcome = unpack_json(message.body)
        given = welcome.pop("proof", "")
        if not hmac.compare_digest(str(given), proof(self._token, self._nonce.encode(), "coordinator")):
            raise WireError("expected a coordinator with this fleet's token, got another; give both the same")
        if welcome != self._welcome:
            self._job = self._built(welcome)
        self._welcome, self.run, self.was_welcome = welcome, message.run, True
        yield self._reply(Message.NEED, pack_span(NO_SPAN))

    def _built(self, welcome: dict[str, Any]) -> Built:
        header, checks = welcome.get("header"), welcome.get("checks")
        if not isinstance(header, dict) or not isinstance(checks, dict):
            raise WireError(f"expected a run's header, got {shown(header)}; use one version of eggroll")
        job = self._build(welcome)
        for name, value in checks.items():
            if job.checks.get(name) != value:
                raise WireError(
                    f"expected {name} {shown(value)} as the run has it, got {shown(job.checks.get(name))} on this "
                    "machine; give it the same data"
                )
        check_start(header.get("start_sha256"), sha256_by_leaf(job.learner.parameters), "the run")
        own = {"frames": job.learner.frames, "weights": job.learner.weights, "strategy": job.learner.settings}
        for name, value in own.items():
            if header.get(name) != value:
                raise WireError(f"expected {name} {shown(header.get(name))}, got {shown(value)}; use one version")
        return job

    def _start(self) -> RunState:
        return RunState(self._job.learner.parameters, self._job.learner.optimizer, self._job.shared)

    def _sync(self, message: Received) -> Iterator[bytes]:
        """A state follows, or is the start: this worker's own, or one from which to rebuild a range."""
        span, sent = unpack_span(message.body[:_SPAN_SIZE]), message.body[_SPAN_SIZE:] == b"\1"
        if span != NO_SPAN:
            carry = self._carry_shape(span)
            start = self._start()
            self._rebuilding[span] = (
                _Arrival(message.generation, start, carry) if sent else start._replace(carry=self._start_carry(span))
            )
            return
        self.carries, self._rebuilding, self._carry_arriving, self._answered = {}, {}, {}, True
        self.state, self._fingerprint = RunState(()), None  # let go, so that two never lie side by side
        if sent:
            self._arrival = _Arrival(message.generation, self._start(), ())
        else:
            self.state, self.generation = self._start(), message.generation
            yield self._in_step()

    def _in_step(self) -> bytes:
        return self._reply(Message.READY, self._own_fingerprint().to_bytes(8, "little"))

    def _own_fingerprint(self) -> int:
        if self._fingerprint is None:
            self._fingerprint = fingerprint((self.state.parameters, self.state.optimizer, self.state.shared))
        return self._fingerprint

    def _piece(self, message: Received) -> Iterator[bytes]:
        piece = unpack_piece(message.body)
        if piece.span == NO_SPAN:
            if self._arrival is None:
                raise WireError("expected no state, got a piece of one; use one version of eggroll")
            self._arrival.trees[piece.tree].take(piece)
            if self._arrival.is_whole:
                self.generation, self.state = self._arrival.generation, self._arrival.state()._replace(carry=None)
                self._arrival = None
                yield self._in_step()
            return
        rebuilding = self._rebuilding.get(piece.span)
        if isinstance(rebuilding, _Arrival):
            rebuilding.trees[piece.tree].take(piece)
            if rebuilding.is_whole:
                self._rebuilding[piece.span] = rebuilding.state()
        elif piece.tree is Tree.CARRY:
            arriving = self._carry_arriving.setdefault(piece.span, Arriving(self._carry_shape(piece.span)))
            arriving.take(piece)
            if arriving.is_whole:
                self.carries[piece.span] = {message.generation: self._carry_arriving.pop(piece.span).tree()}

    # ── generations ──

    def _frame(self, message: Received) -> Iterator[bytes]:
        if message.generation != self.generation:
            raise WireError(f"expected generation {self.generation}, got {message.generation}; join the run again")
        self.state = self._moved(self.state, message.body, message.generation)[0]
        self.generation, self._fingerprint = self.generation + 1, None
        self._rebuilding, self._carry_arriving = {}, {}
        kept = {span: held[self.generation] for span, held in self.carries.items() if self.generation in held}
        self.carries = {span: {self.generation: carry} for span, carry in kept.items()}
        if not self._answered:  # nobody would hear whether this worker is still in step
            yield self._in_step()
        self._answered = False

    def _moved(self, state: RunState, frames: bytes, generation: int) -> tuple[RunState, np.ndarray]:
        """The state after a generation, and the generation's weights."""
        *before, last = split(frames)
        learner = self._job.learner
        fits = last.kind is WEIGHTS[learner.frames] and last.generation == generation
        if not fits or [frame.kind for frame in before] not in ([], [Kind.SHARED]):
            raise WireError(f"expected {learner.frames} weights of generation {generation}, got another frame")
        shared = unpack_shared(state.shared, before[0].payload if before else None)
        weights = decode_weights(last.kind, last.payload, learner.weights)
        parameters, optimizer, _ = learner.update(state.parameters, state.optimizer, weights, generation)
        return state._replace(parameters=parameters, optimizer=optimizer, shared=shared), weights

    def _work(self, message: Received) -> Iterator[bytes]:
        span = unpack_span(message.body)
        if message.generation != self.generation or self._arrival is not None:
            return  # the generation ended without it
        carry, missing = self._carry(span)
        if missing:
            yield self._reply(Message.NEED, pack_span(span))
            return
        kept = jax.tree.map(jnp.copy, carry)  # the evaluation may use its buffers up
        part = self._job.work.evaluate(self.state._replace(carry=carry), self.generation, *span)
        self.carries[span] = {self.generation: kept, self.generation + 1: part.carry}
        self._answered = True
        yield self._reply(Message.RESULT, pack_result(Result(span, self._own_fingerprint(), part.values, part.tally)))

    def _carry(self, span: Span) -> tuple[Any, bool]:
        """The carry of a range at this generation, and whether it is missing."""
        held = self.carries.get(span, {})
        if self._job.work.start_carry is None or self.generation in held:
            return held.get(self.generation), False
        return (None, True) if self.generation else (self._start_carry(span), False)

    def _start_carry(self, span: Span) -> Any:
        start = self._job.work.start_carry
        return None if start is None else start(*span)

    def _carry_shape(self, span: Span) -> Any:
        return described(self._start_carry(span))

    def _replay(self, message: Received) -> Iterator[bytes]:
        """One more generation of a range that is being rebuilt: evaluated, compared with what the run got, updated."""
        span = unpack_span(message.body[:_SPAN_SIZE])
        state = self._rebuilding.get(span)
        if not isinstance(state, RunState):
            return  # the generation ended without it
        part = self._job.work.evaluate(state, message.generation, *span)
        state, weights = self._moved(state, message.body[_SPAN_SIZE:], message.generation)
        own = weights[span.first : span.first + span.pairs]
        if self._job.learner.frames == "ternary" and not np.array_equal(part.values, own):
            raise WireError(
                f"expected pairs from {span.first:,} to evaluate in generation {message.generation} as the journal "
                "says, got other signs; this machine's data or versions are not those of the run"
            )
        self._rebuilding[span] = state._replace(carry=part.carry)
        if message.generation + 1 == self.generation:
            del self._rebuilding[span]
            self.carries[span] = {self.generation: part.carry}
        yield from ()

    def _collect(self, message: Received) -> Iterator[bytes]:
        span = unpack_span(message.body)
        if message.generation != self.generation:
            return
        carry, missing = self._carry(span)
        if missing:
            yield self._reply(Message.DROP, pack_span(span))
            return
        yield from stream(carry, Tree.CARRY, span, run=self.run, generation=self.generation)

    def _drop(self, message: Received) -> Iterator[bytes]:
        self.carries.pop(unpack_span(message.body), None)
        yield from ()

    def _bye(self, message: Received) -> Iterator[bytes]:
        raise DismissedError(f"the coordinator said: {shown(unpack_json(message.body).get('why'))}")
        yield b""

    def _reply(self, kind: Message, body: bytes) -> bytes:
        return pack(kind, self.run, self.generation, body)
