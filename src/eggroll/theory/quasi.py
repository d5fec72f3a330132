"""Randomised quasi-Monte Carlo for expectations over rank-r and Gaussian perturbations, coupled to each other.

Given B, the rows of `E = A·Bᵀ/√r` with Gaussian A are normal with covariance `S = BᵀB/r` of the columns' factors: so
`E = Z·Lᵀ`, with Z Gaussian, `L·Lᵀ = S`, and L the root of a Wishart matrix, by Bartlett: on the diagonal roots of
chi-squares of r, r−1, … degrees, below it normals, all over √r. Gaussian ES is L = 1. That takes `mn + n(n+1)/2`
numbers at any rank, and EGGROLL and Gaussian ES share the Z, so that their difference has little variance.

Sources: Bartlett (1933) for the root; Roberts, "The unreasonable effectiveness of quasirandom sequences" (2018), for
the generalised golden ratio; Owen, Cranley and Patterson for random shifts as error bars.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from jaxtyping import Float64

_TABLE = 2**16 + 1


def points(count: int, dimensions: int, shift: Float64[np.ndarray, " dimensions"]) -> Float64[np.ndarray, "count dims"]:
    """The first points of the additive recurrence with the generalised golden ratio, shifted, in (0, 1)."""
    ratio = 2.0
    for _ in range(60):  # the root above 1 of x^(d+1) = x + 1
        ratio = (1 + ratio) ** (1 / (dimensions + 1))
    alpha = ratio ** -np.arange(1, dimensions + 1)
    number = np.arange(1, count + 1)[:, None]
    return np.clip((number * alpha[None, :] + shift[None, :]) % 1.0, 2.0**-53, 1 - 2.0**-53)


@functools.cache
def _normal_table() -> tuple[np.ndarray, np.ndarray]:
    x = np.linspace(-9, 9, _TABLE)
    return _cumulated(-(x**2) / 2, x), x


@functools.cache
def _chi_table(degrees: int) -> tuple[np.ndarray, np.ndarray]:
    """Of the root of a chi-square: density ∝ x^(k−1)·exp(−x²/2)."""
    middle = math.sqrt(degrees)
    x = np.linspace(max(middle - 9, 0.0), middle + 9, _TABLE)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.where(x > 0, (degrees - 1) * np.log(x / middle), 0.0 if degrees == 1 else -np.inf) - x**2 / 2
    return _cumulated(logs, x), x


def _cumulated(log_density: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The distribution function on a grid, by trapezoids."""
    value = np.exp(log_density - log_density.max())
    sums = np.concatenate([[0.0], np.cumsum((value[1:] + value[:-1]) / 2)])
    return sums / sums[-1]


def normals(uniform: Float64[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape"]:
    """Standard normal quantiles, to about 1e-7 within four standard deviations."""
    return np.interp(uniform, *_normal_table())


def chis(uniform: Float64[np.ndarray, "*shape"], degrees: int) -> Float64[np.ndarray, "*shape"]:
    """Quantiles of the root of a chi-square of so many degrees; of 0 degrees it is 0."""
    return np.interp(uniform, *_chi_table(degrees)) if degrees else np.zeros_like(uniform)


def root_dimensions(columns: int) -> int:
    """Numbers that one root takes."""
    return columns * (columns + 1) // 2


def wishart_root(
    uniform: Float64[np.ndarray, "count numbers"], rank: int, columns: int
) -> Float64[np.ndarray, "count columns columns"]:
    """Lower triangular L with `L·Lᵀ = BᵀB/r` in law, B of r × columns standard normals.

    Args:
      uniform: `root_dimensions(columns)` numbers in (0, 1) each.
      rank: r ≥ columns − 1.
    """
    if rank < columns - 1:
        raise ValueError(f"expected a rank of at least {columns - 1}, got {rank}; Bartlett's root needs no less")
    root, used = np.zeros((len(uniform), columns, columns)), 0
    for row in range(columns):
        root[:, row, row] = chis(uniform[:, used], rank - row)
        root[:, row, :row] = normals(uniform[:, used + 1 : used + 1 + row])
        used += row + 1
    return root / math.sqrt(rank)
