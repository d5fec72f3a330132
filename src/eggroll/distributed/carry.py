"""Whose carry is where: moved with its range, collected for snapshots, rebuilt where it is lost; never made up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from eggroll.distributed.peers import Fleet, History, Outbox, Peer, Traffic
from eggroll.distributed.ranges import NOBODY, Book
from eggroll.distributed.streams import Arriving, described
from eggroll.distributed.wire import Message, Piece, Span, pack_span

PATIENCE = 12
"""Whoever is asked for a carry, or rebuilds one, may take so many leases."""


class CarryDesk:
    """See the module.

    Args:
      lease: seconds that a worker may take for a range.
    """

    def __init__(
        self,
        fleet: Fleet,
        book: Book,
        peers: dict[int, Peer],
        outbox: Outbox,
        history: History,
        traffic: Traffic,
        lease: Callable[[Peer], float],
    ) -> None:
        self._fleet, self._book, self._peers, self._lease = fleet, book, peers, lease
        self._outbox, self._history, self._traffic = outbox, history, traffic
        self._collected: dict[int, Any] | None = None  # while the run waits for it
        self.start()

    def start(self) -> None:
        """A new generation: what was asked for in the last one is not waited for."""
        self._moving: dict[int, int] = {}  # range → the worker that needs its carry
        self._asked: dict[int, tuple[int, float]] = {}  # range → whose carry was asked for, until when
        self._arriving: dict[tuple[int, int], Arriving] = {}

    # ── for a snapshot ──

    def collect(self, now: float) -> None:
        """Ask for the carry of all ranges at this generation; see `collected`."""
        self._collected = {}
        for index in range(len(self._fleet.spans)):
            if index not in self._asked:
                self._ask_somebody(index, now)

    @property
    def has_collected(self) -> bool:
        """Whether the carry of every range is here."""
        return self._collected is not None and len(self._collected) == len(self._fleet.spans)

    def collected(self) -> list[Any]:
        """The carries of all ranges in order, handed over once."""
        found, self._collected = self._collected or {}, None
        return [found[index] for index in range(len(self._fleet.spans))]

    def _ask_somebody(self, index: int, now: float) -> None:
        """Its keeper, or a worker that rebuilds it first; later where there is none."""
        source = self._keeper(index)
        if source is None:
            ready = [peer for peer in self._peers.values() if self._is_there(peer)]
            if not ready:
                self._asked[index] = (NOBODY, now + self._fleet.lease_seconds)
                return
            source = ready[index % len(ready)]
            self._rebuild(source, index)
        self._ask(source, index, now)

    # ── for a worker ──

    def need(self, peer: Peer, index: int, now: float) -> None:
        """A worker was handed a range whose members' carry it does not have."""
        self._book.extend(peer.number, index, now + PATIENCE * self._lease(peer))
        source = self._keeper(index)
        if source is None or source is peer:
            self._rebuild(peer, index)
            self._work(peer, index)
            return
        self._moving[index] = peer.number
        if index not in self._asked:
            self._ask(source, index, now)

    def _is_there(self, peer: Peer) -> bool:
        return peer.stage == "ready" and peer.number not in self._book.late

    def _keeper(self, index: int) -> Peer | None:
        """The worker that has a range's carry, if it can be asked for it."""
        peer = self._peers.get(self._book.keeper[index])
        return peer if peer is not None and self._is_there(peer) else None

    def _work(self, peer: Peer, index: int) -> None:
        self._outbox.send(peer, Message.WORK, pack_span(self._fleet.spans[index]))

    def _ask(self, source: Peer, index: int, now: float) -> None:
        self._asked[index] = (source.number, now + PATIENCE * self._lease(source))
        self._outbox.send(source, Message.COLLECT, pack_span(self._fleet.spans[index]))

    def _rebuild(self, peer: Peer, index: int) -> None:
        """Have a worker make a range's carry again, from the base and the frames since."""
        span, history = self._fleet.spans[index], self._history
        load = history.load
        if load is not None and not history.frames:  # the base is where the run stands: the carry itself will do
            self._send_carry(peer, lambda: self._fleet.work.cut(load().carry, *span), span)
            return
        self._traffic.rebuilt_ranges += 1
        self._outbox.stream(peer, history.messages(span))
        for generation, frames in history.numbered():
            self._outbox.send(peer, Message.REPLAY, pack_span(span) + frames, generation)

    def _send_carry(self, peer: Peer, carry: Callable[[], Any], span: Span) -> None:
        self._outbox.stream(peer, self._history.carry_messages(carry, span, self._outbox.generation))

    # ── what comes of it ──

    def _was_asked(self, peer: Peer, index: int) -> bool:
        return self._asked.get(index, (NOBODY, 0.0))[0] == peer.number

    def take(self, peer: Peer, index: int, piece: Piece) -> None:
        """A part of a carry; of one that was not asked for, or that another has given meanwhile, it is passed over.

        Raises:
          WireError: it is not the part that comes next.
        """
        if not self._was_asked(peer, index):
            return
        key = (peer.number, index)
        if key not in self._arriving:
            assert self._fleet.work.start_carry is not None
            self._arriving[key] = Arriving(described(self._fleet.work.start_carry(*piece.span)))
        self._arriving[key].take(piece)
        if self._arriving[key].is_whole:
            self._is_here(index, self._arriving.pop(key).tree())

    def _is_here(self, index: int, carry: Any) -> None:
        del self._asked[index]
        needy = self._peers.get(self._moving.pop(index, NOBODY))
        if needy is not None:
            self._send_carry(needy, lambda: carry, self._fleet.spans[index])
            self._work(needy, index)
        if self._collected is not None:
            self._collected[index] = carry

    def not_here(self, peer: Peer, index: int, now: float) -> None:
        """A worker does not have the carry that it was asked for."""
        if self._was_asked(peer, index):
            self._elsewhere(index, now)

    def tick(self, now: float) -> None:
        """Whoever was asked for a carry, and does not give it, is late."""
        for index, (number, until) in list(self._asked.items()):
            if until <= now:
                self._book.late |= {number} & self._peers.keys()
                self._elsewhere(index, now)

    def forget(self, number: int, now: float) -> None:
        """A worker is gone, or what it has does not count: whoever waits for its carry gets it in another way."""
        for key in [key for key in self._arriving if key[0] == number]:
            del self._arriving[key]
        for index in [index for index, (source, _) in self._asked.items() if source == number]:
            self._elsewhere(index, now)
        self._moving = {index: to for index, to in self._moving.items() if to != number}

    def _elsewhere(self, index: int, now: float) -> None:
        self._book.disown(index)
        del self._asked[index]
        needy = self._peers.get(self._moving.pop(index, NOBODY))
        if needy is not None:
            self._rebuild(needy, index)
            self._work(needy, index)
        if self._collected is not None and index not in self._collected:
            self._ask_somebody(index, now)
