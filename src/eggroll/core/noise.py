"""Counter-based noise: `(seed, leaf, factor, generation, pair, element) → value`, drawn by anyone, stored by no one.

Two stages. Threefry-2x32 with 13 rounds turns the slow counters into two independent 32-bit key words, one pair of
words for each stream `(seed, leaf, factor, generation, pair)`. A two-multiply avalanche hash then turns each element
into 32 bits, the first key word entering before it and the second between its rounds, so that no stream is a shift of
another. One piece of code serves NumPy, JAX and PyTorch: everything is int32 that wraps, and a logical shift is an
arithmetic one under a mask, since PyTorch has no unsigned arithmetic.

This module imports neither JAX nor PyTorch; the array module comes as an argument.

Sources: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), for Threefry and its 13 rounds;
the avalanche constants are those of `lowbias32` (Wellons, 2018), whose mean bias is 0.17.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

Array = Any
"""An int32 or float32 array of the caller's array module (NumPy, jax.numpy or torch)."""

NOISE_VERSION = 1
FACTOR_A, FACTOR_B, FACTOR_DENSE = 0, 1, 2

_KEY_ROUNDS = 13
_ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
_PARITY = 0x1BD11BDA
_TABLE_BITS = 12


def noise_version(laws: Sequence[str]) -> str:
    """What a journal says of its noise, such as "1/popcount": the version of the draws, and their laws."""
    return f"{NOISE_VERSION}/{'+'.join(sorted(set(laws)))}"


