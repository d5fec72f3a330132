"""`LowRankArray` and what each JAX operation does to one; `lowrank` evaluates whole functions by these rules.

Every axis has a role: "s" stacked (an axis of A and of B), "r" row (of A only) or "c" column (of B only). A
transposition permutes the roles, a product is an einsum over them, and an array that has lost all its row or
all its column axes is an ordinary array again.

A rule returns the result (a list, where there are several), or None where it does not cover the case.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from eggroll.core.matmul import perturbed_matmul


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
      base: the shared array, any float dtype.
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
        """The array written out, in the dtype of `base`."""
        every = list(range(len(self.roles)))
        rank = len(every)
        delta = jnp.einsum(
            self.a,
            [*_axes(self.roles, "r"), rank],
            self.b,
            [*_axes(self.roles, "c"), rank],
            every,
            preferred_element_type=jnp.float32,
        )
        return (self.base + self.scale * delta).astype(self.base.dtype)


def is_low_rank(value: Any) -> bool:
    return isinstance(value, LowRankArray)


def _axes(roles: str, side: str) -> list[int]:
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


def _rebuild(
    w: LowRankArray,
    base: jax.Array,
    factor: Callable[[jax.Array, list[int]], jax.Array],
    roles: str | None = None,
) -> Any:
    """A new value whose factors are `factor(array, its base axes)`; dense once rows or columns are gone."""
    a, b = factor(w.a, _axes(w.roles, "r")), factor(w.b, _axes(w.roles, "c"))
    return settle(replace(w, base=base, a=a, b=b, roles=w.roles if roles is None else roles))


def settle(w: LowRankArray) -> Any:
    return w if "r" in w.roles and "c" in w.roles else w.dense()


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

    return _rebuild(w, lax.transpose(w.base, permutation), factor, "".join(w.roles[p] for p in permutation))


def _squeeze(w: LowRankArray, *, dimensions: Sequence[Any]) -> Any:
    def factor(x: jax.Array, axes: list[int]) -> jax.Array:
        return lax.squeeze(x, [axes.index(d) for d in dimensions if d in axes])

    roles = "".join(role for axis, role in enumerate(w.roles) if axis not in dimensions)
    return _rebuild(w, lax.squeeze(w.base, dimensions), factor, roles)


def _reshape_roles(roles: str, old: Sequence[int], new: Sequence[int]) -> str | None:
    """The roles after a reshape, or None where it would merge axes of different roles."""
    result, i, j = "", 0, 0
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
        group = {roles[k] for k in range(start[0], i) if old[k] != 1} or set(roles[start[0] : i][:1]) or {"r"}
        if len(group) > 1:
            return None
        result += group.pop() * (j - start[1])
    return result


def _reshape(w: LowRankArray, *, new_sizes: Sequence[Any], dimensions: Any, **_: Any) -> Any:
    roles = None if dimensions is not None else _reshape_roles(w.roles, w.base.shape, new_sizes)
    if roles is None:
        return None
    a = w.a.reshape(*(new_sizes[k] for k in _axes(roles, "r")), w.a.shape[-1])
    b = w.b.reshape(*(new_sizes[k] for k in _axes(roles, "c")), w.b.shape[-1])
    return settle(replace(w, base=w.base.reshape(new_sizes), a=a, b=b, roles=roles))


def _broadcast(w: LowRankArray, *dynamic: Any, shape: Sequence[int], broadcast_dimensions: Any, **_: Any) -> Any:
    places = list(broadcast_dimensions)
    roles = "".join(w.roles[places.index(k)] if k in places else "r" for k in range(len(shape)))

    def factor(x: jax.Array, axes: list[int]) -> jax.Array:
        kept = _axes(roles, "r" if x is w.a else "c")
        target = (*(shape[k] for k in kept), x.shape[-1])
        return lax.broadcast_in_dim(x, target, [*(kept.index(places[k]) for k in axes), len(kept)])

    return None if dynamic else _rebuild(w, lax.broadcast_in_dim(w.base, shape, places), factor, roles)


def _reduce_sum(w: LowRankArray, *, axes: Sequence[Any], **_: Any) -> Any:
    if any(w.roles[axis] == "s" for axis in axes):
        return None

    def factor(x: jax.Array, own: list[int]) -> jax.Array:
        return x.sum([own.index(axis) for axis in axes if axis in own])

    roles = "".join(role for axis, role in enumerate(w.roles) if axis not in axes)
    return _rebuild(w, w.base.sum(axes), factor, roles)


def _slice(w: LowRankArray, *, start_indices: Any, limit_indices: Any, strides: Any) -> Any:
    strides = strides or (1,) * len(w.roles)

    def factor(x: jax.Array, axes: list[int]) -> jax.Array:
        pick = [[values[k] for k in axes] for values in (start_indices, limit_indices, strides)]
        return lax.slice(x, [*pick[0], 0], [*pick[1], x.shape[-1]], [*pick[2], 1])

    return _rebuild(w, lax.slice(w.base, start_indices, limit_indices, strides), factor)


def _dynamic_slice(w: Any, *starts: Any, slice_sizes: Sequence[Any]) -> Any:
    """The primitive: its starts were wrapped by the caller, and those still out of bounds clamp."""
    cut = functools.partial(lax.dynamic_slice, allow_negative_indices=False)

    def factor(x: jax.Array, axes: list[int]) -> jax.Array:
        begin = [*(starts[k] for k in axes), jnp.zeros_like(starts[0])]
        return cut(x, begin, [*(slice_sizes[k] for k in axes), x.shape[-1]])

    return _rebuild(w, cut(w.base, starts, slice_sizes), factor) if is_low_rank(w) else None


def _split(w: LowRankArray, *, sizes: Sequence[Any], axis: int) -> Any:
    parts, start = [], 0
    for size in sizes:
        begin, end = [0] * w.base.ndim, list(w.base.shape)
        begin[axis], end[axis], start = start, start + size, start + size
        parts.append(_slice(w, start_indices=begin, limit_indices=end, strides=None))
    return parts


def _gather(
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

    (a, a_names), (b, b_names) = factor(w.a, _axes(w.roles, "r")), factor(w.b, _axes(w.roles, "c"))
    rest, offsets = iter(f"batch{k}" for k in range(batch)), iter(kept)
    names: list[Any] = [next(offsets) if k in numbers.offset_dims else next(rest) for k in range(base.ndim)]
    if all(w.roles[axis] == "s" for axis in indexed):
        a, b = (_order(x, own, [n for n in names if n in own]) for x, own in ((a, a_names), (b, b_names)))
        roles = "".join("s" if isinstance(name, str) else w.roles[name] for name in names)
        return settle(replace(w, base=base, a=a, b=b, roles=roles))
    number = {name: k for k, name in enumerate([*names, "rank"])}
    labels = [[number[name] for name in own] for own in (a_names, b_names, names)]
    delta = jnp.einsum(a, labels[0], b, labels[1], labels[2], preferred_element_type=jnp.float32)
    return (base + w.scale * delta).astype(base.dtype)


def _order(x: jax.Array, names: list[Any], wanted: list[Any]) -> jax.Array:
    return lax.transpose(x, [*(names.index(name) for name in wanted), x.ndim - 1])


def _dot_labels(ranks: tuple[int, int], dimension_numbers: Any) -> tuple[list[int], list[int], list[int]]:
    """Einsum labels of the left operand, the right operand and the result of a `dot_general`."""
    contract, batch = dimension_numbers
    left, right = [-1] * ranks[0], [-1] * ranks[1]
    pairs = [*zip(*batch, strict=True), *zip(*contract, strict=True)]
    for label, (i, j) in enumerate(pairs):
        left[i] = right[j] = label
    fresh = iter(range(len(pairs), sum(ranks)))
    left = [next(fresh) if label < 0 else label for label in left]
    right = [next(fresh) if label < 0 else label for label in right]
    free = [label for label in left + right if label >= len(pairs)]
    return left, right, [*range(len(batch[0])), *free]


def _dot_general(
    x: Any, y: Any, *, dimension_numbers: Any, precision: Any, preferred_element_type: Any, **_: Any
) -> Any:
    if is_low_rank(x) and is_low_rank(y):
        return None
    left, right, out = _dot_labels((jnp.ndim(_base(x)), jnp.ndim(_base(y))), dimension_numbers)
    w, w_labels, d, d_labels = (x, left, y, right) if is_low_rank(x) else (y, right, x, left)
    shared = [label for label in w_labels if label in d_labels]
    settings = {"precision": precision, "preferred_element_type": preferred_element_type}
    for side, other in (("r", "c"), ("c", "r")):
        wanted = [label for label, role in zip(w_labels, w.roles, strict=True) if role == side]
        if shared == wanted and not set(shared) & set(out) and w.roles in (side_first := _plain(w.roles, side, other)):
            return _plain_dot(w, w_labels, d, d_labels, out, side, w.roles == side_first[1], settings)
    base_out = lax.dot_general(_base(x), _base(y), dimension_numbers, **settings)
    contracted = {k for k, label in enumerate(w_labels) if label in d_labels and label not in out}
    sizes = {side: math.prod(w.base.shape[k] for k in contracted if w.roles[k] == side) for side in "rc"}
    if not any(w.roles[k] in "rc" for k in contracted):
        return None  # the result would be a dense matrix for each member
    near, far = ("r", "c") if sizes["r"] >= sizes["c"] else ("c", "r")
    return _einsum_dot(w, w_labels, d, d_labels, out, near, far, base_out, precision)


def _base(value: Any) -> Any:
    return value.base if is_low_rank(value) else value


def _plain(roles: str, side: str, other: str) -> tuple[str, str]:
    """The two orders of roles that a single (k, n) or (n, k) matrix can have, up to a reshape."""
    near, far = side * roles.count(side), other * roles.count(other)
    return near + far, far + near


def _plain_dot(
    w: LowRankArray,
    w_labels: list[int],
    d: jax.Array,
    d_labels: list[int],
    out: list[int],
    side: str,
    transposed: bool,
    settings: dict[str, Any],
) -> jax.Array:
    """A product that contracts all rows, or all columns, of a single matrix: the perturbed matmul itself."""
    near, far = (w.a, w.b) if side == "r" else (w.b, w.a)
    near, far = (x.reshape(-1, x.shape[-1]) for x in (near, far))
    shape = (far.shape[0], near.shape[0]) if transposed else (near.shape[0], far.shape[0])
    contracted = [label for label in w_labels if label in d_labels]
    free = [label for label in d_labels if label not in contracted]
    rows = lax.transpose(d, [d_labels.index(label) for label in free + contracted])
    sizes = {**dict(zip(w_labels, w.base.shape, strict=True)), **dict(zip(d_labels, d.shape, strict=True))}
    rows = rows.reshape(math.prod(sizes[label] for label in free), near.shape[0])
    product = perturbed_matmul(rows, w.base.reshape(shape), near, far, w.scale, transposed=transposed, **settings)
    order = free + [label for label in w_labels if label not in contracted]
    return lax.transpose(product.reshape([sizes[k] for k in order]), [order.index(label) for label in out])


def _einsum_dot(
    w: LowRankArray,
    w_labels: list[int],
    d: jax.Array,
    d_labels: list[int],
    out: list[int],
    near: str,
    far: str,
    base_out: jax.Array,
    precision: Any,
) -> jax.Array:
    """Any other product: contract with one factor, then with the other; never with their product."""
    rank = max(w_labels + d_labels) + 1
    labels = {side: [w_labels[k] for k in _axes(w.roles, side)] for side in "rc"}
    factors = {"r": w.a, "c": w.b}
    middle = [k for k in dict.fromkeys([*d_labels, *labels[near]]) if k in labels[far] or k in out] + [rank]
    einsum = functools.partial(jnp.einsum, precision=precision, preferred_element_type=jnp.float32)
    low = einsum(d, d_labels, factors[near], [*labels[near], rank], middle)
    delta = einsum((low * w.scale).astype(factors[far].dtype), middle, factors[far], [*labels[far], rank], out)
    return (base_out + delta).astype(base_out.dtype)


def _convolve(
    x: Any, w: Any, *, dimension_numbers: Any, feature_group_count: int, batch_group_count: int, **rest: Any
) -> Any:
    """Convolve with one factor as a kernel of `rank` outputs, then multiply by the other factor."""
    _, kernel_spec, out_spec = (
        dimension_numbers.lhs_spec,
        dimension_numbers.rhs_spec,
        dimension_numbers.out_spec,
    )
    if is_low_rank(x) or feature_group_count != 1 or batch_group_count != 1:
        return None
    feature, role = kernel_spec[0], w.roles[kernel_spec[0]]
    if role == "s" or w.roles.count(role) != 1 or "s" in w.roles:
        return None
    near, far = (w.a, w.b) if role == "c" else (w.b, w.a)
    rest.pop("out_sharding", None)
    convolve: Any = functools.partial(lax.conv_general_dilated, dimension_numbers=dimension_numbers, **rest)
    base_out, low = convolve(x, w.base), convolve(x, jnp.moveaxis(near, -1, feature))
    out = list(range(base_out.ndim))
    middle = [len(out) if axis == out_spec[1] else axis for axis in out]
    scaled = (low.astype(jnp.float32) * w.scale).astype(far.dtype)
    settings = {"precision": rest.get("precision"), "preferred_element_type": jnp.float32}
    delta = jnp.einsum(scaled, middle, far, [out_spec[1], len(out)], out, **settings)
    return (base_out + delta).astype(base_out.dtype)


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
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "split": _split,
    "gather": _gather,
    "dot_general": _dot_general,
    "conv_general_dilated": _convolve,
}
