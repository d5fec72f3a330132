"""What the adapters share: arrays of one kind from step to step, and pictures of matplotlib figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float


def settle(state: Any, like: Any = None) -> Any:
    """A state whose leaves are strongly typed arrays, so that `scan` can carry it.

    Environments start counters as Python numbers and mix () with (1,); the step's leaves take shape and dtype of the
    reset's.

    Args:
      state: pytree of arrays and Python numbers.
      like: an earlier state of the same episode; None: this is the first.
    Returns:
      The same pytree of arrays.
    """
    return jax.tree.map(_strong, state) if like is None else jax.tree.map(_cast, state, like)


def _strong(leaf: Any) -> Array:
    array = jnp.asarray(leaf)
    return array if _is_key(array) else jax.lax.convert_element_type(array, array.dtype)


def _cast(leaf: Any, like: Array) -> Array:
    array = jnp.asarray(leaf)
    return array if _is_key(array) else array.astype(like.dtype).reshape(like.shape)


def _is_key(array: Array) -> bool:
    return jnp.issubdtype(array.dtype, jax.dtypes.prng_key)


def flat(observation: Any) -> Float[Array, " size"]:
    """The numbers of an observation, a pytree of arrays, in one row: float32 (size,)."""
    leaves = [jnp.ravel(jnp.asarray(leaf)).astype(jnp.float32) for leaf in jax.tree.leaves(observation)]
    return leaves[0] if len(leaves) == 1 else jnp.concatenate(leaves)


def number(value: Any) -> Float[Array, ""]:
    """A float32 scalar of anything that holds one number."""
    return jnp.asarray(value).astype(jnp.float32).reshape(())


def truth(value: Any) -> Bool[Array, ""]:
    """A bool scalar of anything that holds one number or bool."""
    return jnp.asarray(value).astype(bool).reshape(())


@contextmanager
def off_screen() -> Iterator[None]:
    """Figures made inside open no window, and matplotlib is as it was afterwards."""
    import matplotlib.pyplot as plt

    before = plt.get_backend()
    if before.lower() != "agg":
        plt.switch_backend("agg")
    open_figures = plt.get_fignums()
    try:
        yield
    finally:
        for figure in set(plt.get_fignums()) - set(open_figures):
            plt.close(figure)
        if before.lower() != "agg":
            plt.switch_backend(before)


def draw(figure: Any, update: Callable[[int], Any], frames: int) -> Sequence[np.ndarray]:
    """Pictures (height, width, 3) uint8 of a figure on the Agg canvas after `update(0)`, `update(1)`, …"""
    pictures = []
    for frame in range(frames):
        update(frame)
        figure.canvas.draw()
        pictures.append(np.array(figure.canvas.buffer_rgba())[..., :3])
    return pictures
