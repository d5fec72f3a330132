"""Reads and writes LOBSTER's message and order-book files, comma-separated numbers without a header.

A message is a row `time, kind, order id, size, price, direction`, its time in seconds after midnight; a seventh
column, which some files have, is ignored. A row of the order book is the state after the message in the same line of
the message file: `ask price, ask size, bid price, bid size`, once for each level.
Source: https://lobsterdata.com/info/DataStructure.php
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64

from eggroll.core.errors import UsageError
from eggroll.runs.folder import put_whole
from eggroll.trading.columns import MEND, SECOND, Block, blocks, columns
from eggroll.trading.messages import DTYPES, HALT, LIMIT, Messages, cut, length

MISSING = 9_999_999_999
"""Price of an ask level that is not there, with size 0; that of a bid is −MISSING."""
_MESSAGE = ("time", "kind", "order id", "size", "price", "direction")
_LEVEL = ("ask price", "ask size", "bid price", "bid size")
_SIGN = np.array([1, -1])  # of prices, so that better is less: asks, bids
_LARGEST = int(np.iinfo(np.int32).max)
_DAY = 86_400 * SECOND
_ROWS = 50_000  # that are written at a time
_MEND_ROW = "LOBSTER's files hold no such row"


class Day(NamedTuple):
    """What is recorded of one day."""

    messages: Messages
    book: np.ndarray | None  # (n, levels, 4) int64, after each message; None: not read

    @property
    def rows(self) -> Int64[np.ndarray, "n levels 4"]:
        """The book of a day that was read with one."""
        assert self.book is not None
        return self.book


class _Rule(NamedTuple):
    """What must hold of every row."""

    broken: Bool[np.ndarray, "n *levels"]
    expected: str
    got: Callable[[tuple[int, ...]], str]  # what stands at a place where it is broken


def read_messages(path: str | Path) -> Messages:
    """Read a message file.

    Raises:
      UsageError: it cannot be read, is empty, or has a row that is none of LOBSTER's; names the line and what is wrong.
    """
    path = Path(path)
    parts = [columns(block, _MESSAGE, ignored=1) for block in blocks(path)]
    fields = [np.concatenate(part) for part in zip(*parts, strict=True)]
    _hold(_message_rules(fields), partial(_line, path, 1), MEND)
    return Messages(*(field.astype(dtype) for field, dtype in zip(fields, DTYPES, strict=True)))


def read_book(path: str | Path) -> Int64[np.ndarray, "n levels 4"]:
    """Read an order-book file of any level.

    Returns:
      For each row and level ask price, ask size, bid price and bid size, in 1/10,000 dollar and shares. A level that is
      not there has price `MISSING` (asks) or −`MISSING` (bids) and size 0, as in the file.
    Raises:
      UsageError: as of `read_messages`; also a book that is crossed or whose prices are not in order.
    """
    path, parts = Path(path), list[np.ndarray]()
    for block in blocks(path):
        levels = parts[0].shape[1] if parts else _levels(block)
        names = tuple(f"{name} {level}" for level in range(1, levels + 1) for name in _LEVEL)
        part = np.stack(columns(block, names), axis=1).reshape(-1, levels, 4)
        _hold(_book_rules(part), partial(_line, path, block.line), MEND)
        parts.append(part)
    return np.concatenate(parts)


def read_day(message_path: str | Path, book_path: str | Path | None = None) -> Day:
    """Read a day's message file and, if given, its order-book file.

    Raises:
      UsageError: as of `read_messages` and `read_book`; also files of different lengths.
    """
    messages = read_messages(message_path)
    if book_path is None:
        return Day(messages, None)
    book = read_book(book_path)
    if len(book) != length(messages):
        raise UsageError(
            f"expected as many rows in {book_path} as in {message_path}, {length(messages)}, got {len(book)}; "
            "give two files of the same day and level"
        )
    return Day(messages, book)


def write_messages(path: str | Path, messages: Messages) -> None:
    """Write a message file, whole or not at all; `read_messages` gives back the same.

    Raises:
      UsageError: the file cannot be written, there is no message, or one that LOBSTER's format does not hold, such as a
        market order; names its index.
    """
    fields = [np.asarray(field, np.int64) for field in messages]
    _hold(_message_rules(fields), lambda row: f"message {row} for {path}", _MEND_ROW)
    _put(Path(path), _message_text(messages), length(messages))


def write_book(path: str | Path, book: Int64[np.ndarray, "n levels 4"]) -> None:
    """Write an order-book file, whole or not at all; `read_book` gives back the same.

    Args:
      book: as `read_book` returns it.
    Raises:
      UsageError: the file cannot be written, there is no row, or one that `read_book` would refuse; names its index.
    """
    _hold(_book_rules(book), lambda row: f"row {row} for {path}", _MEND_ROW)
    _put(Path(path), _book_text(book), book.size)


def _put(path: Path, pieces: Iterator[bytes], values: int) -> None:
    if not values:
        raise UsageError(f"expected at least one row to write to {path}, got none; LOBSTER's files are never empty")
    try:
        put_whole(path, pieces)
    except OSError as error:
        raise UsageError(f"expected to write {path}, got {error.strerror or error}; choose another place") from None


def _message_text(messages: Messages) -> Iterator[bytes]:
    for start in range(0, length(messages), _ROWS):
        rows = zip(*(field.tolist() for field in cut(messages, start, start + _ROWS)), strict=True)
        yield "".join([f"{_seconds(time)},%d,%d,%d,%d,%d\n" % tuple(others) for time, *others in rows]).encode()


def _book_text(book: Int64[np.ndarray, "n levels 4"]) -> Iterator[bytes]:
    line = ",".join(["%d"] * (4 * book.shape[1])) + "\n"
    for start in range(0, len(book), _ROWS):
        rows = book[start : start + _ROWS].reshape(-1, 4 * book.shape[1]).tolist()
        yield "".join([line % tuple(row) for row in rows]).encode()


def _seconds(time: int) -> str:
    """Nanoseconds as LOBSTER writes them: decimal seconds, without zeros at the end."""
    return f"{time // SECOND}.{time % SECOND:09d}".rstrip("0").rstrip(".")


def _line(path: Path, first: int, row: int) -> str:
    """Where a row is, for a complaint."""
    return f"line {first + row} of {path}"


def _levels(block: Block) -> int:
    """How many levels the first row has."""
    width = int(np.count_nonzero(block.data[: np.argmax(block.data == ord("\n"))] == ord(","))) + 1
    if width % len(_LEVEL):
        raise block.fault(0, "4 columns for each level", f"{width}")
    return width // len(_LEVEL)


def _hold(rules: list[_Rule], place: Callable[[int], str], mend: str) -> None:
    """Refuse the first row that breaks a rule.

    Args:
      place: row → where that is, for the complaint.
      mend: what to do about it.
    """
    found = [(tuple(np.argwhere(rule.broken)[0].tolist()), rule) for rule in rules if rule.broken.any()]
    if found:
        at, rule = min(found, key=lambda each: each[0][0])
        raise UsageError(f"expected {rule.expected} in {place(at[0])}, got {rule.got(at)}; {mend}")


def _within(name: str, values: np.ndarray, low: int, high: int, asked: np.ndarray | bool = True) -> _Rule:
    """That values lie in a range, both ends included, where that is asked."""
    broken = ((values < low) | (values > high)) & asked
    return _Rule(broken, f"a {name} of {low} to {high}", lambda at: f"{values[at]}")


def _message_rules(fields: list[Int64[np.ndarray, " n"]]) -> list[_Rule]:
    time, kind, _, size, price, direction = fields
    got_time = lambda at: _seconds(int(time[at]))
    return [
        _Rule((time < 0) | (time > _DAY), "a time within 24 hours after midnight", got_time),
        _Rule(np.diff(time, prepend=time[:1]) < 0, "a time not before that of the row above", got_time),
        _within("kind", kind, LIMIT, HALT),
        _within("size", size, 0, _LARGEST),
        _within("price", price, 0, _LARGEST, kind != HALT),
        _within("price of a halt", price, -1, 1, kind == HALT),
        _Rule(np.abs(direction) != 1, "a direction of 1 or -1", lambda at: f"{direction[at]}"),
    ]


def _book_rules(book: Int64[np.ndarray, "n levels 4"]) -> list[_Rule]:
    price, size = book[..., 0::2], book[..., 1::2]
    there = price != MISSING * _SIGN
    rank = np.where(there, price * _SIGN, MISSING)
    better = (rank[:, 1:] < rank[:, :-1]) | ((rank[:, 1:] == rank[:, :-1]) & there[:, 1:])
    crossed = (price[:, :1, 0] <= price[:, :1, 1]) & there[:, :1].all(-1)
    return [
        _within("price", price, 1, _LARGEST, there),
        _Rule(
            (size < 0) | ((size > 0) != there),
            f"a size above 0 where there is a price and 0 where it is ±{MISSING}",
            lambda at: f"{size[at]}",
        ),
        _Rule(
            better,
            "prices that get worse from level to level",
            lambda at: f"{price[at]} and then {price[at[0], at[1] + 1, at[2]]}",
        ),
        _Rule(crossed, "an ask above the bid", lambda at: f"{price[at[0], 0, 0]} and {price[at[0], 0, 1]}"),
    ]
