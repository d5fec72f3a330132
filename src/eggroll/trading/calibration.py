"""The numbers of a market, from recorded messages and books, and the book that they come to."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import NDArray

from eggroll.core.errors import UsageError
from eggroll.runs.folder import put_whole
from eggroll.runs.settings import from_json
from eggroll.trading.book import levels, lowest_key
from eggroll.trading.flow import KINDS, Flow, opened, simulate
from eggroll.trading.messages import CANCEL, DELETE, EXECUTE, HIDDEN, LIMIT, TICK, Messages
from eggroll.trading.task import LAG

DEFAULT = Path(__file__).with_name("calibration.json")
"""Of the free sample of LOBSTER, Apple on 21 June 2012, its first 998 messages."""
TICKS = 128
"""Distances behind the best price that are told apart."""
INSIDE = 48
"""Ticks by which an order may better the best price."""
MOST_ORDERS = 70.0
"""Orders of a side that a market is given at most, so that books of 100 hold it."""
SPEEDS = (0.5, 50.0, 20_000.0)
"""Decays of the Hawkes process, per second: the market's mood, answers of people, answers of machines."""


@dataclass(frozen=True)
class Calibration:
    """A market's numbers as JSON; see `flow.Flow`.

    Attributes:
      base, jump, decay: of the Hawkes process, per second.
      chain: (8, 8) from event to event, alike for both sides.
      crowd: usual number of orders of a side; of more, more are deleted.
      improves, spread: share of limit orders inside the spread, at the mean spread in ticks.
      forgets: how fast the market takes the mid for the price, share a message.
      inside, behind: weights of 1, 2, … ticks inside the spread, and of 0, 1, … ticks behind the best price.
      joins: share of the latter that queue where others stand.
      fading: how readily an order 0, 1, … ticks behind the best price is deleted.
      sizes, limit_sizes, taken_sizes: shares, and weights of them.
      partial: share of cancellations that leave something.
    """

    base: float
    jump: tuple[float, ...]
    decay: tuple[float, ...]
    chain: tuple[tuple[float, ...], ...]
    crowd: float
    improves: float
    forgets: float
    spread: float
    inside: tuple[float, ...]
    behind: tuple[float, ...]
    joins: float
    fading: tuple[float, ...]
    sizes: tuple[int, ...]
    limit_sizes: tuple[float, ...]
    taken_sizes: tuple[float, ...]
    partial: float

    def __post_init__(self) -> None:
        for name in ("base", "crowd", "improves", "spread"):
            self._hold(name, "a number > 0", 0 < getattr(self, name) < 1e9)
        for name in ("joins", "partial"):
            self._hold(name, "a share, 0 to 1", 0 <= getattr(self, name) <= 1)
        is_rates = 0 < len(self.decay) == len(self.jump) <= len(SPEEDS) and min(self.decay) > 0
        self._hold("decay", f"1 to {len(SPEEDS)} numbers > 0, as many as jumps", is_rates and max(self.decay) < 1e9)
        if not 0 <= self.forgets <= 1:
            raise UsageError(f"expected forgets of a calibration in [0, 1], got {self.forgets}; calibrate anew")
        branching = sum(jump / decay for jump, decay in zip(self.jump, self.decay, strict=True))
        if not branching < 1 or min(self.jump) < 0:
            raise UsageError(
                f"expected a message to cause less than one other, got {branching:.2f}; calibrate on more messages"
            )
        is_chain = len(self.chain) == 8 and all(len(row) == 8 and _are_weights(row) for row in self.chain)
        self._hold("chain", "weights of 8 by 8 events", is_chain)
        for name in ("inside", "behind", "fading", "limit_sizes", "taken_sizes"):
            self._hold(name, "weights, numbers ≥ 0 that are not all 0", _are_weights(getattr(self, name)))
        self._hold(
            "sizes",
            "whole numbers of shares > 0",
            len(self.sizes) > 0 and min(self.sizes) > 0 and max(self.sizes) < 2**31,
        )
        counts = (len(self.sizes), len(self.limit_sizes), len(self.taken_sizes))
        self._hold("sizes", "as many as weights in limit_sizes and in taken_sizes", len(set(counts)) == 1)

    def _hold(self, name: str, expected: str, holds: bool) -> None:
        if not holds:
            got = str(getattr(self, name))
            raise UsageError(
                f"expected {expected}, as {name} of a calibration, got {got if len(got) < 40 else got[:36] + ' …'}; "
                "calibrate anew"
            )

    def flow(self) -> Flow:
        """The market that has these numbers."""
        law = lambda weights: jnp.asarray(np.cumsum(weights) / np.sum(weights), jnp.float32)
        real = lambda value: jnp.asarray(value, jnp.float32)
        chain = np.array(self.chain)
        return Flow(
            base=real(self.base),
            jump=real(self.jump),
            decay=real(self.decay),
            chain=real(chain / chain.sum(1, keepdims=True)),
            crowd=real(self.crowd),
            improves=real(self.improves),
            forgets=real(self.forgets),
            spread=real(self.spread),
            inside=law(self.inside),
            behind=law(self.behind),
            joins=real(self.joins),
            fading=real(self.fading),
            sizes=jnp.asarray(self.sizes, jnp.int32),
            limit_sizes=law(self.limit_sizes),
            taken_sizes=law(self.taken_sizes),
            partial=real(self.partial),
        )

    def write(self, path: Path) -> None:
        """As JSON."""
        put_whole(path, [(json.dumps(asdict(self), indent=1) + "\n").encode()])


