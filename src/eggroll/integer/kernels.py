"""Pallas kernel (Triton) of the integer model: a product, its perturbation, shift and saturation in one pass.

XLA writes the int32 product to memory and reads it back for what follows: eight bytes an element beside the one that
is wanted. `core.kernels` says what holds for Pallas and Triton, `core.dispatch` when a kernel runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Int8

from eggroll.core.kernels import launch_settings

LIMIT = 127
SUMMED_ONCE = 4
"""Tiles of columns from which on the sums x·B are made beforehand, and not for each of them anew."""


class Tiles(NamedTuple):
    """Sizes of a tile of the result and of a step along the inputs, and how Triton runs it; powers of two.

    On a GPU `rows` and `columns` are 16 or more and `inner` 32 or more.
    """

    rows: int
    columns: int
    inner: int
    warps: int = 4
    stages: int = 2


def tiles_for(inputs: int) -> Tiles:
    """The fastest of those that were tried on an H200 (benchmarks/README.md): few inputs in a single step."""
    return Tiles(64, 128, inputs) if inputs <= 256 else Tiles(64, 256, 128, stages=3)


class Scaling(NamedTuple):
    """What is done to the products: `sat((x·W + (c·±A ≫ perturbation)) ≫ output)`, `c = x·B` within ±limit if any."""

    perturbation: int
    output: int
    limit: int | None


def fits(tiles: Tiles, pairs: int, inputs: int, outputs: int) -> bool:
    """Whether a product divides into tiles."""
    return pairs % tiles.rows == 0 and outputs % tiles.columns == 0 and inputs % tiles.inner == 0


def perturbed_product(
    x: Int8[Array, "*time 2 pairs inputs"],
    weight: Int8[Array, "outputs inputs"],
    a: Int8[Array, "pairs outputs"],
    b: Int8[Array, "pairs inputs"],
    scaling: Scaling,
    *,
    tiles: Tiles,
    interpret: bool = False,
) -> Int8[Array, "*time 2 pairs outputs"]:
    """`sat((x·Wᵀ + ((x·B)·±A ≫ …)) ≫ …)` of both members of each pair, perturbed at rank 1.

    Args:
      x: of +A, then of −A.
      a, b: one row for each pair.
      tiles: must fit (see `fits`).
      interpret: run on any device, slowly, to test.
    Source: spec of the integer model.
    """
    (outputs, inputs), pairs = weight.shape, x.shape[-2]
    columns, pair_tiles = outputs // tiles.columns, pairs // tiles.rows
    beforehand = columns >= SUMMED_ONCE

    def at(index: Callable[[Array, Array, Array], tuple[Any, ...]]) -> Callable[[Array], tuple[Any, ...]]:
        """A tile's index from (row tile, pair tile, column); those that share inputs or factors come close together."""

        def of_program(n: Array) -> tuple[Any, ...]:
            rest, column = lax.div(n, columns), lax.rem(n, columns)
            rest, sign = lax.div(rest, 2), lax.rem(rest, 2)
            time, pair = lax.div(rest, pair_tiles), lax.rem(rest, pair_tiles)
            return index((time * 2 + sign) * pair_tiles + pair, pair, column)

        return of_program

    if beforehand:
        every = b.astype(jnp.int32).reshape((1,) * (x.ndim - 2) + b.shape)
        side = jnp.sum(x.astype(jnp.int32) * every, axis=-1).reshape(-1)
        side_spec = pl.BlockSpec((tiles.rows,), at(lambda row, pair, column: (row,)))
    else:
        side, side_spec = b, pl.BlockSpec((tiles.rows, inputs), at(lambda row, pair, column: (pair, 0)))
    result = pl.pallas_call(
        lambda *refs: _tile(*refs, tiles=tiles, columns=columns, scaling=scaling),
        out_shape=jax.ShapeDtypeStruct((x.size // inputs, outputs), jnp.int8),
        grid=(x.size // inputs // tiles.rows * columns,),
        in_specs=[
            pl.BlockSpec((tiles.rows, inputs), at(lambda row, pair, column: (row, 0))),
            pl.BlockSpec((tiles.columns, inputs), at(lambda row, pair, column: (column, 0))),
            pl.BlockSpec((tiles.rows, tiles.columns), at(lambda row, pair, column: (pair, column))),
            side_spec,
        ],
        out_specs=pl.BlockSpec((tiles.rows, tiles.columns), at(lambda row, pair, column: (row, column))),
        **launch_settings(interpret, tiles.warps, tiles.stages),
    )(x.reshape(-1, inputs), weight, a, side)
    return result.reshape(*x.shape[:-1], outputs)


def _tile(x: Any, weight: Any, a: Any, side: Any, out: Any, *, tiles: Tiles, columns: int, scaling: Scaling) -> None:
    """`side` is B, or x·B."""
    summed = len(side.shape) == 1

    def step(i: Array, sums: tuple[Array, ...]) -> tuple[Array, ...]:
        part = pl.ds(i * tiles.inner, tiles.inner)
        left = x[:, part]
        product = sums[0] + jnp.dot(left, weight[:, part].T, preferred_element_type=jnp.int32)
        return (product, *(own + left.astype(jnp.int32) * side[:, part].astype(jnp.int32) for own in sums[1:]))

    shapes = [(tiles.rows, tiles.columns)] + [(tiles.rows, tiles.inner)] * (not summed)
    start = tuple(jnp.zeros(shape, jnp.int32) for shape in shapes)
    product, *terms = lax.fori_loop(0, x.shape[1] // tiles.inner, step, start)
    c = side[...] if summed else jnp.sum(terms[0], axis=1, dtype=jnp.int32)
    if scaling.limit is not None:
        c = jnp.clip(c, -scaling.limit, scaling.limit)
    sign = 1 - 2 * lax.rem(lax.div(pl.program_id(0), columns), 2)
    perturbation = ((c * sign)[:, None] * a[...].astype(jnp.int32)) >> scaling.perturbation
    out[...] = jnp.clip((product + perturbation) >> scaling.output, -LIMIT, LIMIT).astype(jnp.int8)
