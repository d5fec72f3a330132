"""A market to trade in: a book, and others whose messages keep coming, generated or recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float32, Int32

from eggroll.trading.book import Book, Message, best, mid, on_device, step, touch_sizes
from eggroll.trading.flow import LONGEST_GAP, Flow, flow_step
from eggroll.trading.messages import EXECUTE, MARKET, TICK, Messages
from eggroll.trading.tokens import Fields, message_tokens

FEATURES = ("spread", "imbalance", "move", "executes", "left", "time", "drift", "resting")
"""What a model sees with a message besides it.

spread: log₂(1 + ticks)/4, and imbalance: (bid − ask)/(bid + ask) of the shares at the best prices, both after the
message; move: of the mid by it, in 8 ticks, within ±4. Of one who executes an order, else 0: executes: 1; left: share
of the quantity; time: share of the decisions to come; drift: from the arrival price to the mid, in 64 ticks, in favour;
resting: share of the quantity in the child order.
"""
SEEN = 3  # of them are the book's


class Market(NamedTuple):
    """A book and what the others' flow remembers."""

    book: Book
    others: Any


class Seen(NamedTuple):
    """What a message left behind."""

    tokens: Int32[Array, "fields"]
    features: Float32[Array, "3"]
    gap: Int32[Array, ""]  # ns since the message before
    message: Message


Others = Callable[[Any, Book, Float32[Array, "draws"]], tuple[Any, Int32[Array, ""], Message]]
"""(what it remembers, book, uniform numbers) → the same, ns since the message before, the next message."""


def generated(flow: Flow) -> Others:
    """Messages that a market of these numbers would send next; remembers a `FlowState`."""
    return lambda state, book, draws: flow_step(flow, state, book, draws)


class Recorded(NamedTuple):
    """Messages of a record, to be sent again."""

    message: Message  # (n,) each
    gap: Int32[Array, "n"]  # ns


def record_of(messages: Messages) -> Recorded:
    """A record as it meets a book in which another trades too.

    An execution becomes a market order from the other side, as far as the price at which it was: whoever is first in
    the queue is served. Gaps over `LONGEST_GAP` are cut to that.
    """
    message = on_device(messages)
    executes = message.kind == EXECUTE
    message = message._replace(
        kind=jnp.where(executes, MARKET, message.kind),
        direction=jnp.where(executes, -message.direction, message.direction),
    )
    gap = np.clip(np.diff(messages.time, prepend=messages.time[:1]), 0, LONGEST_GAP)
    return Recorded(message, jnp.asarray(gap, jnp.int32))


def replayed(record: Recorded) -> Others:
    """Messages of a record one after another; remembers the place of the next, and begins anew after the last."""

    def next_one(place: Any, book: Book, draws: Any) -> tuple[Any, Any, Message]:
        own = jax.tree.map(lambda leaf: leaf[place], record)
        return (place + 1) % record.gap.shape[0], own.gap, own.message

    return next_one


def next_message(others: Others, market: Market, draws: Float32[Array, "draws"]) -> tuple[Market, Seen]:
    """The market after one more message of the others, and what it showed."""
    remembered, gap, message = others(market.others, market.book, draws)
    before = mid(market.book)
    book, _ = step(market.book, message)
    return Market(book, remembered), seen_of(message, gap, before, book)


def seen_of(message: Message, gap: Int32[Array, ""], before: Int32[Array, ""], book: Book) -> Seen:
    """A message as a model reads it.

    Args:
      before: the mid before it.
      book: after it.
    """
    is_market = message.kind == MARKET  # which a record calls an execution of the other side
    kind = jnp.where(is_market, EXECUTE, message.kind)
    direction = jnp.where(is_market, -message.direction, message.direction)
    tokens = message_tokens(Fields(kind, direction, gap, message.price, message.size), before)
    return Seen(tokens, book_features(book, before), gap, message)


def book_features(book: Book, before: Int32[Array, ""]) -> Float32[Array, "3"]:
    """The book's part of `FEATURES`."""
    bid, ask = best(book)
    sizes = jnp.float32(touch_sizes(book))
    is_spread = (book.size > 0).any(-1).all()  # else the difference may not fit 32 bits
    spread = jnp.log2(1 + jnp.where(is_spread, jnp.clip((ask - bid) / TICK, 0, 4095), 4095)) / 4
    imbalance = (sizes[0] - sizes[1]) / jnp.maximum(sizes.sum(), 1)
    move = jnp.clip((mid(book) - before) / (8 * TICK), -4, 4)
    return jnp.stack([spread, imbalance, move]).astype(jnp.float32)


def widened(features: ArrayLike) -> Float32[Array, "*n 8"]:
    """What the book shows, with zeros for what only one who executes an order sees."""
    features = jnp.asarray(features)
    return jnp.pad(features, [(0, 0)] * (features.ndim - 1) + [(0, len(FEATURES) - SEEN)])
