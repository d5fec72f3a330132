"""How a population differs from a language model: which leaves evolve, and with which noise."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from eggroll.core.distribution import Distribution, FullRank, LowRank, leaf_paths

MATRICES = (
    "blocks/att/receptance/weight",
    "blocks/att/key/weight",
    "blocks/att/value/weight",
    "blocks/att/output/weight",
    "blocks/att/[wavg][12]",
    "blocks/ffn/key/weight",
    "blocks/ffn/value/weight",
)
"""What evolves unless one says otherwise: every matrix of the blocks, as in the paper. Vectors, embedding and head
stay: elementwise noise on a vector is a whole vector for each member, and a token's row is seldom read."""


def distribution_for(params: Any, rank: int = 1, law: str = "popcount", *, dense: bool = False) -> Distribution:
    """Low-rank noise for every layer's matrices, elementwise for vectors.

    Args:
      params: the tree of `rwkv7`, whose blocks are stacked along their first axis.
      rank: of the perturbations; a matrix that is smaller gets elementwise noise.
      law: of the noise.
      dense: full-rank noise, as OpenES has it, in place of all that.
    """
    return FullRank() if dense else _low_rank(params, rank, law)


def lattice_for(params: Any, rank: int = 1) -> LowRank:
    """Low-rank noise of integers for the int8 weights of a tree whose blocks are stacked.

    Raises:
      ValueError: there are none.
    """
    return dataclasses.replace(_low_rank(params, rank, "popcount"), lattice=("*/int8",))


def _low_rank(params: Any, rank: int, law: str) -> LowRank:
    stacked, split = {}, {}
    for path, leaf in zip(leaf_paths(params), jax.tree.leaves(params), strict=True):
        layers = int(path.startswith("blocks/"))
        own = np.shape(leaf)[layers:]
        if layers:
            stacked[path] = 1
        if path.endswith("/r_k") or (len(own) == 2 and min(own) < rank):
            split[path] = 0
    return LowRank(rank=rank, law=law, stacked=stacked, split=split)


def patterns_of(trainable: Sequence[str], params: Any) -> tuple[str, ...]:
    """`trainable`, or `MATRICES`; the name "all" is every leaf."""
    if tuple(trainable) == ("all",):
        return ("*",)
    return tuple(trainable) or MATRICES
