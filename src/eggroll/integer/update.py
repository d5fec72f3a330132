"""The ±1 update: signs of antithetic pairs in, integer parameters out, with no optimiser state.

`Z = Σ_p F_p·A_p·B_pᵀ` is summed exactly, in blocks that stay exact in float32 and in two int32 words across blocks, so
that the result depends on neither chunking nor device.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int8, Int32

from eggroll.core import noise
from eggroll.core.errors import UsageError
from eggroll.integer.arithmetic import EXACT_BLOCK, expand, matmul, saturate
from eggroll.integer.model import Config, Parameters, flat, is_matrix, leaf_shapes, nested
from eggroll.integer.perturbation import Seed, Streams, streams, vector_products

Z_LIMIT = 2**27 - 1


def alpha_at(generation: int, alpha: float, decay: float) -> float:
    """The fraction of parameters that chance alone would move at a generation.

    `alpha` itself up to 1; above 1 it decays from 1 as `1/((2^alpha − 1)·t/decay + 1)`.

    Raises:
      UsageError: alpha or decay is not positive.
    """
    if not alpha > 0 or not decay > 0:
        raise UsageError(f"expected alpha > 0 and decay > 0, got {alpha} and {decay}; the defaults are 4 and 1000")
    return alpha if alpha <= 1 else 1 / ((2**alpha - 1) * generation / decay + 1)


def threshold(alpha: float, pairs: int, rank: int = 1) -> int:
    """`τ·int(√P)·256·√r` with `τ = int(16·Φ⁻¹(1 − alpha/2))`: what `16·|Z|` must reach for a weight to move.

    At most 2³¹ − 1, which no `16·|Z|` reaches.
    """
    tau = int(16 * NormalDist().inv_cdf(1 - max(alpha, 1e-12) / 2))
    return min(tau * math.isqrt(pairs) * 256 * math.isqrt(rank), 2**31 - 1)


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


def collect(words: Words) -> Int32[Array, "*shape"]:
    """The sum as int32, saturated at ±(2²⁷ − 1)."""
    high, low = words.high + (words.low >> 16), words.low & 0xFFFF
    edge = (Z_LIMIT + 1) >> 16
    joined = jnp.clip(high, -edge, edge - 1) * 65536 + low
    return jnp.where(high >= edge, Z_LIMIT, jnp.where(high < -edge, -Z_LIMIT, jnp.clip(joined, -Z_LIMIT, Z_LIMIT)))


def apply_threshold(
    value: Int8[Array, "*shape"], z: Int32[Array, "*shape"], level: Int32[Array, ""]
) -> Int8[Array, "*shape"]:
    """`sat(θ + sign(Z))` where `16·|Z|` reaches the threshold, θ elsewhere; Z = 0 never moves a weight."""
    step = jnp.where(16 * jnp.abs(z) < level, 0, jnp.sign(z))
    return saturate(value.astype(jnp.int32) + step).astype(jnp.int8)


def pair_signs(log_likelihood: Int32[Array, "2 pairs"]) -> Int8[Array, "pairs"]:
    """`F = sign(ll₊ − ll₋)`, what workers exchange: −1, 0 or 1."""
    return jnp.sign(log_likelihood[0] - log_likelihood[1]).astype(jnp.int8)


def update(
    parameters: Parameters,
    signs: Int8[Array, "pairs"],
    level: Int32[Array, ""],
    config: Config,
    *,
    seed: Seed,
    generation: Array,
) -> tuple[Parameters, Int32[Array, ""]]:
    """One generation's update; returns the new parameters and how many weights moved.

    Args:
      signs: `pair_signs` of every pair of the population, in order; up to 2²⁵ · (1/rank) pairs.
      level: `threshold` of this generation.
    """
    leaves = {path: jnp.asarray(leaf) for path, leaf in flat(parameters).items()}
    sums = weighted_sums(signs, config, seed=seed, generation=generation)
    new = {path: apply_threshold(leaf, sums[path], level) for path, leaf in leaves.items()}
    moved = sum(jnp.sum((new[path] != leaf).astype(jnp.int32)) for path, leaf in leaves.items())
    return nested(new), jnp.asarray(moved, jnp.int32)


def weighted_sums(
    signs: Int8[Array, "pairs"], config: Config, *, seed: Seed, generation: Array
) -> dict[str, Int32[Array, "..."]]:
    """`Z` of every leaf by path, streamed over blocks of pairs: memory for one block, whatever the population."""
    block = min(EXACT_BLOCK // config.rank, signs.shape[0])
    blocks = -(-signs.shape[0] // block)
    padded = jnp.pad(signs, (0, blocks * block - signs.shape[0]))

    def body(index: Array, words: dict[str, Words]) -> dict[str, Words]:
        pairs = index * block + jnp.arange(block, dtype=jnp.int32)
        keys = streams(config, seed=seed, generation=generation, pairs=pairs)
        weights = lax.dynamic_slice(padded, (index * block,), (block,))
        sums = _block_sums(keys, weights, config)
        return {path: add_to(words[path], value) for path, value in sums.items()}

    start = {path: zero_words(shape) for path, shape in leaf_shapes(config).items()}
    return {path: collect(words) for path, words in lax.fori_loop(0, blocks, body, start).items()}


def _block_sums(keys: Streams, weights: Int8[Array, "pairs"], config: Config) -> dict[str, Array]:
    """Σ over one block of pairs, exact in int32: the leaves outside the blocks, then layer by layer."""
    shapes = leaf_shapes(config)
    outer = {path: shape for path, shape in shapes.items() if not path.startswith("blocks/")}
    stacked = {path: shape[1:] for path, shape in shapes.items() if path not in outer}

    def one(path: str, shape: tuple[int, ...], layer: Array) -> Array:
        if is_matrix(path):
            return _matrix_sum(keys, path, shape, layer, weights, config.rank)
        products = vector_products(keys, path, layer * shape[0], shape[0])
        return jnp.sum(products * weights.astype(jnp.int32)[:, None], axis=0)

    first = jnp.int32(0)
    sums = {path: one(path, shape, first) for path, shape in outer.items()}
    layers = jnp.arange(config.layers, dtype=jnp.int32)
    return sums | lax.map(lambda layer: {path: one(path, shape, layer) for path, shape in stacked.items()}, layers)


def _matrix_sum(
    keys: Streams, path: str, shape: tuple[int, ...], layer: Array, weights: Array, rank: int
) -> Int32[Array, "rows columns"]:
    def side(factor: int, rows: int) -> Array:
        row = (layer * rows + jnp.arange(rows, dtype=jnp.int32)[:, None, None]) * rank
        return keys.draw(path, factor, row + expand(jnp.arange(rank, dtype=jnp.int32), 3), pair_axis=1)

    a = side(noise.FACTOR_A, shape[0]) * expand(weights[:, None], 3)
    b = side(noise.FACTOR_B, shape[1])
    return matmul(a.reshape(shape[0], -1), b.reshape(shape[1], -1))
