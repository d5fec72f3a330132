"""Streams of messages to learn from and to trade against: generated days, or recorded ones."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int32, Int64, Key

from eggroll.core.errors import UsageError
from eggroll.trading.book import NONE, book_of_levels, levels
from eggroll.trading.calibration import DEFAULT, Calibration, read_calibration
from eggroll.trading.flow import DRAWS, LONGEST_GAP, Flow, opened, simulate
from eggroll.trading.lobster import MISSING, Day, read_day
from eggroll.trading.messages import TICK, Messages, cut, length
from eggroll.trading.tokens import encode
from eggroll.trading.world import Market, generated, next_message, record_of, replayed, widened

OPENING = 5_850_000
"""Price at which generated days open, in 1/10,000 dollar."""
_MORNING = 34_200_000_000_000  # 9:30 in ns after midnight
_HELD_OUT = 5  # of a record, the last of so many parts


class Stream(NamedTuple):
    """Messages as a model reads them, several days in a row."""

    tokens: Int32[Array, "n fields"]
    features: Float32[Array, "n 8"]
    starts: Int32[Array, "m"]  # places from which `length` + 1 messages are of one day


def calibration_of(path: str) -> Calibration:
    """The numbers of a generated market: a file's, or where none is named the built-in ones.

    Raises:
      UsageError: the file is none.
    """
    return read_calibration(Path(path) if path else DEFAULT)


def generated_stream(flow: Flow, key: Key[Array, ""], days: int, count: int, length: int) -> Stream:
    """Days of a market that nobody disturbs, `count` messages each."""

    def day(key: Key[Array, ""]) -> tuple[Any, Any]:
        first, then = jax.random.split(key)
        market = generated_market(flow, first)
        one = lambda market, draws: next_message(generated(flow), market, draws)
        seen = jax.lax.scan(one, market, jax.random.uniform(then, (count, DRAWS)))[1]
        return seen.tokens, widened(seen.features)

    tokens, features = jax.jit(lambda keys: jax.lax.map(day, keys, batch_size=32))(jax.random.split(key, days))
    return _in_a_row(list(tokens), list(features), length)


def generated_market(flow: Flow, key: Key[Array, ""], price: int = OPENING) -> Market:
    """A market that has been traded for a while."""
    return Market(*opened(flow, key, price))


def recorded_stream(days: list[Day], length: int) -> Stream:
    """Recorded days; gaps, prices and sizes without a token are clipped.

    Raises:
      UsageError: no day is longer than `length` messages.
    """
    parts = [day_tokens(day) for day in days]
    if not any(len(tokens) > length for tokens, _ in parts):
        longest = max((len(tokens) for tokens, _ in parts), default=0)
        raise UsageError(f"expected a record of more than {length} messages, got {longest}; give a smaller --length")
    return _in_a_row([tokens for tokens, _ in parts], [features for _, features in parts], length)


def day_tokens(day: Day) -> tuple[Int32[np.ndarray, "n fields"], Float32[np.ndarray, "n 8"]]:
    """Messages after the first of a recorded day, with what the book shows after each."""
    middle = middles(day.rows)
    gaps = np.diff(day.messages.time, prepend=day.messages.time[:1]).clip(0, LONGEST_GAP)
    messages = day.messages._replace(time=day.messages.time[0] + np.cumsum(gaps))
    start = int(messages.time[0])
    tokens, _ = encode(cut(messages, 1, length(messages)), middle[:-1], outside="clip", start_time=start)
    return tokens, np.asarray(widened(row_features(day.rows)))


def middles(book: Int64[np.ndarray, "n levels 4"]) -> Int64[np.ndarray, " n"]:
    """Half way between the best prices, as `book.mid`; where a side is empty, that of the row before."""
    ask, bid = book[:, 0, 0], book[:, 0, 2]
    there = (book[:, 0, 1] > 0) & (book[:, 0, 3] > 0)
    last = np.maximum.accumulate(np.where(there, np.arange(len(book)), 0))
    return (bid + (ask - bid) // 2)[last]


def row_features(book: Int64[np.ndarray, "n levels 4"]) -> Float32[np.ndarray, "m 3"]:
    """The book's part of `world.FEATURES` for every row after the first."""
    ask, ask_size, bid, bid_size = book[1:, 0].T.astype(np.float64)
    middle = middles(book)
    spread = np.log2(1 + ((ask - bid) / TICK).clip(0, 4095)) / 4
    imbalance = (bid_size - ask_size) / np.maximum(bid_size + ask_size, 1)
    move = (np.diff(middle) / (8 * TICK)).clip(-4, 4)
    return np.stack([spread, imbalance, move], axis=-1).astype(np.float32)


