"""Engines that hold the same weights: members are shared out among them, and each updates itself.

One that dies is started anew and takes its weights from another, straight from engine to engine; where there is none
left, from what was kept last and the updates since.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from eggroll.vllm.engine import EngineError, Row, Sampling, Written
from eggroll.vllm.step import Step


@runtime_checkable
class Hand(Protocol):
    """An engine somewhere."""

    def begin(self, method: str, *arguments: Any) -> Any:
        """Ask for a method of `Engine`; a promise of its result."""

    def result(self, promise: Any) -> Any:
        """Wait for a promise.

        Raises:
          EngineError: the engine failed, or is no more.
        """

    def first_of(self, promises: Sequence[Any]) -> int:
        """Wait until one of several promises, of hands of this kind, is kept or broken; which."""

    def revive(self) -> None:
        """Start a fresh engine in its place, at generation 0."""


class Past(NamedTuple):
    """What rebuilds the weights without another engine.

    Attributes:
      kept: (whole leaves, their generation); None: the engine's own start.
      updates: (step, weights) since.
    """

    kept: tuple[bytes, int] | None
    updates: list[tuple[Step, np.ndarray]]

    @property
    def generation(self) -> int:
        """To which it leads."""
        return (self.kept[1] if self.kept else 0) + len(self.updates)


class Crew:
    """Engines, and what they have been told.

    Args:
      hands: at least one, all at the same start.
      say: takes lines for a person.
    """

    def __init__(self, hands: Sequence[Hand], say: Callable[[str], None]) -> None:
        self.hands, self._say = list(hands), say
        self.past, self._lives = Past(None, []), [0] * len(self.hands)
        self.stale: set[int] = set()  # engines that are to take their weights from another

    @property
    def generation(self) -> int:
        """How many updates the weights have seen."""
        return self.past.generation

    @property
    def revived(self) -> int:
        """How many engines had to be started anew."""
        return sum(self._lives)

    # ── members ──

    def complete_members(
        self, drawn: tuple[int, float], rows: Sequence[Sequence[Row]], sampling: Sampling, chunk: int
    ) -> list[list[Written]]:
        """Completions of all members.

        Args:
          drawn: generation of the noise, and sigma.
          rows: of each member.
          chunk: members in a piece of work; an engine's adapters, or fewer.
        """
        work = [(first, rows[first : first + chunk]) for first in range(0, len(rows), chunk)]
        work.sort(key=lambda each: -sum(len(row.prompt) + sampling.tokens for own in each[1] for row in own))
        calls = [("complete_members", drawn, first, own, sampling) for first, own in work]
        results = self._spread(calls)
        found: list[list[Written]] = [[] for _ in rows]
        for (first, own), result in zip(work, results, strict=True):
            found[first : first + len(own)] = result
        return found

    def complete_mean(self, rows: Sequence[Row], sampling: Sampling) -> list[Written]:
        """Completions of the mean, shared out."""
        size = -(-len(rows) // len(self.hands))
        calls = [("complete_mean", rows[first : first + size], sampling) for first in range(0, len(rows), size)]
        return [written for part in self._spread(calls) for written in part]

    def _spread(self, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Have each call answered by some engine, the next one by whichever is free."""
        results: dict[int, Any] = {}
        todo = list(range(len(calls)))[::-1]
        busy: dict[int, tuple[int, Any, int]] = {}  # engine → call, promise, and which of its lives
        while todo or busy:
            for number, hand in enumerate(self.hands):
                if todo and number not in busy:
                    self._freshen(number)
                    call = todo.pop()
                    busy[number] = (call, hand.begin(*calls[call]), self._lives[number])
            order = list(busy)
            number = order[self.hands[order[0]].first_of([busy[each][1] for each in order])]
            call, promise, life = busy.pop(number)
            try:
                results[call] = self.hands[number].result(promise)
            except EngineError as error:
                todo.append(call)
                if life == self._lives[number]:  # nobody has noticed yet
                    self._lose(number, error)
        return [results[call] for call in range(len(calls))]

    # ── weights ──

    def update(self, step: Step, weights: np.ndarray) -> None:
        """Have every engine make a generation's update, and see that all hold the same bits."""
        self._all_freshen()
        self._ask_all("update", step, weights)
        self.past.updates.append((step, weights))
        if len(self.hands) > 1:
            self.check()

    def check(self) -> None:
        """Compare what each rank of each engine holds.

        Raises:
          EngineError: two differ.
        """
        digests = self._of_all("digest")
        if any(digest != digests[0] for digest in digests):
            raise EngineError(
                f"expected the same weights in {len(self.hands)} engines after generation {self.generation}, got "
                f"{digests}; use engines of one kind of device and one version"
            )

    def load(self, kept: bytes, generation: int) -> None:
        """Have all engines hold the weights of a generation."""
        self.past = Past((kept, generation), [])
        self.stale = set(range(len(self.hands)))
        self._all_freshen()

    def save(self) -> list[bytes]:
        """What each rank of one engine holds."""
        found: list[bytes] = self._spread([("save",)])[0]
        return found

    def keep(self, kept: bytes) -> None:
        """These are the weights as they stand: what came before is not needed any more."""
        self.past = Past((kept, self.generation), [])

    # ── engines that die ──

    def _lose(self, number: int, error: EngineError) -> None:
        self._say(f"engine {number} is started anew: {error}")
        self.hands[number].revive()
        self._lives[number] += 1
        if self.revived > 5 * len(self.hands):
            raise EngineError(f"expected engines that stay, got {self.revived} that failed; the last said: {error}")
        self.stale.add(number)

    def _all_freshen(self) -> None:
        for number in range(len(self.hands)):
            self._freshen(number)

    def _freshen(self, number: int) -> None:
        """Bring an engine that was started anew to the weights that hold."""
        while number in self.stale:
            source = next((other for other in range(len(self.hands)) if other not in self.stale), None)
            if source is not None:
                self._synchronise(source, number)
                continue
            try:
                self._rebuild(number)
                self.stale.discard(number)
            except EngineError as error:
                self._lose(number, error)

    def _synchronise(self, source: int, number: int) -> None:
        """From engine to engine; whoever fails is started anew."""
        try:
            host, ports = self._one(source, "open_ports")
        except EngineError as error:
            return self._lose(source, error)
        asked = {source: 0, number: 1}
        promises = {
            one: self.hands[one].begin("synchronise", host, ports, member, 2, self.generation)
            for one, member in asked.items()
        }
        sent: dict[int, int] = {}
        failed: dict[int, EngineError] = {}
        for one, promise in promises.items():
            try:
                sent[one] = self.hands[one].result(promise)
            except EngineError as error:
                failed[one] = error
        for one, why in failed.items():
            self._lose(one, why)
        if not failed:
            self.stale.discard(number)
            self._say(f"engine {number} has taken {sent[number]:,} bytes from engine {source}")
        return None

    def _rebuild(self, number: int) -> None:
        """Of what was kept, and the updates since."""
        if self.past.kept is not None:
            self._one(number, "load", *self.past.kept)
        for step, weights in self.past.updates:
            self._one(number, "update", step, weights)

    def _one(self, number: int, method: str, *arguments: Any) -> Any:
        hand = self.hands[number]
        return hand.result(hand.begin(method, *arguments))

    def _of_all(self, method: str) -> list[Any]:
        """What every engine says; asked again where one has died."""
        found: list[Any] = []
        while len(found) < len(self.hands):
            self._all_freshen()
            found = self._ask_all(method)
        return found

    def _ask_all(self, method: str, *arguments: Any) -> list[Any]:
        """What those engines say that live; the others are started anew."""
        promises = [hand.begin(method, *arguments) for hand in self.hands]
        found = []
        for number, promise in enumerate(promises):
            try:
                found.append(self.hands[number].result(promise))
            except EngineError as error:
                self._lose(number, error)
        return found
