"""How member `i` differs from the mean, leaf by leaf: `LowRank` (EGGROLL) and `FullRank` (OpenES).

A distribution makes a plan of a parameter tree: one `LeafPlan` a leaf, which says whether its noise is a
low-rank matrix, elementwise, or none (frozen). Everything else (drawing, perturbing, estimating) works on
plans, and so serves every distribution. Noise is drawn by `noise`, a pure function of the seed, the leaf, the
generation and the pair.

Source: arXiv 2511.16652; Salimans et al., arXiv 1703.03864, for full rank.
"""

from __future__ import annotations

import contextlib
import fnmatch
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from optax import MaskedNode

from eggroll.core import noise
from eggroll.core.lowrank import LowRankArray


class Factors(NamedTuple):
    """Noise of a low-rank leaf for each of several pairs; unit variance, in the dtype of the leaf."""

    a: Array  # (pairs, stack…, rows…, rank)
    b: Array  # (pairs, stack…, columns…, rank)


LeafNoise = Factors | Array | None
"""Factors; or elementwise noise (pairs, *leaf shape); or None for a frozen leaf."""


@dataclass(frozen=True)
class LeafPlan:
    """What happens to one leaf.

    Attributes:
      path: its path, "a/b/c".
      identity: the int32 that stands for the leaf in every draw.
      shape, dtype: of the leaf.
      roles: "s" stacked, "r" row, "c" column for each axis of a low-rank leaf; "" for elementwise noise.
      rank: of the perturbation; 0 for elementwise noise.
      law: the name of the noise law.
      frozen: neither perturbed nor updated.
      may_materialise: members may form the dense matrix of this leaf.
    """

    path: str
    identity: int
    shape: tuple[int, ...]
    dtype: Any
    roles: str = ""
    rank: int = 0
    law: str = "popcount"
    frozen: bool = False
    may_materialise: bool = False

    def factor_shape(self, side: str) -> tuple[int, ...]:
        """Shape of A (side "r") or B (side "c") for one pair."""
        return (
            *(n for n, role in zip(self.shape, self.roles, strict=True) if role in ("s", side)),
            self.rank,
        )


Plan = tuple[LeafPlan, ...]
"""One `LeafPlan` for each leaf, in the order of `jax.tree.leaves`."""


@dataclass(frozen=True)
class LowRank:
    """EGGROLL: a matrix M (m×n) moves by `σ·A·Bᵀ/√r`; vectors and scalars get elementwise noise.

    Attributes:
      rank: r ≥ 1, at most min(m, n) of every perturbed matrix.
      law: "popcount", "signs", "table_normal" or "normal"; the distribution of the elements of A and B.
      stacked: leaf pattern → number of leading axes that count layers, each layer with noise of its own.
      split: leaf pattern → of the axes after the stacked ones, how many are rows (the others are columns); 0
        gives the leaf elementwise noise.

    Patterns are those of `fnmatch`, on paths such as "decoder/0/kernel"; the first that matches counts.
    """

    rank: int = 1
    law: str = "popcount"
    stacked: Mapping[str, int] = field(default_factory=dict)
    split: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"expected rank ≥ 1, got {self.rank}; rank=1 is the usual choice")
        noise.law(self.law)
        for name, patterns in (("stacked", self.stacked), ("split", self.split)):
            for pattern, axes in patterns.items():
                if axes < 0:
                    raise ValueError(f"expected {name}[{pattern!r}] ≥ 0, got {axes}; give a number of axes")

    def patterns(self) -> dict[str, Sequence[str]]:
        """The leaf patterns of each setting, to be checked against the leaves."""
        return {"stacked": tuple(self.stacked), "split": tuple(self.split)}

    def roles(self, path: str, shape: tuple[int, ...]) -> str:
        """The role of each axis of a leaf, or "" for elementwise noise.

        Raises:
          ValueError: three or more axes without a pattern, more axes named than there are, or too high a
            rank.
        """
        stack, rows = _lookup(self.stacked, path), _lookup(self.split, path)
        axes = len(shape) - (stack or 0)
        if axes < 0 or (rows or 0) > max(axes, 0):
            raise ValueError(
                f"expected stacked and split axes within shape {shape} of leaf {path!r}, got "
                f"stacked={stack or 0} and split={rows or 0}; correct the pattern in distribution=LowRank(…)"
            )
        if axes < 2 or rows == 0:
            return ""
        if axes > 2 and rows is None:
            raise ValueError(
                f"expected 2 axes in leaf {path!r}, got shape {shape}, which is ambiguous; say which are "
                f'rows with distribution=LowRank(split={{"{path}": 1}}) or count layers with '
                f'distribution=LowRank(stacked={{"{path}": {axes - 2}}})'
            )
        rows = 1 if rows is None else rows
        roles = "s" * (stack or 0) + "r" * rows + "c" * (axes - rows)
        size = [math.prod(n for n, role in zip(shape, roles, strict=True) if role == side) for side in "rc"]
        if self.rank > min(size):
            raise ValueError(
                f"expected rank ≤ {min(size)} for leaf {path!r} of shape {shape}, got rank {self.rank}; "
                "lower the rank, freeze the leaf, or give it elementwise noise with "
                f'distribution=LowRank(split={{"{path}": 0}})'
            )
        return roles


@dataclass(frozen=True)
class FullRank:
    """OpenES: every leaf moves by `σ·E` with elementwise noise E of unit variance.

    Attributes:
      law: "normal", "popcount", "signs" or "table_normal".
    """

    law: str = "normal"

    def __post_init__(self) -> None:
        noise.law(self.law)

    @property
    def rank(self) -> int:
        """0: the noise is elementwise."""
        return 0

    def patterns(self) -> dict[str, Sequence[str]]:
        """No patterns."""
        return {}

    def roles(self, path: str, shape: tuple[int, ...]) -> str:
        """Every leaf is elementwise."""
        return ""


