"""Selling, or buying, a fixed quantity within a horizon: episodes, what they come to, and plain ways to do it."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float32, Int32, Key

from eggroll.trading.book import NONE, Book, Message, best, held_of, mid, step
from eggroll.trading.flow import DRAWS
from eggroll.trading.messages import CANCEL, DELETE, LIMIT, MARKET, TICK
from eggroll.trading.task import Task as Task
from eggroll.trading.world import Market, Others, next_message

CHILD = -1
"""Id of the order that an episode has in the book; ids below 0 are nobody else's."""
DOLLAR = 10_000


class Order(NamedTuple):
    """What a trader wants in place of its last order."""

    kind: Int32[Array, ""]  # LIMIT, or MARKET
    price: Int32[Array, ""]  # 1/10,000 dollar; of a market order the worst that it takes, 0: any
    size: Int32[Array, ""]  # shares; cut to what is left, and below 1 no order


class Account(NamedTuple):
    """How far an episode has come."""

    left: Int32[Array, ""]  # shares
    gained: Int32[Array, ""]  # Σ shares · (price − arrival) in favour, 1/10,000 dollar
    passive: Int32[Array, ""]  # shares that others took from a resting order
    arrival: Int32[Array, ""]  # mid at the first decision
    price: Int32[Array, ""]  # of the child order
    decided: Int32[Array, ""]  # decisions so far


class Outcome(NamedTuple):
    """What an episode came to."""

    pnl: Float32[Array, "*n"]  # dollars against the arrival price, for all shares
    slippage: Float32[Array, "*n"]  # the same as a cost, in basis points of the arrival price
    passive: Float32[Array, "*n"]  # share of the quantity that was taken from resting orders
    left: Float32[Array, "*n"]  # share that crossed the book at the horizon


class Trace(NamedTuple):
    """An episode's course: a row for each message of others from the first decision on."""

    time: Any  # ns since the first decision
    bid: Any
    ask: Any
    child: Any  # price of the resting child order; 0: none
    held: Any  # shares of it
    left: Any  # shares to trade


@runtime_checkable
class Trader(Protocol):
    """Reads what happens and says what order to put."""

    def start(self) -> Any:
        """What it remembers before the first message."""

    def read(self, memory: Any, tokens: Any, features: Any) -> Any:
        """Messages of others: (interval, fields) int32, (interval, 8) float32."""

    def decide(self, memory: Any, book: Book, account: Account, key: Any) -> tuple[Any, Order]:
        """The order that replaces the last one."""


class Scheduled:
    """Market orders after a plan, at any price.

    Args:
      due: (decisions,) shares that are to be traded by each decision.
    """

    def __init__(self, task: Task, due: ArrayLike) -> None:
        self._task, self.due = task, jnp.asarray(due, jnp.int32)

    def start(self) -> Any:
        """Nothing."""
        return ()

    def read(self, memory: Any, tokens: Any, features: Any) -> Any:
        """Does not."""
        return memory

    def decide(self, memory: Any, book: Book, account: Account, key: Any) -> tuple[Any, Order]:
        """What the plan is behind by."""
        done = self._task.quantity - account.left
        return memory, Order(jnp.int32(MARKET), jnp.int32(0), self.due[account.decided] - done)


class Twap(Scheduled):
    """The same share of the quantity at each decision."""

    def __init__(self, task: Task) -> None:
        super().__init__(task, task.quantity * np.arange(1, task.decisions + 1) // task.decisions)


class Immediate(Scheduled):
    """All at the first decision."""

    def __init__(self, task: Task) -> None:
        super().__init__(task, np.full(task.decisions, task.quantity))


def episode(task: Task, others: Others, trader: Trader, market: Market, key: Key[Array, ""]) -> tuple[Outcome, Trace]:
    """Trade for one horizon.

    The trader reads `interval` messages, and then at each decision its last order is taken back and its new one put,
    before the others go on. What is left at the horizon crosses the book. All that others do is drawn from `key`: two
    traders under one key meet the same market as long as they do the same.

    Args:
      market: where it begins.
    """
    flow_key, own_key = jax.random.split(key)
    draws = jax.random.uniform(flow_key, (task.decisions + 1, task.interval, DRAWS))
    none = jnp.int32(0)
    account = Account(jnp.int32(task.quantity), none, none, none, none, none)
    market, account, _, seen = _waited(task, others, market, account, draws[0])
    memory = trader.read(trader.start(), *seen)
    account = account._replace(arrival=mid(market.book))

    def decision(carry: Any, given: Any) -> Any:
        market, account, memory = carry
        draws, key = given
        memory, order = trader.decide(memory, market.book, account, key)
        book, account = _ordered(task, market.book, account, order)
        market, account, trace, seen = _waited(task, others, market._replace(book=book), account, draws)
        return (market, account, trader.read(memory, *seen)), trace

    given = (draws[1:], jax.random.split(own_key, task.decisions))
    (market, account, _), trace = jax.lax.scan(decision, (market, account, memory), given)
    trace = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), trace)
    trace = trace._replace(time=jnp.cumsum(trace.time.astype(jnp.float32)))
    return _closed(task, market.book, account), trace


