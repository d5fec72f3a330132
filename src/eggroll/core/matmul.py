"""The perturbed matmul: one product shared by the whole population plus a sliver for each member.

Source: arXiv 2511.16652, section 4.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

from eggroll.core import dispatch, kernels
from eggroll.core.value import as_float

UNROLLED_RANK = 8


@dataclass(frozen=True)
class _Layout:
    """`base` is (k, n), or (n, k) where transposed; `preferred` is the dtype of the shared product alone."""

    transposed: bool
    precision: Any
    preferred: Any

    def shared(self, x: jax.Array, base: jax.Array) -> jax.Array:
        dims = (((x.ndim - 1,), (1 if self.transposed else 0,)), ((), ()))
        return lax.dot_general(x, base, dims, precision=self.precision, preferred_element_type=self.preferred)

    def einsum(self, labels: str, left: jax.Array, right: jax.Array) -> jax.Array:
        return jnp.einsum(labels, left, right, precision=self.precision, preferred_element_type=jnp.float32)

    def low(self, x: jax.Array, near: jax.Array, scale: jax.Array) -> jax.Array:
        """`scale · x · near`, (…, rows, rank) float32."""
        return self.einsum("...ik,...kr->...ir", x.astype(as_float(x.dtype)), near) * scale[..., None]

    def sliver(self, x: jax.Array, near: jax.Array, far: jax.Array, scale: jax.Array) -> jax.Array:
        """`scale · (x · near) · farᵀ`, with any common leading axes, accumulated in float32.

        For ranks of 2 to `UNROLLED_RANK` the last product is written as a sum of outer products, which XLA joins with
        the addition to the shared product; a batched product of so few terms takes twice as long (rank 1 it turns
        into the same by itself).
        """
        low, rank = self.low(x, near, scale), far.shape[-1]
        if not 1 < rank <= UNROLLED_RANK:
            return self.einsum("...ir,...nr->...in", low.astype(far.dtype), far)
        rows, columns = low.astype(far.dtype).astype(jnp.float32), far.astype(jnp.float32)
        terms = (rows[..., :, None, k] * columns[..., None, :, k] for k in range(rank))
        return functools.reduce(operator.add, terms)


def _plain_sum(
    layout: _Layout, x: jax.Array, base: jax.Array, near: jax.Array, far: jax.Array, scale: jax.Array
) -> jax.Array:
    """The sum for one member; or for many, whose `x` may be common to them: its product is then computed once."""
    shared, sliver = layout.shared(x, base), layout.sliver(x, near, far, scale)
    return (jnp.broadcast_to(shared, sliver.shape) + sliver).astype(as_float(shared.dtype))


def _members_product(
    layout: _Layout, x: jax.Array, base: jax.Array, near: jax.Array, far: jax.Array, scale: jax.Array
) -> jax.Array:
    """One product for many members, by XLA or by a kernel as `dispatch` chooses.

    Args:
      x: (members, rows, k), or (rows, k) where all members share it: its product is then computed once.
      base: (k, n), or (n, k) by the layout; shared by the members.
      near: (members, k, rank).
      far: (members, n, rank).
      scale: (members, rows).
    Returns:
      (members, rows, n).
    """

    def kernel(
        x: jax.Array, base: jax.Array, near: jax.Array, far: jax.Array, scale: jax.Array, interpret: bool
    ) -> jax.Array:
        low = layout.low(x, near, scale)
        rows, flat = x.reshape(-1, x.shape[-1]), low.reshape(-1, low.shape[-1])
        joined = kernels.joined_product(rows, base, flat, far, transposed=layout.transposed, interpret=interpret)
        return joined.reshape(*x.shape[:-1], -1)

    plain = functools.partial(_plain_sum, layout)
    return dispatch.choose(kernel if _suits(layout, x, base, near, far) else None, plain, x, base, near, far, scale)


def _suits(layout: _Layout, x: jax.Array, base: jax.Array, near: jax.Array, far: jax.Array) -> bool:
    """Whether the kernel covers the case: each member with rows of its own, one float dtype, whole tiles."""
    same = dispatch.is_plain_float(x, base, near, far) and layout.preferred in (None, x.dtype)
    if x.ndim != 3 or not same:
        return False
    return kernels.fits(kernels.Tiles(), x.shape[0] * x.shape[1], x.shape[2], far.shape[1], x.shape[1])


@functools.cache
def _matmul(layout: _Layout) -> Callable[..., jax.Array]:
    """The perturbed matmul with its own rule: x (rows, k), near (k, rank), far (n, rank), scale (rows,)."""
    product = custom_vmap(functools.partial(_plain_sum, layout))

    @product.def_vmap
    def rule(
        size: int, batched: Sequence[bool], x: Any, base: Any, near: Any, far: Any, scale: Any
    ) -> tuple[jax.Array, bool]:
        x_batched, base_batched, near_batched, far_batched, scale_batched = batched
        if base_batched:  # nothing is shared: several models at once
            axes = [0 if one else None for one in batched]
            return jax.vmap(functools.partial(_plain_sum, layout), in_axes=axes)(x, base, near, far, scale), True
        scale = scale if scale_batched else jnp.broadcast_to(scale, (size, *scale.shape))
        if near_batched or far_batched:  # members with factors of their own
            near = near if near_batched else jnp.broadcast_to(near, (size, *near.shape))
            far = far if far_batched else jnp.broadcast_to(far, (size, *far.shape))
            return _members_product(layout, x, base, near, far, scale), True
        if x_batched:  # the two signs of a pair: more rows of the same product
            merged = product(x.reshape(-1, x.shape[-1]), base, near, far, scale.reshape(-1))
            return merged.reshape(size, x.shape[1], -1), True
        shared, unit = layout.shared(x, base), layout.sliver(x, near, far, jnp.ones(x.shape[0], jnp.float32))
        return (shared[None] + scale[:, :, None] * unit[None]).astype(as_float(shared.dtype)), True

    return product


def perturbed_matmul(
    x: jax.Array,
    base: jax.Array,
    near: jax.Array,
    far: jax.Array,
    scale: jax.Array,
    *,
    transposed: bool = False,
    precision: Any = None,
    preferred_element_type: Any = None,
) -> jax.Array:
    """`x · (base + scale · near · farᵀ)` without the sum; under `vmap` the weights are shared by the members.

    Args:
      x: (rows, k).
      base: (k, n), or (n, k) where `transposed`. Of integers, with an integer `x`, its product is one of integers,
        and the result float32.
      near: (k, rank), the factor on the contracted side.
      far: (n, rank).
      scale: float32 scalar.
      precision: of every product, as in `jax.lax.dot_general`.
      preferred_element_type: of the shared product, and so of the result.
    Returns:
      (rows, n).
    Source: arXiv 2511.16652, section 4.
    """
    layout = _Layout(transposed, precision, preferred_element_type)
    near, far = (side.astype(as_float(side.dtype)) for side in (near, far))
    return _matmul(layout)(x, base, near, far, jnp.broadcast_to(scale, x.shape[:1]))
