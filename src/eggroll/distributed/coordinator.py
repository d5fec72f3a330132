"""The coordinator of a fleet: what arrives from workers in, what is to be sent to them out. No socket, no clock.

A worker proves that it has the token, builds the job from the settings that it is sent, asks for the state, and says
that it is in step. From then on it is handed ranges, and each finished generation as the frame that the journal holds,
from which it makes its own update. Every answer carries a fingerprint of the state that it was made with: one of
another state does not count, and its worker is brought in step again.

A range of members that carry state stays with its worker. Whoever is given another's range says that it needs the
carry: it comes from the owner if that one is there, else the range is rebuilt, from the newest snapshot and the frames
since. A carry is never made up.
"""

from __future__ import annotations

import hmac
import secrets
from collections import deque
from collections.abc import Callable

from eggroll._version import __version__
from eggroll.distributed.carry import CarryDesk
from eggroll.distributed.peers import Fleet, History, Outbox, Output, Peer, Traffic
from eggroll.distributed.ranges import NOBODY, Book
from eggroll.distributed.streams import NO_SPAN
from eggroll.distributed.wire import (
    COUNTED,
    PROTOCOL,
    STRANGER_LIMIT,
    Message,
    Received,
    Result,
    Span,
    WireError,
    pack,
    pack_json,
    pack_span,
    proof,
    unpack_json,
    unpack_piece,
    unpack_result,
    unpack_span,
)
from eggroll.runs.folder import RunError, shown
from eggroll.runs.job import RunState

FIRST_LEASE = 12
"""A worker's first range may take so many times as long: it compiles."""
MOST_DEATHS = 32
"""Workers that may die over one range of one generation before the run ends."""
MOST_STEPS = 3
"""Times in a row that a worker is brought in step before it is sent away."""