def task_features(task: Task, book: Book, account: Account) -> Float32[Array, "5"]:
    """The executing part of `world.FEATURES`."""
    drift = (mid(book) - account.arrival) * -task.direction / (64 * TICK)
    drift = jnp.where(account.arrival == 0, 0, jnp.clip(drift, -4, 4))
    parts = (
        1.0,
        account.left / task.quantity,
        1 - account.decided / task.decisions,
        drift,
        held_of(book, CHILD) / task.quantity,
    )
    return jnp.stack([jnp.float32(part) for part in parts])


def _waited(task: Task, others: Others, market: Market, account: Account, draws: Any) -> Any:
    """The others' messages of one interval, and what they took of the child order."""

    def one(carry: Any, draws: Any) -> Any:
        market, account = carry
        before = held_of(market.book, CHILD)
        market, seen = next_message(others, market, draws)
        held, kind = held_of(market.book, CHILD), seen.message.kind
        is_dropped = (kind == LIMIT) & (seen.message.direction == task.direction)  # a full side has no room for it
        is_cancelled = (kind == CANCEL) | (kind == DELETE)  # by an anonymous message
        filled = jnp.where(is_dropped | is_cancelled, 0, before - held)
        account = _filled(task, account, filled, filled * (account.price - account.arrival))
        account = account._replace(passive=account.passive + filled)
        features = jnp.concatenate([seen.features, task_features(task, market.book, account)])
        bid, ask = best(market.book)
        row = Trace(seen.gap, bid, ask, jnp.where(held > 0, account.price, 0), held, account.left)
        return (market, account), (row, seen, features)

    (market, account), (trace, seen, features) = jax.lax.scan(one, (market, account), draws)
    return market, account, trace, (seen.tokens, features)


def _ordered(task: Task, book: Book, account: Account, order: Order) -> tuple[Book, Account]:
    """The last order is taken back, the new one put."""
    size = jnp.clip(order.size, 0, account.left)
    direction = jnp.int32(task.direction)
    book = _taken_back(task, book)
    book, trade = step(book, Message(order.kind, jnp.int32(CHILD), size, order.price, direction))
    gained = trade.value - trade.quantity * (account.arrival - book.origin)
    account = _filled(task, account, trade.quantity, gained)
    return book, account._replace(price=order.price, decided=account.decided + 1)


def _taken_back(task: Task, book: Book) -> Book:
    """Without the child order; that it is not there any more is no error."""
    none = jnp.int32(0)  # also the size: what is taken from an anonymous order, which may be meant if it is gone
    after, _ = step(book, Message(jnp.int32(DELETE), jnp.int32(CHILD), none, none, jnp.int32(task.direction)))
    return after._replace(unmatched=book.unmatched)


def _filled(task: Task, account: Account, shares: Any, value: Any) -> Account:
    """After a trade; the value counts from the arrival price."""
    return account._replace(left=account.left - shares, gained=account.gained - task.direction * value)


def _closed(task: Task, book: Book, account: Account) -> Outcome:
    """The rest crosses the book; what even that has no room for counts as traded at the last price that had."""
    direction, left = jnp.int32(task.direction), account.left
    book = _taken_back(task, book)
    other = 0 if task.side == "sell" else 1
    live = book.size[other] > 0
    worst = jnp.where(live.any(), jnp.where(live, book.key[other], -NONE).max() * task.direction, account.arrival)
    _, trade = step(book, Message(jnp.int32(MARKET), jnp.int32(CHILD), left, jnp.int32(0), direction))
    account = _filled(task, account, trade.quantity, trade.value - trade.quantity * (account.arrival - book.origin))
    account = _filled(task, account, account.left, account.left * (worst - account.arrival))
    pnl = jnp.float32(account.gained) / DOLLAR
    notional = jnp.float32(account.arrival) / DOLLAR * task.quantity
    share = lambda shares: jnp.float32(shares) / task.quantity
    return Outcome(pnl, -pnl / notional * 1e4, share(account.passive), share(left))
