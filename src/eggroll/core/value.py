"""`LowRankArray`: a shared array plus the low-rank noise of one member, and when it may be written out.

Every axis has a role: "s" stacked (an axis of A and of B), "r" row (of A only) or "c" column (of B only). An
array that has lost all its row or all its column axes is an ordinary array again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp


class MaterialiseError(TypeError):
    """An operation would form the dense matrix of every member of the population."""


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("base", "a", "b", "scale"),
    meta_fields=("roles", "leaf", "may_materialise"),
)
@dataclass(frozen=True)
class LowRankArray:
    """The value `base + scale · Σ_k a[…, k] · b[…, k]`.

    Attributes:
      base: the shared array, any float dtype, or int8 with factors of int8.
      a: the "s" and "r" axes of `base`, in its order, then the rank axis.
      b: the "s" and "c" axes of `base`, in its order, then the rank axis.
      scale: float scalar; sign · σ / √rank.
      roles: one of "s", "r", "c" for each axis of `base`.
      leaf: the path of the parameter, for error messages.
      may_materialise: whether an operation without a rule may form the dense array.
    """

    base: Any
    a: Any
    b: Any
    scale: Any
    roles: str = "rc"
    leaf: str = ""
    may_materialise: bool = False

    def dense(self) -> jax.Array:
        """The array written out, in the dtype of `base`, or float32 where that is an integer."""
        every = list(range(len(self.roles)))
        rank = len(every)
        delta = jnp.einsum(
            self.a.astype(as_float(self.a.dtype)),
            [*axes_of(self.roles, "r"), rank],
            self.b.astype(as_float(self.b.dtype)),
            [*axes_of(self.roles, "c"), rank],
            every,
            preferred_element_type=jnp.float32,
        )
        return (self.base + self.scale * delta).astype(as_float(self.base.dtype))


def as_float(dtype: Any) -> Any:
    """The dtype of a member's values: of integers that noise has moved, float32."""
    return dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.dtype(jnp.float32)


def is_low_rank(value: Any) -> bool:
    return isinstance(value, LowRankArray)


def axes_of(roles: str, side: str) -> list[int]:
    """The axes of the base that one factor has: "r" for those of A, "c" for those of B."""
    return [axis for axis, role in enumerate(roles) if role in ("s", side)]


def to_dense(value: Any, operation: str) -> Any:
    if not is_low_rank(value):
        return value
    if not value.may_materialise:
        shape = ",".join(map(str, value.base.shape))
        raise MaterialiseError(
            f"expected an operation that keeps the leaf {value.leaf!r} low-rank, got {operation} of "
            f"{value.base.dtype}[{shape}]; change the model, freeze the leaf, give it elementwise noise with "
            f'distribution=LowRank(split={{"{value.leaf}": 0}}), or let members form it with '
            f'allow_materialise=("{value.leaf}",)'
        )
    return value.dense()


def written_out(tree: Any) -> Any:
    """The tree with every low-rank leaf written out, whether or not it may be: for one member's own use."""
    return jax.tree.map(lambda x: x.dense() if is_low_rank(x) else x, tree, is_leaf=is_low_rank)


def rebuild(
    w: LowRankArray,
    base: jax.Array,
    factor: Callable[[jax.Array, list[int]], jax.Array],
    roles: str | None = None,
) -> Any:
    """A new value whose factors are `factor(array, its base axes)`; dense once rows or columns are gone."""
    a, b = factor(w.a, axes_of(w.roles, "r")), factor(w.b, axes_of(w.roles, "c"))
    return settle(replace(w, base=base, a=a, b=b, roles=w.roles if roles is None else roles))


def settle(w: LowRankArray) -> Any:
    return w if "r" in w.roles and "c" in w.roles else w.dense()


def fold_scale(w: LowRankArray) -> LowRankArray:
    """The same value with scale 1 and b in float32, so that values of different scales can be joined."""
    return replace(w, b=w.b * jnp.asarray(w.scale, jnp.float32), scale=jnp.float32(1))


def unstack(w: LowRankArray, axis: int, role: str) -> LowRankArray:
    """The same value with a stacked axis as a row or column axis; the rank grows by its size.

    One factor keeps the axis and is block-diagonal, the other has its layers side by side in the rank.
    """
    roles = w.roles[:axis] + role + w.roles[axis + 1 :]

    def factor(x: jax.Array, own: list[int], keeps: bool) -> jax.Array:
        place = own.index(axis)
        if keeps:
            layers, rank = len(w.roles), len(w.roles) + 1
            eye = jnp.eye(x.shape[place], dtype=x.dtype)
            x = jnp.einsum(x, [*own, rank], eye, [axis, layers], [*own, layers, rank])
        else:
            x = jnp.moveaxis(x, place, -2)
        return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])

    a, b = factor(w.a, axes_of(w.roles, "r"), role == "r"), factor(w.b, axes_of(w.roles, "c"), role == "c")
    return replace(w, a=a, b=b, roles=roles)
