"""Streams of order messages as arrays, in LOBSTER's terms; NumPy only.

Kinds 1 to 7 are LOBSTER's event types (https://lobsterdata.com/info/DataStructure.php), 8 is ours.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

TICK = 100
"""Smallest step of a price, in 1/10,000 dollar: a cent."""
LIMIT = 1
"""A new limit order."""
CANCEL = 2
"""A resting order becomes smaller, by `size`."""
DELETE = 3
"""A resting order goes; `size` is all that was left of it."""
EXECUTE = 4
"""A visible resting order is executed, `size` of it."""
HIDDEN = 5
"""A hidden resting order is executed; the visible book stays as it is."""
CROSS = 6
"""An auction's trade; the visible book stays as it is."""
HALT = 7
"""Trading halts (price −1), quoting resumes (0) or trading resumes (1)."""
MARKET = 8
"""Takes up to `size` at prices up to `price` (0: any), and what is left lapses; not in LOBSTER's files."""


class Messages(NamedTuple):
    """Messages in the order in which they took effect."""

    time: np.ndarray  # (n,) int64; nanoseconds after midnight, never falling
    kind: np.ndarray  # (n,) int32; LIMIT to MARKET
    order_id: np.ndarray  # (n,) int64; 0: anonymous
    size: np.ndarray  # (n,) int32; shares
    price: np.ndarray  # (n,) int32; 1/10,000 dollar
    direction: np.ndarray  # (n,) int32; +1 buy, −1 sell, of CANCEL to CROSS that of the resting order


DTYPES = (np.int64, np.int32, np.int64, np.int32, np.int32, np.int32)
"""Of each field."""


def length(messages: Messages) -> int:
    """How many messages there are."""
    return len(messages.time)


def cut(messages: Messages, start: int, stop: int) -> Messages:
    """Messages `start` to `stop`, the latter not included, as views."""
    return Messages(*(field[start:stop] for field in messages))


def joined(parts: Iterable[Messages]) -> Messages:
    """The messages of all parts, in order, in fresh arrays; of no part, none."""
    columns = list(zip(*parts, strict=True)) or [() for _ in DTYPES]
    return Messages(
        *(
            np.concatenate([np.empty(0, dtype), *column], dtype=dtype)
            for dtype, column in zip(DTYPES, columns, strict=True)
        )
    )
