"""A second, slow implementation in NumPy, written from the paper and `core.noise` alone."""

import math

import numpy as np

from eggroll.core import noise


def draw(path, factor, shape, *, seed=0, generation=0, pair=0, law="popcount"):
    """The unit-variance noise of one factor of one pair."""
    key = noise.stream_key(
        seed=noise.seed_words(seed), leaf=noise.leaf_id(path), factor=factor, generation=generation,
        pair=np.array([pair], np.int32),
    )  # fmt: skip
    bits = noise.element_bits(key, np.arange(math.prod(shape), dtype=np.int32))
    return noise.to_float(np, noise.law(law), bits).reshape(shape).astype(np.float64)


def direction(path, shape, *, rank=1, low_rank=None, **which):
    """E for one leaf: A·Bᵀ/√r for a matrix, elementwise noise otherwise (or where `low_rank` is False)."""
    if len(shape) != 2 or low_rank is False:
        return draw(path, noise.FACTOR_DENSE, shape, **which)
    a = draw(path, noise.FACTOR_A, (shape[0], rank), **which)
    b = draw(path, noise.FACTOR_B, (shape[1], rank), **which)
    return a @ b.T / math.sqrt(rank)


def member_params(params, member, *, sigma, **which):
    """Flat dictionary of path → dense parameters of one member."""
    sign = 1 - 2 * (member % 2)
    return {
        path: value + sigma * sign * direction(path, value.shape, pair=member // 2, **which)
        for path, value in params.items()
    }


def gradient(params, utilities, *, sigma, **which):
    """1/(N·σ) · Σ_i u_i·sign_i·E_i, a loop over members."""
    total = {path: np.zeros(value.shape) for path, value in params.items()}
    for member, utility in enumerate(utilities):
        for path, value in params.items():
            moved = (1 - 2 * (member % 2)) * direction(path, value.shape, pair=member // 2, **which)
            total[path] += float(utility) * moved / (len(utilities) * sigma)
    return total
