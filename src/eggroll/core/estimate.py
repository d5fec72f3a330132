"""Utilities and noise → gradient tree, streamed over chunks of pairs.

With antithetic pairs the estimate is `g = 2/(N·σ) · Σ_p w_p·E_p` with `w_p = (u_{2p} − u_{2p+1})/2`. The
noise is drawn again, chunk by chunk, so that memory is `O(chunk · rank · (m + n))` for a low-rank leaf.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from eggroll.core.distribution import Plan
from eggroll.core.draws import Block, weighted_noise


def pair_weights(utilities: Float[Array, " members"]) -> Float[Array, " pairs"]:
    """`w_p = (u_{2p} − u_{2p+1})/2`, float32."""
    pairs = utilities.astype(jnp.float32).reshape(-1, 2)
    return (pairs[:, 0] - pairs[:, 1]) / 2


def estimate_gradient(
    plan: Plan,
    weights: Float[Array, " pairs"],
    pairs: Int[Array, " pairs"],
    *,
    seed: Int[Array, " 2"],
    generation: Int[Array, ""],
    sigma: Float[Array, ""],
    population_size: int,
    chunk_pairs: int,
    blocks: Sequence[Block | None] | None = None,
) -> list[Float[Array, " ..."] | None]:
    """The share of some pairs in the ascent direction; the shares of disjoint sets of pairs add up.

    Args:
      plan: from `distribution.make_plan`.
      weights: (pairs,) float32, from `pair_weights`.
      pairs: (pairs,) int32, their indices in the whole population.
      seed: (2,) int32 words.
      generation: int32 scalar.
      sigma: float32 scalar, standard deviation of the perturbation in weight units.
      population_size: members of the whole population.
      chunk_pairs: pairs whose noise is in memory at a time.
      blocks: for each leaf the part of it that is wanted; default, and None for a leaf, all of it.
    Returns:
      For each leaf an array of its or its block's shape, float32, utility per weight unit; None where it is frozen.
      Zeros where sigma is not > 0 (a schedule at its end): without a perturbation there is nothing to learn from.
    Source: arXiv 2511.16652, Algorithm 1.
    """
    count, size = pairs.shape[0], min(chunk_pairs, pairs.shape[0])
    chunks = -(-count // size)
    padding = (0, chunks * size - count)
    chunked = (jnp.pad(weights, padding).reshape(chunks, size), jnp.pad(pairs, padding).reshape(chunks, size))

    def add(total: list[Any], chunk: tuple[Array, Array]) -> tuple[list[Any], None]:
        sums = weighted_noise(plan, chunk[0], seed=seed, generation=generation, pairs=chunk[1], blocks=blocks)
        parts = [None if own is None else value + own for own, value in zip(sums, total, strict=True)]
        return parts, None

    wanted = blocks or [None] * len(plan)
    shapes = [leaf.shape if block is None else block.shape for leaf, block in zip(plan, wanted, strict=True)]
    zeros = [None if leaf.frozen else jnp.zeros(shape, jnp.float32) for leaf, shape in zip(plan, shapes, strict=True)]
    total, _ = jax.lax.scan(add, zeros, chunked)
    scale = jnp.where(sigma > 0, 2 / (population_size * jnp.where(sigma > 0, sigma, 1.0)), 0.0)
    return [None if value is None else value * scale for value in total]


def descent_direction(gradient: list[Float[Array, " ..."] | None]) -> list[Float[Array, " ..."] | None]:
    """`−g`, what optax minimises along; the one place where the sign turns."""
    return [None if value is None else -value for value in gradient]
