"""Pallas kernels (Triton) for what XLA may not fuse on a GPU; on an H200 its own code is faster (benchmarks/README.md).

The shared product with the members' sliver joined before the result is written, and the update with its noise drawn in
registers.

jax 0.11 deprecates Pallas's Triton backend in favour of Mosaic, which was not tried; it still works.

They are tested in interpret mode against the plain expressions, and that they lower for CUDA, and were compared with
dense products on an H200; `dispatch` says when they run. Shapes that do not divide into tiles go by the plain
expressions.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int

from eggroll.core import noise

REDRAWN_LAWS = ("signs", "popcount")
"""Laws that are arithmetic alone, and so can be drawn inside a kernel."""


class Tiles(NamedTuple):
    """Sizes of a tile of the result, and of a step along the contracted axis; powers of two, 16 or more on a GPU."""

    rows: int = 128
    columns: int = 128
    inner: int = 64


class Drawn(NamedTuple):
    """A factor that a kernel draws by itself: the key words of each member or pair, and the law of its elements."""

    key: tuple[Int[Array, " streams"], Int[Array, " streams"]]
    law: str


def fits(tiles: Tiles, rows: int, inner: int, columns: int, rows_per_member: int) -> bool:
    """Whether a product divides into tiles, each of whole members or within one."""
    own = rows_per_member
    whole = rows % tiles.rows == 0 and columns % tiles.columns == 0 and inner % tiles.inner == 0
    return whole and (own % tiles.rows == 0 or tiles.rows % own == 0)


def joined_product(
    x: Float[Array, "rows k"],
    base: Float[Array, "k_or_n n_or_k"],
    low: Float[Array, "rows rank"],
    far: Float[Array, "members n rank"] | Drawn,
    *,
    transposed: bool = False,
    tiles: Tiles = Tiles(),  # noqa: B008 (immutable)
    interpret: bool = False,
) -> Float[Array, "rows n"]:
    """`x · base + Σ_k low[…, k] · far[member of the row, :, k]`, the sum joined before the result is written.

    Args:
      x: any float dtype; consecutive rows, equally many for each member.
      base: (k, n), or (n, k) where `transposed`; shared by all rows.
      low: float32; `scale · x · near`.
      far: the factors, or what to draw them from.
      tiles: must fit (see `fits`).
      interpret: run on any device, slowly, to test.
    Returns:
      In the dtype of `x`, summed in float32.
    """
    columns, rank = base.shape[0 if transposed else 1], low.shape[1]
    members = far.key[0].shape[0] if isinstance(far, Drawn) else far.shape[0]
    own = x.shape[0] // members
    in_tile = max(1, tiles.rows // own)
    member_of = (lambda i: i) if tiles.rows >= own else (lambda i: i * tiles.rows // own)
    base_spec = (
        pl.BlockSpec((tiles.columns, x.shape[1]), lambda i, j: (j, 0))
        if transposed
        else pl.BlockSpec((x.shape[1], tiles.columns), lambda i, j: (0, j))
    )
    if isinstance(far, Drawn):
        sides: list[Any] = list(far.key)
        side_specs = [pl.BlockSpec((in_tile,), lambda i, j: (member_of(i),))] * 2
    else:
        sides = [jnp.moveaxis(far, -1, 0)]
        side_specs = [pl.BlockSpec((rank, in_tile, tiles.columns), lambda i, j: (0, member_of(i), j))]
    law = far.law if isinstance(far, Drawn) else None
    kernel = functools.partial(_joined, tiles=tiles, own=own, rank=rank, transposed=transposed, law=law)
    return pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((x.shape[0], columns), x.dtype),
        grid=(x.shape[0] // tiles.rows, columns // tiles.columns),
        in_specs=[
            pl.BlockSpec((tiles.rows, x.shape[1]), lambda i, j: (i, 0)),
            base_spec,
            pl.BlockSpec((rank, tiles.rows), lambda i, j: (0, i)),
            *side_specs,
        ],
        out_specs=pl.BlockSpec((tiles.rows, tiles.columns), lambda i, j: (i, j)),
        **launch_settings(interpret),
    )(x, base, low.T, *sides)


def _joined(
    x: Any, base: Any, low: Any, *refs: Any, tiles: Tiles, own: int, rank: int, transposed: bool, law: str | None
) -> None:
    *sides, out = refs

    def step(i: Array, total: Array) -> Array:
        part = pl.ds(i * tiles.inner, tiles.inner)
        weight = base[:, part].T if transposed else base[part, :]
        return total + _dot(x[:, part], weight)

    start = jnp.zeros((tiles.rows, tiles.columns), jnp.float32)
    total = lax.fori_loop(0, x.shape[1] // tiles.inner, step, start)
    for k in range(rank):
        if law is None:
            far = sides[0][k].astype(jnp.float32)
        else:
            column = pl.program_id(1) * tiles.columns + lax.broadcasted_iota(jnp.int32, (1, tiles.columns), 1)
            far = _draw((sides[0][...], sides[1][...]), column * rank + k, law)
            far = far.astype(out.dtype).astype(jnp.float32)
        if tiles.rows > own > 1:
            spread = jnp.broadcast_to(far[:, None, :], (far.shape[0], own, far.shape[1]))
            far = spread.reshape(tiles.rows, tiles.columns)
        total = total + low[k, :][:, None] * far
    out[...] = total.astype(out.dtype)


def fused_update(
    a: Drawn,
    b: Drawn,
    weights: Float[Array, " pairs"],
    *,
    shape: tuple[int, int],
    rank: int,
    tiles: Tiles = Tiles(),  # noqa: B008 (immutable)
    interpret: bool = False,
) -> Float[Array, "m n"]:
    """`1/√r · Σ_p w_p · A_p · B_pᵀ`, float32, with A and B drawn tile by tile: they are never in memory.

    Args:
      a, b: keys of each pair.
      weights: (pairs,) float32, from `estimate.pair_weights`; pairs a multiple of `tiles.inner`.
      shape: (m, n) of the leaf, multiples of the tile's.
      rank: of the perturbation.
      tiles: `inner` counts pairs.
      interpret: run on any device, slowly, to test.
    Source: arXiv 2511.16652, Algorithm 1.
    """
    kernel = functools.partial(_update, tiles=tiles, rank=rank, laws=(a.law, b.law))
    return pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct(shape, jnp.float32),
        grid=(shape[0] // tiles.rows, shape[1] // tiles.columns),
        in_specs=[pl.BlockSpec(weights.shape, lambda i, j: (0,))] * 5,
        out_specs=pl.BlockSpec((tiles.rows, tiles.columns), lambda i, j: (i, j)),
        **launch_settings(interpret),
    )(weights / jnp.sqrt(jnp.float32(rank)), *a.key, *b.key)


def _update(
    weights: Any, a0: Any, a1: Any, b0: Any, b1: Any, out: Any, *, tiles: Tiles, rank: int, laws: tuple[str, str]
) -> None:
    row = pl.program_id(0) * tiles.rows + lax.broadcasted_iota(jnp.int32, (1, tiles.rows), 1)
    column = pl.program_id(1) * tiles.columns + lax.broadcasted_iota(jnp.int32, (1, tiles.columns), 1)

    def step(i: Array, total: Array) -> Array:
        part = pl.ds(i * tiles.inner, tiles.inner)
        weight, keys = weights[part][:, None], [ref[part] for ref in (a0, a1, b0, b1)]
        for k in range(rank):
            left = _draw((keys[0], keys[1]), row * rank + k, laws[0]) * weight
            total = total + _dot(left.T, _draw((keys[2], keys[3]), column * rank + k, laws[1]))
        return total

    start = jnp.zeros((tiles.rows, tiles.columns), jnp.float32)
    out[...] = lax.fori_loop(0, weights.shape[0] // tiles.inner, step, start)


def _draw(key: tuple[Array, Array], element: Int[Array, "1 elements"], law: str) -> Float[Array, "streams elements"]:
    """Unit-variance float32 values, the same as `core.draws` gives."""
    bits = noise.element_bits((key[0][:, None], key[1][:, None]), element)
    return noise.to_float(jnp, noise.law(law), bits)


def _dot(left: Array, right: Array) -> Array:
    exact = lax.Precision.HIGHEST if left.dtype == jnp.float32 else None
    return jnp.dot(left, right, precision=exact, preferred_element_type=jnp.float32)


def launch_settings(interpret: bool, warps: int = 8, stages: int = 3) -> dict[str, Any]:
    """How `pallas_call` runs a kernel: interpreted on any device, or compiled by Triton with these settings."""
    if interpret:
        return {"interpret": True}
    from jax.experimental.pallas import triton

    return {"compiler_params": triton.CompilerParams(num_warps=warps, num_stages=stages)}
