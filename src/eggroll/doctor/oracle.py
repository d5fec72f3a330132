"""The laws once more, slowly and in plain NumPy: what a device's results are compared with."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from eggroll.core import noise

Params = Mapping[str, np.ndarray]


def bits(path: str, factor: int, elements: np.ndarray, *, seed: int, generation: int, pair: int) -> np.ndarray:
    """The 32 random bits of some elements of one stream, int32 of their shape."""
    words = noise.seed_words(seed)
    pairs = np.array([pair], np.int32)
    key = noise.stream_key(seed=words, leaf=noise.leaf_id(path), factor=factor, generation=generation, pair=pairs)
    return noise.element_bits((key[0][0], key[1][0]), elements.astype(np.int32))


def draw(
    path: str, factor: int, shape: tuple[int, ...], law: str, *, seed: int, generation: int, pair: int
) -> np.ndarray:
    """The integers of one factor of one pair, int64 of that shape."""
    own = bits(path, factor, np.arange(math.prod(shape)), seed=seed, generation=generation, pair=pair)
    return np.asarray(noise.law(law).integer(np, own), np.int64).reshape(shape)


def direction(path: str, shape: tuple[int, ...], rank: int, law: str, **counters: int) -> np.ndarray:
    """E of one leaf, float64: `A·Bᵀ/√r` for a matrix, elementwise noise for a vector."""
    scale = noise.law(law).scale
    if len(shape) != 2:
        return draw(path, noise.FACTOR_DENSE, shape, law, **counters) * scale
    a = draw(path, noise.FACTOR_A, (shape[0], rank), law, **counters)
    b = draw(path, noise.FACTOR_B, (shape[1], rank), law, **counters)
    return (a @ b.T) * (scale**2 / math.sqrt(rank))


def member(params: Params, index: int, sigma: float, rank: int, law: str, **counters: int) -> dict[str, np.ndarray]:
    """The dense parameters of a member, float64."""
    signed = sigma * (1 - 2 * (index % 2))
    return {
        path: value + signed * direction(path, value.shape, rank, law, pair=index // 2, **counters)
        for path, value in params.items()
    }


def ascent(
    params: Params, utilities: np.ndarray, sigma: float, rank: int, law: str, **counters: int
) -> dict[str, np.ndarray]:
    """`1/(N·σ) · Σ_i u_i·±E_i` by a loop over members, float64. Source: arXiv 2511.16652, Algorithm 1."""
    total = {path: np.zeros(value.shape) for path, value in params.items()}
    for index, utility in enumerate(utilities):
        for path, value in params.items():
            own = direction(path, value.shape, rank, law, pair=index // 2, **counters)
            total[path] += utility * (1 - 2 * (index % 2)) * own / (len(utilities) * sigma)
    return total


def integer_product(x: np.ndarray, weight: np.ndarray, a: np.ndarray, b: np.ndarray, shift: int) -> np.ndarray:
    """`sat((x·Wᵀ + ((x·b)·a ≫ shift)) // (16·√inputs))` of one member of rank 1, int64.

    Args:
      x: (rows, inputs), weight (outputs, inputs), a (outputs,) with the member's sign, b (inputs,); integers.
    """
    x, weight, a, b = (side.astype(np.int64) for side in (x, weight, a, b))
    product = x @ weight.T + (np.outer(x @ b, a) >> shift)
    return np.clip(product // (16 * math.isqrt(x.shape[1])), -127, 127)


def integer_update(value: np.ndarray, path: str, signs: np.ndarray, level: int, **counters: int) -> np.ndarray:
    """The ±1 update of a matrix by a loop over pairs, int64: a step where `16·|Σ_p F_p·A_p·B_pᵀ|` reaches the level."""
    total = np.zeros(value.shape, np.int64)
    for pair, sign in enumerate(signs):
        a, b = (
            draw(path, factor, (rows, 1), "table_normal", pair=pair, **counters)
            for factor, rows in ((noise.FACTOR_A, value.shape[0]), (noise.FACTOR_B, value.shape[1]))
        )
        total += int(sign) * (a @ b.T)
    step = np.where(16 * np.abs(total) < level, 0, np.sign(total))
    return np.clip(value.astype(np.int64) + step, -127, 127)
