"""Do two noise streams share a stretch of noise, shifted? Run: python benchmarks/noise_overlap.py

Every stream gives `elements` values; only their top bytes count. A window is eight neighbouring ones. Windows
are sampled by their content: one in 32 is kept, those whose first half has a certain hash, so two streams
that share a window both keep it or both drop it. The kept windows of all streams are sorted, and the streams
that hold an equal one are counted. A shared stretch of m values is found with probability
1 − (31/32)^(m − 7), 0.98 at m = 128. About 2^−12 pairs of windows are equal by chance at full size.

To show that the method can fail, two bad generators go through it as well: `added_key` (one 32-bit key per
stream, added to the element) and `pool_slices` (each stream a slice of one shared table).

Measured on two CPU cores, 2^19 streams of 1024 values, 8 seconds each: eggroll 0 streams share a stretch,
added_key 111,472 (21 %; theory 1 − exp(−2046/8192) = 22 %), pool_slices all of them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from eggroll.core import noise

KEEP = 32
WINDOW = 8
Generator = Callable[[Any, Any, Any], Any]
"""Array module, pairs (streams, 1) int32, elements (1, elements) int32 → int32 bits (streams, elements)."""


def eggroll(xp: Any, pair: Any, element: Any) -> Any:
    """The library's own streams."""
    key = noise.stream_key(
        seed=noise.seed_words(0), leaf=noise.leaf_id("w"), factor=noise.FACTOR_A, generation=7, pair=pair
    )
    return noise.element_bits(key, element)


def added_key(xp: Any, pair: Any, element: Any) -> Any:
    """Bad: the one key word of a stream is added to the element: stretches of one long sequence."""
    key = noise.element_bits((0x1234567, 0x7654321), pair)
    return noise.element_bits((0, 0), key + element)


def pool_slices(xp: Any, pair: Any, element: Any) -> Any:
    """Bad: a stream is a slice of a shared table of 2^24 values."""
    start = noise.element_bits((0x1234567, 0x7654321), pair) & ((1 << 24) - 1)
    return noise.element_bits((0, 0), (start + element) & ((1 << 24) - 1))


GENERATORS: dict[str, Generator] = {"eggroll": eggroll, "added_key": added_key, "pool_slices": pool_slices}


@dataclass(frozen=True)
class Overlap:
    """How many of the streams share a sampled window with another one."""

    generator: str
    pairs: int
    elements: int
    windows_compared: int
    streams_that_share: int
    share: float
    seconds: float


def windows(xp: Any, generator: Generator, pair: Any, element: Any) -> tuple[Any, Any]:
    """Each window's first half packed into an int32, (streams, elements − 3), and which windows are kept."""
    top = generator(xp, pair, element)
    byte = [noise.shift_right(top[:, start : top.shape[1] - 3 + start], 24) for start in range(4)]
    packed = (byte[0] << 24) | (byte[1] << 16) | (byte[2] << 8) | byte[3]
    mixed = noise.element_bits((noise.signed(0x9E3779B9), 0x2545F491), packed[:, :-4])
    return packed, (mixed & (KEEP - 1)) == 0


def fingerprints(
    generator: Generator, pairs: int, elements: int, chunk: int, *, jax: bool
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The kept windows as uint64, and the stream of each, chunk by chunk."""
    xp, draw = _engine(generator, jax=jax)
    element = xp.arange(elements, dtype=np.int32)[None]
    for first in range(0, pairs, chunk):
        pair = xp.arange(first, min(pairs, first + chunk), dtype=np.int32)[:, None]
        packed, kept = (np.asarray(x) for x in draw(pair, element))
        where = np.flatnonzero(kept)
        stream, position = np.divmod(where, kept.shape[1])
        halves = packed.view(np.uint32).ravel()
        index = stream * packed.shape[1] + position
        yield halves[index].astype(np.uint64) << np.uint64(32) | halves[index + 4], stream + first


def _engine(generator: Generator, *, jax: bool) -> tuple[Any, Callable[[Any, Any], tuple[Any, Any]]]:
    if not jax:
        return np, lambda pair, element: windows(np, generator, pair, element)
    import jax as engine

    xp = engine.numpy
    return xp, engine.jit(lambda pair, element: windows(xp, generator, pair, element))


def measure(name: str, pairs: int, elements: int = 1024, chunk: int = 256, *, jax: bool = False) -> Overlap:
    """Count the streams of one generator that share a stretch with another stream."""
    start = time.perf_counter()
    parts = list(fingerprints(GENERATORS[name], pairs, elements, chunk, jax=jax))
    value, stream = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(value)
    value, stream = value[order], stream[order]
    equal = (value[1:] == value[:-1]) & (stream[1:] != stream[:-1])
    sharing = np.zeros(pairs, bool)
    sharing[stream[1:][equal]] = sharing[stream[:-1][equal]] = True
    count = int(sharing.sum())
    return Overlap(name, pairs, elements, len(value), count, count / pairs, time.perf_counter() - start)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description="Count noise streams that share a shifted stretch.")
    parser.add_argument("--pairs", type=int, default=2**19, help="streams, one a pair")
    parser.add_argument("--elements", type=int, default=1024, help="values of each stream")
    flags = parser.parse_args(arguments)
    for name in GENERATORS:
        print(json.dumps(asdict(measure(name, flags.pairs, flags.elements, chunk=2048, jax=True))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