def read_calibration(path: Path = DEFAULT) -> Calibration:
    """A calibration from its file.

    Raises:
      UsageError: it is none.
    """
    try:
        held = json.loads(path.read_text())
        names = {field.name for field in fields(Calibration)}
        if not isinstance(held, dict) or set(held) != names:
            raise ValueError(f"fields other than {', '.join(sorted(names))}")
        return from_json(Calibration, {name: _frozen(value) for name, value in held.items()}, str(path))
    except UsageError:
        raise
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(
            f"expected a calibration in {path}, got {error}; make one with eggroll trade calibrate"
        ) from None


def calibrated(messages: Messages, book: NDArray[np.int64]) -> Calibration:
    """The numbers of a record.

    Args:
      messages: of a part of a day.
      book: (n, levels, 4), the book after each message.
    Raises:
      UsageError: there are too few messages to tell.
    """
    if len(messages.kind) < 200:
        raise UsageError(
            f"expected at least 200 messages to calibrate on, got {len(messages.kind)}; give a longer record"
        )
    seen = _Seen.of(messages, book)
    base, jump = fit_hawkes(np.diff(messages.time) / 1e9)
    limits, deletes = seen.kind == LIMIT, (seen.kind == DELETE) | (seen.kind == CANCEL)
    inside = -seen.behind[(limits | (seen.kind == HIDDEN)) & (seen.behind < 0)]
    behind = seen.behind[limits & (seen.behind >= 0)]
    fading, crowd = _hazard(seen, book)
    sizes, limit_sizes, taken_sizes = _sizes(seen)
    spread = (book[:-1, 0, 0] - book[:-1, 0, 2]) / TICK
    improving = (limits & (seen.behind < 0)).sum() / max(limits.sum(), 1)
    return Calibration(
        base=base,
        jump=jump,
        decay=SPEEDS,
        chain=_chain(seen),
        crowd=crowd,
        improves=float(improving),
        forgets=0.05,
        spread=float(spread.mean()),
        inside=_smoothed(inside - 1, INSIDE),
        behind=_smoothed(behind, TICKS),
        joins=_joining(seen, book),
        fading=fading,
        sizes=sizes,
        limit_sizes=limit_sizes,
        taken_sizes=taken_sizes,
        partial=float((seen.kind == CANCEL).sum() / max(deletes.sum(), 1)),
    )


@dataclass(frozen=True)
class _Seen:
    """Messages after the first, each with the book before it."""

    kind: NDArray[np.int32]
    direction: NDArray[np.int32]
    size: NDArray[np.int32]
    behind: NDArray[np.int64]  # ticks behind its own side's best price; below 0 inside the spread

    @classmethod
    def of(cls, messages: Messages, book: NDArray[np.int64]) -> _Seen:
        buys = messages.direction[1:] > 0
        touch = np.where(buys, book[:-1, 0, 2], book[:-1, 0, 0])
        behind = (touch - messages.price[1:]) * np.where(buys, 1, -1) // TICK
        return cls(messages.kind[1:], messages.direction[1:], messages.size[1:], behind)


class Shape(NamedTuple):
    """What a market's book looks like on average."""

    spread: Any  # ticks
    inside: Any  # share of limit orders that better their side's best price
    moves: Any  # standard deviation of the mid's move in `LAG` messages, ticks
    depth: Any  # ticks from the best to the tenth price; told, not aimed at
    volume: Any  # shares at the best ten prices of a side; told, not aimed at


