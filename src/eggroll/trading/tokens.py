"""Messages of a limit order book as rows of tokens, and back; a row a message, exactly invertible within its ranges.

| column | values | meaning |
|---|---|---|
| kind | 7 | kind − 1: limit, cancel, delete, execute, hidden, cross, halt |
| side | 2 | 0 sell, 1 buy; of the resting order, as in LOBSTER |
| gap_scale | 48 | bit length of the time since the message before, in ns; 0: the same instant |
| gap_high | 64 | the six bits of the gap after its leading one |
| gap_low1 … gap_low4 | 1,024 each | the forty bits after those, ten a column |
| price_coarse | 256 | offset // 64, the offset being in ticks of 1 cent, plus 8,192 |
| price_fine | 64 | offset % 64 |
| price_part | 100 | what is left of the price within the tick, in 1/10,000 dollar; nearly always 0 |
| size_lots | 1,024 | size // 100 |
| size_odd | 100 | size % 100 |

**Gap**: a gap of 1 bit to 47 bits (39 hours) stands left-aligned in its columns; those of its bits that are below a
nanosecond are written as 0 and not read. The low columns are less than 1/64 of the gap. They are noise by their nature:
no model predicts them, and a model that generates draws them uniformly. `MODELLED` names the other columns.

**Price**: the offset counts from the mid before the message towards the other side: price − mid for buys, mid − price
for sells, the mid being rounded to a tick towards the own side (down for buys, up for sells). So the best bid and the
best ask have the same offset, negative offsets are deeper in the own side, and a model learns both sides as one. A
halt's price is a status, −1 to 1, so its mid is 0. A cross of an auction counts from the mid as any other.

Ids of orders are not tokens. `message_tokens`, `message_of` and the functions of single fields are plain arithmetic on
arrays of NumPy or JAX, under jit too; in int32 they hold for gaps below 2.1 seconds.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Int32, Integer

from eggroll.core.errors import UsageError
from eggroll.trading.messages import HALT, TICK, Messages

LOT = 100
"""Shares."""
DEEPEST = 8192
"""Offsets in ticks are −DEEPEST to DEEPEST − 1."""
LARGEST = 1024 * LOT - 1
"""Size in shares."""
LONGEST = 2**47 - 1
"""Gap in nanoseconds."""
_FINE = 64
_GAP_BITS = (6, 10, 10, 10, 10)  # of the columns after gap_scale, highest first
OUTSIDE = Literal["refuse", "clip"]


class Field(NamedTuple):
    """A column of a row of tokens: its values are 0 to `values` − 1."""

    name: str
    values: int


FIELDS = (
    Field("kind", 7),
    Field("side", 2),
    Field("gap_scale", 48),
    Field("gap_high", 64),
    *(Field(f"gap_low{k}", 1024) for k in range(1, 5)),
    Field("price_coarse", 256),
    Field("price_fine", _FINE),
    Field("price_part", TICK),
    Field("size_lots", 1024),
    Field("size_odd", LOT),
)
COLUMN = {field.name: column for column, field in enumerate(FIELDS)}
VALUES = {field.name: field.values for field in FIELDS}
MODELLED = tuple(field.name for field in FIELDS if not field.name.startswith("gap_low"))
"""The fields that a model predicts, in the order in which it does."""


class Fields(NamedTuple):
    """What the tokens of a message say; arrays of one shape and one integer dtype."""

    kind: Any  # LIMIT to HALT
    direction: Any  # +1 buy, −1 sell
    gap: Any  # ns since the message before
    price: Any  # 1/10,000 dollar
    size: Any  # shares


def gap_tokens(gap: Any) -> tuple[Any, ...]:
    """Gaps in ns, 0 to `LONGEST`, as gap_scale, gap_high and gap_low1 to gap_low4; integers of the gap's dtype."""
    width = min(LONGEST.bit_length(), 8 * gap.dtype.itemsize - 1)
    scale = sum(((gap >> bit) > 0).astype(gap.dtype) for bit in range(width))
    columns, below = [scale], scale - 1  # below: how many bits of the gap come after those taken
    for bits in _GAP_BITS:
        below = below - bits
        columns.append(((gap >> below.clip(0)) << (-below).clip(0)) & ((1 << bits) - 1))
    return tuple(columns)


