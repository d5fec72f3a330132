"""Trees of arrays piece by piece: beyond the tree itself, neither side holds more than a leaf and a piece.

Both sides know the tree's structure, shapes and dtypes (they built the same job), so that a piece names its leaf by
number, and nothing that arrives decides how much memory is taken.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eggroll.distributed.wire import PIECE, Message, Piece, Span, Tree, WireError, pack, pack_piece
from eggroll.runs.trees import raw

NO_SPAN = Span(0, 0)


def stream(tree: Any, which: Tree, span: Span, *, run: int, generation: int) -> Iterator[bytes]:
    """The messages that carry a tree, made one at a time as they are asked for.

    Args:
      tree: pytree of arrays.
      span: of a carry, or of the range that the tree is for; else `NO_SPAN`.
    """
    for number, leaf in enumerate(jax.tree.leaves(tree)):
        flat = _bytes_of(leaf)
        for offset in range(0, max(len(flat), 1), PIECE):
            part = Piece(which, span, number, offset, flat[offset : offset + PIECE].tobytes())
            yield pack(Message.PIECE, run, generation, pack_piece(part))


def _bytes_of(leaf: Any) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(raw(leaf))).reshape(-1).view(np.uint8)


class Leaf:
    """What is to arrive for one leaf; without the leaf."""

    def __init__(self, leaf: Any) -> None:
        words = raw(leaf)
        self.shape, self.dtype = tuple(words.shape), np.dtype(words.dtype)
        self.size = math.prod(self.shape) * self.dtype.itemsize
        self.is_numpy = isinstance(leaf, np.ndarray | np.generic)
        self.key_type = jax.random.key_impl(leaf) if words is not leaf else None

    def value(self, data: np.ndarray) -> Any:
        """The leaf from its bytes; of JAX or NumPy as it was, since these may round differently."""
        array: Any = data.view(self.dtype).reshape(self.shape)
        if self.is_numpy:
            return array
        array = jnp.asarray(array)
        return array if self.key_type is None else jax.random.wrap_key_data(array, impl=self.key_type)


def described(tree: Any) -> Any:
    """The tree with a `Leaf` for each array: a template that holds no array."""
    return jax.tree.map(Leaf, tree)


class Arriving:
    """A tree that arrives: leaves are filled in order.

    Args:
      template: pytree of arrays, or `described`. Its arrays are let go one by one as theirs arrive, so that whoever
        gives up his own reference holds one tree, not two.
    """

    def __init__(self, template: Any) -> None:
        self._leaves, self._tree = jax.tree.flatten(template)
        self._expected = [leaf if isinstance(leaf, Leaf) else Leaf(leaf) for leaf in self._leaves]
        self._at, self._filled, self._buffer = 0, 0, np.zeros(0, np.uint8)

    @property
    def is_whole(self) -> bool:
        """Whether nothing is missing."""
        return self._at == len(self._expected)

    def take(self, piece: Piece) -> None:
        """Add the next piece.

        Raises:
          WireError: it is not the one that comes next, or reaches beyond its leaf.
        """
        if self.is_whole or (piece.leaf, piece.offset) != (self._at, self._filled):
            raise WireError(
                f"expected leaf {self._at} from byte {self._filled:,}, got leaf {piece.leaf} from {piece.offset:,}; "
                "the connection is damaged"
            )
        expected = self._expected[self._at]
        if self._filled + len(piece.data) > expected.size:
            raise WireError(f"expected {expected.size:,} bytes of leaf {self._at}, got more; use one version")
        if not self._filled:
            self._leaves[self._at] = None
            self._buffer = np.empty(expected.size, np.uint8)
        self._buffer[self._filled : self._filled + len(piece.data)] = np.frombuffer(piece.data, np.uint8)
        self._filled += len(piece.data)
        if self._filled == expected.size:
            self._leaves[self._at] = expected.value(self._buffer)
            self._at, self._filled, self._buffer = self._at + 1, 0, np.zeros(0, np.uint8)

    def tree(self) -> Any:
        """The whole tree.

        Raises:
          WireError: something is missing.
        """
        if not self.is_whole:
            raise WireError(f"expected {len(self._expected)} leaves, got {self._at}; the connection is damaged")
        return jax.tree.unflatten(self._tree, self._leaves)


def fingerprint(trees: Any) -> int:
    """64 bits of all leaves: two sums of mixed words, exact on any device and in any order.

    It tells copies that have drifted apart; it is no protection against who means to deceive.
    """
    leaves = [leaf for leaf in map(raw, jax.tree.leaves(trees)) if leaf.size]
    words = np.asarray(_sums(leaves)) if leaves else np.zeros(2, np.uint32)
    return int(words[0]) | int(words[1]) << 32


@jax.jit
def _sums(leaves: list[Any]) -> jax.Array:
    total = jnp.zeros(2, jnp.uint32)
    for number, leaf in enumerate(leaves):
        words = _words(leaf)
        place = jax.lax.iota(jnp.uint32, words.size) * jnp.uint32(0x9E3779B1) + jnp.uint32(number + 1)
        for row, salt in enumerate((0x85EBCA6B, 0xC2B2AE35)):
            mixed = (words ^ (place + jnp.uint32(salt))) * jnp.uint32(0x7FEB352D)
            mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(0x846CA68B) ^ place
            total = total.at[row].add(jnp.sum((mixed ^ (mixed >> 16)) * jnp.uint32(0x9E3779B1), dtype=jnp.uint32))
    return total


def _words(leaf: Any) -> jax.Array:
    """The bits of a leaf as uint32, one or two an element, in a row."""
    leaf = jnp.asarray(leaf)
    if leaf.dtype == jnp.bool_:
        return leaf.reshape(-1).astype(jnp.uint32)
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        leaf = jnp.stack([leaf.real, leaf.imag])
    bits = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[leaf.dtype.itemsize]
    return jax.lax.bitcast_convert_type(leaf, bits).reshape(-1).astype(jnp.uint32)
