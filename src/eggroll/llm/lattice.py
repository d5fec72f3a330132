"""The ±1 update of int8 weights by an evolution-strategy gradient: integer sums, moments in bfloat16, a threshold.

A leaf's gradient is `Z = Σ_p w_p·A_p·B_pᵀ` over integers w, A and B, summed exactly; so are its mean and variance, by
which it is z-scored. What follows is elementwise, and each of its float32 sums and comparisons is of exact products
(scale, moments and level have 8 bits, decays are powers of two): whether a compiler joins a product with a sum changes
no bit, and roundings to bfloat16 are told to it as such. The result is the same on any number of devices.

Source: arXiv 2511.16652, int8 distillation (Adam moments in bf16, z-scored, threshold → ±1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int, Int8, Int32

from eggroll.core import noise
from eggroll.core.distribution import LeafPlan, Plan
from eggroll.core.draws import Factors, draw_noise
from eggroll.integer.sums import Words, add_to, collect, settled, zero_words

STEPS, MOST_WEIGHT = 32, 127
"""Steps of a weight to the deviation of a generation's weights, and the most of them."""
_EXACT = 2**24
_LIMB = 16
_ROWS = 2**14
"""Limbs that are summed at once: 2¹⁴ · 2¹⁶ stays in an int32."""


class Moments(NamedTuple):
    """Running means of a leaf's z-scored gradient and of its square, bfloat16 of its shape."""

    first: Any
    second: Any


class Bounds(NamedTuple):
    """The least and the largest value of every weight of a leaf, int8 of its shape."""

    least: Any
    most: Any


class Decays(NamedTuple):
    """Moments forget 2^−first and 2^−second of themselves in each generation."""

    first: int
    second: int


def bounds_of(value: np.ndarray, exact: np.ndarray, reach: float, levels: int) -> Bounds:
    """Levels within `reach` of what was rounded, and the one to which it was; all levels where `reach` is 0.

    Args:
      value: rounded weights.
      exact: the same before they were rounded, in levels.
    """
    if not reach:
        return Bounds(np.full_like(value, -levels), np.full_like(value, levels))
    least, most = np.ceil(exact - np.float32(reach)), np.floor(exact + np.float32(reach))
    around = np.minimum(np.maximum(least, -levels), value), np.maximum(np.minimum(most, levels), value)
    return Bounds(*(bound.astype(np.int8) for bound in around))


def integer_weights(weights: Float[np.ndarray, " pairs"]) -> Float[np.ndarray, " pairs"]:
    """Weights of pairs in 32nds of their root mean square, at most ±127: whole numbers, which float16 holds."""
    unit = float(np.sqrt(np.mean(np.square(weights, dtype=np.float64)))) / STEPS
    whole = np.rint(weights / unit) if unit > 0 else np.zeros_like(weights)
    return np.clip(whole, -MOST_WEIGHT, MOST_WEIGHT).astype(np.float32)


def start_moments(leaves: Sequence[Array | np.ndarray]) -> list[Moments]:
    """Zeros for each leaf."""
    return [Moments(*(jnp.zeros(leaf.shape, jnp.bfloat16) for _ in range(2))) for leaf in leaves]


def chance_level(alpha: float, generation: int, decays: Decays) -> float:
    """`L` such that `m² ≥ L·v` holds for at most a share `alpha` of weights that have no gradient. As moments of those
    that move are spent, fewer move in the long run.

    `m` is then a sum of so many independent z-scores, `v` on its way from 0 to their variance of 1; L is rounded to
    8 bits, so that its product with `v` is exact.
    """
    steps = generation + 1
    keep, keep_square = 1 - 2.0**-decays.first, 1 - 2.0**-decays.second
    variance = (1 - keep) / (1 + keep) * (1 - keep ** (2 * steps))
    quantile = NormalDist().inv_cdf(1 - max(alpha, 1e-12) / 2)
    return float(np.float32(jnp.bfloat16(quantile**2 * variance / (1 - keep_square**steps))))


def most_level(decays: Decays) -> float:
    """What no `m²/v` is above, by the inequality of Cauchy and Schwarz: from there on no level lets a weight move."""
    first, second = 1 - 2.0**-decays.first, 1 - 2.0**-decays.second
    kept = first**2 / second
    return (1 - first) ** 2 / (1 - second) / (1 - kept) if kept < 1 else math.inf