def gap_of(scale: Any, *columns: Any) -> Any:
    """The gap in ns of what `gap_tokens` gives; bits below a nanosecond are not read."""
    below = scale - 1
    gap = (scale > 0).astype(scale.dtype) << below.clip(0)
    for bits, column in zip(_GAP_BITS, columns, strict=True):
        below = below - bits
        gap = gap + ((column << below.clip(0)) >> (-below).clip(0))
    return gap


def _anchor(direction: Any, reference: Any) -> Any:
    """The mid times the direction, rounded down to a tick."""
    return direction * reference // TICK * TICK


def price_tokens(price: Any, direction: Any, reference: Any) -> tuple[Any, Any, Any]:
    """Prices as price_coarse, price_fine and price_part; those out of range as the nearest within it.

    Args:
      price, reference: in 1/10,000 dollar; integers. The reference is the mid.
      direction: +1 buy, −1 sell.
    """
    offset = (direction * price - _anchor(direction, reference)).clip(-DEEPEST * TICK, DEEPEST * TICK - 1)
    ticks = offset // TICK + DEEPEST
    return ticks // _FINE, ticks % _FINE, offset % TICK


def price_of(coarse: Any, fine: Any, part: Any, direction: Any, reference: Any) -> Any:
    """The price of what `price_tokens` gives."""
    offset = (coarse * _FINE + fine - DEEPEST) * TICK + part
    return direction * (_anchor(direction, reference) + offset)


def size_tokens(size: Any) -> tuple[Any, Any]:
    """Sizes in shares as size_lots and size_odd; those out of range as the nearest within it."""
    size = size.clip(0, LARGEST)
    return size // LOT, size % LOT


def size_of(lots: Any, odd: Any) -> Any:
    """The size of what `size_tokens` gives."""
    return lots * LOT + odd


