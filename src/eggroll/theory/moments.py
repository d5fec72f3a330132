"""Fourth moments of a rank-r perturbation, and with them the exact update of EGGROLL on cubic fitness.

`E = (1/√r)·Σ_k u_k` with independent `u_k = a_k·b_kᵀ` of identity covariance, so that its second moments are those of
Gaussian noise at every rank, its odd moments are zero by symmetry, and its fourth moments are the Gaussian ones plus
1/r times the fourth cumulant of one `u`:

    E[E⊗E⊗E⊗E] = pairings + (1/r)·(E[a⊗a⊗a⊗a]·E[b⊗b⊗b⊗b] − pairings).
"""

from __future__ import annotations

import functools
import itertools

import numpy as np
from jaxtyping import Float64

from eggroll.core import noise
from eggroll.theory.entry import Rank

Moments = Float64[np.ndarray, "m n m n m n m n"]


@functools.cache
def law_kurtosis(law: str) -> float:
    """`E[x⁴]` of a law of unit variance, exact; 3 for the normal one.

    Raises:
      ValueError: there is no such law.
    """
    scale = noise.law(law).scale
    if law == "normal":
        return 3.0
    if law == "signs":
        return 1.0
    if law == "popcount":  # a binomial of 32 halves
        return 3.0 - 2.0 / 32
    return float(np.mean((noise.normal_table().astype(float) * scale) ** 4))


def vector_moments(size: int, kurtosis: float) -> Float64[np.ndarray, "size size size size"]:
    """`E[a⊗a⊗a⊗a]` of independent elements of unit variance: three pairings, and `κ − 3` on the diagonal."""
    one = np.eye(size)
    total = sum(
        np.einsum(f"{pair},{rest}->ijkl", one, one) for pair, rest in (("ij", "kl"), ("ik", "jl"), ("il", "jk"))
    )
    diagonal = np.arange(size)
    total[diagonal, diagonal, diagonal, diagonal] += kurtosis - 3
    return np.asarray(total)


def fourth_moments(rank: Rank, rows: int, columns: int, kurtosis: float = 3.0) -> Moments:
    """`E[E⊗E⊗E⊗E]` of a rows × columns perturbation; infinite rank is Gaussian noise.

    Args:
      kurtosis: the fourth moment of the law of the factors.
    """
    rows_one, columns_one = np.eye(rows), np.eye(columns)
    gaussian = sum(
        np.einsum(f"{a},{b},{c},{d}->ipjqkrls", rows_one, columns_one, rows_one, columns_one)
        for a, b, c, d in (("ij", "pq", "kl", "rs"), ("ik", "pr", "jl", "qs"), ("il", "ps", "jk", "qr"))
    )
    one = np.einsum("ijkl,pqrs->ipjqkrls", vector_moments(rows, kurtosis), vector_moments(columns, kurtosis))
    return np.asarray(gaussian + (one - gaussian) / rank)


def cubic_update(
    rank: Rank, sigma: float, cubic: Float64[np.ndarray, "d d d"], shape: tuple[int, int], kurtosis: float = 3.0
) -> Float64[np.ndarray, "m n"]:
    """What the cubic part of a fitness adds to the expected update: `(σ²/6)·E[E·C(E, E, E)]`.

    Linear and quadratic parts add the gradient at the mean, whatever the rank: their moments are the second and third.

    Args:
      cubic: the symmetric tensor C of third derivatives, on matrices in row-major order, d = m·n.
    """
    size = shape[0] * shape[1]
    moments = fourth_moments(rank, *shape, kurtosis).reshape(size, size, size, size)
    return sigma**2 / 6 * np.einsum("ijkl,jkl->i", moments, cubic).reshape(shape)


def symmetrised(cubic: Float64[np.ndarray, "d d d"]) -> Float64[np.ndarray, "d d d"]:
    """The mean over the six orders of the axes."""
    return np.asarray(sum(np.transpose(cubic, axes) for axes in itertools.permutations(range(3))) / 6)


def energy(rank: Rank, rows: int, columns: int, kurtosis: float = 3.0) -> float:
    """`E[⟨G, E⟩²·‖E‖²] / ‖G‖²`, the same for every G: `mn + 2 + ((m+κ−1)(n+κ−1) − mn − 2)/r`.

    Since `E[a_i·a_k·‖a‖²] = (m + κ − 1)·δ_ik`, which at rank 1 gives the product, and at infinite rank mn + 2.
    """
    gaussian = rows * columns + 2.0
    one = (rows + kurtosis - 1) * (columns + kurtosis - 1)
    return gaussian + (one - gaussian) / rank


def dense_energy(rows: int, columns: int, kurtosis: float = 3.0) -> float:
    """The same for noise of independent elements of a law: `mn + κ − 1`."""
    return rows * columns + kurtosis - 1
