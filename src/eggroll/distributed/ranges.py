"""Who evaluates which range of the population: leases, late ranges, owners of carry. No clock, no wire.

A range whose members carry state stays with the worker that evaluated it last, its owner. A lease that runs out makes
its range anybody's, and the first answer counts, whoever gives it.
"""

from __future__ import annotations

import heapq
import itertools
from collections import defaultdict, deque
from collections.abc import Iterable

from eggroll.distributed.wire import Span

NOBODY = -1


def cut(pairs: int, count: int) -> list[Span]:
    """`count` ranges of nearly equal size (fewer where there are fewer pairs), in steps of a power of 2 about a
    sixteenth of one, so that few sizes are compiled and each divides well into chunks."""
    number = max(1, min(count, pairs))
    unit = 2 ** max(0, (pairs // number).bit_length() - 5)
    edges = [pairs // unit * k // number * unit for k in range(number)] + [pairs]
    return [Span(first, end - first) for first, end in itertools.pairwise(edges)]


class Book:
    """The ranges of the generation at hand.

    Args:
      spans: the ranges, which tile the population.
      sticky: members carry state, so that ranges have owners.
      depth: leases that a worker holds at a time; with 2 it never waits for the next.
    Attributes:
      owner: to whom each range is given first, or NOBODY.
      keeper: who has the carry of each range, or NOBODY; another than the owner where a range has just moved.
      idle: workers that may have room for another range.
      resent, duplicates: leases that ran out, and answers that came second, since the start.
    """

    def __init__(self, spans: list[Span], *, sticky: bool, depth: int = 2) -> None:
        self.spans, self.sticky, self.depth = spans, sticky, depth
        self.index = {span: number for number, span in enumerate(spans)}
        self.owner = [NOBODY] * len(spans)
        self.keeper = [NOBODY] * len(spans)
        self.owned: dict[int, set[int]] = {}
        self._kept: dict[int, set[int]] = {}
        self.late: set[int] = set()
        self.resent = self.duplicates = 0
        self._held: dict[int, set[int]] = {}
        self.start()

    def start(self) -> None:
        """A new generation: every range is to be evaluated."""
        self._done = bytearray(len(self.spans))
        self.left = len(self.spans)
        self._leases: dict[int, dict[int, float]] = defaultdict(dict)
        self._deadlines: list[tuple[float, int, int]] = []
        self._held = {worker: set() for worker in self._held}
        self.idle = dict.fromkeys(self._held)
        self._own: dict[int, deque[int]] = {}
        self._todo: deque[int] = deque()
        if self.sticky:
            self._balance()
        for number, owner in enumerate(self.owner):
            queue = self._todo if owner == NOBODY or owner in self.late else self._own.setdefault(owner, deque())
            queue.append(number)

    def _balance(self) -> None:
        """Give the ranges of those who own most to those who own least, until nobody owns two more than another."""
        counts = [(len(owned), worker) for worker, owned in self.owned.items() if worker not in self.late]
        if len(counts) < 2:
            return
        least, most = list(counts), [(-count, worker) for count, worker in counts]
        heapq.heapify(least)
        heapq.heapify(most)
        while -most[0][0] - least[0][0] >= 2:
            few, to = least[0]
            many, source = most[0]
            if few != len(self.owned[to]) or -many != len(self.owned[source]):  # an entry from before a move
                heapq.heapreplace(least, (len(self.owned[to]), to))
                heapq.heapreplace(most, (-len(self.owned[source]), source))
                continue
            self._own_by(min(self.owned[source]), to)
            heapq.heapreplace(least, (few + 1, to))
            heapq.heapreplace(most, (many + 1, source))

    def _own_by(self, number: int, worker: int) -> None:
        old = self.owner[number]
        if old != NOBODY:
            self.owned[old].discard(number)
        self.owner[number] = worker
        if worker != NOBODY:
            self.owned[worker].add(number)

    def _keep_by(self, number: int, worker: int) -> None:
        old = self.keeper[number]
        if old != NOBODY:
            self._kept[old].discard(number)
        self.keeper[number] = worker
        if worker != NOBODY:
            self._kept[worker].add(number)

    def disown(self, number: int) -> None:
        """Nobody has the carry of a range."""
        self._keep_by(number, NOBODY)

    # ── workers ──

    def join(self, worker: int) -> None:
        """A worker that may be given ranges."""
        self._held.setdefault(worker, set())
        self.idle[worker] = None
        self.owned.setdefault(worker, set())
        self._kept.setdefault(worker, set())

    def leave(self, worker: int) -> list[int]:
        """A worker is gone, or its answers cannot be used: what it held is anybody's. Returns what it held."""
        self.late.discard(worker)
        self.idle.pop(worker, None)
        held = sorted(self._held.pop(worker, set()))
        for number in held:
            self._leases[number].pop(worker, None)
        owned = self.owned.pop(worker, set())
        for number in owned:
            self.owner[number] = NOBODY
        for number in self._kept.pop(worker, set()):
            self.keeper[number] = NOBODY
        free = [*held, *self._own.pop(worker, ())]
        self._todo.extendleft(n for n in reversed(free) if not self._done[n] and self._leases[n].keys() <= self.late)
        return held

    def alive(self, worker: int) -> None:
        """A late worker has spoken: it may be given ranges again."""
        if worker in self.late:
            self.late.discard(worker)
            self._has_room(worker)

    # ── ranges ──

    @property
    def has_free(self) -> bool:
        """Whether a range is anybody's."""
        while self._todo and self._done[self._todo[0]]:
            self._todo.popleft()
        return bool(self._todo)

    def _has_room(self, worker: int) -> None:
        if worker in self._held:
            self.idle[worker] = None

    def next_for(self, worker: int, deadline: float) -> int | None:
        """Lease the next range to a worker until `deadline`; None where there is none for it now."""
        held = self._held.get(worker)
        if held is None or len(held) >= self.depth or worker in self.late:
            self.idle.pop(worker, None)
            return None
        number = self._pop(self._own.get(worker), worker)
        if number is None:
            number = self._pop(self._todo, worker)
        if number is not None:
            held.add(number)
            self._leases[number][worker] = deadline
            heapq.heappush(self._deadlines, (deadline, number, worker))
        return number

    def _pop(self, queue: deque[int] | None, worker: int) -> int | None:
        found, its_own = None, []
        while queue and found is None:
            number = queue.popleft()
            if worker in self._leases.get(number, ()):
                its_own.append(number)  # it is late with this one, which stays anybody else's
            elif not self._done[number]:
                found = number
        if queue is not None:
            queue.extendleft(number for number in reversed(its_own) if not self._done[number])
        return found

    def extend(self, worker: int, number: int, deadline: float) -> None:
        """A lease lasts longer, since something must be done first."""
        if worker in self._leases[number]:
            self._leases[number][worker] = deadline
            heapq.heappush(self._deadlines, (deadline, number, worker))

    def expire(self, now: float) -> list[tuple[int, int]]:
        """Leases that have run out, as (range, worker): their ranges are anybody's, their workers are late."""
        found = []
        while self._deadlines and self._deadlines[0][0] <= now:
            _, number, worker = heapq.heappop(self._deadlines)
            if self._done[number] or self._leases[number].get(worker, now + 1) > now:
                continue
            found.append((number, worker))
            self.late.add(worker)
            self.resent += 1
            self._todo.append(number)
            self._todo.extend(self._own.pop(worker, ()))
        return found

    def answer(self, number: int, worker: int) -> bool:
        """Note an answer; True where it is the first, and so the one that counts."""
        self.alive(worker)
        self._held.get(worker, set()).discard(number)
        self._has_room(worker)
        if self._done[number]:
            self.duplicates += 1
            return False
        self._done[number] = 1
        self.left -= 1
        for other in self._leases.pop(number, {}):
            self._held.get(other, set()).discard(number)
            self._has_room(other)
        if self.sticky and worker in self.owned:
            self._own_by(number, worker)
            self._keep_by(number, worker)
        return True

    def is_done(self, number: int) -> bool:
        """Whether a range has its answer."""
        return bool(self._done[number])

    def holders(self, number: int) -> Iterable[int]:
        """The workers that evaluate a range now."""
        return self._leases[number]
