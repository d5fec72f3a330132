"""The optimiser on the trainable leaves: all at once, or leaf by leaf with a state for each.

Leaf by leaf it sees a tree of which every other leaf is `optax.MaskedNode`: masks and labels by path find their leaf,
and what looks across leaves, such as clipping by the global norm, finds that one alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from eggroll.core.distribution import Plan
from eggroll.core.draws import trainable as trainable_tree


def start_optimiser(
    optimizer: optax.GradientTransformation, plan: Plan, leaves: Sequence[Any], tree: Any, layerwise: bool
) -> Any:
    """The state before the first update; layerwise a tuple with one for each trainable leaf, in order."""
    plans = [only_leaf(plan, index) for index in trainable_leaves(plan)] if layerwise else [plan]
    states = tuple(optimizer.init(trainable_tree(own, leaves, tree)) for own in plans)
    return jax.tree.map(strong, states if layerwise else states[0])


def trainable_leaves(plan: Plan) -> list[int]:
    """The places of the leaves that are not frozen."""
    return [index for index, leaf in enumerate(plan) if not leaf.frozen]


def only_leaf(plan: Plan, index: int) -> Plan:
    """The plan with all leaves but one frozen."""
    return tuple(
        leaf if k == index or leaf.frozen else dataclasses.replace(leaf, frozen=True) for k, leaf in enumerate(plan)
    )


def optimise(
    optimizer: optax.GradientTransformation,
    plan: Plan,
    leaves: Sequence[Any],
    tree: Any,
    direction: Sequence[Array | None],
    state: Any,
) -> tuple[list[Any], Any]:
    """One step of optax on the trainable leaves; dtypes stay, so that nothing is compiled again.

    Args:
      leaves: the mean; of frozen leaves anything.
      direction: what optax minimises along; None where a leaf is frozen.
    Returns:
      The leaves, frozen ones as they were, and the optimiser's state.
    """
    mean = trainable_tree(plan, leaves, tree)
    updates, new = optimizer.update(trainable_tree(plan, direction, tree), state, mean)
    moved = iter(jax.tree.leaves(optax.apply_updates(mean, updates)))
    values = [old if leaf.frozen else next(moved) for leaf, old in zip(plan, leaves, strict=True)]
    return values, jax.tree.map(_keep_dtype, new, state)


def strong(x: Any) -> Array:
    """An array without JAX's weak type, which would have the first step compiled twice."""
    x = jnp.asarray(x)
    return jax.lax.convert_element_type(x, x.dtype) if jnp.issubdtype(x.dtype, jnp.number) else x


def _keep_dtype(new: Array, old: Array) -> Array:
    return jax.lax.convert_element_type(new, old.dtype) if jnp.issubdtype(old.dtype, jnp.number) else new
