"""The ±1 update: signs of antithetic pairs in, integer parameters out, with no optimiser state.

`Z = Σ_p F_p·A_p·B_pᵀ` is summed exactly (see `sums`), so that the result depends on neither chunking nor device.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Int8, Int32

from eggroll.core.errors import UsageError
from eggroll.core.mesh import GRADIENT_BYTES, choose_update, constrain
from eggroll.integer.arithmetic import saturate
from eggroll.integer.model import Config, Parameters, flat, is_matrix, is_stacked, leaf_shapes, nested
from eggroll.integer.perturbation import Seed
from eggroll.integer.sums import Part, collect, layer_sums, settled

WHOLE = PartitionSpec()


def alpha_at(generation: int, alpha: float, decay: float) -> float:
    """The fraction of parameters that chance alone would move at a generation.

    `alpha` itself up to 1; above 1 it decays from 1 as `1/((2^alpha − 1)·t/decay + 1)`.

    Raises:
      UsageError: alpha or decay is not positive.
    """
    if not alpha > 0 or not decay > 0:
        raise UsageError(f"expected alpha > 0 and decay > 0, got {alpha} and {decay}; the defaults are 4 and 8000")
    return alpha if alpha <= 1 else 1 / ((2**alpha - 1) * generation / decay + 1)


def threshold(alpha: float, pairs: int, rank: int = 1) -> int:
    """`τ·int(√P)·256·√r` with `τ = int(16·Φ⁻¹(1 − alpha/2))`: what `16·|Z|` must reach for a weight to move.

    At most 2³¹ − 1, which no `16·|Z|` reaches.
    """
    tau = int(16 * NormalDist().inv_cdf(1 - max(alpha, 1e-12) / 2))
    return min(tau * math.isqrt(pairs) * 256 * math.isqrt(rank), 2**31 - 1)


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
    mesh: Mesh | None = None,
    way: str = "auto",
) -> tuple[Parameters, Int32[Array, ""]]:
    """One generation's update; returns the new parameters and how many weights moved.

    Layers are updated one after the other: beside the parameters, memory is that of one layer of one leaf.

    Args:
      signs: `pair_signs` of every pair of the population, in order; up to 2²⁵ · (1/rank) pairs.
      level: `threshold` of this generation.
      mesh: devices that share the work; parameters and signs are whole on each, before and after.
      way: how they share it, see `core.mesh`; no result depends on it.
    """
    leaves = {path: jnp.asarray(leaf) for path, leaf in flat(parameters).items()}
    if mesh is None:
        new = new_leaves(leaves, signs, level, config, seed=seed, generation=generation)
        return nested(new), _moved(leaves, new)
    counters = {"seed": seed, "generation": generation}
    new = new_leaves_on(mesh, way, leaves, signs, level, config, **counters)
    moved = _moved(leaves, new)
    return nested({path: constrain(mesh, leaf, WHOLE) for path, leaf in new.items()}), moved


def _moved(old: dict[str, Array], new: dict[str, Array]) -> Int32[Array, ""]:
    return jnp.asarray(sum(jnp.sum((new[path] != leaf).astype(jnp.int32)) for path, leaf in old.items()), jnp.int32)


def new_leaves(
    leaves: dict[str, Int8[Array, "..."]],
    signs: Int8[Array, "pairs"],
    level: Int32[Array, ""],
    config: Config,
    *,
    seed: Seed,
    generation: Array,
    first_pair: Int32[Array, ""] | int = 0,
    summed_over: tuple[str, ...] = (),
    cut: dict[str, Array] | None = None,
) -> dict[str, Int8[Array, "..."]]:
    """The update of some leaves by path, or of some rows of them, layer by layer.

    Args:
      first_pair: that `signs` begin with.
      summed_over: mesh axes on which the other pairs are.
      cut: path → first row, or element of a vector, where a leaf is but a part of its rows.
    """

    def layer(path: str, index: Array, value: Int8[Array, "..."]) -> Int8[Array, "..."]:
        total = leaf_shapes(config)[path][-2 if is_matrix(path) else -1]
        part = Part((cut or {}).get(path, 0), value.shape[0], total)
        words = layer_sums(
            path, value.shape[-1], part, index, signs, config, seed=seed, generation=generation, first_pair=first_pair
        )
        words = lax.psum(settled(words), summed_over) if summed_over else words
        return apply_threshold(value, collect(words), level)

    def leaf(path: str, value: Int8[Array, "..."]) -> Int8[Array, "..."]:
        if not is_stacked(path):
            return layer(path, jnp.int32(0), value)
        if value.shape[0] == 1:
            return layer(path, jnp.int32(0), value[0])[None]
        return lax.map(lambda each: layer(path, *each), (jnp.arange(value.shape[0], dtype=jnp.int32), value))

    return {path: leaf(path, value) for path, value in leaves.items()}


def new_leaves_on(
    mesh: Mesh,
    way: str,
    leaves: dict[str, Int8[Array, "..."]],
    signs: Int8[Array, "pairs"],
    level: Int32[Array, ""],
    config: Config,
    *,
    seed: Seed,
    generation: Array,
) -> dict[str, Int8[Array, "..."]]:
    """`new_leaves` of the whole population by the devices of a mesh; by "rows", each returns its own rows."""
    axes, size = tuple(mesh.axis_names), mesh.size
    way = choose_update(
        way, pairs=signs.shape[0], rank=config.rank, devices=size, sharded=False, traffic=2 * GRADIENT_BYTES
    )
    specs = {path: _rows_spec(path, leaf.shape, mesh) if way == "rows" else WHOLE for path, leaf in leaves.items()}
    split = PartitionSpec(axes) if way == "reduce" else WHOLE
    padded = jnp.pad(signs, (0, -signs.shape[0] % size)) if way == "reduce" else signs

    def share(leaves: dict[str, Array], signs: Array, level: Array, seed: Array, generation: Array) -> dict[str, Array]:
        device = lax.axis_index(axes)
        rows = {
            path: device * leaf.shape[int(is_stacked(path))] for path, leaf in leaves.items() if specs[path] != WHOLE
        }
        return new_leaves(
            leaves,
            signs,
            level,
            config,
            seed=seed,
            generation=generation,
            first_pair=device * signs.shape[0] if way == "reduce" else 0,
            summed_over=axes if way == "reduce" else (),
            cut=rows,
        )

    result: dict[str, Array] = jax.shard_map(
        share, mesh=mesh, in_specs=(specs, split, WHOLE, WHOLE, WHOLE), out_specs=specs, check_vma=False
    )(leaves, padded, level, seed, generation)
    return result


def _rows_spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Rows of a matrix and elements of a vector over all devices, where their number divides."""
    rows = int(is_stacked(path))
    return PartitionSpec(*[None] * rows, tuple(mesh.axis_names)) if shape[rows] % mesh.size == 0 else WHOLE
