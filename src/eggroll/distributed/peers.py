"""What a coordinator knows and puts out: the run, its workers, its past, messages, and what it has counted."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import jax

from eggroll.distributed.streams import NO_SPAN, stream
from eggroll.distributed.wire import COUNTED, Message, Span, Tree, pack, pack_span
from eggroll.runs.job import RangeWork, RunState


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
    has_answered: bool = False
    asked: dict[int, float] = field(default_factory=dict)  # range → when it was leased
    steps: int = 0  # times in a row that it was out of step
    up: int = 0  # bytes since the last generation ended, each way
    down: int = 0


@dataclass
class Traffic:
    """Bytes and events since the start of the run."""

    state_bytes: int = 0  # parameters, optimiser and past frames, for workers that join, rebuild or are out of step
    carry_bytes: int = 0  # of members, either way
    lost_workers: int = 0
    resynchronised: int = 0
    rebuilt_ranges: int = 0


Output = tuple[int, bytes | Iterator[bytes]]


class Outbox:
    """What is put out for workers, in order; the transport takes it out.

    Attributes:
      out: (worker, bytes, or an iterator of the bytes of messages that are made when they are asked for).
      generation: that messages are of, unless they say another.
    """

    def __init__(self, run: int, traffic: Traffic) -> None:
        self.out: deque[Output] = deque()
        self.run, self.generation, self._traffic = run, 0, traffic

    def send(self, peer: Peer, kind: Message, body: bytes, generation: int | None = None) -> None:
        """Pack a message and put it out."""
        self.send_packed(peer, kind, pack(kind, self.run, self.generation if generation is None else generation, body))

    def send_packed(self, peer: Peer, kind: Message, data: bytes) -> None:
        """Put out a message that several workers get, packed once."""
        if kind in COUNTED:
            peer.down += len(data)
        else:
            self._traffic.state_bytes += len(data)
        self.out.append((peer.number, data))

    def stream(self, peer: Peer, messages: Iterator[bytes]) -> None:
        """Put out messages that count themselves."""
        self.out.append((peer.number, messages))


class History:
    """From what whoever joins starts, or rebuilds a range: a base and the frames since.

    Attributes:
      base: the base's generation.
      load: makes its state; None: it is the start, which workers make by themselves.
      frames: of the generations since.
    """

    def __init__(self, fleet: Fleet, traffic: Traffic) -> None:
        self._fleet, self._traffic = fleet, traffic
        self.base: int | None = None
        self.load: Callable[[], RunState] | None = None
        self.frames: deque[bytes] = deque()

    def rebase(self, generation: int, load: Callable[[], RunState] | None) -> None:
        """A later base; the frames before it are not needed any more."""
        self.base, self.load = generation, load
        self.frames.clear()

    def numbered(self) -> Iterator[tuple[int, bytes]]:
        """The frames since the base, each with its generation."""
        return enumerate(self.frames, start=self.base or 0)

    def outweighs(self, state: RunState) -> bool:
        """Whether the frames since the base, and the updates that they cost, are more than the state itself."""
        leaves = jax.tree.leaves((state.parameters, state.optimizer, state.shared))
        return sum(leaf.nbytes for leaf in leaves) < 4 * sum(map(len, self.frames))

    def messages(self, span: Span) -> Iterator[bytes]:
        """The base for a worker: for itself, or for the range that it is to rebuild."""
        return self.state_messages(self.base or 0, self.load, span)

    def state_messages(self, generation: int, load: Callable[[], RunState] | None, span: Span) -> Iterator[bytes]:
        """SYNC, and the pieces of the state where it is not the start."""
        run = self._fleet.run
        yield pack(Message.SYNC, run, generation, pack_span(span) + bytes([load is not None]))
        if load is None:
            return
        state = load()
        trees = [(Tree.PARAMETERS, state.parameters), (Tree.OPTIMIZER, state.optimizer), (Tree.SHARED, state.shared)]
        for tree, value in trees:
            for data in stream(value, tree, span, run=run, generation=generation):
                self._traffic.state_bytes += len(data)
                yield data
        if span != NO_SPAN:
            yield from self.carry_messages(lambda: self._fleet.work.cut(state.carry, *span), span, generation)

    def carry_messages(self, carry: Callable[[], Any], span: Span, generation: int) -> Iterator[bytes]:
        """The pieces of a range's carry, which is made when the first is asked for."""
        for data in stream(carry(), Tree.CARRY, span, run=self._fleet.run, generation=generation):
            self._traffic.carry_bytes += len(data)
            yield data
