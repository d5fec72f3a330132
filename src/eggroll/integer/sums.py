"""`Z = Σ_p F_p·A_p·B_pᵀ` of one layer of one leaf, or of some rows of it, exactly.

It is summed in blocks of pairs that stay exact (in float32 on CPUs, in int32 on accelerators) and in two int32 words
across blocks, so that the result depends on neither chunking nor device. Memory is that of one layer and one block,
whatever model and population.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int8, Int32

from eggroll.core import noise
from eggroll.core.mesh import largest_divisor
from eggroll.integer.arithmetic import EXACT_BLOCK, expand, matmul
from eggroll.integer.model import Config, is_matrix
from eggroll.integer.perturbation import Seed, Streams, streams, vector_products

Z_LIMIT = 2**27 - 1
ACCELERATOR_BLOCK = 2**15
"""Pairs times rank of a block on accelerators, where a few large products cost less than many small ones: 127² · 2¹⁵ <
2³¹, so that its int32 sums are exact."""
ACCELERATOR_BYTES = 2**28
"""Most memory there for a block's factors, and for its product by slices."""


class Words(NamedTuple):
    """An integer of 48 bits in two int32 words: value = high · 2¹⁶ + low; low may run over until `collect`."""

    high: Int32[Array, "*shape"]
    low: Int32[Array, "*shape"]


def zero_words(shape: tuple[int, ...]) -> Words:
    """Zero, of that shape."""
    return Words(jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.int32))


def add_to(words: Words, value: Int32[Array, "*shape"]) -> Words:
    """Add an int32 array; up to 2¹⁵ additions before `collect`."""
    return Words(words.high + (value >> 16), words.low + (value & 0xFFFF))


def settled(words: Words) -> Words:
    """The same value with low in [0, 2¹⁶), so that up to 2¹⁵ of them may be added word by word before `collect`."""
    return Words(words.high + (words.low >> 16), words.low & 0xFFFF)


def collect(words: Words) -> Int32[Array, "*shape"]:
    """The sum as int32, saturated at ±(2²⁷ − 1)."""
    high, low = settled(words)
    edge = (Z_LIMIT + 1) >> 16
    joined = jnp.clip(high, -edge, edge - 1) * 65536 + low
    return jnp.where(high >= edge, Z_LIMIT, jnp.where(high < -edge, -Z_LIMIT, jnp.clip(joined, -Z_LIMIT, Z_LIMIT)))


class Part(NamedTuple):
    """Rows of a matrix, or elements of a vector: `size` of them from `start` on, of `total` in one layer."""

    start: Int32[Array, ""] | int
    size: int
    total: int


def layer_sums(
    path: str,
    columns: int,
    part: Part,
    layer: Int32[Array, ""],
    signs: Int8[Array, "pairs"],
    config: Config,
    *,
    seed: Seed,
    generation: Array,
    first_pair: Int32[Array, ""] | int = 0,
) -> Words:
    """The sum over some pairs for some rows of one layer; only their noise is drawn, one block of pairs at a time.

    Args:
      columns: of a matrix.
      layer: of a stacked leaf; 0 for others.
      signs: of the pairs from `first_pair` on; up to 2²⁵ · (1/rank).
    """
    block = block_pairs(config.rank, part.size + columns, signs.shape[0])
    blocks = -(-signs.shape[0] // block)
    padded = jnp.pad(signs, (0, blocks * block - signs.shape[0]))

    def body(index: Array, words: Words) -> Words:
        pairs = first_pair + index * block + jnp.arange(block, dtype=jnp.int32)
        keys = streams(config, seed=seed, generation=generation, pairs=pairs, paths=(path,))
        weights = lax.dynamic_slice(padded, (index * block,), (block,))
        if is_matrix(path):
            return add_to(words, _matrix_sum(keys, path, columns, part, layer, weights, config.rank))
        products = vector_products(keys, path, layer * part.total + part.start, part.size)
        return add_to(words, jnp.sum(products * weights.astype(jnp.int32)[:, None], axis=0))

    return lax.fori_loop(0, blocks, body, zero_words((part.size, columns) if is_matrix(path) else (part.size,)))


def block_pairs(rank: int, rows: int, pairs: int) -> int:
    """Pairs that are summed at once.

    Args:
      rows: of A and of B together, of which a pair draws `rank` bytes each.
      pairs: in all.
    """
    few = EXACT_BLOCK // rank
    if jax.default_backend() == "cpu":
        return min(few, pairs)
    most = min(ACCELERATOR_BLOCK // rank, ACCELERATOR_BYTES // (rows * rank))
    return few * max(1, min(most // few, -(-pairs // few)))


def _matrix_sum(
    keys: Streams, path: str, columns: int, part: Part, layer: Array, weights: Array, rank: int
) -> Int32[Array, "rows columns"]:
    def side(factor: int, rows: Part) -> Array:
        row = layer * rows.total + rows.start + jnp.arange(rows.size, dtype=jnp.int32)
        element = row[:, None, None] * rank + expand(jnp.arange(rank, dtype=jnp.int32), 3)
        return keys.draw(path, factor, element, pair_axis=1)

    a = side(noise.FACTOR_A, part) * expand(weights[:, None], 3)
    b = side(noise.FACTOR_B, Part(0, columns, columns))
    a, b = a.reshape(part.size, -1), b.reshape(columns, -1)
    if a.shape[1] <= EXACT_BLOCK:
        return matmul(a, b)
    return _sliced_matmul(a, b)


def _sliced_matmul(a: Int8[Array, "rows inputs"], b: Int8[Array, "columns inputs"]) -> Int32[Array, "rows columns"]:
    """`a · bᵀ` of few rows and many inputs, as several products at once: one alone would keep few processors busy."""
    most = max(1, ACCELERATOR_BYTES // (4 * a.shape[0] * b.shape[0]))
    slices = largest_divisor(a.shape[1] // EXACT_BLOCK, most)
    left, right = (side.reshape(side.shape[0], slices, -1) for side in (a, b))
    inputs_by_slice = (((2,), (2,)), ((1,), (1,)))
    return jnp.sum(lax.dot_general(left, right, inputs_by_slice, preferred_element_type=jnp.int32), axis=0)
