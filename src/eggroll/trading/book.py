"""A limit order book as arrays, with price-time priority: one message a step, under jit, scan and vmap.

A side is a row of slots in no order; each order has its price and a number that tells when it came. A message touches
the slots that it needs by comparison: nothing is sorted, shifted or gathered. Only an incoming order that trades loops,
once for each order that it meets.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int32

from eggroll.trading.messages import CANCEL, DELETE, EXECUTE, LIMIT, MARKET, Messages

CAPACITY = 100
"""Orders of a side, where nothing else is said."""
NONE = np.iinfo(np.int32).max
"""No price: the best key of a side without orders."""
_SIGN = np.array([-1, 1], np.int32)  # key · sign = price


class Message(NamedTuple):
    """One message, or many with a leading axis; see `messages.Messages`. Ids fit 32 bits here (`on_device`)."""

    kind: Int32[Array, "*n"]
    order_id: Int32[Array, "*n"]  # 0: anonymous
    size: Int32[Array, "*n"]  # shares
    price: Int32[Array, "*n"]  # 1/10,000 dollar
    direction: Int32[Array, "*n"]  # +1 buy, −1 sell


class Book(NamedTuple):
    """Both sides, bids first."""

    key: Int32[Array, "2 capacity"]  # of bids −price, of asks the price: lower is better
    size: Int32[Array, "2 capacity"]  # shares; 0: an empty slot
    order_id: Int32[Array, "2 capacity"]
    came: Int32[Array, "2 capacity"]  # the turn in which an order came: at one price, lower is better
    turn: Int32[Array, ""]  # of the next
    origin: Int32[Array, ""]  # price that the value of trades is counted from
    dropped: Int32[Array, ""]  # orders that a full side had no slot for
    unmatched: Int32[Array, ""]  # messages that named no order of the book


class Trade(NamedTuple):
    """What an incoming order took."""

    quantity: Int32[Array, "*n"]  # shares
    value: Int32[Array, "*n"]  # Σ shares · (price − the book's origin)


def empty_book(capacity: int = CAPACITY, origin: int = 0) -> Book:
    """A book without orders.

    Args:
      capacity: orders of a side, ≥ 1. More are dropped, last in priority first, and counted.
      origin: price that the value of trades is counted from; near the market, so that 32 bits hold it.
    """
    zero = jnp.zeros((2, capacity), jnp.int32)
    none = jnp.int32(0)
    return Book(zero, zero, zero, zero, jnp.int32(1), jnp.int32(origin), none, none)


def book_of_levels(row: np.ndarray, capacity: int = CAPACITY) -> Book:
    """A book with one anonymous order a level.

    Args:
      row: (levels, 4) ask price, ask size, bid price, bid size, as a row of LOBSTER's order-book file.
    Raises:
      ValueError: there are more levels than slots.
    """
    if len(row) > capacity:
        raise ValueError(f"expected at most {capacity} levels, got {len(row)}; raise the capacity")
    key, size = np.zeros((2, 2, capacity), np.int32)
    there = row[:, [3, 1]] > 0  # bids, asks
    for side, (column, sign) in enumerate(((2, -1), (0, 1))):
        own = row[there[:, side]]
        key[side, : len(own)], size[side, : len(own)] = sign * own[:, column], own[:, column + 1]
    origin = (int(row[0, 0]) + int(row[0, 2])) // 2 if there[0].all() else 0
    return empty_book(capacity, origin)._replace(key=jnp.asarray(key), size=jnp.asarray(size))


def on_device(messages: Messages) -> Message:
    """Recorded messages for a book: ids become 1, 2, … in order of their size, which 32 bits hold; 0 stays."""
    ids = np.zeros(len(messages.order_id), np.int32)
    is_named = messages.order_id != 0
    ids[is_named] = 1 + np.unique(messages.order_id[is_named], return_inverse=True)[1]
    parts = (messages.kind, ids, messages.size, messages.price, messages.direction)
    return Message(*(jnp.asarray(part, jnp.int32) for part in parts))


def step(book: Book, message: Message) -> tuple[Book, Trade]:
    """The book after one message.

    Limit orders first match the other side at prices no worse than their own, best price and then first come first
    served, at the resting orders' prices; what is left joins the queue of its price. Market orders match in the same
    way (price 0: at any price), and what is left lapses. Cancellation and execution take up to `size` from the order
    that they name, deletion all of it. One that names no order of the book is taken for the first anonymous order at
    its price, an anonymous one for the first of any name there, and then takes at most `size`; if there is none, it is
    counted as unmatched. Other kinds change nothing. No two orders that rest may have one id, other than 0.

    Returns:
      The book, and what an incoming order took: () each.
    """
    buys = message.direction > 0
    own = jax.tree.map(lambda row: jnp.where(buys, row[0], row[1]), _sides(book))
    other = jax.tree.map(lambda row: jnp.where(buys, row[1], row[0]), _sides(book))
    other, trade = _matched(other, message, book.origin)
    own, found = _removed(own, message)
    rest = jnp.where(message.kind == LIMIT, message.size - trade.quantity, 0)
    here, dropped = _place(own, message, rest)
    is_own = (jnp.arange(2) == jnp.where(buys, 0, 1))[:, None]
    size = jnp.where(is_own, jnp.where(here, rest, own.size)[None], other.size[None])
    here = is_own & here[None]
    key = jnp.where(here, -message.price * message.direction, book.key)
    order_id, came = jnp.where(here, message.order_id, book.order_id), jnp.where(here, book.turn, book.came)
    turn, unmatched = book.turn + (rest > 0), book.unmatched + (names_order(message) & ~found)
    return Book(key, size, order_id, came, turn, book.origin, book.dropped + dropped, unmatched), trade


def names_order(message: Message) -> Bool[Array, "*n"]:
    """Whether a message takes shares from an order that it names."""
    return (message.kind == CANCEL) | (message.kind == DELETE) | (message.kind == EXECUTE)


def play(book: Book, messages: Message) -> tuple[Book, Trade]:
    """The book after many messages, (n,) each, and what each took."""
    return jax.lax.scan(step, book, messages)


class _Side(NamedTuple):
    """The slots of one side; see `Book`."""

    key: Int32[Array, "*capacity"]
    size: Int32[Array, "*capacity"]
    order_id: Int32[Array, "*capacity"]
    came: Int32[Array, "*capacity"]


def _sides(book: Book) -> _Side:
    return _Side(book.key, book.size, book.order_id, book.came)


def _matched(side: _Side, message: Message, origin: Int32[Array, ""]) -> tuple[_Side, Trade]:
    """The other side after an incoming order, which takes its orders one by one."""
    takes = (message.kind == LIMIT) | (message.kind == MARKET)
    is_any = (message.kind == MARKET) & (message.price == 0)
    worst = jnp.where(is_any, NONE - 1, message.price * message.direction)
    wanted = jnp.where(takes, jnp.maximum(message.size, 0), 0)

    def goes_on(state: tuple[Array, ...]) -> Bool[Array, ""]:
        _, wanted, best_key, _ = state
        return (wanted > 0) & (best_key <= worst)

    def one(state: tuple[Array, ...]) -> tuple[Array, ...]:
        size, wanted, best_key, value = state
        level = (size > 0) & (side.key == best_key)
        first = level & (side.came == jnp.where(level, side.came, NONE).min())
        fill = jnp.minimum(jnp.where(first, size, 0).sum(), wanted)
        size = size - jnp.where(first, fill, 0)
        return size, wanted - fill, lowest_key(side.key, size), value + fill * (best_key * message.direction - origin)

    start: tuple[Array, ...] = (side.size, wanted, lowest_key(side.key, side.size), jnp.int32(0))
    size, left, _, value = jax.lax.while_loop(goes_on, one, start)
    return side._replace(size=size), Trade(wanted - left, value)


def lowest_key(key: Int32[Array, "*capacity"], size: Int32[Array, "*capacity"]) -> Int32[Array, "*sides"]:
    """The lowest key of the slots along the last axis that are taken; `NONE` where all are empty."""
    return jnp.where(size > 0, key, NONE).min(-1)


def _removed(side: _Side, message: Message) -> tuple[_Side, Bool[Array, ""]]:
    """The own side after a cancellation, deletion or execution, and whether it named an order."""
    live = names_order(message) & (side.size > 0)
    anonymous = message.order_id == 0
    named = live & (side.order_id == message.order_id) & ~anonymous
    alike = live & (side.key == -message.price * message.direction) & (anonymous | (side.order_id == 0))
    rank = jnp.where(named, -1, jnp.where(alike, side.came, NONE))  # one minimum for all, which is what takes time
    first = rank.min()
    most = jnp.where((first < 0) & (message.kind == DELETE), NONE, jnp.maximum(message.size, 0))
    taken = jnp.where((rank == first) & (first < NONE), jnp.minimum(side.size, most), 0)
    return side._replace(size=side.size - taken), first < NONE


def _place(side: _Side, message: Message, rest: Int32[Array, ""]) -> tuple[Bool[Array, "*capacity"], Bool[Array, ""]]:
    """The slot for a limit order's rest, if any; and whether a full side has to drop an order, the last in priority."""
    capacity = side.key.shape[-1]
    slot, key = jnp.arange(capacity), -message.price * message.direction
    empty = jnp.where(side.size == 0, slot, capacity).min()
    is_full = (empty == capacity) & (rest > 0)

    def last(state: tuple[Array, ...]) -> tuple[Array, ...]:
        worst = jnp.where(slot < state[1], side.key, -NONE).max()  # of all slots; said so, it stays in the loop
        came = jnp.where(side.key == worst, side.came, -1)
        at = jnp.where(came == came.max(), slot, capacity).min()
        return jnp.bool_(False), jnp.where(key < worst, at, capacity)

    # a loop of one turn at most, and of none while no side is full: under vmap `cond` always carries out both ways
    start: tuple[Array, ...] = (is_full, empty)
    _, place = jax.lax.while_loop(lambda state: state[0], last, start)
    return (slot == place) & (rest > 0), is_full