def weighted_sums(
    plan: Plan,
    weights: Int[Array, " pairs"],
    *,
    seed: Int32[Array, " 2"],
    generation: Array,
    first_pair: Array | int = 0,
) -> list[Words | None]:
    """`Σ_p w_p·A_p·B_pᵀ` of every lattice leaf over some pairs, in integers; None where a leaf is frozen.

    Args:
      weights: within ±127, of the pairs from `first_pair` on.
    """
    moving = [leaf for leaf in plan if not leaf.frozen]
    block = min(*(_exact_pairs(leaf) for leaf in moving), _EXACT, weights.shape[0])
    blocks = -(-weights.shape[0] // block)
    padded = jnp.pad(weights.astype(jnp.float32), (0, blocks * block - weights.shape[0]))

    def body(index: Array, totals: list[Words]) -> list[Words]:
        pairs = first_pair + index * block + jnp.arange(block, dtype=jnp.int32)
        own = lax.dynamic_slice(padded, (index * block,), (block,))
        drawn = draw_noise(tuple(moving), seed=seed, generation=generation, pairs=pairs)
        sums = [_block_sum(leaf, each, own) for leaf, each in zip(moving, drawn, strict=True)]
        return [settled(add_to(total, each)) for total, each in zip(totals, sums, strict=True)]

    totals = iter(lax.fori_loop(0, blocks, body, [zero_words(leaf.shape) for leaf in moving]))
    return [None if leaf.frozen else next(totals) for leaf in plan]


def _exact_pairs(leaf: LeafPlan) -> int:
    """Pairs whose sum float32 holds exactly."""
    most = {"signs": 1, "popcount": 16, "table_normal": int(np.abs(noise.normal_table()).max())}[leaf.law]
    return max(1, _EXACT // (MOST_WEIGHT * most**2 * leaf.rank))


def _block_sum(leaf: LeafPlan, drawn: Any, weights: Float[Array, " pairs"]) -> Int32[Array, " ..."]:
    assert isinstance(drawn, Factors)
    layers = math.prod(n for n, role in zip(leaf.shape, leaf.roles, strict=True) if role == "s")
    a, b = (side.astype(jnp.float32).reshape(len(weights), layers, -1, leaf.rank) for side in drawn)
    total = jnp.einsum("psmk,psnk->smn", a * weights[:, None, None, None], b, precision="highest")
    return total.astype(jnp.int32).reshape(leaf.shape)


def total(values: Int32[Array, " ..."]) -> list[Array]:
    """The exact sum of int32 values, up to 2⁴⁶ of them: limbs of 16 bits, the lowest first, the last one signed."""
    flat = values.reshape(-1)
    limbs = [flat & 0xFFFF, flat >> _LIMB, jnp.zeros_like(flat), jnp.zeros_like(flat)]
    while limbs[0].shape[0] > 1:
        size = min(_ROWS, limbs[0].shape[0])
        limbs = _carried([jnp.pad(limb, (0, -limb.shape[0] % size)).reshape(-1, size).sum(1) for limb in limbs])
    return [limb[0] for limb in limbs]


def _carried(limbs: list[Array]) -> list[Array]:
    """The same number, all limbs but the last within 16 bits."""
    over, result = jnp.zeros_like(limbs[0]), []
    for limb in limbs[:-1]:
        result.append((limb + over) & 0xFFFF)
        over = (limb + over) >> _LIMB
    return [*result, limbs[-1] + over]


def _as_float(limbs: list[Array]) -> Float[Array, ""]:
    """Rounded to float32, from the top down: every product is with a power of two, and so exact."""
    value = jnp.float32(0)
    for limb in reversed(limbs):
        value = value * 2.0**_LIMB + limb.astype(jnp.float32)
    return value


def z_scored(z: Int32[Array, " ..."]) -> Float[Array, " ..."]:
    """`(Z − mean)/deviation` of a leaf in bfloat16, mean and variance from integer sums; 0 where nothing varies.

    The mean is rounded to an integer, and the variance is that about it.
    """
    mean = jnp.rint(_as_float(total(z)) * np.float32(1 / z.size)).astype(jnp.int32)
    away = z - mean
    high, low = jnp.abs(away) >> 14, jnp.abs(away) & 0x3FFF  # squares of 28 bits, which fit
    parts = [_as_float(total(part)) for part in (high * high, high * low, low * low)]
    squares = (parts[0] * 2.0**13 + parts[1]) * 2.0**15 + parts[2]
    return _half(away.astype(jnp.float32) * _inverse_root(squares, z.size))


def _inverse_root(squares: Float[Array, ""], count: int) -> Float[Array, ""]:
    """The largest number of 8 bits whose square times `squares` is at most `count`; 0 of 0.

    Found among the neighbours of what the backend's own root says, which is not rounded alike everywhere, by products
    that are.
    """
    near = lax.reduce_precision(math.sqrt(count) * lax.rsqrt(jnp.maximum(squares, 1.0)), 8, 7)
    bits = lax.bitcast_convert_type(near, jnp.int32) + 2**16 * jnp.arange(-2, 3)  # steps of a number of 8 bits
    found = lax.bitcast_convert_type(bits, jnp.float32)
    fits = (found * found) * squares <= count
    return jnp.where(squares > 0, jnp.where(fits, found, 0.0).max(), 0.0)


def _half(x: Float[Array, " ..."]) -> Float[Array, " ..."]:
    """Rounded to bfloat16; told twice, since a compiler may leave out a conversion there and back."""
    return lax.reduce_precision(x, 8, 7).astype(jnp.bfloat16)


def moved(
    value: Int8[Array, " ..."],
    moments: Moments,
    gradient: Float[Array, " ..."],
    level: Float[Array, ""],
    decays: Decays,
    bounds: Bounds,
) -> tuple[Int8[Array, " ..."], Moments]:
    """One leaf's step: ±1 where `m² ≥ level·v`, within its bounds; there the first moment is spent.

    Args:
      gradient: bfloat16, z-scored, upwards.
      level: of 8 bits, from `chance_level`.
    """
    g, m, v = (x.astype(jnp.float32) for x in (gradient, *moments))
    first, second = 2.0**-decays.first, 2.0**-decays.second
    m = _half(m * (1 - first) + g * first)
    v = _half(v * (1 - second) + g * g * second)
    wide, wide_square = m.astype(jnp.float32), v.astype(jnp.float32)
    goes = (wide * wide >= level * wide_square) & (wide != 0)
    step = jnp.where(goes, jnp.sign(wide), 0).astype(jnp.int32)
    new = jnp.clip(value.astype(jnp.int32) + step, *(bound.astype(jnp.int32) for bound in bounds)).astype(jnp.int8)
    return new, Moments(jnp.where(goes, jnp.bfloat16(0), m), v)


def update(
    plan: Plan,
    leaves: Sequence[Int8[Array, " ..."]],
    moments: Sequence[Moments],
    weights: Int[Array, " pairs"],
    level: Float[Array, ""],
    *,
    decays: Decays,
    bounds: Sequence[Bounds],
    seed: Int32[Array, " 2"],
    generation: Array,
    mesh: Mesh | None = None,
) -> tuple[list[Array], list[Moments], Int32[Array, ""]]:
    """One generation's update of all lattice leaves.

    Args:
      plan: of lattice leaves and frozen ones; `leaves`, `moments` and `bounds` are those of the former, in its order.
      weights: `integer_weights` of every pair.
      mesh: devices of which each sums the pairs of its share.
    Returns:
      New leaves, new moments, and how many weights moved.
    """
    sums = _sums_on(mesh, plan, weights, seed, generation) if mesh else _sums(plan, weights, seed, generation)
    new, kept, count = [], [], jnp.int32(0)
    for value, own, z, within in zip(leaves, moments, sums, bounds, strict=True):
        after, own = moved(value, own, z_scored(collect(z)), level, decays, within)
        count = count + (after != value).astype(jnp.int32).sum()
        new.append(after)
        kept.append(own)
    return new, kept, count


def _sums(plan: Plan, weights: Array, seed: Array, generation: Array, first_pair: Array | int = 0) -> list[Words]:
    found = weighted_sums(plan, weights, seed=seed, generation=generation, first_pair=first_pair)
    return [words for words in found if words is not None]


def _sums_on(mesh: Mesh, plan: Plan, weights: Array, seed: Array, generation: Array) -> list[Words]:
    """Each device sums its own pairs; integers may be added in any order."""
    axes, whole = tuple(mesh.axis_names), PartitionSpec()

    def share(weights: Array, seed: Array, generation: Array) -> list[Words]:
        first = lax.axis_index(axes) * weights.shape[0]
        return [lax.psum(settled(words), axes) for words in _sums(plan, weights, seed, generation, first)]

    padded = jnp.pad(weights, (0, -weights.shape[0] % mesh.size))
    specs = (PartitionSpec(axes), whole, whole)
    result: list[Words] = jax.shard_map(share, mesh=mesh, in_specs=specs, out_specs=whole, check_vma=False)(
        padded, seed, jnp.asarray(generation, jnp.int32)
    )
    return result
