"""What products and convolutions do to a `LowRankArray`: rules, as `rules` says.

A product is an einsum over the roles of the axes: first with one factor, then with the other.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from eggroll.core.matmul import perturbed_matmul
from eggroll.core.value import LowRankArray, as_float, axes_of, is_low_rank


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


def dot_general(
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
    labels = {side: [w_labels[k] for k in axes_of(w.roles, side)] for side in "rc"}
    factors = {side: factor.astype(as_float(factor.dtype)) for side, factor in (("r", w.a), ("c", w.b))}
    d = d.astype(as_float(d.dtype))
    middle = [k for k in dict.fromkeys([*d_labels, *labels[near]]) if k in labels[far] or k in out] + [rank]
    einsum = functools.partial(jnp.einsum, precision=precision, preferred_element_type=jnp.float32)
    low = einsum(d, d_labels, factors[near], [*labels[near], rank], middle)
    delta = einsum((low * w.scale).astype(factors[far].dtype), middle, factors[far], [*labels[far], rank], out)
    return (base_out + delta).astype(as_float(base_out.dtype))


def convolve(
    x: Any, w: Any, *, dimension_numbers: Any, feature_group_count: int, batch_group_count: int, **rest: Any
) -> Any:
    """Convolve with the low-rank kernel of which one side is the output features alone, or the input features."""
    if is_low_rank(x) or batch_group_count != 1 or "s" in w.roles or not jnp.issubdtype(w.base.dtype, jnp.floating):
        return None
    rest.pop("out_sharding", None)
    groups = feature_group_count
    apply: Any = functools.partial(
        lax.conv_general_dilated, dimension_numbers=dimension_numbers, feature_group_count=groups, **rest
    )
    alone = [w.roles.count(w.roles[axis]) == 1 for axis in dimension_numbers.rhs_spec[:2]]
    if not any(alone):
        return None
    part = _output_features if alone[0] else _input_features
    base_out = apply(x, w.base)
    delta = part(x, w, apply, dimension_numbers, groups, rest.get("precision"))
    return (base_out + delta).astype(base_out.dtype)


def _output_features(
    x: jax.Array, w: LowRankArray, apply: Callable[..., jax.Array], numbers: Any, groups: int, precision: Any
) -> jax.Array:
    """Convolve with one factor as a kernel of `rank` outputs a group, then multiply by the other factor."""
    axis, feature = numbers.rhs_spec[0], numbers.out_spec[1]
    near, far = (w.a, w.b) if w.roles[axis] == "c" else (w.b, w.a)
    kernel = jnp.moveaxis(near, -1, axis).astype(w.base.dtype)
    low = apply(x, lax.concatenate([kernel] * groups, axis) if groups > 1 else kernel)
    scaled = (low.astype(jnp.float32) * w.scale).astype(far.dtype)
    return _mix_features(scaled, feature, far, groups, precision, "kn")


def _input_features(
    x: jax.Array, w: LowRankArray, apply: Callable[..., jax.Array], numbers: Any, groups: int, precision: Any
) -> jax.Array:
    """Mix the input features of each group to `rank` by one factor, then convolve with the other as kernel."""
    axis, feature = numbers.rhs_spec[1], numbers.lhs_spec[1]
    near, far = (w.a, w.b) if w.roles[axis] == "r" else (w.b, w.a)
    shared = jnp.broadcast_to(near, (groups, *near.shape)).reshape(-1, near.shape[-1])
    low = _mix_features(x, feature, shared, groups, precision, "nk") * w.scale
    return apply(low.astype(x.dtype), jnp.moveaxis(far, -1, axis).astype(x.dtype)).astype(jnp.float32)


def _mix_features(
    x: jax.Array, feature: int, factor: jax.Array, groups: int, precision: Any, direction: str
) -> jax.Array:
    """Multiply the features of each group by its own rows of a factor (groups · n, rank): "nk" or, back, "kn"."""
    grouped = factor.reshape(groups, -1, factor.shape[-1])
    axes = [*range(x.ndim + 1)]
    shape = (*x.shape[:feature], groups, x.shape[feature] // groups, *x.shape[feature + 1 :])
    out = [x.ndim + 1 if axis == feature + 1 else axis for axis in axes]
    inner = [feature, *(feature + 1 if name == direction[0] else x.ndim + 1 for name in "nk")]
    settings: dict[str, Any] = {"precision": precision, "preferred_element_type": jnp.float32}
    mixed = jnp.einsum(x.reshape(shape), axes, grouped, inner, out, **settings)
    return mixed.reshape(*x.shape[:feature], -1, *x.shape[feature + 1 :])