def shape_of(messages: Messages, book: NDArray[np.int64]) -> Shape:
    """That of a record with the books after each message, (n, levels ≥ 10, 4)."""
    price, size = book[:, :10, 0::2], book[:, :10, 1::2]
    full = (size[:, 9] > 0).all(-1)
    depth = np.abs(price[full, 9] - price[full, 0]).mean() / TICK
    middle, lag = price[:, 0].mean(1) / TICK, min(LAG, len(book) // 2)
    spread = (price[:, 0, 0] - price[:, 0, 1]).mean() / TICK
    moves = (middle[lag:] - middle[:-lag]).std() * (LAG / lag) ** 0.5
    seen = _Seen.of(messages, book)
    inside = (seen.behind[seen.kind == LIMIT] < 0).mean()
    return Shape(float(spread), float(inside), float(moves), float(depth), float(size.sum(1).mean()))


def settled(calibration: Calibration, wanted: Shape, rounds: int = 16, *, seed: int = 0) -> Calibration:
    """Numbers under which the market itself comes to a shape, since small errors add up in a book.

    Args:
      rounds: of a simulation, after each of which more or fewer orders better the best price and stand on a side, and
        the market's memory is longer or shorter.
    """
    made = jax.jit(simulated_shape)
    for number in range(rounds):
        found = Shape(*(float(each) for each in made(calibration.flow(), jax.random.key(seed + number))))
        calibration = dataclasses.replace(
            calibration,
            improves=float(np.clip(calibration.improves * (found.spread / wanted.spread) ** 0.4, 0.02, 5)),
            crowd=float(np.clip(calibration.crowd * (found.inside / wanted.inside) ** 0.3, 10, MOST_ORDERS)),
            forgets=float(np.clip(calibration.forgets * (wanted.moves / found.moves) ** 0.6, 1e-4, 1)),
        )
    return calibration


def simulated_shape(flow: Flow, key: Any, markets: int = 16, count: int = 4000) -> Shape:
    """The shape that markets of these numbers come to, () float32 each."""

    def one(key: Any) -> Any:
        first, then = jax.random.split(key)
        _, message, books = simulate(flow, then, count, *opened(flow, first, 5_000_000))[1]
        key_of_best = lowest_key(books.key, books.size)[:-1]
        touch = jnp.where(message.direction[1:] > 0, key_of_best[:, 0], key_of_best[:, 1])
        limits = message.kind[1:] == LIMIT
        inside = (limits & (-message.price[1:] * message.direction[1:] < touch)).sum() / limits.sum()
        rows = jax.vmap(lambda book: levels(book, 10))(jax.tree.map(lambda leaf: leaf[:: LAG // 4], books))
        deep = (rows[:, 9, 0] - rows[:, 0, 0] + rows[:, 0, 2] - rows[:, 9, 2]) / 2
        full = (rows[:, 9, 1] > 0) & (rows[:, 9, 3] > 0)
        spread = (rows[:, 0, 0] - rows[:, 0, 2]).mean() / TICK
        volume = (rows[:, :, 1] + rows[:, :, 3]).sum(1).mean() / 2
        middle = (rows[:, 0, 0] + rows[:, 0, 2] - 10_000_000) / (2 * TICK)
        square = jnp.square(middle[4:] - middle[:-4]).mean()
        return spread, inside, square, jnp.where(full, deep, 0).sum() / jnp.maximum(full.sum(), 1) / TICK, volume

    spread, inside, square, depth, volume = (each.mean() for each in jax.vmap(one)(jax.random.split(key, markets)))
    return Shape(spread, inside, jnp.sqrt(square), depth, volume)


def fit_hawkes(gaps: NDArray[np.float64], steps: int = 400) -> tuple[float, tuple[float, ...]]:
    """Most likely base and jumps of a Hawkes process with the decays `SPEEDS`.

    Args:
      gaps: (n,) seconds between messages.
      steps: of Adam, on logarithms.
    Returns:
      Messages a second, and the jumps per second; the branching ratio Σ jump/decay stays below 0.98.
    """
    decay, seconds = jnp.array(SPEEDS), jnp.asarray(gaps, jnp.float32)

    def unpacked(values: Any) -> tuple[Any, Any]:
        share = 0.98 * jax.nn.sigmoid(values[1]) * jax.nn.softmax(values[2:])
        return jnp.exp(values[0]), share * decay

    def loss(values: Any) -> Any:
        base, jump = unpacked(values)

        def one(excitement: Any, gap: Any) -> Any:
            left = excitement * jnp.exp(-decay * gap)
            caused = (excitement * -jnp.expm1(-decay * gap) / decay).sum()
            return left + jump, jnp.log(base + left.sum()) - base * gap - caused

        return -jax.lax.scan(one, jump, seconds)[1].mean()

    optimizer = optax.adam(0.05)

    def update(carry: Any, _: Any) -> Any:
        values, state = carry
        updates, state = optimizer.update(jax.grad(loss)(values), state)
        return (optax.apply_updates(values, updates), state), None

    start = jnp.zeros(2 + len(SPEEDS)).at[0].set(jnp.log(0.3 / seconds.mean()))
    values = jax.jit(lambda: jax.lax.scan(update, (start, optimizer.init(start)), length=steps)[0][0])()
    base, jump = unpacked(values)
    return float(base), tuple(float(each) for each in jump)


def _joining(seen: _Seen, book: NDArray[np.int64]) -> float:
    """Share of limit orders behind the best price, and no further than the visible levels, that joined a level."""
    own = np.where(seen.direction > 0, 1, 0)
    levels_of = np.take_along_axis(book[:-1, :, 0::2], own[:, None, None], axis=2)[:, :, 0]
    ticks = np.abs(levels_of - levels_of[:, :1]) // TICK
    which = (seen.kind == LIMIT) & (seen.behind >= 0) & (seen.behind <= ticks[:, -1])
    return float((ticks[which] == seen.behind[which, None]).any(1).mean())


def _chain(seen: _Seen) -> tuple[tuple[float, ...], ...]:
    """From event to event, both sides alike; a little of everything, since a record is short."""
    kind = np.where(seen.kind == CANCEL, DELETE, seen.kind)
    known = np.isin(kind, KINDS)
    event = np.array([KINDS.index(each) for each in kind[known]]) + 4 * (seen.direction[known] < 0)
    counts = np.zeros((8, 8))
    np.add.at(counts, (event[:-1], event[1:]), 1)
    other = np.roll(np.arange(8), 4)
    counts += counts[np.ix_(other, other)]
    often = counts.sum(0) / counts.sum()
    counts += 8 * often
    return tuple(tuple(float(f"{each:.5g}") for each in row / row.sum()) for row in counts)


def _smoothed(values: NDArray[np.int64], count: int) -> tuple[float, ...]:
    """Weights of 0, 1, …, each value spread over its neighbours by a kernel as wide as it is far."""
    weights = _spread_out(np.bincount(values[values < count], minlength=count)) + 1e-6
    return tuple(float(f"{each:.4g}") for each in weights / weights.sum())


def _spread_out(counts: NDArray[Any]) -> NDArray[np.float64]:
    """Counts of 0, 1, …, each given to its neighbours too by a kernel that is as wide as it is far."""
    at = np.arange(len(counts))
    kernel = np.exp(-0.5 * ((at - at[:, None]) / (0.3 + 0.1 * at[:, None])) ** 2)
    return counts @ (kernel / kernel.sum(1, keepdims=True))


def _hazard(seen: _Seen, book: NDArray[np.int64]) -> tuple[tuple[float, ...], float]:
    """How readily an order so far behind the best price is deleted, 1 at most; and how many orders a side has.

    Deletions at a distance over the orders that stood there, of the usual size each. Beyond the visible levels nobody
    knows who stands: orders there are taken to be as patient as those at the last ones, and those beyond all that is
    told apart as forgotten, and readily deleted.
    """
    usual = seen.size[seen.kind == LIMIT].mean()
    price, size = book[:-1, :, 0::2], book[:-1, :, 1::2]
    ticks = np.abs(price - price[:, :1]) // TICK
    seen_there = (size > 0) & (ticks < TICKS)
    stood = np.bincount(ticks[seen_there], size[seen_there] / usual, TICKS)
    gone = seen.behind[((seen.kind == DELETE) | (seen.kind == CANCEL)) & (seen.behind >= 0)]
    hazard = _spread_out(np.bincount(gone[gone < TICKS], minlength=TICKS)) / (_spread_out(stood) + 1e-9)
    last = int(np.median(ticks[:, -1].max(1)))
    hazard[last:] = hazard[last // 2 : last].mean()
    hazard[-1] = hazard.max()
    hazard = np.clip(hazard / hazard.max(), 0.01, 1)
    orders = stood.sum() / (2 * len(book) - 2)
    return tuple(float(f"{each:.4g}") for each in hazard), float(np.clip(orders, 10, MOST_ORDERS))


def _sizes(seen: _Seen) -> tuple[tuple[int, ...], tuple[float, ...], tuple[float, ...]]:
    """The sizes that occur most, and how often among limit orders and executions; each rarer one counts as the next."""
    values, counts = np.unique(seen.size[seen.size > 0], return_counts=True)
    common = np.sort(values[np.argsort(-counts)[:32]])

    def weights(which: NDArray[np.bool_]) -> tuple[float, ...]:
        nearest = np.abs(seen.size[which & (seen.size > 0), None] - common).argmin(1)
        found = np.bincount(nearest, minlength=len(common)) + 0.1
        return tuple(float(f"{each:.4g}") for each in found / found.sum())

    taken = (seen.kind == EXECUTE) | (seen.kind == HIDDEN)
    return tuple(int(size) for size in common), weights(seen.kind == LIMIT), weights(taken)


def _are_weights(values: tuple[float, ...]) -> bool:
    return 0 < sum(values) < float("inf") and all(value >= 0 for value in values)


def _frozen(value: Any) -> Any:
    return tuple(_frozen(each) for each in value) if isinstance(value, list) else value
