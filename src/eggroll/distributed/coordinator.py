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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from eggroll._version import __version__
from eggroll.distributed.ranges import NOBODY, Book
from eggroll.distributed.streams import NO_SPAN, Arriving, described, stream
from eggroll.distributed.wire import (
    COUNTED,
    PROTOCOL,
    STRANGER_LIMIT,
    Message,
    Received,
    Result,
    Span,
    Tree,
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
from eggroll.runs.job import RangeWork, RunState

FIRST_LEASE = 12
"""A worker's first range may take so many times as long: it compiles."""
MOST_DEATHS = 32
"""Workers that may die over one range of one generation before the run ends."""
MOST_STEPS = 3
"""Times in a row that a worker is brought in step before it is sent away."""

Output = tuple[int, bytes | Iterator[bytes]]


@dataclass(frozen=True)
class Fleet:
    """What a coordinator needs to know of the run.

    Args:
      run: `wire.run_number` of the journal's header.
      pairs: of the population.
      spans: its ranges.
      work: for the carry's shape and parts.
      welcome: JSON for workers: header, settings, checks of the data.
      token: that workers must have.
      lease_seconds: after which a range is given to another worker too, at least.
    """

    run: int
    pairs: int
    spans: list[Span]
    work: RangeWork
    welcome: dict[str, Any]
    token: bytes
    lease_seconds: float = 10.0

    @property
    def carries(self) -> bool:
        """Whether members carry state."""
        return self.work.start_carry is not None


@dataclass(slots=True)
class Peer:
    """A worker as the coordinator knows it."""

    number: int
    nonce: bytes
    name: str = ""
    stage: str = "stranger"  # "building", "syncing", "ready", "dismissed"
    seconds: float = 0.0  # of its last range; 0: none yet
    asked: dict[int, float] = field(default_factory=dict)  # range → when it was leased
    steps: int = 0  # times in a row that it was out of step
    up: int = 0  # bytes since the last generation ended, each way
    down: int = 0


@dataclass
class Traffic:
    """Bytes and events since the start of the run."""

    state_bytes: int = 0  # parameters and optimiser, to workers that join or are out of step
    carry_bytes: int = 0  # of members, either way
    lost_workers: int = 0
    resynchronised: int = 0
    rebuilt_ranges: int = 0


class Coordinator:
    """See the module.

    Args:
      say: takes lines for a person.
    Attributes:
      out: (worker, bytes or an iterator of bytes), to be sent in order; the transport takes them out.
      closing: workers that are to be cut off once what is put out for them is sent, and why.
      fault: an error that ends the run, raised by whoever waits.
    """

    def __init__(self, fleet: Fleet, *, say: Callable[[str], None]) -> None:
        self.fleet, self.say = fleet, say
        self.book = Book(fleet.spans, sticky=fleet.carries)
        self.peers: dict[int, Peer] = {}
        self.out: deque[Output] = deque()
        self.closing: dict[int, str] = {}
        self.fault: RunError | None = None
        self.traffic = Traffic()
        self.generation = 0
        self.results: dict[int, Result] = {}
        self._fingerprint: int | None = None
        self._unverified: list[tuple[int, Callable[[float], None]]] = []  # what workers said before it was known
        self._base: tuple[int, Callable[[], RunState] | None] | None = None
        self._state: RunState | None = None  # at the generation, once the fingerprint is known
        self._frames: deque[bytes] = deque()  # of the generations since the base
        self._deaths: dict[int, int] = {}
        self._moving: dict[int, int] = {}  # range → the worker that needs its carry
        self._collected: dict[int, Any] | None = None  # while the run waits for it
        self._asked: dict[int, tuple[int, float]] = {}  # range → whose carry was asked for, until when
        self._arriving: dict[tuple[int, int], Arriving] = {}
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

    # ── what the transport tells ──

    def connected(self, number: int) -> None:
        """A connection; `number` was never used before."""
        peer = self.peers[number] = Peer(number, secrets.token_bytes(16))
        self._send(peer, Message.CHALLENGE, peer.nonce)

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
        self._forget_carry(number, now)
        self._hand_out_all(now)

    def _forget_carry(self, number: int, now: float) -> None:
        """Whoever waits for a carry of this worker gets it in another way."""
        for key in [key for key in self._arriving if key[0] == number]:
            del self._arriving[key]
        for index in [index for index, (source, _) in self._asked.items() if source == number]:
            self._carry_elsewhere(index, now)
        self._moving = {index: to for index, to in self._moving.items() if to != number}

    def _carry_elsewhere(self, index: int, now: float) -> None:
        """The one who was asked for a carry has not given it."""
        self.book.disown(index)
        del self._asked[index]
        needy = self.peers.get(self._moving.pop(index, NOBODY))
        if needy is not None:
            self._rebuild(needy, index)
            self._send(needy, Message.WORK, pack_span(self.fleet.spans[index]))
        if self._collected is not None and index not in self._collected:
            self._ask_carry(index, now)

    def tick(self, now: float) -> None:
        """Time has passed: leases that ran out."""
        for index, number in self.book.expire(now):
            peer, span = self.peers.get(number), self.fleet.spans[index]
            name = peer.name if peer is not None else number
            self.say(
                f"worker {name} is late with pairs {span.first:,} to {span.first + span.pairs - 1:,}; others get them"
            )
        for index, (number, until) in list(self._asked.items()):
            if until <= now:
                self.book.late.add(number)
                self._carry_elsewhere(index, now)
        self._hand_out_all(now)

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
        self.generation, self._base = generation, (generation, None if fresh else lambda: state)
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
        for number, verify in waiting:
            if number in self.peers:
                verify(now)

    def is_complete(self) -> bool:
        """Whether every range of the generation has its answer."""
        return self.book.left == 0

    def finish(self, frames: bytes, now: float, *, more: bool) -> dict[str, int]:
        """The generation's frames are on the disk; returns its traffic.

        Args:
          frames: as the journal holds them.
          more: another generation follows, for which ranges may be handed out.
        """
        self._frames.append(frames)
        message = pack(Message.FRAME, self.fleet.run, self.generation, frames)
        known = [peer for peer in self.peers.values() if peer.stage in ("ready", "syncing")]
        for peer in known:
            self._send_packed(peer, Message.FRAME, message)
        traffic = {
            "wire_up_bytes": max((peer.up for peer in known), default=0),
            "wire_down_bytes": max((peer.down for peer in known), default=0),
        }
        for peer in self.peers.values():
            peer.up = peer.down = 0
        self.generation += 1
        self._running, self._fingerprint, self._state = more, None, None
        self.results, self._unverified, self._deaths = {}, [], {}
        self._moving, self._asked, self._arriving = {}, {}, {}
        self.book.start()
        self._hand_out_all(now)
        return traffic

    def rebase(self, load: Callable[[], RunState]) -> None:
        """A snapshot of this generation is on the disk, from which whoever joins later starts."""
        self._base = (self.generation, load)
        self._frames.clear()

    def collect(self, now: float) -> None:
        """Ask for the carry of all ranges at this generation; see `collected`."""
        self._collected = {}
        for index in range(len(self.fleet.spans)):
            if index not in self._asked:
                self._ask_carry(index, now)

    @property
    def has_collected(self) -> bool:
        """Whether the carry of every range is here."""
        return self._collected is not None and len(self._collected) == len(self.fleet.spans)

    def collected(self) -> list[Any]:
        """The carries of all ranges in order, handed over once."""
        found, self._collected = self._collected or {}, None
        return [found[index] for index in range(len(self.fleet.spans))]

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
        peer.name, peer.stage = f"{str(name)[:80]!s}", "building"
        proven = {"proof": proof(self.fleet.token, str(theirs).encode(), "coordinator")}
        self._send(peer, Message.WELCOME, pack_json(self.fleet.welcome | proven))

    def _need(self, peer: Peer, message: Received, now: float) -> None:
        span = unpack_span(message.body)
        if span == NO_SPAN:
            peer.stage = "syncing"
            if self._base is not None:
                self._synchronise(peer)
        elif message.generation == self.generation:
            self._need_carry(peer, self._index(span), now)

    def _synchronise(self, peer: Peer) -> None:
        """Send the newest base and the frames since; what is finished from now on follows of itself."""
        assert self._base is not None
        generation, load = self._base
        self._send_out(peer.number, self._state_messages(generation, load, NO_SPAN))
        for offset, frames in enumerate(self._frames):
            self._send(peer, Message.FRAME, frames, generation + offset)

    def _state_messages(self, generation: int, load: Callable[[], RunState] | None, span: Span) -> Iterator[bytes]:
        """SYNC, and the pieces of the state where it is not the start, which workers make by themselves."""
        run, work = self.fleet.run, self.fleet.work
        yield pack(Message.SYNC, run, generation, pack_span(span) + bytes([load is not None]))
        if load is None:
            return
        state = load()
        trees = [(Tree.PARAMETERS, state.parameters), (Tree.OPTIMIZER, state.optimizer), (Tree.SHARED, state.shared)]
        if span != NO_SPAN:
            trees.append((Tree.CARRY, work.cut(state.carry, *span)))
        for tree, value in trees:
            for data in stream(value, tree, span, run=run, generation=generation):
                if tree is Tree.CARRY:
                    self.traffic.carry_bytes += len(data)
                else:
                    self.traffic.state_bytes += len(data)
                yield data

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
        if self._state is None or peer.stage not in ("ready", "syncing"):
            return
        self.traffic.resynchronised += 1
        peer.steps += 1
        if peer.steps > MOST_STEPS:
            self.say(f"worker {peer.name} has other parameters again and is sent away")
            self._send_away(peer, f"expected a worker in step after {MOST_STEPS} times, got another state again")
            return
        self.say(f"worker {peer.name} has other parameters at generation {self.generation}; it is brought in step")
        self.book.leave(peer.number)
        self._forget_carry(peer.number, now)
        peer.stage, peer.asked = "syncing", {}
        state = self._state
        self._send_out(peer.number, self._state_messages(self.generation, lambda: state or RunState(()), NO_SPAN))
        self._hand_out_all(now)

    def _send_away(self, peer: Peer, why: str) -> None:
        self._send(peer, Message.BYE, pack_json({"why": why}))
        peer.stage, self.closing[peer.number] = "dismissed", why

    def _bye(self, peer: Peer, message: Received, now: float) -> None:
        raise WireError(f"it said: {shown(unpack_json(message.body).get('why'))}")

    # ── ranges ──

    def _hand_out_all(self, now: float) -> None:
        for peer in self.peers.values():
            self._hand_out(peer, now)

    def _hand_out(self, peer: Peer, now: float) -> None:
        while self._running and peer.stage == "ready":
            index = self.book.next_for(peer.number, now + self._lease(peer))
            if index is None:
                return
            peer.asked[index] = now
            self._send(peer, Message.WORK, pack_span(self.fleet.spans[index]))

    def _lease(self, peer: Peer) -> float:
        least = self.fleet.lease_seconds
        return max(least, 4 * self.book.depth * peer.seconds) if peer.seconds else FIRST_LEASE * least

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
            self.book.duplicates += 1
        else:
            self._verify(peer, result.fingerprint, lambda now: self._count(peer, index, result, now), now)
        self._hand_out(peer, now)

    def _verify(self, peer: Peer, found: int, then: Callable[[float], None], now: float) -> None:
        """Go on where a worker's state is the run's; wait where the run's is not known yet."""
        if self._fingerprint is None:
            self._unverified.append((peer.number, lambda now: self._verify(peer, found, then, now)))
        elif found == self._fingerprint:
            peer.steps = 0
            then(now)
        else:
            self._out_of_step(peer, now)

    def _count(self, peer: Peer, index: int, result: Result, now: float) -> None:
        """An answer counts where it is the first."""
        begun = peer.asked.pop(index, None)
        if begun is not None and now > begun:
            peer.seconds = (now - begun) if not peer.seconds else 0.7 * peer.seconds + 0.3 * (now - begun)
        before = self.book.keeper[index]
        if not self.book.answer(index, peer.number):
            return
        self.results[index] = result
        if before not in (NOBODY, peer.number) and before in self.peers:
            self._send(self.peers[before], Message.DROP, pack_span(result.span))

    # ── carry ──

    def _need_carry(self, peer: Peer, index: int, now: float) -> None:
        """A worker was handed a range whose members' carry it does not have."""
        self.book.extend(peer.number, index, now + FIRST_LEASE * self._lease(peer))
        source = self._keeper(index)
        if source is None or source is peer:
            self._rebuild(peer, index)
            self._send(peer, Message.WORK, pack_span(self.fleet.spans[index]))
            return
        self._moving[index] = peer.number
        if index not in self._asked:
            self._ask(source, index, now)

    def _keeper(self, index: int) -> Peer | None:
        """The worker that has a range's carry, if it can be asked for it."""
        peer = self.peers.get(self.book.keeper[index])
        return peer if peer is not None and peer.stage == "ready" and peer.number not in self.book.late else None

    def _not_here(self, peer: Peer, message: Received, now: float) -> None:
        index = self._index(unpack_span(message.body))
        if message.generation == self.generation and self._asked.get(index, (NOBODY, 0.0))[0] == peer.number:
            self._carry_elsewhere(index, now)

    def _ask(self, source: Peer, index: int, now: float) -> None:
        self._asked[index] = (source.number, now + FIRST_LEASE * self._lease(source))
        self._send(source, Message.COLLECT, pack_span(self.fleet.spans[index]))

    def _ask_carry(self, index: int, now: float) -> None:
        """Ask for a range's carry: its owner, or a worker that rebuilds it first; later where there is none."""
        source = self._keeper(index)
        if source is None:
            ready = [p for p in self.peers.values() if p.stage == "ready" and p.number not in self.book.late]
            if not ready:
                self._asked[index] = (NOBODY, now + self.fleet.lease_seconds)
                return
            source = ready[index % len(ready)]
            self._rebuild(source, index)
        self._ask(source, index, now)

    def _rebuild(self, peer: Peer, index: int) -> None:
        """Have a worker make a range's carry again, from the base and the frames since."""
        assert self._base is not None
        span, (generation, load) = self.fleet.spans[index], self._base
        if load is not None and not self._frames:  # the base is where the run stands: the carry itself will do
            self._send_out(peer.number, self._carry_messages(lambda: self.fleet.work.cut(load().carry, *span), span))
            return
        self.traffic.rebuilt_ranges += 1
        self._send_out(peer.number, self._state_messages(generation, load, span))
        for offset, frames in enumerate(self._frames):
            self._send(peer, Message.REPLAY, pack_span(span) + frames, generation + offset)

    def _carry_messages(self, carry: Callable[[], Any], span: Span) -> Iterator[bytes]:
        generation = self.generation
        for data in stream(carry(), Tree.CARRY, span, run=self.fleet.run, generation=generation):
            self.traffic.carry_bytes += len(data)
            yield data

    def _piece(self, peer: Peer, message: Received, now: float) -> None:
        """A part of a carry that was asked for."""
        piece = unpack_piece(message.body)
        index = self._index(piece.span)
        self.traffic.carry_bytes += len(message.body)
        if message.generation != self.generation or self._asked.get(index, (NOBODY, 0.0))[0] != peer.number:
            return  # of an earlier generation, or given by another one meanwhile
        key = (peer.number, index)
        if key not in self._arriving:
            self._arriving[key] = Arriving(self._carry_shape(piece.span))
        self._arriving[key].take(piece)
        if self._arriving[key].is_whole:
            self._carry_is_here(index, self._arriving.pop(key).tree())

    def _carry_shape(self, span: Span) -> Any:
        assert self.fleet.work.start_carry is not None
        return described(self.fleet.work.start_carry(*span))

    def _carry_is_here(self, index: int, carry: Any) -> None:
        del self._asked[index]
        needy = self.peers.get(self._moving.pop(index, NOBODY))
        if needy is not None:
            span = self.fleet.spans[index]
            self._send_out(needy.number, self._carry_messages(lambda: carry, span))
            self._send(needy, Message.WORK, pack_span(span))
        if self._collected is not None:
            self._collected[index] = carry

    # ── sending ──

    def _send(self, peer: Peer, kind: Message, body: bytes, generation: int | None = None) -> None:
        at = self.generation if generation is None else generation
        self._send_packed(peer, kind, pack(kind, self.fleet.run, at, body))

    def _send_packed(self, peer: Peer, kind: Message, data: bytes) -> None:
        if kind in COUNTED:
            peer.down += len(data)
        self._send_out(peer.number, data)

    def _send_out(self, number: int, data: bytes | Iterator[bytes]) -> None:
        self.out.append((number, data))
