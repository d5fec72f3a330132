"""Small models with random weights, no leaf of which is zero."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from eggroll.llm.rwkv7 import Sizes, random_params

TINY = Sizes(2, 32, 2, 40, (8, 8, 4, 8))
SHAPES = (TINY, Sizes(3, 64, 1, 100, (8, 16, 8, 24)), Sizes(1, 48, 3, 257, (4, 8, 8, 16), hidden=96))


def noisy(sizes: Sizes, seed: int = 0) -> Any:
    """Random weights in every leaf, about as large as trained ones."""
    with jax.numpy_rank_promotion("allow"):
        params = random_params(sizes, jax.random.key(seed))
    generator = np.random.default_rng(seed)
    moved = lambda leaf: np.asarray(leaf + 0.15 * generator.standard_normal(leaf.shape), np.float32)
    return jax.tree.map(moved, params)


def as_pth(params: Any, path: Path) -> None:
    """The file that BlinkDL's code would write."""
    import torch

    from eggroll.core.distribution import leaf_paths
    from eggroll.llm.names import name_of

    tensors = {}
    for name, leaf in zip(leaf_paths(params), jax.tree.leaves(params), strict=True):
        if not name.startswith("blocks/"):
            tensors[name_of(name, None)] = torch.tensor(np.asarray(leaf))
            continue
        for layer, own in enumerate(leaf):
            if layer or len(leaf) == 1 or name not in ("blocks/att/v0", "blocks/att/v1", "blocks/att/v2"):
                row = name.rpartition("/")[2] in ("w0", "a0", "v0", "k_k", "k_a") or "/x_" in name
                shape = (1, 1, -1) if row else own.shape
                tensors[name_of(name, layer)] = torch.tensor(np.asarray(own)).reshape(shape)
    torch.save(tensors, path)