def signed(word: int) -> int:
    """The int32 whose bits are those of the unsigned 32-bit `word`."""
    return ((word & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000


def shift_right(x: Array, bits: int) -> Array:
    """Logical right shift of an int32 array by 1 to 31 bits."""
    return (x >> bits) & ((1 << (32 - bits)) - 1)


def leaf_id(path: str) -> int:
    """The int32 that stands for a leaf: the first four bytes of the SHA-256 of its path."""
    return signed(int.from_bytes(hashlib.sha256(path.encode()).digest()[:4], "little"))


def leaf_ids(paths: Sequence[str]) -> dict[str, int]:
    """`leaf_id` of every path.

    Raises:
      ValueError: two paths share an id, and would share their noise.
    """
    ids: dict[int, str] = {}
    for path in paths:
        other = ids.setdefault(leaf_id(path), path)
        if other != path:
            raise ValueError(
                f"expected leaf paths with different 32-bit hashes, got {other!r} and {path!r} with the same one; "
                "rename one of the two parameters"
            )
    return {path: number for number, path in ids.items()}


def seed_words(seed: int) -> tuple[int, int]:
    """Split a seed in [0, 2⁶⁴) into its low and high word, as int32.

    Raises:
      ValueError: the seed is outside that range.
    """
    if not 0 <= seed < 2**64 or int(seed) != seed:
        raise ValueError(f"expected a seed in [0, 2**64), got {seed}; choose another seed")
    return signed(int(seed)), signed(int(seed) >> 32)


def threefry2x32(
    key: tuple[Array, Array], counter: tuple[Array, Array], rounds: int = _KEY_ROUNDS
) -> tuple[Array, Array]:
    """Threefry-2x32 on int32 arrays of one common shape. Source: Salmon et al., SC 2011."""
    words = (key[0], key[1], key[0] ^ key[1] ^ signed(_PARITY))
    x0, x1 = counter[0] + words[0], counter[1] + words[1]
    for index in range(rounds):
        rotation = _ROTATIONS[index % 8]
        x0 = x0 + x1
        x1 = ((x1 << rotation) | shift_right(x1, 32 - rotation)) ^ x0
        if index % 4 == 3:
            group = index // 4 + 1
            x0 = x0 + words[group % 3]
            x1 = x1 + words[(group + 1) % 3] + group
    return x0, x1


def stream_key(
    *, seed: Array, leaf: int | Array, factor: int | Array, generation: Array, pair: Array
) -> tuple[Array, Array]:
    """The two key words of each stream.

    Args:
      seed: two int32 words (see `seed_words`), as a sequence or an int32 array of shape (2,).
      leaf: int32 from `leaf_id`, or an array of them that broadcasts to `pair`'s shape.
      factor: FACTOR_A, FACTOR_B or FACTOR_DENSE, or likewise an array.
      generation: int or int32 scalar, ≥ 0.
      pair: int32 array of any shape, at least one axis.
    Returns:
      Two int32 arrays of `pair`'s shape.
    """
    zero = pair ^ pair
    with np.errstate(over="ignore"):
        generation_key = threefry2x32((zero + seed[0], zero + seed[1]), (zero + leaf, zero + generation))
        return threefry2x32(generation_key, (zero + factor, pair))


def element_bits(key: tuple[Array, Array], element: Array) -> Array:
    """32 random bits, as int32, for each element of each stream; the arguments broadcast."""
    with np.errstate(over="ignore"):
        x = element ^ key[0]
        x = (x ^ shift_right(x, 16)) * signed(0x7FEB352D)
        x = (x ^ shift_right(x, 15) ^ key[1]) * signed(0x846CA68B)
        return x ^ shift_right(x, 16)


@functools.cache
def normal_table() -> np.ndarray:
    """`clip(round(16·Φ⁻¹((i + ½)/4096)), ±127)` for i in 0…4095, int8, one unit = 1/16 standard deviation.

    Source: spec of the integer model ("Draws").
    """
    quantile = NormalDist().inv_cdf
    return np.array([round(16 * quantile((i + 0.5) / 4096)) for i in range(4096)]).clip(-127, 127).astype(np.int8)


def table_normal(xp: Any, bits: Array) -> Array:
    """Look up the top 12 of 32 random bits in `normal_table`; int8 of the same shape."""
    index = shift_right(bits, 32 - _TABLE_BITS)
    if hasattr(bits, "is_cuda"):  # PyTorch: the table goes to the device of the bits
        return xp.asarray(normal_table(), device=bits.device)[index]
    table = xp.asarray(normal_table())
    return table.at[index].get(mode="promise_in_bounds") if hasattr(table, "at") else table[index]


def _signs(xp: Any, bits: Array) -> Array:
    return (bits >> 31) | 1


def _popcount(xp: Any, bits: Array) -> Array:
    x = bits - (shift_right(bits, 1) & 0x55555555)
    x = (x & 0x33333333) + (shift_right(x, 2) & 0x33333333)
    x = (x + shift_right(x, 4)) & 0x0F0F0F0F
    with np.errstate(over="ignore"):
        return shift_right(x * 0x01010101, 24) - 16


def _uniform(xp: Any, bits: Array) -> Array:
    return (bits >> 8) * 2 + 1


@dataclass(frozen=True)
class Law:
    """A symmetric law of unit variance: `integer(xp, bits) · scale`.

    `integer` gives the same integers in every array module. The standard normal alone adds a float function, and so
    agrees between array modules to rounding only.
    """

    name: str
    integer: Callable[[Any, Array], Array]
    scale: float


@functools.cache
def law(name: str) -> Law:
    """The law of that name: "signs", "popcount", "table_normal" or "normal".

    Raises:
      ValueError: there is no such law.
    """
    makers: dict[str, Callable[[], Law]] = {
        "signs": lambda: Law("signs", _signs, 1.0),
        "popcount": lambda: Law("popcount", _popcount, 1 / math.sqrt(8)),
        "table_normal": lambda: Law("table_normal", table_normal, 1 / float(normal_table().astype(float).std())),
        "normal": lambda: Law("normal", _uniform, math.sqrt(2)),
    }
    if name not in makers:
        raise ValueError(f"expected a noise law among {', '.join(makers)}, got {name!r}; choose one of these")
    return makers[name]()


def to_float(xp: Any, noise_law: Law, bits: Array, *, erf_inv: Callable[[Array], Array] | None = None) -> Array:
    """Unit-variance float32 values of `noise_law` from random bits.

    Args:
      erf_inv: the inverse error function of the array module; needed by the law "normal" alone.
    """
    value = noise_law.integer(xp, bits)
    value = value.astype(np.float32) if hasattr(value, "astype") else value.to(xp.float32)
    if noise_law.name == "normal":
        if erf_inv is None:
            raise ValueError("expected erf_inv for the law 'normal', got None; pass the array module's own")
        value = erf_inv(value * 2.0**-24)
    return value * np.float32(noise_law.scale).item()
