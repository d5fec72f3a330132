"""Noise of leaves in PyTorch: the same integers as the JAX core, of which a rank draws its own rows or columns.

A leaf's A is (rows, rank) and its B (columns, rank), elements numbered row by row over the whole leaf. No JAX here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from eggroll.core import noise
from eggroll.vllm.leaves import Part

Words = tuple[torch.Tensor, torch.Tensor]
FACTOR_ROUNDING = 3
"""The stream of random bits that round a weight; factors 0 to 2 are those of `core.noise`."""
_BYTES = 64 * 2**20


class Settings(NamedTuple):
    """What every draw depends on.

    Attributes:
      seed: of the run.
      rank, law: of the perturbations.
    """

    seed: int
    rank: int
    law: str


def stream_keys(
    settings: Settings, parts: Sequence[Part], factors: Sequence[int], generation: int, pairs: torch.Tensor
) -> list[list[Words]]:
    """For each part the keys of its factors, two int32 (pairs,) each.

    Args:
      pairs: (pairs,) int32, indices in the whole population, on the device where keys are wanted.
    """
    leaf = torch.tensor([noise.leaf_id(part.leaf.name) for part in parts for _ in factors], dtype=torch.int32)
    factor = torch.tensor([factor for _ in parts for factor in factors], dtype=torch.int32)
    leaf, factor = (each.to(pairs.device)[:, None] for each in (leaf, factor))
    every = pairs[None, :] + torch.zeros_like(leaf)
    first, second = noise.stream_key(
        seed=noise.seed_words(settings.seed), leaf=leaf, factor=factor, generation=generation, pair=every
    )
    words = list(zip(first, second, strict=True))
    return [words[k : k + len(factors)] for k in range(0, len(words), len(factors))]


def draw_factor(settings: Settings, key: Words, first: int, count: int) -> torch.Tensor:
    """Rows `first` to `first + count` of a factor for each pair, (pairs, count, rank) float32 of unit variance."""
    bits = _bits(key, first * settings.rank, count * settings.rank)
    law = noise.law(settings.law)
    return noise.to_float(torch, law, bits, erf_inv=torch.erfinv).reshape(len(bits), count, settings.rank)


def draw_factors(settings: Settings, part: Part, keys: Sequence[Words]) -> tuple[torch.Tensor, torch.Tensor]:
    """A's rows (pairs, rows, rank) and B's (pairs, columns, rank) that meet a part of a leaf."""
    a, b = keys
    return (
        draw_factor(settings, a, part.first_row, part.rows),
        draw_factor(settings, b, part.first_column, part.columns),
    )


def rounding_bits(settings: Settings, part: Part, generation: int, device: Any) -> torch.Tensor:
    """32 random bits for each weight of a part, (rows, columns) int32; the same whoever holds it."""
    pairs = torch.zeros(1, dtype=torch.int32, device=device)
    ((key,),) = stream_keys(settings, [part], [FACTOR_ROUNDING], generation, pairs)
    rows = torch.arange(part.first_row, part.first_row + part.rows, dtype=torch.int32, device=device)
    columns = torch.arange(part.first_column, part.first_column + part.columns, dtype=torch.int32, device=device)
    return noise.element_bits(key, rows[:, None] * part.leaf.columns + columns[None, :])


def _bits(key: Words, first: int, count: int) -> torch.Tensor:
    element = torch.arange(first, first + count, dtype=torch.int32, device=key[0].device)
    return noise.element_bits((key[0][:, None], key[1][:, None]), element[None, :])


def weighted_noise(settings: Settings, part: Part, generation: int, weights: torch.Tensor) -> torch.Tensor:
    """`Σ_p w_p·E_p` of a part, (rows, columns) float32: one matmul over concatenated ranks for each chunk of pairs.

    The chunks depend on the whole leaf alone, so that shards sum in the order in which the whole is summed.

    Args:
      weights: (all pairs,) float32, on the device where the sum is wanted.
    """
    size = max(1, _BYTES // (16 * settings.rank * (part.leaf.rows + part.leaf.columns)))
    total = torch.zeros((part.rows, part.columns), dtype=torch.float32, device=weights.device)
    for first in range(0, len(weights), size):
        own = weights[first : first + size]
        pairs = torch.arange(first, first + len(own), dtype=torch.int32, device=weights.device)
        (keys,) = stream_keys(settings, [part], [noise.FACTOR_A, noise.FACTOR_B], generation, pairs)
        a, b = draw_factors(settings, part, keys)
        a = (a * own[:, None, None]).permute(1, 0, 2).reshape(part.rows, -1)
        total.addmm_(a, b.permute(1, 0, 2).reshape(part.columns, -1).T)
    return total.div_(math.sqrt(settings.rank))