class Coordinator:
    """See the module.

    Args:
      say: takes lines for a person.
    Attributes:
      closing: workers that are to be cut off once what is put out for them is sent, and why.
      fault: an error that ends the run, raised by whoever waits.
    """

    def __init__(self, fleet: Fleet, *, say: Callable[[str], None]) -> None:
        self.fleet, self.say = fleet, say
        self.book = Book(fleet.spans, sticky=fleet.carries)
        self.peers: dict[int, Peer] = {}
        self.closing: dict[int, str] = {}
        self.fault: RunError | None = None
        self.traffic = Traffic()
        self.outbox = Outbox(fleet.run, self.traffic)
        self.history = History(fleet, self.traffic)
        desk = (fleet, self.book, self.peers, self.outbox, self.history, self.traffic, self._lease)
        self.carry = CarryDesk(*desk)
        self.results: dict[int, Result] = {}
        self._fingerprint: int | None = None
        self._last_fingerprint: int | None = None  # of the generation before
        self._unverified: list[tuple[int, Callable[[float], None]]] = []  # what workers said before it was known
        self._state: RunState | None = None  # at the generation, once the fingerprint is known
        self._deaths: dict[int, int] = {}
        self._usual = 0.0  # seconds from hand-out to answer
        self._running = False
        self._handlers = {
            Message.HELLO: self._hello,
            Message.NEED: self._need,
            Message.READY: self._ready,
            Message.RESULT: self._result,
            Message.PIECE: self._piece,
            Message.DROP: self._not_here,
            Message.BYE: self._bye,
        }

    @property
    def generation(self) -> int:
        """That is evaluated now."""
        return self.outbox.generation

    @property
    def out(self) -> deque[Output]:
        """What is to be sent, in order; the transport takes it out."""
        return self.outbox.out

    # ── what the transport tells ──

    def connected(self, number: int) -> None:
        """A connection; `number` was never used before."""
        peer = self.peers[number] = Peer(number, secrets.token_bytes(16))
        self.outbox.send(peer, Message.CHALLENGE, peer.nonce)

    def limit(self, number: int) -> int:
        """Most bytes of a message from this connection."""
        return STRANGER_LIMIT if self.peers[number].stage == "stranger" else 2**26

    def received(self, number: int, message: Received, size: int, now: float) -> None:
        """A message of `size` bytes.

        Raises:
          WireError: it is none that may come now; the connection is to be closed.
        """
        peer = self.peers[number]
        if peer.stage == "dismissed":
            return
        handler = self._handlers.get(message.kind)
        strange = (peer.stage == "stranger") != (message.kind is Message.HELLO)
        if handler is None or (strange and message.kind is not Message.BYE):
            raise WireError(f"expected no {message.kind.name} from a {peer.stage}, got one; use one version of eggroll")
        if message.kind is not Message.HELLO and message.run != self.fleet.run:
            raise WireError(f"expected messages of run {self.fleet.run:016x}, got {message.run:016x}; join that run")
        if message.kind in COUNTED:
            peer.up += size
        elif message.kind is Message.PIECE:
            self.traffic.carry_bytes += size
        else:
            self.traffic.state_bytes += size
        self.book.alive(number)
        handler(peer, message, now)

    def closed(self, number: int, why: str, now: float) -> None:
        """A connection is gone, or to be given up."""
        peer = self.peers.pop(number, None)
        if peer is None:
            return
        if peer.stage == "ready":
            self.traffic.lost_workers += 1
            self.say(f"worker {peer.name} left: {why}")
        for index in self.book.leave(number):
            self._deaths[index] = self._deaths.get(index, 0) + 1
            if self._deaths[index] >= MOST_DEATHS:
                self.fault = self.fault or RunError(
                    f"expected some worker to evaluate pairs from {self.fleet.spans[index].first:,}, got "
                    f"{self._deaths[index]} that died over it; see the workers' own words, then go on with --resume"
                )
        self.carry.forget(number, now)
        self._hand_out_free(now)

    def tick(self, now: float) -> None:
        """Time has passed: leases that ran out."""
        for index, number in self.book.expire(now):
            peer, span = self.peers.get(number), self.fleet.spans[index]
            name = peer.name if peer is not None else number
            self.say(
                f"worker {name} is late with pairs {span.first:,} to {span.first + span.pairs - 1:,}; others get them"
            )
        self.carry.tick(now)
        self._hand_out_free(now)

    # ── what the run tells ──

    @property
    def ready(self) -> int:
        """Workers that are in step."""
        return sum(peer.stage == "ready" for peer in self.peers.values())

    def open(self, generation: int, state: RunState, fingerprint: int, now: float, *, fresh: bool) -> None:
        """The run stands at this generation with this state, which workers may now ask for.

        Args:
          fresh: the state is that at the start, which workers make by themselves.
        """
        self.outbox.generation = generation
        self.history.rebase(generation, None if fresh else lambda: state)
        self.expect(fingerprint, state, now)
        for peer in self.peers.values():
            if peer.stage == "syncing":
                self._synchronise(peer)

    def begin(self, now: float) -> None:
        """Hand ranges out from now on."""
        self._running = True
        self._hand_out_all(now)

    def expect(self, fingerprint: int, state: RunState, now: float) -> None:
        """The fingerprint of the state of this generation, which answers must carry; and that state."""
        self._fingerprint, self._state = fingerprint, state
        waiting, self._unverified = self._unverified, []
        for number, then in waiting:
            if number in self.peers:
                then(now)
        self._hand_out_all(now)  # to those whose answers have waited

    def is_complete(self) -> bool:
        """Whether every range of the generation has its answer."""
        return self.book.left == 0

    def finish(self, frames: bytes, now: float, *, more: bool) -> dict[str, int]:
        """The generation's frames are on the disk; returns its traffic.

        Args:
          frames: as the journal holds them.
          more: another generation follows, for which ranges may be handed out.
        """
        self.history.frames.append(frames)
        message = pack(Message.FRAME, self.fleet.run, self.generation, frames)
        known = [peer for peer in self.peers.values() if peer.stage in ("ready", "syncing")]
        for peer in known:
            self.outbox.send_packed(peer, Message.FRAME, message)
        traffic = {
            "wire_up_bytes": max((peer.up for peer in known), default=0),
            "wire_down_bytes": max((peer.down for peer in known), default=0),
        }
        for peer in self.peers.values():
            peer.up = peer.down = 0
        self.outbox.generation += 1
        self._last_fingerprint = self._fingerprint
        self._running, self._fingerprint, self._state = more, None, None
        self.results, self._unverified, self._deaths = {}, [], {}
        self.carry.start()
        self.book.start()
        self._hand_out_all(now)
        return traffic

    def rebase(self, load: Callable[[], RunState]) -> None:
        """A snapshot of this generation is on the disk, from which whoever joins later starts."""
        self.history.rebase(self.generation, load)

    def dismiss(self, why: str) -> None:
        """Send everybody away."""
        for peer in list(self.peers.values()):
            self._send_away(peer, why)

    # ── joining ──

    def _hello(self, peer: Peer, message: Received, now: float) -> None:
        hello = unpack_json(message.body)
        given, theirs, name = (hello.get(key) for key in ("proof", "nonce", "name"))
        if not all(isinstance(value, str) for value in (given, theirs, name)):
            raise WireError(f"expected a HELLO with proof, nonce and name, got {shown(hello)}; use one version")
        if not hmac.compare_digest(str(given), proof(self.fleet.token, peer.nonce, "worker")):
            raise WireError("expected a worker with this run's token, got another; give it the same EGGROLL_TOKEN")
        if (hello.get("protocol"), hello.get("eggroll")) != (PROTOCOL, __version__):
            raise WireError(
                f"expected eggroll {__version__} with protocol {PROTOCOL}, got {shown(hello.get('eggroll'))} with "
                f"{shown(hello.get('protocol'))}; install one version everywhere"
            )
        peer.name, peer.stage = str(name)[:80], "building"
        proven = {"proof": proof(self.fleet.token, str(theirs).encode(), "coordinator")}
        self.outbox.send(peer, Message.WELCOME, pack_json(self.fleet.welcome | proven))

    def _need(self, peer: Peer, message: Received, now: float) -> None:
        span = unpack_span(message.body)
        if span == NO_SPAN:
            peer.stage = "syncing"
            if self.history.base is not None:
                self._synchronise(peer)
        elif message.generation == self.generation:
            self.carry.need(peer, self._index(span), now)

    def _synchronise(self, peer: Peer) -> None:
        """Send the newest base and the frames since, or the state itself; what is finished later follows of itself."""
        state = self._state
        if state is not None and self.history.outweighs(state):
            self.outbox.stream(peer, self.history.state_messages(self.generation, lambda: state, NO_SPAN))
            return
        self.outbox.stream(peer, self.history.messages(NO_SPAN))
        for generation, frames in self.history.numbered():
            self.outbox.send(peer, Message.FRAME, frames, generation)

    def _ready(self, peer: Peer, message: Received, now: float) -> None:
        if len(message.body) != 8:
            raise WireError(f"expected a fingerprint of 8 bytes, got {len(message.body)}; use one version of eggroll")
        found, current = int.from_bytes(message.body, "little"), message.generation == self.generation
        if current and self._fingerprint is not None:
            self._verify(peer, found, lambda now: self._take_in(peer, now), now)
            return
        if current:
            self._verify(peer, found, lambda now: None, now)
        self._take_in(peer, now)

    def _take_in(self, peer: Peer, now: float) -> None:
        peer.stage = "ready"
        self.book.join(peer.number)
        self._hand_out(peer, now)

    def _out_of_step(self, peer: Peer, now: float) -> None:
        """Its state is not that of the run: it gets that of the coordinator, and nothing that it has counts."""
        state = self._state
        if state is None or peer.stage not in ("ready", "syncing"):
            return
        self.traffic.resynchronised += 1
        peer.steps += 1
        if peer.steps > MOST_STEPS:
            self.say(f"worker {peer.name} has other parameters again and is sent away")
            self._send_away(peer, f"expected a worker in step after {MOST_STEPS} times, got another state again")
            return
        self.say(f"worker {peer.name} has other parameters at generation {self.generation}; it is brought in step")
        self.book.leave(peer.number)
        self.carry.forget(peer.number, now)
        peer.stage, peer.asked = "syncing", {}
        messages = self.history.state_messages(self.generation, lambda: state, NO_SPAN)
        self.outbox.stream(peer, messages)
        self._hand_out_free(now)

    def _send_away(self, peer: Peer, why: str) -> None:
        self.outbox.send(peer, Message.BYE, pack_json({"why": why}))
        peer.stage, self.closing[peer.number] = "dismissed", why

    def _bye(self, peer: Peer, message: Received, now: float) -> None:
        raise WireError(f"it said: {shown(unpack_json(message.body).get('why'))}")

    # ── ranges ──

    def _hand_out_all(self, now: float) -> None:
        for number in list(self.book.idle):
            if number in self.peers:
                self._hand_out(self.peers[number], now)

    def _hand_out_free(self, now: float) -> None:
        """What has become anybody's; nothing to do, at any number of workers, where nothing has."""
        if self._running and self.book.has_free:
            self._hand_out_all(now)

    def _hand_out(self, peer: Peer, now: float) -> None:
        while self._running and peer.stage == "ready":
            index = self.book.next_for(peer.number, now + self._lease(peer))
            if index is None:
                return
            peer.asked[index] = now
            self.outbox.send(peer, Message.WORK, pack_span(self.fleet.spans[index]))

    def _lease(self, peer: Peer) -> float:
        """Three times what a range takes the fleet from hand-out to answer, and at least what the run was told."""
        least = self.fleet.lease_seconds
        return max(least, 3 * self._usual) if peer.has_answered and self._usual else FIRST_LEASE * least

    def _index(self, span: Span) -> int:
        index = self.book.index.get(span)
        if index is None:
            raise WireError(f"expected one of the run's ranges, got {span.pairs:,} pairs from {span.first:,}")
        return index

    def _result(self, peer: Peer, message: Received, now: float) -> None:
        result = unpack_result(message.body, self.fleet.pairs)
        index = self._index(result.span)
        if message.generation > self.generation:
            raise WireError(f"expected results of generation {self.generation}, got {message.generation}")
        if peer.stage != "ready":
            return  # on its way when the worker was found out of step
        if message.generation < self.generation:
            self._too_late(peer, message.generation, result, now)
        else:
            self._verify(peer, result.fingerprint, lambda now: self._count(peer, index, result, now), now)
        self._hand_out(peer, now)

    def _too_late(self, peer: Peer, generation: int, result: Result, now: float) -> None:
        """It does not count any more; that of the last generation still tells whether its worker is in step."""
        self.book.duplicates += 1
        if generation == self.generation - 1 and result.fingerprint != self._last_fingerprint:
            self._once_known(peer, lambda now: self._out_of_step(peer, now), now)

    def _verify(self, peer: Peer, found: int, then: Callable[[float], None], now: float) -> None:
        """Go on where a worker's state is the run's."""

        def judge(now: float) -> None:
            if found == self._fingerprint:
                peer.steps = 0
                then(now)
            else:
                self._out_of_step(peer, now)

        self._once_known(peer, judge, now)

    def _once_known(self, peer: Peer, then: Callable[[float], None], now: float) -> None:
        """At once where the state of this generation is known, else when the run has made its update."""
        if self._fingerprint is None:
            self._unverified.append((peer.number, then))
        else:
            then(now)

    def _count(self, peer: Peer, index: int, result: Result, now: float) -> None:
        """An answer counts where it is the first."""
        begun = peer.asked.pop(index, None)
        if begun is not None and peer.has_answered:  # the first, for which it compiles, is no measure
            self._usual = 0.95 * self._usual + 0.05 * (now - begun) if self._usual else now - begun
        peer.has_answered = True
        before = self.book.keeper[index]
        if not self.book.answer(index, peer.number):
            return
        self.results[index] = result
        if before not in (NOBODY, peer.number) and before in self.peers:
            self.outbox.send(self.peers[before], Message.DROP, pack_span(result.span))

    # ── carry ──

    def _piece(self, peer: Peer, message: Received, now: float) -> None:
        piece = unpack_piece(message.body)
        index = self._index(piece.span)
        if message.generation == self.generation:
            self.carry.take(peer, index, piece)

    def _not_here(self, peer: Peer, message: Received, now: float) -> None:
        index = self._index(unpack_span(message.body))
        if message.generation == self.generation:
            self.carry.not_here(peer, index, now)