def message_tokens(fields: Fields, reference: Any) -> Any:
    """Messages as rows of tokens, (…, fields); prices and sizes out of range as the nearest within it.

    Args:
      fields: arrays (…) of NumPy or of JAX.
      reference: (…); the mid before each message in 1/10,000 dollar.
    """
    kind, direction, gap, price, size = fields
    prices = price_tokens(price, direction, _mid(kind, reference))
    columns = [kind - 1, (direction + 1) // 2, *gap_tokens(gap), *prices, *size_tokens(size)]
    return price.__array_namespace__().stack(columns, axis=-1)


def message_of(tokens: Any, reference: Any) -> Fields:
    """What rows of tokens (…, fields) say, with references (…), the mid before each message."""
    kind, side, *gap = (tokens[..., column] for column in range(COLUMN["price_coarse"]))
    coarse, fine, part, lots, odd = (tokens[..., column] for column in range(COLUMN["price_coarse"], len(FIELDS)))
    kind, direction = kind + 1, 2 * side - 1
    price = price_of(coarse, fine, part, direction, _mid(kind, reference))
    return Fields(kind, direction, gap_of(*gap), price, size_of(lots, odd))


def _mid(kind: Any, reference: Any) -> Any:
    """Prices count from here: a halt's, which is a status, from 0."""
    return reference * (kind != HALT)


def encode(
    messages: Messages,
    reference: Integer[np.ndarray, " n"],
    *,
    outside: OUTSIDE = "refuse",
    start_time: int | None = None,
) -> tuple[Int32[np.ndarray, "n fields"], int]:
    """Messages as rows of tokens.

    Args:
      messages: n of them, of kinds 1 to 7.
      reference: the mid before each message in 1/10,000 dollar, at best not rounded to a tick; where a side of the book
        is empty, any price that decoding can use as well.
      outside: "refuse" gaps, prices and sizes that have no tokens, or "clip" them to the nearest that have.
      start_time: the first gap counts from here, ns after midnight; None: from the first message itself.
    Returns:
      The tokens, columns as `FIELDS`; how many messages were clipped, 0 unless asked for.
    Raises:
      UsageError: columns of different lengths, a kind or direction without a token, or a value that is outside.
    """
    n = len(messages.time)
    if {len(column) for column in (*messages, reference)} != {n}:
        raise UsageError(
            f"expected {n} values in each column of messages and as many references, got "
            f"{[len(column) for column in messages]} and {len(reference)}; cut them alike"
        )
    time, kind, _, size, price, direction = (column.astype(np.int64) for column in messages)
    first = time[:1] if start_time is None else np.array([start_time], np.int64)
    fields = Fields(kind, direction, np.diff(time, prepend=first), price, size)
    mids = reference.astype(np.int64)
    _refuse("kind", (kind < 1) | (kind > HALT), kind, f"1 to {HALT}", "leave it out")
    _refuse("direction", abs(direction) != 1, direction, "−1 or 1", "correct it")
    clipped = np.zeros(n, bool)
    for name, low, high in _ranges(fields, mids):
        value = getattr(fields, name)
        wrong = (value < low) | (value > high)
        if outside == "refuse":
            _refuse(name, wrong, value, (low, high), 'leave it out, or give outside="clip"')
        clipped |= wrong
    tokens = message_tokens(fields._replace(gap=fields.gap.clip(0, LONGEST)), mids)
    return tokens.astype(np.int32), int(clipped.sum())


def _ranges(fields: Fields, mids: np.ndarray) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Lowest and highest value of each field that can be out of range."""
    zero = np.zeros_like(mids)
    anchor = _anchor(fields.direction, _mid(fields.kind, mids))
    ends = [fields.direction * (anchor + offset) for offset in (-DEEPEST * TICK, DEEPEST * TICK - 1)]
    prices = ("price", np.minimum(*ends), np.maximum(*ends))
    return [("gap", zero, zero + LONGEST), prices, ("size", zero, zero + LARGEST)]


def _refuse(name: str, wrong: np.ndarray, value: np.ndarray, expected: Any, mend: str) -> None:
    if wrong.any():
        row = int(wrong.argmax())
        wanted = expected if isinstance(expected, str) else f"{expected[0][row]} to {expected[1][row]}"
        raise UsageError(f"expected {name} {wanted} in row {row}, got {value[row]}; {mend}")


def decode(tokens: Integer[np.ndarray, "n fields"], reference: Integer[np.ndarray, " n"], start_time: int) -> Messages:
    """The messages of rows of tokens, those of a model too; `order_id` is 0.

    Args:
      tokens: columns as `FIELDS`.
      reference: as `encode` was given.
      start_time: what the first gap counts from, ns after midnight; the time of the first message, where `encode` was
        given none.
    Raises:
      UsageError: other shapes, a token that its field does not have, or a price beyond int32.
    """
    if tokens.shape != (len(reference), len(FIELDS)):
        raise UsageError(
            f"expected tokens ({len(reference)}, {len(FIELDS)}), a row for each reference and a column for each field, "
            f"got {tokens.shape}; cut them alike"
        )
    for column, (name, values) in enumerate(FIELDS):
        value = tokens[:, column]
        _refuse(name, (value < 0) | (value >= values), value, f"a token from 0 to {values - 1}", "correct it")
    fields = message_of(tokens.astype(np.int64), reference.astype(np.int64))
    limits = np.iinfo(np.int32)
    _refuse("price", abs(fields.price) > limits.max, fields.price, "within 32 bits", "correct its reference")
    kind, direction, size, price = (
        column.astype(np.int32) for column in (fields.kind, fields.direction, fields.size, fields.price)
    )
    time = np.int64(start_time) + np.cumsum(fields.gap, dtype=np.int64)
    return Messages(time, kind, np.zeros(len(time), np.int64), size, price, direction)
