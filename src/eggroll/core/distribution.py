"""How member `i` differs from the mean, leaf by leaf: `LowRank` (EGGROLL) and `FullRank` (OpenES).

A distribution makes a plan of a parameter tree: one `LeafPlan` a leaf, which says whether its noise is a
low-rank matrix, elementwise, or none (frozen). Everything else (drawing, perturbing, estimating) works on
plans (see `core.draws`), and so serves every distribution.

Source: arXiv 2511.16652; Salimans et al., arXiv 1703.03864, for full rank.
"""

from __future__ import annotations

import contextlib
import fnmatch
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from eggroll.core import noise

T = TypeVar("T")


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

    A leaf of integers that is not frozen is a lattice: its factors are the law's own integers, in its dtype.
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

    @property
    def factor_unit(self) -> float:
        """What one unit of a drawn factor is in standard deviations."""
        return 1.0 if jnp.issubdtype(self.dtype, jnp.floating) else noise.law(self.law).scale

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
      laws: leaf pattern → law of that leaf's noise, in place of `law`.
      lattice: patterns of int8 leaves that members perturb all the same, σ in steps of one; see `EvolutionStrategy.
        evaluate`. How they are updated is the caller's: `init` and `step` refuse them.

    Patterns are those of `fnmatch`, on paths such as "decoder/0/kernel"; the first that matches counts.
    """

    rank: int = 1
    law: str = "popcount"
    stacked: Mapping[str, int] = field(default_factory=dict)
    split: Mapping[str, int] = field(default_factory=dict)
    laws: Mapping[str, str] = field(default_factory=dict)
    lattice: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.rank, int | np.integer):
            raise ValueError(f"expected rank as a whole number, got {self.rank!r}; rank=1 is the usual choice")
        if self.rank < 1:
            raise ValueError(f"expected rank ≥ 1, got {self.rank}; rank=1 is the usual choice")
        for name in (self.law, *self.laws.values()):
            noise.law(name)
        for name, patterns in (("stacked", self.stacked), ("split", self.split)):
            for pattern, axes in patterns.items():
                if axes < 0:
                    raise ValueError(f"expected {name}[{pattern!r}] ≥ 0, got {axes}; give a number of axes")

    def patterns(self) -> dict[str, Sequence[str]]:
        """The leaf patterns of each setting, to be checked against the leaves."""
        named = {"stacked": self.stacked, "split": self.split, "laws": self.laws, "lattice": self.lattice}
        return {name: tuple(patterns) for name, patterns in named.items()}

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
      laws: leaf pattern → law of that leaf's noise, in place of `law`.
    """

    law: str = "normal"
    laws: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in (self.law, *self.laws.values()):
            noise.law(name)

    @property
    def rank(self) -> int:
        """0: the noise is elementwise."""
        return 0

    def patterns(self) -> dict[str, Sequence[str]]:
        """The leaf patterns of each setting, to be checked against the leaves."""
        return {"laws": tuple(self.laws)}

    def roles(self, path: str, shape: tuple[int, ...]) -> str:
        """Every leaf is elementwise."""
        return ""


Distribution = LowRank | FullRank


Trainable = Sequence[str] | Callable[[str, Any], bool]
"""Patterns of the leaves that evolve, or a predicate of a leaf's path and value."""


def as_patterns(given: str | Sequence[str]) -> tuple[str, ...]:
    """One pattern, or several, as several."""
    return (given,) if isinstance(given, str) else tuple(given)


def _lookup(patterns: Mapping[str, T], path: str) -> T | None:
    return next((value for pattern, value in patterns.items() if fnmatch.fnmatchcase(path, pattern)), None)


def matches(patterns: Sequence[str], path: str) -> bool:
    """Whether a leaf's path is one that the patterns mean."""
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def _evolves(trainable: Trainable, path: str, leaf: Any) -> bool:
    return bool(trainable(path, leaf)) if callable(trainable) else matches(trainable, path)


def leaf_paths(tree: Any) -> list[str]:
    """The path of every leaf, "a/b/c", from dictionary keys, attributes and indices."""
    return [
        jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    ]


def make_plan(
    distribution: Distribution,
    params: Any,
    *,
    trainable: Trainable = ("*",),
    frozen: Sequence[str] = (),
    allow_materialise: Sequence[str] = (),
) -> Plan:
    """Say for every leaf how it is perturbed.

    Args:
      distribution: `LowRank` or `FullRank`.
      params: the parameter tree; arrays or their abstract shapes.
      trainable: patterns of the leaves that evolve, or a predicate `(path, leaf) → bool`; the others are frozen.
      frozen: patterns of leaves that are neither perturbed nor updated, whatever `trainable` says.
      allow_materialise: patterns of leaves whose dense matrix a member may form.
    Raises:
      ValueError: nothing to train, a leaf that is no array or number, an integer leaf that is not frozen, an
        ambiguous shape, too high a rank, a pattern without a leaf, or two leaves of one path or hash.
    """
    paths, leaves = leaf_paths(params), jax.tree.leaves(params)
    named = {**distribution.patterns(), "frozen": frozen, "allow_materialise": allow_materialise}
    if not callable(trainable) and tuple(trainable) != ("*",):
        named["trainable"] = trainable
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
            matches(frozen, path) or not _evolves(trainable, path, leaf),
            matches(allow_materialise, path),
        )
        for path, leaf in zip(paths, leaves, strict=True)
    )
    if all(leaf.frozen for leaf in plan):
        raise ValueError(
            f"expected at least one leaf to train, got {len(plan)} leaves, all frozen; pass a parameter tree "
            "with float arrays and freeze fewer of them"
        )
    return plan


def _plan_leaf(
    distribution: Distribution, path: str, leaf: Any, identity: int, frozen: bool, may_materialise: bool
) -> LeafPlan:
    shape, dtype = tuple(np.shape(leaf)), _dtype(path, leaf)
    if frozen:
        return LeafPlan(path, identity, shape, dtype, frozen=True)
    in_lattice = matches(getattr(distribution, "lattice", ()), path)
    if not jnp.issubdtype(dtype, jnp.floating) and not in_lattice:
        raise ValueError(
            f'expected float leaves, got {dtype} in leaf {path!r}; name it in frozen=("{path}",) or take it out'
        )
    roles = distribution.roles(path, shape)
    rank = distribution.rank if roles else 0
    law = _lookup(distribution.laws, path) or distribution.law
    if in_lattice and (dtype != jnp.int8 or not rank or law == "normal"):
        raise ValueError(
            f"expected an int8 matrix and a law of integers for the lattice leaf {path!r}, got {dtype}{list(shape)} "
            f"and the law {law!r}; take it out of lattice, lower the rank, or choose popcount"
        )
    return LeafPlan(path, identity, shape, dtype, roles, rank, law, False, may_materialise)


def _dtype(path: str, leaf: Any) -> Any:
    if hasattr(leaf, "dtype") or isinstance(leaf, bool | int | float | complex):
        with contextlib.suppress(TypeError):  # such as a NumPy array of strings
            return jnp.result_type(leaf)
    raise ValueError(
        f"expected arrays and numbers as leaves, got a {type(leaf).__name__} in leaf {path!r}; partition the arrays "
        "out, as with eqx.partition(model, eqx.is_inexact_array), or take it out and have fitness close over it"
    )
