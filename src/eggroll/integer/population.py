"""Evaluates a range of the population, chunk by chunk, each member with a state of its own."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Int8, Int32, UInt8

from eggroll.core.errors import UsageError
from eggroll.core.mesh import constrain
from eggroll.integer.model import Config, Parameters, forward
from eggroll.integer.perturbation import Seed, chunk_factors


def evaluate(
    parameters: Parameters,
    state: Int8[Array, "layers 2 pairs width"],
    lanes: UInt8[Array, "lanes time_and_one"],
    config: Config,
    *,
    seed: Seed,
    generation: Int32[Array, ""],
    group_size: int,
    chunk_pairs: int,
    first_pair: Int32[Array, ""] | int = 0,
) -> tuple[Int32[Array, "2 pairs"], Int8[Array, "layers 2 pairs width"]]:
    """Σ log-likelihood of both members of each pair, and their new states.

    The pairs are `first_pair` and those that follow, as many as `state` holds; a shard of the population is a range.

    Args:
      lanes: the bytes of each group's lane for this generation, inputs and targets together.
      group_size: members that read the same lane, even.
      chunk_pairs: pairs evaluated at once; divides the number of pairs. No result depends on it.
    """
    count = state.shape[2]
    if count % chunk_pairs:
        raise UsageError(f"expected chunk_pairs to divide {count} pairs, got {chunk_pairs}; choose a divisor")

    def one_chunk(index: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        scores, states = carry
        start = index * chunk_pairs
        pairs = first_pair + start + jnp.arange(chunk_pairs, dtype=jnp.int32)
        factors = chunk_factors(config, seed=seed, generation=generation, pairs=pairs)
        tokens = lanes[pairs // (group_size // 2)].T
        old = lax.dynamic_slice_in_dim(states, start, chunk_pairs, axis=2)
        score, new = forward(parameters, factors, config, tokens, old)
        return (
            lax.dynamic_update_slice_in_dim(scores, score, start, axis=1),
            lax.dynamic_update_slice_in_dim(states, new, start, axis=2),
        )

    return lax.fori_loop(0, count // chunk_pairs, one_chunk, (jnp.zeros((2, count), jnp.int32), state))


def evaluate_on(
    mesh: Mesh,
    parameters: Parameters,
    state: Int8[Array, "layers 2 pairs width"],
    lanes: UInt8[Array, "lanes time_and_one"],
    config: Config,
    *,
    seed: Seed,
    generation: Int32[Array, ""],
    group_size: int,
    chunk_pairs: int,
    first_pair: Int32[Array, ""] | int = 0,
) -> tuple[Int32[Array, "2 pairs"], Int8[Array, "layers 2 pairs width"]]:
    """`evaluate` by all devices of a mesh: each has the same number of pairs, whose number they divide, in order.

    Args:
      chunk_pairs: divides the pairs of a device.
    Returns:
      The sums whole on every device, the states in shares.
    """
    axes = tuple(mesh.axis_names)
    whole, shares = PartitionSpec(), PartitionSpec(None, None, axes)

    def share(parameters: Parameters, state: Array, lanes: Array, seed: Array, counters: Array) -> tuple[Array, Array]:
        return evaluate(
            parameters,
            state,
            lanes,
            config,
            seed=seed,
            generation=counters[0],
            group_size=group_size,
            chunk_pairs=chunk_pairs,
            first_pair=counters[1] + lax.axis_index(axes) * state.shape[2],
        )

    counters = jnp.stack([jnp.asarray(generation, jnp.int32), jnp.asarray(first_pair, jnp.int32)])
    scores, states = jax.shard_map(
        share,
        mesh=mesh,
        in_specs=(whole, shares, whole, whole, whole),
        out_specs=(PartitionSpec(None, axes), shares),
        check_vma=False,
    )(parameters, state, lanes, seed, counters)
    return constrain(mesh, scores, whole), states
