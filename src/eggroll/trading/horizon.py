"""Which cells of a recorded order book follow from its first row and the messages, and which cannot.

A message file of level k holds the events that changed one of the k best prices of a side, and no other. At a price
worse than the k-th, orders come, change and go unrecorded, and when it comes into sight again nothing but the row
itself tells what is there. So the first row and the messages determine what stands at a price exactly as long as the
price was in sight in every row from the first on: not worse than the worst price of any of them. That bound, the
horizon, only ever comes nearer. A row with fewer than k levels on a side shows all of that side and bounds nothing.

So more is beyond the horizon than the depth behind the first row's last level: a price may stand in the first row, fall
behind better ones, lose its orders out of sight and come into sight again empty, or with other orders.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int64

_SIGN = np.array([1, -1])  # of prices, so that better is less: asks, bids


def horizons(
    first_row: Int64[np.ndarray, "levels 4"], rows: Int64[np.ndarray, "n levels 4"]
) -> Int64[np.ndarray, "n 2"]:
    """Of each row the worst ask and bid price that was in sight in it and in all before it.

    Args:
      first_row: where a replay starts, as in `lobster.read_book`.
      rows: all that follow it, without a gap.
    Returns:
      Prices in 1/10,000 dollar; ±`lobster.MISSING` while nothing bounds the side.
    """
    last = np.concatenate([first_row[None, -1, 0::2], rows[:, -1, 0::2]])
    return np.minimum.accumulate(last * _SIGN, axis=0)[1:] * _SIGN


def determined(
    first_row: Int64[np.ndarray, "levels 4"], rows: Int64[np.ndarray, "n levels 4"]
) -> Bool[np.ndarray, "n levels 2"]:
    """Which levels, asks and bids, follow from the first row and the messages after it.

    They are the levels within `horizons`; why is said at the head of this module. A replay that starts with one
    anonymous order a level and applies every message must show these levels, and no other within the horizon
    (`contradicted`), provided that no limit order trades in it: LOBSTER records of a limit order what came to rest, so
    one could only meet orders beyond the horizon that are there no longer.

    Args:
      first_row, rows: as of `horizons`.
    """
    return _within(rows, horizons(first_row, rows))


def contradicted(
    first_row: Int64[np.ndarray, "levels 4"],
    rows: Int64[np.ndarray, "n levels 4"],
    replayed: Int64[np.ndarray, "n levels 4"],
) -> Bool[np.ndarray, "n levels 2"]:
    """Where a replay differs from the recorded rows within the horizon, asks and bids.

    Args:
      first_row, rows: as of `horizons`.
      replayed: the levels of the replay's book after each message, best first, as many as a row has; a level without
        shares is none, whatever its price.
    """
    bound = horizons(first_row, rows)
    real, own = _within(rows, bound), _within(replayed, bound)
    differs = (rows[..., 0::2] != replayed[..., 0::2]) | (rows[..., 1::2] != replayed[..., 1::2])
    return (real != own) | (real & differs)


def _within(rows: Int64[np.ndarray, "n levels 4"], bound: Int64[np.ndarray, "n 2"]) -> Bool[np.ndarray, "n levels 2"]:
    """Levels with shares at prices not worse than the row's bound."""
    return (rows[..., 1::2] > 0) & (rows[..., 0::2] * _SIGN <= bound[:, None] * _SIGN)
