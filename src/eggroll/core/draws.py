"""Draw the noise of a plan in JAX, perturb parameters with it, and sum it by weights.

Noise is a pure function of the seed, the leaf, the generation and the pair (`core.noise`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Num
from optax import MaskedNode

from eggroll.core import dispatch, kernels, noise
from eggroll.core.distribution import LeafPlan, Plan
from eggroll.core.lowrank import LowRankArray

Words = tuple[Array, Array]
"""The two int32 key words of a stream, or of many."""


class Factors(NamedTuple):
    """Noise of a low-rank leaf for each of several pairs; unit variance, in the dtype of the leaf."""

    a: Array  # (pairs, stack…, rows…, rank), in units of `LeafPlan.factor_unit`
    b: Array  # (pairs, stack…, columns…, rank)


LeafNoise = Factors | Array | None
"""Factors; or elementwise noise (pairs, *leaf shape); or None for a frozen leaf."""


class Block(NamedTuple):
    """A rectangular part of a leaf, such as what one device holds of it."""

    shape: tuple[int, ...]
    start: tuple[int | Array, ...]  # its first index on each axis of the leaf


def stream_keys(
    streams: Sequence[tuple[int, int]],
    *,
    seed: Int[Array, " 2"],
    generation: Int[Array, ""],
    pairs: Int[Array, " pairs"],
) -> Words:
    """The keys of some streams of each pair, as `noise.stream_key` gives them.

    XLA must not fold the 26 rounds of a key into whatever uses it, and compute them again for each element (measured:
    10 to 20 times the cost of a draw). On CPUs a loop over streams keeps it from that; on CUDA a loop would cost more
    than the keys, and a barrier does so too.

    Args:
      streams: (leaf identity, factor) of each, at least one.
      seed: (2,) int32 words.
      generation: int32 scalar.
      pairs: (pairs,) int32, indices in the whole population.
    Returns:
      Two int32 arrays (streams, pairs).
    """
    leaf, factor = (jnp.array(column, jnp.int32) for column in zip(*streams, strict=True))
    return lax.platform_dependent(leaf, factor, seed, generation, pairs, cuda=_keys_at_once, default=_keys_in_turn)


def _keys_in_turn(leaf: Array, factor: Array, seed: Array, generation: Array, pairs: Array) -> Words:
    def one(stream: Words) -> Words:
        counters = {"leaf": stream[0], "factor": stream[1], "generation": generation}
        return noise.stream_key(seed=seed, **counters, pair=pairs)

    count = leaf.shape[0]
    if count == 1:  # a loop of one step would be inlined
        leaf, factor = (jnp.concatenate([own, own]) for own in (leaf, factor))
    first, second = lax.map(one, (leaf, factor))
    return first[:count], second[:count]


def _keys_at_once(leaf: Array, factor: Array, seed: Array, generation: Array, pairs: Array) -> Words:
    every = jnp.broadcast_to(pairs, (leaf.shape[0], *pairs.shape))
    counters = {"leaf": leaf[:, None], "factor": factor[:, None], "generation": generation}
    return lax.optimization_barrier(noise.stream_key(seed=seed, **counters, pair=every))


def draw_elements(
    leaf: LeafPlan,
    shape: tuple[int, ...],
    key: Words,
    first: int | Int[Array, ""] = 0,
    within: tuple[int, ...] | None = None,
) -> Num[Array, "pairs *shape"]:
    """Draw some or all of one factor of a leaf, in the dtype of the leaf and units of `leaf.factor_unit`.

    Args:
      leaf: from a plan.
      shape: of what is drawn for one pair; for a shard, of its rows alone.
      key: of the leaf's factor, (pairs,) each.
      first: the number of the first element, row-major over the whole leaf, axis of rank included.
      within: shape of the whole factor, where what is drawn is a block of it that does not lie in one piece.
    """
    element = first + _element_numbers(shape, shape if within is None else within)[None, :]
    bits = noise.element_bits((key[0][:, None], key[1][:, None]), element)
    if jnp.issubdtype(leaf.dtype, jnp.integer):
        values = noise.law(leaf.law).integer(jnp, bits)
    else:
        values = noise.to_float(jnp, noise.law(leaf.law), bits, erf_inv=jax.scipy.special.erfinv)
    return values.reshape(key[0].shape[0], *shape).astype(leaf.dtype)


def _element_numbers(shape: tuple[int, ...], within: tuple[int, ...]) -> Int[Array, " elements"]:
    """The numbers of a block's elements in `within`, row-major, counted from the block's first."""
    if shape == within:
        return jnp.arange(math.prod(shape), dtype=jnp.int32)
    number = jnp.zeros((1,) * len(shape), jnp.int32)
    for axis, size in enumerate(shape):
        along = jnp.arange(size, dtype=jnp.int32) * math.prod(within[axis + 1 :])
        number = number + along.reshape(*(size if k == axis else 1 for k in range(len(shape))))
    return number.reshape(-1)


def draw_noise(
    plan: Plan, *, seed: Int[Array, " 2"], generation: Int[Array, ""], pairs: Int[Array, " pairs"]
) -> list[LeafNoise]:
    """Draw the noise of some pairs for every leaf.

    Args:
      plan: from `make_plan`.
      seed: (2,) int32 words.
      generation: int32 scalar.
      pairs: (pairs,) int32, indices in the whole population.
    Returns:
      For each leaf `Factors`, an array (pairs, *leaf shape), or None where it is frozen; drawn in float32,
      then cast to the dtype of the leaf.
    """
    keys = _leaf_keys(plan, seed=seed, generation=generation, pairs=pairs)
    return [_draw_leaf(leaf, own) for leaf, own in zip(plan, keys, strict=True)]


def _leaf_keys(
    plan: Plan, *, seed: Int[Array, " 2"], generation: Int[Array, ""], pairs: Int[Array, " pairs"]
) -> list[list[Words]]:
    """For each leaf the keys of the factors that are drawn for it."""
    streams = [(leaf.identity, factor) for leaf in plan for factor in _drawn_shapes(leaf)]
    first, second = stream_keys(streams, seed=seed, generation=generation, pairs=pairs)
    keys = iter(zip(first, second, strict=True))
    return [[next(keys) for _ in _drawn_shapes(leaf)] for leaf in plan]


def _draw_leaf(leaf: LeafPlan, keys: list[Words], block: Block | None = None) -> LeafNoise:
    """The noise of a leaf, or what a block of it needs: the rows of A and B that meet it."""
    if leaf.frozen:
        return None
    if block is None:
        drawn = [draw_elements(leaf, shape, key) for shape, key in zip(_drawn_shapes(leaf).values(), keys, strict=True)]
    else:
        wholes, shapes = _drawn_shapes(leaf), _drawn_shapes(dataclasses.replace(leaf, shape=block.shape))
        drawn = [
            draw_elements(leaf, shapes[factor], key, _first_element(leaf, block, factor), wholes[factor])
            for factor, key in zip(shapes, keys, strict=True)
        ]
    return Factors(*drawn) if leaf.rank else drawn[0]


def _first_element(leaf: LeafPlan, block: Block, factor: int) -> int | Array:
    """The number of the first element of one factor that a block needs."""
    kept = {noise.FACTOR_A: "sr", noise.FACTOR_B: "sc"}.get(factor)
    start = [at for axis, at in enumerate(block.start) if kept is None or leaf.roles[axis] in kept]
    whole = _drawn_shapes(leaf)[factor]
    return sum((at * math.prod(whole[axis + 1 :]) for axis, at in enumerate(start)), start=0)


def _drawn_shapes(leaf: LeafPlan) -> dict[int, tuple[int, ...]]:
    """What is drawn for one pair: factor → shape, in order."""
    if leaf.frozen:
        return {}
    if not leaf.rank:
        return {noise.FACTOR_DENSE: leaf.shape}
    return {noise.FACTOR_A: leaf.factor_shape("r"), noise.FACTOR_B: leaf.factor_shape("c")}


def noise_bytes(plan: Plan) -> int:
    """Bytes of the noise of one pair in float32, all leaves together."""
    return 4 * sum(math.prod(shape) for leaf in plan for shape in _drawn_shapes(leaf).values())


def perturb(plan: Plan, params: Any, drawn: Sequence[LeafNoise], scale: Float[Array, ""]) -> Any:
    """The parameters of one member: `params + scale·E`, low-rank leaves as `LowRankArray`.

    Args:
      plan: from `make_plan`.
      params: the mean.
      drawn: noise of one pair, without the axis of pairs.
      scale: float32 scalar; sign · σ.
    """

    def move(leaf: LeafPlan, mean: Array, own: LeafNoise) -> Any:
        if own is None:
            return mean
        if not isinstance(own, Factors):
            return (mean + scale * own.astype(jnp.float32)).astype(leaf.dtype)
        scaled = scale * (leaf.factor_unit**2 / math.sqrt(leaf.rank))
        return LowRankArray(mean, own.a, own.b, scaled, leaf.roles, leaf.path, leaf.may_materialise)

    leaves, tree = jax.tree.flatten(params)
    return jax.tree.unflatten(tree, [move(*each) for each in zip(plan, leaves, drawn, strict=True)])


def weighted_noise(
    plan: Plan,
    weights: Float[Array, " pairs"],
    *,
    seed: Int[Array, " 2"],
    generation: Int[Array, ""],
    pairs: Int[Array, " pairs"],
    blocks: Sequence[Block | None] | None = None,
) -> list[Float[Array, " ..."] | None]:
    """`Σ_p w_p·E_p` of some pairs for every leaf, float32; None where it is frozen. Arguments as in `draw_noise`.

    Args:
      blocks: for each leaf the part of it that is wanted, of whose noise no more is drawn; None: all of it.
    """
    keys = _leaf_keys(plan, seed=seed, generation=generation, pairs=pairs)
    wanted = blocks or [None] * len(plan)
    return [
        None if leaf.frozen else _weighted(leaf, own, weights, block)
        for leaf, own, block in zip(plan, keys, wanted, strict=True)
    ]


def _weighted(
    leaf: LeafPlan, keys: list[Words], weights: Float[Array, " pairs"], block: Block | None
) -> Float[Array, " ..."]:
    """The sum for one leaf, by XLA or by a kernel that draws the factors itself, as `dispatch` chooses."""
    part = leaf if block is None else dataclasses.replace(leaf, shape=block.shape)

    def plain(weights: Array, *words: Array) -> Array:
        own: Any = _draw_leaf(leaf, list(zip(words[::2], words[1::2], strict=True)), block)
        return weighted_sum(part, own, weights)

    def kernel(weights: Array, *words: Array, interpret: bool) -> Array:
        a, b = (kernels.Drawn((words[k], words[k + 1]), leaf.law) for k in (0, 2))
        shape = (leaf.shape[0], leaf.shape[1])
        return kernels.fused_update(a, b, weights, shape=shape, rank=leaf.rank, interpret=interpret)

    words = [word for key in keys for word in key]
    suits = block is None and _suits(leaf, weights.shape[0])
    return dispatch.choose(kernel if suits else None, plain, weights, *words)


def _suits(leaf: LeafPlan, pairs: int) -> bool:
    """Whether the kernel of the update covers a leaf: one float32 matrix in whole tiles, a law it can draw."""
    if leaf.roles != "rc" or leaf.dtype != jnp.float32 or leaf.law not in kernels.REDRAWN_LAWS:
        return False
    return kernels.fits(kernels.Tiles(), leaf.shape[0], pairs, leaf.shape[1], 1)


def weighted_sum(leaf: LeafPlan, drawn: Factors | Array, weights: Float[Array, " pairs"]) -> Float[Array, " ..."]:
    """`Σ_p w_p·E_p` for one leaf, in full float32, of its shape; for `Factors` no E_p is formed."""
    if not isinstance(drawn, Factors):
        return jnp.tensordot(weights, drawn.astype(jnp.float32), axes=1, precision="highest")
    size = {role: math.prod(n for n, own in zip(leaf.shape, leaf.roles, strict=True) if own == role) for role in "src"}
    pairs = weights.shape[0]
    a = drawn.a.astype(jnp.float32).reshape(pairs, size["s"], size["r"], leaf.rank) * weights[:, None, None, None]
    b = drawn.b.astype(jnp.float32).reshape(pairs, size["s"], size["c"], leaf.rank)
    total = jnp.einsum("psmk,psnk->smn", a, b, precision="highest")
    return (total / math.sqrt(leaf.rank)).reshape(leaf.shape)


def trainable(plan: Plan, leaves: Sequence[Any], tree: Any) -> Any:
    """The tree that the optimiser sees: frozen leaves are optax's `MaskedNode`, which has no leaves."""
    kept = [MaskedNode() if leaf.frozen else value for leaf, value in zip(plan, leaves, strict=True)]
    return jax.tree.unflatten(tree, kept)
