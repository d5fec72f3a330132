"""One entry of a rank-r perturbation, `E = A·Bᵀ/√r` with Gaussian factors: its density, its score, its expectations.

The entry is `x = (1/√r)·Σ_k a_k·b_k`. Given the b, it is normal of variance `Σ b_k²/r`, so that its characteristic
function is `(1 + t²/r)^(−r/2)` and its density, with `ν = (r−1)/2` and `y = √r·|x|`,

    p_r(x) = √r·(y/2)^ν·K_ν(y) / (√π·Γ(r/2)),      p_1(x) = K_0(|x|)/π,      p_∞ = the standard normal.

Source: arXiv 2511.16652, Theorem 6 and Figure 3, with generalised Gaussians of scale s² = 2; the Edgeworth expansion is
that of its appendix D in one dimension.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float64

from eggroll.theory.bessel import log_bessel_k

INFINITE = math.inf
"""The rank of Gaussian ES: the limit r → ∞."""
Rank = int | float
"""r ≥ 1, or `INFINITE`."""

_REACH, _PANELS, _ORDER = 48.0, 48, 16


def density(rank: Rank, x: Float64[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape"]:
    """`p_r(x)`; infinite at 0 for rank 1.

    Args:
      rank: r ≥ 1, or `INFINITE`.
      x: in standard deviations.
    """
    if rank == INFINITE:
        return np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    nu, y = (rank - 1) / 2, math.sqrt(rank) * np.abs(x)
    at_zero = math.inf if rank == 1 else math.sqrt(rank) / 2 * math.exp(math.lgamma(nu) - _log_norm(rank))
    return np.where(y > 0, math.sqrt(rank) * _scaled(rank, nu, y), at_zero)


def slope(rank: Rank, x: Float64[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape"]:
    """`p_r'(x)`, which is the score times the density.

    It diverges at 0 for rank 1 and jumps there from +1 to −1 for rank 2; 0 stands for it at 0.
    """
    if rank == INFINITE:
        return -x * density(rank, x)
    nu, y = (rank - 1) / 2, math.sqrt(rank) * np.abs(x)
    return -np.sign(x) * rank * np.where(y > 0, _scaled(rank, nu - 1, y), 0.0)


def score(rank: Rank, x: Float64[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape"]:
    """`d log p_r / dx = −√r·sign(x)·K_{ν−1}(y)/K_ν(y)`; −x for infinite rank. Tends to ∓√r far out."""
    if rank == INFINITE:
        return -x
    nu, y = (rank - 1) / 2, math.sqrt(rank) * np.abs(x)
    safe = np.where(y > 0, y, 1.0)
    ratio = np.exp(log_bessel_k(nu - 1, safe) - log_bessel_k(nu, safe))
    return -np.sign(x) * math.sqrt(rank) * ratio


def _scaled(rank: Rank, order: float, y: Float64[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape"]:
    """`(y/2)^((r−1)/2)·K_order(y) / (√π·Γ(r/2))` where y > 0."""
    safe = np.where(y > 0, y, 1.0)
    return np.exp((rank - 1) / 2 * np.log(safe / 2) + log_bessel_k(order, safe) - _log_norm(rank))


def _log_norm(rank: Rank) -> float:
    return math.log(math.pi) / 2 + math.lgamma(rank / 2)


def excess_kurtosis(rank: Rank, law_kurtosis: float = 3.0) -> float:
    """`E[x⁴] − 3 = (κ² − 3)/r` with κ the fourth moment of the law of the factors; 6/r for Gaussian factors."""
    return (law_kurtosis**2 - 3) / rank


def hermite(degree: int, x: Float64[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape"]:
    """The probabilists' Hermite polynomial `He_n`."""
    return np.polynomial.hermite_e.hermeval(x, [0.0] * degree + [1.0])


def edgeworth_density(rank: Rank, x: Float64[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape"]:
    """`φ(x)·(1 + (κ₄/24)·He₄(x))` with κ₄ = 6/r: the density to order 1/r."""
    return density(INFINITE, x) * (1 + excess_kurtosis(rank) / 24 * hermite(4, x))


def edgeworth_slope(rank: Rank, x: Float64[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape"]:
    """Its derivative, `−φ(x)·(x + (κ₄/24)·He₅(x))`."""
    return -density(INFINITE, x) * (x + excess_kurtosis(rank) / 24 * hermite(5, x))


def edgeworth_score(rank: Rank, x: Float64[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape"]:
    """The score to order 1/r, `−x + (κ₄/6)·He₃(x)`: a polynomial, and so good for bounded x alone."""
    return -x + excess_kurtosis(rank) / 6 * hermite(3, x)


@functools.cache
def _half_line() -> tuple[Float64[np.ndarray, " nodes"], Float64[np.ndarray, " nodes"]]:
    """Nodes and weights on (0, 48): Gauss-Legendre panels in the cube root, for what is singular at 0."""
    nodes, weights = np.polynomial.legendre.leggauss(_ORDER)
    width = _REACH ** (1 / 3) / _PANELS
    root = (np.arange(_PANELS)[:, None] + (nodes[None, :] + 1) / 2).reshape(-1) * width
    return root**3, 3 * root**2 * np.tile(weights, _PANELS) * width / 2


def expectation(rank: Rank, function: Callable[[np.ndarray], np.ndarray]) -> Float64[np.ndarray, "*shape"]:
    """`E_r[function(x)]`, to about 1e-12 for what is smooth or has its kink at 0.

    Args:
      function: of an array (nodes,); returns (nodes, …).
    """
    x, weight = _half_line()
    own = weight * density(rank, x)
    return np.asarray(np.tensordot(own, function(x), 1) + np.tensordot(own, function(-x), 1))


def edgeworth_expectation(rank: Rank, function: Callable[[np.ndarray], np.ndarray]) -> Float64[np.ndarray, "*shape"]:
    """The same under the density to order 1/r."""
    x, weight = _half_line()
    own = weight * edgeworth_density(rank, x)
    return np.asarray(np.tensordot(own, function(x), 1) + np.tensordot(own, function(-x), 1))


def probabilities(rank: Rank, edges: Float64[np.ndarray, " edges"]) -> Float64[np.ndarray, " bins"]:
    """The probability of each bin; edges ascend, and 0 is an edge or lies outside."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    found = []
    for low, high in itertools.pairwise(edges):
        a, b = np.cbrt(low), np.cbrt(high)
        root = (a + b) / 2 + (b - a) / 2 * nodes
        found.append(float(np.sum((b - a) / 2 * weights * 3 * root**2 * density(rank, root**3))))
    return np.array(found)
