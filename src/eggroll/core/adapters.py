"""LoRA adapters: train a low-rank addition to some matrices of a model, in place of the matrices themselves.

The parameter tree becomes `{"base": params, "lora": {name: {"a", "b"}}}`. With `trainable="lora/*"` only the adapters
evolve, and the base is one copy that all members share. A member's adapters are perturbed like any other matrix, and
the unmodified model multiplies by `W + scale·a·bᵀ` without that sum being formed.

Sources: Hu et al., arXiv 2106.09685; arXiv 2511.16652, order execution, for adapters under EGGROLL.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from eggroll.core.distribution import LeafPlan, LowRank, as_patterns, leaf_paths, make_plan
from eggroll.core.lowrank import LowRankArray, apply_perturbed
from eggroll.core.value import written_out


def add_lora(
    params: Any,
    key: Key[Array, ""],
    *,
    targets: str | Sequence[str],
    rank: int = 4,
    stacked: Mapping[str, int] | None = None,
    split: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Put adapters beside the parameters of a model, whose output they do not change until they move.

    Args:
      params: the model's own tree.
      key: for the start of the factors b; the factors a start at zero.
      targets: patterns of the matrices that get an adapter, such as "*/kernel".
      rank: of the adapters, ≥ 1 and at most the smaller side of each matrix.
      stacked, split: leaf pattern → number of axes that count layers, or that are rows, as in `LowRank`.
    Returns:
      {"base": params, "lora": {name: {"a": (layers…, rows, rank), "b": (layers…, columns, rank)}}} in the dtype of
      each matrix, where the name is the leaf's path with "." for "/". Give it to `EvolutionStrategy.init` with
      `trainable="lora/*"`, and to `with_lora` the fitness.
    Raises:
      ValueError: a target is no matrix, or as `distribution.make_plan` says.
    """
    plan = _plan(params, targets, LowRank(rank, stacked=stacked or {}, split=split or {}))
    lora = {}
    for leaf, own in zip(plan, jax.random.split(key, len(plan)), strict=True):
        a, b = (_flat_shape(leaf, side) for side in "rc")
        start = jax.random.normal(own, b, jnp.float32) / math.sqrt(b[-2])
        lora[_name(leaf.path)] = {"a": jnp.zeros(a, leaf.dtype), "b": start.astype(leaf.dtype)}
    return {"base": params, "lora": lora}


def with_lora(
    fitness: Callable[..., Any],
    *,
    scale: float = 1.0,
    stacked: Mapping[str, int] | None = None,
    split: Mapping[str, int] | None = None,
) -> Callable[..., Any]:
    """The fitness of a tree with adapters, from that of the model's own tree.

    Args:
      fitness: `fitness(params, key, …)` for the model's own tree.
      scale: factor of a·bᵀ; α/rank in the words of LoRA.
      stacked, split: as given to `add_lora`.
    Returns:
      A function of the same arguments, the first being a tree from `add_lora`. Make it once: `step` compiles anew for
      each function object.
    """

    def wrapped(params: dict[str, Any], *args: Any) -> Any:
        return apply_perturbed(fitness, _adapted(params, scale, stacked, split), *args)

    return wrapped


def merge_lora(
    params: dict[str, Any],
    *,
    scale: float = 1.0,
    stacked: Mapping[str, int] | None = None,
    split: Mapping[str, int] | None = None,
) -> Any:
    """The model's own tree with each adapter added to its matrix; arguments as in `with_lora`."""
    return written_out(_adapted(params, scale, stacked, split))


def _plan(params: Any, targets: str | Sequence[str], distribution: LowRank) -> list[LeafPlan]:
    plan = [leaf for leaf in make_plan(distribution, params, trainable=as_patterns(targets)) if not leaf.frozen]
    for leaf in plan:
        if not leaf.rank:
            raise ValueError(
                f"expected matrices as targets of adapters, got leaf {leaf.path!r} of shape {leaf.shape}; name matrices"
            )
    return plan


def _adapted(
    params: dict[str, Any], scale: float, stacked: Mapping[str, int] | None, split: Mapping[str, int] | None
) -> Any:
    """The base with `LowRankArray` where there is an adapter."""
    distribution = LowRank(stacked=stacked or {}, split=split or {})
    leaves, tree = jax.tree.flatten(params["base"])

    def adapted(path: str, base: Any) -> Any:
        factors = params["lora"].get(_name(path))
        if factors is None:
            return base
        leaf = LeafPlan(path, 0, base.shape, base.dtype, distribution.roles(path, base.shape), factors["a"].shape[-1])
        a, b = (factors[name].reshape(leaf.factor_shape(side)) for name, side in (("a", "r"), ("b", "c")))
        return LowRankArray(base, a, b, jnp.float32(scale), leaf.roles, path)

    return jax.tree.unflatten(tree, map(adapted, leaf_paths(params["base"]), leaves))


def _flat_shape(leaf: LeafPlan, side: str) -> tuple[int, ...]:
    """A factor's shape with all rows, or all columns, in one axis: an adapter is a matrix, or one for each layer."""
    stack = leaf.roles.count("s")
    *axes, rank = leaf.factor_shape(side)
    return (*axes[:stack], math.prod(axes[stack:]), rank)


def _name(path: str) -> str:
    return path.replace("/", ".")