Distribution = LowRank | FullRank


def _lookup(patterns: Mapping[str, int], path: str) -> int | None:
    return next((axes for pattern, axes in patterns.items() if fnmatch.fnmatchcase(path, pattern)), None)


def _matches(patterns: Sequence[str], path: str) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def leaf_paths(tree: Any) -> list[str]:
    """The path of every leaf, "a/b/c", from dictionary keys, attributes and indices."""
    return [
        jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    ]


def make_plan(
    distribution: Distribution,
    params: Any,
    *,
    frozen: Sequence[str] = (),
    allow_materialise: Sequence[str] = (),
) -> Plan:
    """Say for every leaf how it is perturbed.

    Args:
      distribution: `LowRank` or `FullRank`.
      params: the parameter tree; arrays or their abstract shapes.
      frozen: patterns of leaves that are neither perturbed nor updated.
      allow_materialise: patterns of leaves whose dense matrix a member may form.
    Raises:
      ValueError: nothing to train, a leaf that is no array or number, an integer leaf that is not frozen, an
        ambiguous shape, too high a rank, a pattern without a leaf, or two leaves of one path or hash.
    """
    paths, leaves = leaf_paths(params), jax.tree.leaves(params)
    named = {**distribution.patterns(), "frozen": frozen, "allow_materialise": allow_materialise}
    for name, patterns in named.items():
        for pattern in patterns:
            if not any(fnmatch.fnmatchcase(path, pattern) for path in paths):
                raise ValueError(
                    f"expected {name} patterns that match a leaf, got {pattern!r}; the leaves are {', '.join(paths)}"
                )
    if twice := [path for path, count in Counter(paths).items() if count > 1]:
        raise ValueError(
            f"expected leaves with different paths, got {twice[0]!r} twice; rename one of the two parameters"
        )
    identities = noise.leaf_ids(paths)
    plan = tuple(
        _plan_leaf(
            distribution,
            path,
            leaf,
            identities[path],
            _matches(frozen, path),
            _matches(allow_materialise, path),
        )
        for path, leaf in zip(paths, leaves, strict=True)
    )
    if all(leaf.frozen for leaf in plan):
        raise ValueError(
            f"expected at least one leaf to train, got {len(plan)} leaves, all frozen; pass a parameter tree "
            "with "
            "float arrays and freeze fewer of them"
        )
    return plan


def _plan_leaf(
    distribution: Distribution, path: str, leaf: Any, identity: int, frozen: bool, may_materialise: bool
) -> LeafPlan:
    shape, dtype = tuple(np.shape(leaf)), _dtype(path, leaf)
    if frozen:
        return LeafPlan(path, identity, shape, dtype, frozen=True)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f'expected float leaves, got {dtype} in leaf {path!r}; name it in frozen=("{path}",) or take it out'
        )
    roles = distribution.roles(path, shape)
    rank = distribution.rank if roles else 0
    return LeafPlan(path, identity, shape, dtype, roles, rank, distribution.law, False, may_materialise)


def _dtype(path: str, leaf: Any) -> Any:
    if hasattr(leaf, "dtype") or isinstance(leaf, bool | int | float | complex):
        with contextlib.suppress(TypeError):  # such as a NumPy array of strings
            return jnp.result_type(leaf)
    raise ValueError(
        f"expected arrays and numbers as leaves, got a {type(leaf).__name__} in leaf {path!r}; partition the arrays "
        "out, as with eqx.partition(model, eqx.is_inexact_array), or take it out and have fitness close over it"
    )


def draw_elements(
    leaf: LeafPlan,
    shape: tuple[int, ...],
    factor: int,
    seed: Int[Array, " 2"],
    generation: Int[Array, ""],
    pairs: Int[Array, " pairs"],
    first: int | Int[Array, ""] = 0,
) -> Float[Array, "pairs *shape"]:
    """Draw some or all of one factor of a leaf, in the dtype of the leaf.

    Args:
      leaf: from a plan.
      shape: of what is drawn for one pair; for a shard, of its rows alone.
      factor: `noise.FACTOR_A`, `FACTOR_B` or `FACTOR_DENSE`.
      seed, generation, pairs: as in `draw_noise`.
      first: the number of the first element, row-major over the whole leaf, axis of rank included.
    """
    key = noise.stream_key(seed=seed, leaf=leaf.identity, factor=factor, generation=generation, pair=pairs)
    element = first + jnp.arange(math.prod(shape), dtype=jnp.int32)[None, :]
    bits = noise.element_bits((key[0][:, None], key[1][:, None]), element)
    values = noise.to_float(jnp, noise.law(leaf.law), bits, erf_inv=jax.scipy.special.erfinv)
    return values.reshape(pairs.shape[0], *shape).astype(leaf.dtype)


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

    def draw(leaf: LeafPlan) -> LeafNoise:
        if leaf.frozen:
            return None
        if not leaf.rank:
            return draw_elements(leaf, leaf.shape, noise.FACTOR_DENSE, seed, generation, pairs)
        return Factors(
            draw_elements(leaf, leaf.factor_shape("r"), noise.FACTOR_A, seed, generation, pairs),
            draw_elements(leaf, leaf.factor_shape("c"), noise.FACTOR_B, seed, generation, pairs),
        )

    return [draw(leaf) for leaf in plan]


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
        scaled = scale / math.sqrt(leaf.rank)
        return LowRankArray(mean, own.a, own.b, scaled, leaf.roles, leaf.path, leaf.may_materialise)

    leaves, tree = jax.tree.flatten(params)
    return jax.tree.unflatten(tree, [move(*each) for each in zip(plan, leaves, drawn, strict=True)])


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
