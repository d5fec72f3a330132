"""What each JAX operation does to a `LowRankArray`; `lowrank` evaluates whole functions by these rules.

A transposition permutes the roles of the axes, a product is an einsum over them (`products`), and slicing and
joining act on each factor by itself (`indexing`); here are the elementwise and the shape operations.

A rule returns the result (a list, where there are several), or None where it does not cover the case.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from eggroll.core import indexing, products
from eggroll.core.value import LowRankArray, axes_of, is_low_rank, rebuild, settle, unstack


def _identity(w: LowRankArray, **_: Any) -> Any:
    return w


def _negate(w: LowRankArray, **_: Any) -> Any:
    return replace(w, base=-w.base, scale=-w.scale)


def _multiply(x: Any, y: Any, **_: Any) -> Any:
    w, factor = (x, y) if is_low_rank(x) else (y, x)
    if is_low_rank(factor) or jnp.ndim(factor):
        return None
    return replace(w, base=w.base * factor, scale=w.scale * factor)


def _divide(x: Any, y: Any, **_: Any) -> Any:
    if is_low_rank(y) or jnp.ndim(y):
        return None
    return replace(x, base=x.base / y, scale=x.scale / y)


def _convert(w: LowRankArray, *, new_dtype: Any, **_: Any) -> Any:
    if not jnp.issubdtype(new_dtype, jnp.floating):
        return None
    return replace(w, base=w.base.astype(new_dtype), a=w.a.astype(new_dtype), b=w.b.astype(new_dtype))


def _transpose(w: LowRankArray, *, permutation: Sequence[Any]) -> Any:
    def factor(x: jax.Array, axes: list[int]) -> jax.Array:
        return lax.transpose(x, [*(axes.index(p) for p in permutation if p in axes), len(axes)])

    return rebuild(w, lax.transpose(w.base, permutation), factor, "".join(w.roles[p] for p in permutation))


def _squeeze(w: LowRankArray, *, dimensions: Sequence[Any]) -> Any:
    def factor(x: jax.Array, axes: list[int]) -> jax.Array:
        return lax.squeeze(x, [axes.index(d) for d in dimensions if d in axes])

    roles = "".join(role for axis, role in enumerate(w.roles) if axis not in dimensions)
    return rebuild(w, lax.squeeze(w.base, dimensions), factor, roles)


def _reshape_roles(roles: str, old: Sequence[int], new: Sequence[int]) -> tuple[str, str] | None:
    """The roles before and after a reshape, or None where it would merge rows with columns.

    Before it, a stacked axis that is merged with rows, or with columns, becomes one of them.
    """
    before, after, i, j = "", "", 0, 0
    while i < len(old) or j < len(new):
        start, (i, j), left, right = (
            (i, j),
            (i + 1, j + 1),
            math.prod(old[i : i + 1]),
            math.prod(new[j : j + 1]),
        )
        while left != right:
            if left < right:
                left, i = left * old[i], i + 1
            else:
                right, j = right * new[j], j + 1
        i, j = min(i, len(old)), min(j, len(new))
        own = roles[start[0] : i]
        group = {role for role, size in zip(own, old[start[0] : i], strict=True) if size != 1} or set(own[:1]) or {"r"}
        if len(group - {"s"}) > 1:
            return None
        role = (group - {"s"} or group).pop()
        before += "".join(role if each == "s" else each for each in own)
        after += role * (j - start[1])
    return before, after


def _reshape(w: LowRankArray, *, new_sizes: Sequence[Any], dimensions: Any, **_: Any) -> Any:
    w = w if dimensions is None else _transpose(w, permutation=dimensions)
    roles = _reshape_roles(w.roles, w.base.shape, new_sizes)
    if roles is None:
        return None
    before, after = roles
    for axis, (role, wanted) in enumerate(zip(w.roles, before, strict=True)):
        w = w if role == wanted else unstack(w, axis, wanted)
    a = w.a.reshape(*(new_sizes[k] for k in axes_of(after, "r")), w.a.shape[-1])
    b = w.b.reshape(*(new_sizes[k] for k in axes_of(after, "c")), w.b.shape[-1])
    return settle(replace(w, base=w.base.reshape(new_sizes), a=a, b=b, roles=after))


def _broadcast(w: LowRankArray, *dynamic: Any, shape: Sequence[int], broadcast_dimensions: Any, **_: Any) -> Any:
    places = list(broadcast_dimensions)
    roles = "".join(w.roles[places.index(k)] if k in places else "r" for k in range(len(shape)))

    def factor(x: jax.Array, axes: list[int]) -> jax.Array:
        kept = axes_of(roles, "r" if x is w.a else "c")
        target = (*(shape[k] for k in kept), x.shape[-1])
        return lax.broadcast_in_dim(x, target, [*(kept.index(places[k]) for k in axes), len(kept)])

    return None if dynamic else rebuild(w, lax.broadcast_in_dim(w.base, shape, places), factor, roles)


def _stack(*parts: Any, axis: int) -> Any:
    def expanded(part: Any) -> Any:
        if not is_low_rank(part):
            return jnp.expand_dims(part, axis)
        places = [k + (k >= axis) for k in range(part.base.ndim)]
        shape = (*part.base.shape[:axis], 1, *part.base.shape[axis:])
        return _broadcast(part, shape=shape, broadcast_dimensions=places)

    return indexing.concatenate(*map(expanded, parts), dimension=axis)


def _reduce_sum(w: LowRankArray, *, axes: Sequence[Any], **_: Any) -> Any:
    if any(w.roles[axis] == "s" for axis in axes):
        return None

    def factor(x: jax.Array, own: list[int]) -> jax.Array:
        return x.sum([own.index(axis) for axis in axes if axis in own])

    roles = "".join(role for axis, role in enumerate(w.roles) if axis not in axes)
    return rebuild(w, w.base.sum(axes), factor, roles)


RULES: dict[str, Callable[..., Any]] = {
    "copy": _identity,
    "copy_p": _identity,
    "stop_gradient": _identity,
    "name": _identity,
    "neg": _negate,
    "mul": _multiply,
    "div": _divide,
    "convert_element_type": _convert,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "reshape": _reshape,
    "broadcast_in_dim": _broadcast,
    "reduce_sum": _reduce_sum,
    "slice": indexing.static_slice,
    "dynamic_slice": indexing.dynamic_slice,
    "split": indexing.split,
    "gather": indexing.gather,
    "rev": indexing.reverse,
    "concatenate": indexing.concatenate,
    "stack": _stack,
    "dot_general": products.dot_general,
    "conv_general_dilated": products.convolve,
}
