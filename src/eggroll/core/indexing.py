"""What slicing, looking up and joining do to a `LowRankArray`: rules, as `rules` says."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from eggroll.core.value import LowRankArray, as_float, axes_of, fold_scale, is_low_rank, rebuild, settle


def static_slice(w: LowRankArray, *, start_indices: Any, limit_indices: Any, strides: Any) -> Any:
    strides = strides or (1,) * len(w.roles)

    def factor(x: jax.Array, axes: list[int]) -> jax.Array:
        pick = [[values[k] for k in axes] for values in (start_indices, limit_indices, strides)]
        return lax.slice(x, [*pick[0], 0], [*pick[1], x.shape[-1]], [*pick[2], 1])

    return rebuild(w, lax.slice(w.base, start_indices, limit_indices, strides), factor)


def dynamic_slice(w: Any, *starts: Any, slice_sizes: Sequence[Any]) -> Any:
    """The primitive: its starts were wrapped by the caller, and those still out of bounds clamp."""
    cut = functools.partial(lax.dynamic_slice, allow_negative_indices=False)

    def factor(x: jax.Array, axes: list[int]) -> jax.Array:
        begin = [*(starts[k] for k in axes), jnp.zeros_like(starts[0])]
        return cut(x, begin, [*(slice_sizes[k] for k in axes), x.shape[-1]])

    return rebuild(w, cut(w.base, starts, slice_sizes), factor) if is_low_rank(w) else None


def split(w: LowRankArray, *, sizes: Sequence[Any], axis: int) -> Any:
    parts, start = [], 0
    for size in sizes:
        begin, end = [0] * w.base.ndim, list(w.base.shape)
        begin[axis], end[axis], start = start, start + size, start + size
        parts.append(static_slice(w, start_indices=begin, limit_indices=end, strides=None))
    return parts


def gather(
    w: Any, indices: Any, *, dimension_numbers: Any, slice_sizes: Any, mode: Any, fill_value: Any, **_: Any
) -> Any:
    """Look up rows, columns or stacked layers: each factor with an indexed axis is looked up by itself."""
    numbers = dimension_numbers
    if not is_low_rank(w) or is_low_rank(indices) or numbers.operand_batching_dims:
        return None
    indexed, batch = numbers.start_index_map, indices.ndim - 1
    kept = [axis for axis in range(w.base.ndim) if axis not in numbers.collapsed_slice_dims]
    base = lax.gather(w.base, indices, numbers, slice_sizes, mode=mode, fill_value=fill_value)

    def factor(x: jax.Array, axes: list[int]) -> tuple[jax.Array, list[Any]]:
        own = [k for k, axis in enumerate(indexed) if axis in axes]
        remain = [axis for axis in axes if axis in kept]
        if not own:
            return x, [*remain, "rank"]
        own_numbers = lax.GatherDimensionNumbers(
            offset_dims=tuple(range(batch, batch + len(remain) + 1)),
            collapsed_slice_dims=tuple(k for k, axis in enumerate(axes) if axis not in kept),
            start_index_map=tuple(axes.index(indexed[k]) for k in own),
        )
        sizes = (*(slice_sizes[axis] for axis in axes), x.shape[-1])
        found = lax.gather(x, indices[..., jnp.array(own)], own_numbers, sizes, mode=mode, fill_value=0)
        return found, [*(f"batch{k}" for k in range(batch)), *remain, "rank"]

    (a, a_names), (b, b_names) = factor(w.a, axes_of(w.roles, "r")), factor(w.b, axes_of(w.roles, "c"))
    rest, offsets = iter(f"batch{k}" for k in range(batch)), iter(kept)
    names: list[Any] = [next(offsets) if k in numbers.offset_dims else next(rest) for k in range(base.ndim)]
    if all(w.roles[axis] == "s" for axis in indexed):
        a, b = (_order(x, own, [n for n in names if n in own]) for x, own in ((a, a_names), (b, b_names)))
        roles = "".join("s" if isinstance(name, str) else w.roles[name] for name in names)
        return settle(replace(w, base=base, a=a, b=b, roles=roles))
    number = {name: k for k, name in enumerate([*names, "rank"])}
    labels = [[number[name] for name in own] for own in (a_names, b_names, names)]
    a, b = (factor.astype(as_float(factor.dtype)) for factor in (a, b))
    delta = jnp.einsum(a, labels[0], b, labels[1], labels[2], preferred_element_type=jnp.float32)
    return (base + w.scale * delta).astype(as_float(base.dtype))


def _order(x: jax.Array, names: list[Any], wanted: list[Any]) -> jax.Array:
    return lax.transpose(x, [*(names.index(name) for name in wanted), x.ndim - 1])


def reverse(w: LowRankArray, *, dimensions: Sequence[Any]) -> Any:
    def factor(x: jax.Array, axes: list[int]) -> jax.Array:
        return lax.rev(x, [axes.index(axis) for axis in dimensions if axis in axes])

    return rebuild(w, lax.rev(w.base, dimensions), factor)


def concatenate(*parts: Any, dimension: int) -> Any:
    """Join values of the same roles, and ordinary arrays, whose noise is zero.

    Matrices stacked along an axis of one each become layers. Rows joined to rows need a rank for each part: the
    factor with rows is block-diagonal, the other has the parts side by side; and likewise for columns.
    """
    first = next(part for part in parts if is_low_rank(part))
    low = [fold_scale(part if is_low_rank(part) else _without_noise(part, first)) for part in parts]
    if any(part.roles != first.roles or part.a.shape[-1] != first.a.shape[-1] for part in low):
        return None
    role, alone = first.roles[dimension], all(part.base.shape[dimension] == 1 for part in low)
    stacked = role == "s" or (alone and first.roles.count(role) > 1)
    roles = f"{first.roles[:dimension]}s{first.roles[dimension + 1 :]}" if stacked else first.roles
    factors = {"r": [part.a for part in low], "c": [part.b for part in low]}

    def joined(side: str) -> jax.Array:
        place, own = axes_of(roles, side), axes_of(first.roles, side)
        if stacked:
            whole = [x if dimension in own else jnp.expand_dims(x, place.index(dimension)) for x in factors[side]]
            return lax.concatenate(whole, place.index(dimension))
        if side != role:
            return lax.concatenate(factors[side], len(place))
        count, rank = len(low), first.a.shape[-1]
        wide = [
            jnp.pad(x, [(0, 0)] * len(place) + [(k * rank, (count - 1 - k) * rank)])
            for k, x in enumerate(factors[side])
        ]
        return lax.concatenate(wide, place.index(dimension))

    base = lax.concatenate([part.base for part in low], dimension)
    whole = replace(first, base=base, a=joined("r"), b=joined("c"), scale=jnp.float32(1), roles=roles)
    return settle(replace(whole, may_materialise=all(part.may_materialise for part in low)))


def _without_noise(x: jax.Array, like: LowRankArray) -> LowRankArray:
    shapes = [(*(x.shape[axis] for axis in axes_of(like.roles, side)), like.a.shape[-1]) for side in "rc"]
    return replace(like, base=x, a=jnp.zeros(shapes[0], like.a.dtype), b=jnp.zeros(shapes[1], like.b.dtype))
