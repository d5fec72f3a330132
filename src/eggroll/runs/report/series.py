"""One metric of one run, thinned into bins that hide nothing: each keeps its mean, its lowest and its highest value.

A bin spans a power of two of generations and starts at a multiple of it, so that the runs of several seeds can be
brought to one width and compared bin by bin.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64


@dataclass(frozen=True)
class Series:
    """A metric over generations.

    Args:
      width: generations that a bin spans; 1 where nothing had to be thinned.
      start: first generation of every bin that holds a value, ascending.
      count, mean, low, high: how many values the bin holds, their mean, and their extremes.
      last: the value of the last generation.
    """

    width: int
    start: Int64[np.ndarray, " bins"]
    count: Int64[np.ndarray, " bins"]
    mean: Float64[np.ndarray, " bins"]
    low: Float64[np.ndarray, " bins"]
    high: Float64[np.ndarray, " bins"]
    last: float

    @property
    def generation(self) -> Float64[np.ndarray, " bins"]:
        """Middle of every bin; the generation itself where nothing was thinned."""
        return self.start + (self.width - 1) / 2

    def rebinned(self, width: int) -> Series:
        """The same values in wider bins; `width` is a power of two of at least this one's."""
        if width == self.width:
            return self
        start, edges = _bins(self.start, width)
        count = np.add.reduceat(self.count, edges)
        return Series(
            width,
            start,
            count,
            np.add.reduceat(self.mean * self.count, edges) / count,
            np.minimum.reduceat(self.low, edges),
            np.maximum.reduceat(self.high, edges),
            self.last,
        )


def thinned(generation: Int64[np.ndarray, " n"], value: Float64[np.ndarray, " n"], *, limit: int) -> Series:
    """A series of at most `limit` bins, as narrow as that allows.

    Args:
      generation, value: at least one, in any order, all finite; of several values of one generation the last counts,
        since a run that was killed may have gone through it again.
    """
    if np.any(generation[1:] < generation[:-1]):
        order = np.argsort(generation, kind="stable")
        generation, value = generation[order], value[order]
    final = np.append(generation[1:] != generation[:-1], True)
    generation, value = generation[final], value[final]
    whole = Series(1, generation, np.ones_like(generation), value, value, value, float(value[-1]))
    return whole.rebinned(_narrowest(generation, limit))


def _narrowest(generation: Int64[np.ndarray, " n"], limit: int) -> int:
    """Smallest power of two that leaves at most `limit` occupied bins; `generation` ascends."""
    width, bins = 1, generation
    while len(bins) > limit:
        width *= 2
        bins = bins >> 1
        bins = bins[np.append(True, bins[1:] != bins[:-1])]
    return width


def _bins(start: Int64[np.ndarray, " n"], width: int) -> tuple[Int64[np.ndarray, " bins"], Int64[np.ndarray, " bins"]]:
    """First generation of every occupied bin, and the index of the first entry that falls into it."""
    floor = start // width * width
    edges = np.flatnonzero(np.append(True, floor[1:] != floor[:-1])).astype(np.int64)
    return floor[edges], edges
