"""Perturbations of the integer model: int8 table normals drawn from counters, for any range of pairs.

`element` is row-major over (layer, row, rank) of the whole leaf, so that a chunk, a shard and the update draw the same
numbers in whatever order they like.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Int8, Int32

from eggroll.core import noise
from eggroll.core.draws import stream_keys
from eggroll.integer.arithmetic import Factors, expand
from eggroll.integer.model import Config, is_matrix, is_stacked, leaf_shapes, nested

Seed = Int32[Array, "2"]


@dataclass(frozen=True)
class Streams:
    """Key words of every (leaf, factor) stream of some pairs, each (streams, pairs) int32.

    All of them come from one call, which compiles far faster than one call a stream.
    """

    index: dict[tuple[str, int], int]
    words: tuple[Array, Array]

    def draw(self, path: str, factor: int, element: Int32[Array, "..."], pair_axis: int) -> Int8[Array, "..."]:
        """Table normals of one stream; `element` has size 1 along `pair_axis`, where the pairs go."""
        row = self.index[path, factor]
        shape = tuple(-1 if axis == pair_axis else 1 for axis in range(element.ndim))
        first, second = (word[row].reshape(shape) for word in self.words)
        return noise.table_normal(jnp, noise.element_bits((first, second), element))


def streams(
    config: Config,
    *,
    seed: Seed,
    generation: Array,
    pairs: Int32[Array, "pairs"],
    paths: Sequence[str] | None = None,
) -> Streams:
    """The keys of all leaves, or of those at `paths`, and both factors for some pairs."""
    names = [(path, factor) for path in paths or leaf_shapes(config) for factor in (noise.FACTOR_A, noise.FACTOR_B)]
    identities = [(noise.leaf_id(path), factor) for path, factor in names]
    words = stream_keys(identities, seed=seed, generation=generation, pairs=pairs)
    return Streams({name: row for row, name in enumerate(names)}, words)


def chunk_factors(config: Config, *, seed: Seed, generation: Array, pairs: Int32[Array, "pairs"]) -> dict[str, Any]:
    """The perturbations of some pairs, in the tree that `model.forward` takes.

    Returns:
      Matrices: `Factors` of int8 (layers, pairs, rank, rows), without the layers axis outside the blocks. Vectors:
      int16 products a·b (layers, pairs, width), likewise.
    """
    keys = streams(config, seed=seed, generation=generation, pairs=pairs)
    leaves: dict[str, Any] = {}
    for path, shape in leaf_shapes(config).items():
        layers = shape[:1] if is_stacked(path) else ()
        if is_matrix(path):
            sides = (noise.FACTOR_A, shape[-2]), (noise.FACTOR_B, shape[-1])
            leaves[path] = Factors(*(_matrix_factor(keys, path, side, layers, n, config.rank) for side, n in sides))
        else:
            products = vector_products(keys, path, _layer_offsets(layers, shape[-1]), shape[-1])
            leaves[path] = products.astype(jnp.int16)
    return nested(leaves)


def _matrix_factor(
    keys: Streams, path: str, factor: int, layers: tuple[int, ...], rows: int, rank: int
) -> Int8[Array, "*layers pairs rank rows"]:
    row = jnp.arange(rows, dtype=jnp.int32)[None] * rank + jnp.arange(rank, dtype=jnp.int32)[:, None]
    offset = _layer_offsets(layers, rows * rank)
    element = offset[..., None, None, None] + expand(row, len(layers) + 3)
    return keys.draw(path, factor, element, pair_axis=len(layers))


def vector_products(
    keys: Streams, path: str, offset: Int32[Array, "*layers"], width: int
) -> Int32[Array, "*layers pairs width"]:
    """`a·b` of two independent draws for each element of a vector leaf, from element `offset` on."""
    row = expand(jnp.arange(width, dtype=jnp.int32), offset.ndim + 2)
    element = offset[..., None, None] + row
    a, b = (keys.draw(path, factor, element, offset.ndim) for factor in (noise.FACTOR_A, noise.FACTOR_B))
    return a.astype(jnp.int32) * b.astype(jnp.int32)


def _layer_offsets(layers: tuple[int, ...], elements: int) -> Int32[Array, "*layers"]:
    return jnp.arange(layers[0], dtype=jnp.int32) * elements if layers else jnp.zeros((), jnp.int32)
