"""Evaluation and gradient on a mesh of devices; see `core.mesh` for its axes and for the three ways to update.

Evaluation is written by device along "members" only; what a "model" axis does inside a member is left to XLA. The
gradient is written by device along every axis, so that it is known what each device draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from eggroll.core.distribution import LeafPlan, Plan
from eggroll.core.draws import Block
from eggroll.core.estimate import estimate_gradient
from eggroll.core.mesh import MEMBERS, axes_of, block_spec, constrain, place
from eggroll.core.population import Evaluation, Setting, evaluate, is_per_group

WHOLE, SHARED = PartitionSpec(), PartitionSpec(MEMBERS)


def evaluate_on(
    mesh: Mesh,
    fitness: Callable[..., Any],
    plan: Plan,
    params: Any,
    pairs: Array,
    args: tuple[Any, ...],
    *,
    setting: Setting,
    carry: Any,
    has_aux: bool,
    **counters: Array,
) -> Evaluation:
    """`population.evaluate` with its pairs in equal shares over "members"; `setting.chunk_pairs` is that of a device.

    Args:
      counters: seed, generation, sigma and noise_generation.
    Returns:
      Fitness whole on every device, so that shaping gives the same bits on any number of them; carry and aux in shares.
    """
    held = groups_of_device(mesh, setting, 2 * pairs.shape[0])
    specs = argument_specs(args, held)

    def share(params: Any, pairs: Array, args: Any, carry: Any, counters: dict[str, Array]) -> Evaluation:
        return evaluate(
            fitness,
            plan,
            params,
            pairs,
            args,
            setting=setting,
            carry=carry,
            has_aux=has_aux,
            groups_held=held,
            **counters,
        )

    result = jax.shard_map(
        share,
        mesh=mesh,
        in_specs=(WHOLE, SHARED, specs, SHARED, WHOLE),
        out_specs=SHARED,
        axis_names={name for name in mesh.axis_names if name == MEMBERS or mesh.shape[name] == 1},
        check_vma=False,  # a fitness of the user's may hold a scan that starts from a constant
    )(params, pairs, args, carry, counters)
    return result._replace(fitness=constrain(mesh, result.fitness, WHOLE))


def groups_of_device(mesh: Mesh, setting: Setting, members: int) -> int | None:
    """Groups whose arguments a device gets; None where it gets those of all, as their number does not divide."""
    groups, shares = setting.population_size // setting.group_size, mesh.shape[MEMBERS]
    return groups // shares if members == setting.population_size and groups % shares == 0 else None


def argument_specs(args: tuple[Any, ...], held: int | None) -> tuple[Any, ...]:
    """How the arguments of fitness lie: groups in shares where a device holds just its own."""

    def spec(value: Any) -> PartitionSpec:
        return SHARED if held is not None and is_per_group(value) else WHOLE

    return tuple(jax.tree.map(spec, arg, is_leaf=is_per_group) for arg in args)


def place_arguments(mesh: Mesh, args: tuple[Any, ...], held: int | None) -> tuple[Any, ...]:
    """Have each device hold its own groups alone before the evaluation begins."""
    if held is None:
        return args

    def own(value: Any) -> Any:
        return jax.tree.map(lambda x: place(mesh, x, SHARED), value) if is_per_group(value) else value

    return jax.tree.map(own, args, is_leaf=is_per_group)


def gradient_on(
    mesh: Mesh,
    way: str,
    plan: Plan,
    specs: Sequence[PartitionSpec],
    weights: Float[Array, " pairs"],
    *,
    population_size: int,
    chunk_pairs: int,
    **counters: Array,
) -> list[Array | None]:
    """`estimate.estimate_gradient` of the whole population, by one of the three ways.

    Args:
      way: "redraw", "reduce" or "rows".
      specs: how each leaf lies on the mesh, and its gradient will.
      counters: seed, generation and sigma.
    """
    cuts = [cut_of(mesh, leaf, spec) if way == "rows" else WHOLE for leaf, spec in zip(plan, specs, strict=True)]
    axes = sharing_axes(mesh, weights.shape[0]) if way == "reduce" else ()
    split = PartitionSpec(axes) if axes else WHOLE

    def share(weights: Array, pairs: Array, counters: dict[str, Array]) -> list[Array | None]:
        parts = estimate_gradient(
            plan,
            weights,
            pairs,
            population_size=population_size,
            chunk_pairs=chunk_pairs,
            blocks=[block_of(mesh, leaf, cut) for leaf, cut in zip(plan, cuts, strict=True)],
            **counters,
        )
        return lax.psum(parts, axes) if axes else parts

    gradient: list[Array | None] = jax.shard_map(
        share, mesh=mesh, in_specs=(split, split, WHOLE), out_specs=cuts, check_vma=False
    )(weights, jnp.arange(weights.shape[0], dtype=jnp.int32), counters)
    return [
        None if value is None else constrain(mesh, value, spec) for value, spec in zip(gradient, specs, strict=True)
    ]


def sharing_axes(mesh: Mesh, pairs: int) -> tuple[str, ...]:
    """The axes over which "reduce" splits the pairs: all of them, or "members" alone where the pairs do not divide."""
    return tuple(mesh.axis_names) if pairs % mesh.size == 0 else (MEMBERS,)


def cut_of(mesh: Mesh, leaf: LeafPlan, spec: PartitionSpec) -> PartitionSpec:
    """How "rows" cuts a leaf: layers first, since a layer needs no noise of another, then the longest axis."""
    order = sorted(
        range(len(leaf.shape)), key=lambda axis: (leaf.roles[axis : axis + 1] != "s", -leaf.shape[axis], axis)
    )
    return block_spec(mesh, leaf.shape, order, spec)


def block_of(mesh: Mesh, leaf: LeafPlan, cut: PartitionSpec) -> Block | None:
    """The block of this device, inside `shard_map`; None where it is the whole leaf."""
    if cut == WHOLE:
        return None
    shape = list(leaf.shape)
    start: list[int | Array] = [0] * len(shape)
    for axis, part in enumerate(cut):
        names = axes_of(part)
        if names:
            shape[axis] //= math.prod(mesh.shape[name] for name in names)
            start[axis] = lax.axis_index(names) * shape[axis]
    return Block(tuple(shape), tuple(start))
