"""Trees of arrays as names and bytes: nested dictionaries for snapshots, SHA-256 by leaf for journals.

A leaf's name is its path, "a/b/c", from dictionary keys, attributes and indices; names and shapes are checked when a
tree is filled again, so that nothing of another shape gets in.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from eggroll.core.distribution import leaf_paths
from eggroll.runs.folder import RunError, shown

Leaves = dict[str, np.ndarray]


def as_arrays(tree: Any) -> Leaves:
    """Path → NumPy array of every leaf; random keys as their words.

    Raises:
      RunError: two leaves have the same path.
    """
    paths, leaves = leaf_paths(tree), jax.tree.leaves(tree)
    named = dict(zip(paths, map(_array, leaves), strict=True))
    if len(named) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise RunError(f"expected leaves with different paths, got {twice!r} twice; rename one of them")
    return named


def _array(leaf: Any) -> np.ndarray:
    return np.asarray(raw(leaf))


def raw(leaf: Any) -> Any:
    """The leaf itself; of random keys their words."""
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def filled(template: Any, leaves: Leaves, what: str) -> Any:
    """A tree like `template` with these leaves, each of JAX or NumPy as it is there.

    Args:
      what: they are, for the complaint.
    Raises:
      RunError: a leaf is missing, too many, or of another shape or dtype.
    """
    expected = as_arrays(jax.tree.map(blank, template))
    leaves = {path: leaf for path, leaf in expected.items() if not leaf.size} | leaves  # no snapshot holds these
    for path in [*expected, *leaves]:
        want, have = _described(expected.get(path)), _described(leaves.get(path))
        if want != have:
            raise RunError(
                f"expected leaf {shown(path)} {want} in {what}, got {have}; it belongs to other settings than these"
            )
    values = [_like(leaf, leaves[path]) for path, leaf in zip(expected, jax.tree.leaves(template), strict=True)]
    return jax.tree.unflatten(jax.tree.structure(template), values)


def blank(leaf: Any) -> Any:
    """What stands for an array of which other processes hold a part: shape and dtype, without memory."""
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
        return leaf
    return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)


def _like(leaf: Any, value: np.ndarray) -> Any:
    """JAX and NumPy may round differently: what was an array of one must not come back as one of the other."""
    if _is_key(leaf):
        return jax.random.wrap_key_data(jax.numpy.asarray(value), impl=jax.random.key_impl(leaf))
    return jax.numpy.asarray(value) if isinstance(leaf, jax.Array) else value


def _described(leaf: np.ndarray | None) -> str:
    return "absent" if leaf is None else f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def nested(leaves: dict[str, Any]) -> dict[str, Any]:
    """Leaves by path as dictionaries in dictionaries, the way that snapshots hold them."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *folders, name = path.split("/")
        inner = tree
        for folder in folders:
            inner = inner.setdefault(folder, {})
        inner[name] = leaf
    return tree


def sha256_by_leaf(tree: Any) -> dict[str, str]:
    """Path → SHA-256 of dtype, shape and values (little-endian, row by row) of every leaf."""
    return {path: _sha256(leaf) for path, leaf in as_arrays(tree).items()}


def _sha256(leaf: np.ndarray) -> str:
    if leaf.dtype.byteorder == ">" or (leaf.dtype.byteorder == "=" and sys.byteorder == "big"):
        leaf = leaf.byteswap()
    hashed = hashlib.sha256(f"{leaf.dtype.name}{list(leaf.shape)}".encode())
    hashed.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
    return hashed.hexdigest()


def digest(tree: Any) -> str:
    """One SHA-256 of all leaves, over their own as JSON with sorted paths."""
    return hashlib.sha256(json.dumps(sha256_by_leaf(tree), sort_keys=True).encode()).hexdigest()


def first_difference(expected: dict[str, str], found: dict[str, str]) -> str | None:
    """The first path whose hash differs or that one side lacks."""
    paths: Iterable[str] = [*expected, *(path for path in found if path not in expected)]
    return next((path for path in paths if expected.get(path) != found.get(path)), None)


def check_start(expected: Any, found: dict[str, str], what: str) -> None:
    """Refuse start parameters that are not those of a journal.

    Args:
      expected: what the header of `what` says.
      found: `sha256_by_leaf` of the parameters.
    Raises:
      RunError: the header has no hashes, or a leaf differs, the first of which is named with both.
    """
    if not isinstance(expected, dict):
        raise RunError(f"expected hashes of the start parameters in {what}, got none; the journal is forged")
    path = first_difference(expected, found)
    if path is not None:
        want, have = (shown(side.get(path, "absent")).strip("'")[:16] for side in (expected, found))
        raise RunError(
            f"expected the start parameters of {what}, with leaf {shown(path)} of SHA-256 {want}…, got {have}…; "
            "give the base model from which it started"
        )


def largest_difference(one: Any, other: Any) -> float:
    """The largest absolute difference between leaves of two trees of one structure; 0 where they are the same bits."""
    pairs = zip(as_arrays(one).values(), as_arrays(other).values(), strict=True)
    gaps = [np.abs(a.astype(np.float64) - b.astype(np.float64)).max(initial=0.0) for a, b in pairs]
    return float(max(gaps, default=0.0))