def days_in(folder: str) -> list[Day]:
    """All days of a folder of LOBSTER files.

    Raises:
      UsageError: there are none, or one cannot be read.
    """
    found = sorted(Path(folder).glob("*message*.csv"))
    if not found:
        raise UsageError(f"expected *message*.csv files of LOBSTER in {folder}, got none; give another folder")
    return [read_pair(path) for path in found]


def read_pair(messages: Path) -> Day:
    """A message file and the order-book file beside it.

    Raises:
      UsageError: either is not there, or cannot be read.
    """
    book = messages.with_name(messages.name.replace("message", "orderbook"))
    if book == messages or not book.is_file():
        raise UsageError(f"expected the order-book file of {messages} at {book}, got none; put it there")
    return read_day(messages, book)


def split(day: Day) -> tuple[Day, Day]:
    """The first four fifths of a day, and the rest, which is held out."""
    at, count = length(day.messages) * (_HELD_OUT - 1) // _HELD_OUT, length(day.messages)
    return Day(cut(day.messages, 0, at), day.rows[:at]), Day(cut(day.messages, at, count), day.rows[at:])


def generated_day(flow: Flow, key: Key[Array, ""], count: int, depth: int, price: int = OPENING) -> Day:
    """A generated day as LOBSTER would record it, with `depth` levels."""

    def made(key: Key[Array, ""]) -> tuple[Any, Any, Any]:
        first, then = jax.random.split(key)
        gap, message, books = simulate(flow, then, count, *opened(flow, first, price))[1]
        return gap, message, jax.vmap(lambda book: levels(book, depth))(books)

    gap, message, rows = jax.tree.map(np.asarray, jax.jit(made)(key))
    time = _MORNING + np.cumsum(gap.astype(np.int64))
    parts = (message.kind, message.order_id.astype(np.int64), message.size, message.price, message.direction)
    rows = rows.astype(np.int64)
    return Day(Messages(time, *parts), np.where(np.abs(rows) == NONE, np.sign(rows) * MISSING, rows))


def recorded_markets(days: list[Day], count: int, least: int) -> tuple[Market, Any]:
    """Places in a record at which to begin, each with its book, and the flow that goes on from there.

    Args:
      count: places, evenly spaced over all days.
      least: messages that must follow on the same day.
    Raises:
      UsageError: no day is so long.
    """
    lengths = [length(day.messages) for day in days]
    whole = _starts(lengths, least)
    if not len(whole):
        longest = max(lengths, default=0)
        raise UsageError(
            f"expected a record of more than {least} messages for an episode, got {longest}; give a longer one, or "
            "fewer --decisions or a smaller --interval"
        )
    places = whole[np.linspace(0, len(whole) - 1, count).astype(int)]
    rows = [row for day in days for row in day.rows]  # days may differ in levels
    books = [book_of_levels(rows[place]) for place in places]
    record = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *(record_of(day.messages) for day in days))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *books)
    return Market(stacked, jnp.asarray(places + 1, jnp.int32)), replayed(record)


def _in_a_row(tokens: list[Any], features: list[Any], length: int) -> Stream:
    return Stream(
        jnp.asarray(np.concatenate([np.asarray(each) for each in tokens])),
        jnp.asarray(np.concatenate([np.asarray(each) for each in features])),
        jnp.asarray(_starts([len(each) for each in tokens], length), jnp.int32),
    )


def _starts(lengths: list[int], length: int) -> Int64[np.ndarray, " m"]:
    """Places in several days in a row after which `length` more messages are of the same day."""
    begins = np.cumsum([0, *lengths])
    return np.concatenate([np.arange(begin, max(end - length, begin)) for begin, end in itertools.pairwise(begins)])
