"""Weights as int8 with a float scale for each output channel, and back; for RWKV-7 and any other tree.

A quantised weight is a dict {"int8": (…, out, in), "scale": (…, out)} in place of the leaf (…, out, in); where its
inputs are rounded too, with {"inputs": (…)} int8, their largest magnitude.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_dtypes
import numpy as np

from eggroll.core.distribution import matches

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16), "int8": np.dtype(np.int8)}
LINEAR = (
    "emb/weight",
    "blocks/att/receptance/weight",
    "blocks/att/key/weight",
    "blocks/att/value/weight",
    "blocks/att/output/weight",
    "blocks/ffn/key/weight",
    "blocks/ffn/value/weight",
    "head/weight",
)
"""RWKV-7's matrices of linear layers, embedding and head; its vectors and low-rank parts are small."""
LEVELS = 127
_PARTS = ("int8", "scale")


def quantised(params: Any, levels: int = LEVELS, patterns: Sequence[str] = LINEAR, *, inputs: int = 0) -> Any:
    """Round some weights to the nearest level, each output channel (a row) with a scale of its own.

    Args:
      params: any tree of nested containers; what is quantised in it already stays.
      levels: the largest magnitude, absmax of the row: 127 for int8, 7 for what fits into four bits.
      patterns: of the leaves' paths, as `fnmatch` has them; leaves of other paths stay.
      inputs: the largest magnitude to which the model is to round what it multiplies a weight by, token by token; 0: it
        is not to. Of an embedding it says nothing.
    Raises:
      ValueError: a leaf of these has less than two axes; or there is none of them.
    """
    found: list[str] = []

    def one(path: Any, leaf: Any) -> Any:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if not matches(patterns, name):
            return leaf
        found.append(name)
        return leaf if is_int8(leaf) else _rounded(name, leaf, levels) | _inputs(name, leaf, inputs)

    result = jax.tree_util.tree_map_with_path(one, params, is_leaf=is_int8)
    if not found:
        raise ValueError(f"expected leaves of {', '.join(patterns)} to quantise, got none; give other patterns")
    return result


def _rounded(name: str, leaf: Any, levels: int) -> dict[str, np.ndarray]:
    if np.ndim(leaf) < 2:
        raise ValueError(
            f"expected a matrix to quantise, got {name} of shape {np.shape(leaf)}; leave it out of the patterns"
        )
    wide = np.asarray(leaf, np.float32)
    scale = np.maximum(np.abs(wide).max(-1), np.float32(1e-30)) / np.float32(levels)
    return {"int8": np.rint(wide / scale[..., None]).astype(np.int8), "scale": scale}


def _inputs(name: str, leaf: Any, inputs: int) -> dict[str, np.ndarray]:
    if not inputs or name.startswith("emb/"):
        return {}
    return {"inputs": np.full(np.shape(leaf)[:-2], inputs, np.int8)}


def dequantised(held: Mapping[str, Any]) -> np.ndarray:
    """float32 of an int8 weight."""
    wide: np.ndarray = np.asarray(held["int8"], np.float32) * np.asarray(held["scale"], np.float32)[..., None]
    return wide


def is_int8(node: Any) -> bool:
    """Whether it is an int8 weight with its scales."""
    return isinstance(node, dict) and set(node) - {"inputs"} == set(_PARTS)


def has_int8(params: Any) -> bool:
    """Whether any weight of a tree is int8."""
    return any(is_int8(node) for node in jax.tree.leaves(params, is_leaf=is_int8))


def converted(params: Any, dtype: str) -> Any:
    """The same model in "float32", "bfloat16", or "int8": matrices by `quantised`, the rest in float32."""
    if dtype == "int8":
        kept = lambda leaf: leaf if is_int8(leaf) else np.asarray(leaf, np.float32)
        return quantised(jax.tree.map(kept, params, is_leaf=is_int8))
    cast = lambda leaf: np.asarray(dequantised(leaf) if is_int8(leaf) else leaf, DTYPES[dtype])
    return jax.tree.map(cast, params, is_leaf=is_int8)