def best(book: Book) -> Int32[Array, "2"]:
    """Best bid and best ask, in 1/10,000 dollar; of a side without orders −`NONE` or `NONE`."""
    return lowest_key(book.key, book.size) * _SIGN


def levels(book: Book, count: int) -> Int32[Array, "count 4"]:
    """The best prices of both sides, each with the shares of all orders there.

    Returns:
      Rows of ask price, ask size, bid price, bid size; a level that is not there has price `NONE` (asks) or −`NONE`
      (bids) and size 0.
    """

    def level(above: Int32[Array, "2"], _: None) -> tuple[Int32[Array, "2"], tuple[Int32[Array, "2"], ...]]:
        live = (book.size > 0) & (book.key > above[:, None])
        key = jnp.where(live, book.key, NONE).min(-1)
        size = jnp.where(live & (book.key == key[:, None]), book.size, 0).sum(-1)
        return key, (key, size)

    key, size = jax.lax.scan(level, jnp.full(2, -NONE), length=count)[1]
    return jnp.stack([key[:, 1], size[:, 1], -key[:, 0], size[:, 0]], axis=-1)


def mid(book: Book) -> Int32[Array, ""]:
    """Half way between best bid and best ask; the book's origin where a side is empty."""
    bid, ask = best(book)
    there = (book.size > 0).any(-1).all()
    return jnp.where(there, bid + (ask - bid) // 2, book.origin)


def touch_sizes(book: Book) -> Int32[Array, "2"]:
    """Shares at the best bid and at the best ask."""
    return jnp.where(book.key == lowest_key(book.key, book.size)[:, None], book.size, 0).sum(-1)


def held_of(book: Book, order_id: int) -> Int32[Array, ""]:
    """Shares of an order that rest."""
    return jnp.where(book.order_id == order_id, book.size, 0).sum()
