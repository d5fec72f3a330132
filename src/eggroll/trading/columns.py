"""Columns of whole numbers and times out of comma-separated text, exactly and quickly.

Numbers are parsed in NumPy, digit place by digit place over a block of rows, so that a day takes seconds and no value
passes through a float. The same arrays tell which row is at fault: there is one grammar, and no second, slow parser.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64, UInt8, UInt64

from eggroll.core.errors import UsageError
from eggroll.runs.folder import open_plain, reason, shown

SECOND = 10**9
"""Nanoseconds."""
MEND = "give the file as LOBSTER made it, unpacked"
"""What to do about a file that is none of LOBSTER's."""
_PLACES = 19  # most digits of a number; any such fits an unsigned 64-bit integer
_BLOCK = 2**19  # bytes that are parsed at a time; few, so that the arrays of a block stay in the cache


class Block(NamedTuple):
    """Whole lines of a file."""

    path: Path
    line: int  # number of the first
    data: UInt8[np.ndarray, " bytes"]  # ends with a line end, which is one byte

    def fault(self, row: int, expected: str, got: str) -> UsageError:
        """The complaint about a row, counted from 0."""
        return UsageError(f"expected {expected} in line {self.line + row} of {self.path}, got {got}; {MEND}")


class Fields(NamedTuple):
    """Where fields begin and end in a block's data."""

    starts: Int64[np.ndarray, "*n"]
    ends: Int64[np.ndarray, "*n"]

    def of(self, column: int) -> Fields:
        """Those of one column."""
        return Fields(self.starts[column], self.ends[column])


def blocks(path: Path) -> Iterator[Block]:
    """The file in blocks of whole lines.

    Raises:
      UsageError: it cannot be read, is empty, or is no plain text.
    """
    line = 1
    try:
        with open(path, "rb", opener=open_plain) as file:
            while text := file.read(_BLOCK):
                text = (text + file.readline()).replace(b"\r\n", b"\n")
                data = np.frombuffer(text if text.endswith(b"\n") else text + b"\n", np.uint8)
                _refuse_bytes(Block(path, line, data))
                yield Block(path, line, data)
                line += int(np.count_nonzero(data == ord("\n")))
    except OSError as error:
        raise UsageError(f"expected a LOBSTER file at {path}, got {reason(error)}; check the path") from None
    if line == 1:
        raise UsageError(f"expected rows of numbers in {path}, got an empty file; {MEND}")


def columns(block: Block, names: tuple[str, ...], *, ignored: int = 0) -> list[Int64[np.ndarray, " n"]]:
    """The numbers of each column.

    Args:
      names: what the columns hold; one named "time" holds decimal seconds, which become nanoseconds, the others whole
        numbers.
      ignored: how many columns more a row may have.
    Raises:
      UsageError: a row has another number of columns, or a field that is no such number.
    """
    fields = _fields(block, len(names), len(names) + ignored)
    parsed = [(_times if name == "time" else _integers)(block.data, fields.of(i)) for i, name in enumerate(names)]
    bad = np.stack([bad for _, bad in parsed])
    if bad.any():
        row, column = np.argwhere(bad.T)[0]
        name = names[column]
        what = "seconds with at most 9 digits after the point" if name == "time" else "a whole number of 64 bits"
        word = block.data[fields.starts[column, row] : fields.ends[column, row]].tobytes().decode("ascii")
        raise block.fault(int(row), f"{what} as {name}", shown(word))
    return [values for values, _ in parsed]


def _refuse_bytes(block: Block) -> None:
    strange = np.flatnonzero(((block.data < ord(" ")) & (block.data != ord("\n"))) | (block.data > ord("~")))
    if strange.size:
        row = int(np.count_nonzero(block.data[: strange[0]] == ord("\n")))
        raise block.fault(row, "plain text", f"the byte {block.data[strange[0]]:#04x}")


def _fields(block: Block, width: int, widest: int) -> Fields:
    """The first `width` fields of every row, each (width, n), of rows that have at most `widest`."""
    ends = np.flatnonzero((block.data == ord("\n")) | (block.data == ord(",")))
    starts = np.append(0, ends[:-1] + 1)
    last = np.flatnonzero(block.data[ends] == ord("\n"))
    counts = np.diff(last, prepend=-1)
    bad = np.flatnonzero((counts < width) | (counts > widest))
    if bad.size:
        wanted = f"{width}" if width == widest else f"{width} to {widest}"
        raise block.fault(int(bad[0]), f"{wanted} columns", f"{counts[bad[0]]}")
    index = (last - counts + 1) + np.arange(width)[:, None]  # columns first, so that each lies in one piece
    return Fields(starts[index], ends[index])


def _digits(
    data: UInt8[np.ndarray, " bytes"], fields: Fields
) -> tuple[UInt64[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Values of runs of digits (of none: 0), and where there is another character or more than `_PLACES` of them."""
    starts, ends = fields
    values, counts = np.zeros(len(starts), np.uint64), ends - starts
    bad = counts > _PLACES
    for place in range(min(int(counts.max(initial=0)), _PLACES)):
        at = ends - (place + 1)
        digit = data[at] - np.uint8(ord("0"))  # other characters wrap to above 9
        digit *= at >= starts
        bad |= digit > 9
        values += digit * np.uint64(10**place)
    return values, bad


def _integers(
    data: UInt8[np.ndarray, " bytes"], fields: Fields
) -> tuple[Int64[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Values of whole numbers with or without a minus, and which are none or beyond 64 bits."""
    negative = data[fields.starts] == ord("-")
    starts = fields.starts + negative
    values, bad = _digits(data, Fields(starts, fields.ends))
    bad |= (starts == fields.ends) | (values > np.uint64(2**63 - 1) + negative)
    signed = values.astype(np.int64)
    return np.where(negative, -signed, signed), bad


def _times(data: UInt8[np.ndarray, " bytes"], fields: Fields) -> tuple[Int64[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Nanoseconds of decimal seconds, and which are none."""
    starts, ends = fields
    points = np.append(np.flatnonzero(data == ord(".")), len(data))
    point = np.minimum(points[np.searchsorted(points, starts)], ends)
    after = np.minimum(point + 1, ends)
    whole, bad = _digits(data, Fields(starts, point))
    part, bad_part = _digits(data, Fields(after, ends))
    digits = ends - after
    bad |= bad_part | (point == starts) | (point - starts > 9) | (digits > 9) | ((digits == 0) & (point < ends))
    return whole.astype(np.int64) * SECOND + part.astype(np.int64) * 10 ** np.clip(9 - digits, 0, 9), bad
