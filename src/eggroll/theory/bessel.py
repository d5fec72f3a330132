"""Modified Bessel functions of the second kind, `K_ν`, by quadrature in double precision.

`K_ν(x) = ∫₀^∞ exp(−x·cosh t)·cosh(ν·t) dt`: the integrand is even, analytic, and falls doubly exponentially, so that
the trapezoid rule converges geometrically. Everything is in logarithms, since `K_ν` leaves the doubles for large ν.

Source: NIST Digital Library of Mathematical Functions, 10.32.9.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64

_NODES = 160
_LOST = 45.0
"""Where the integrand has fallen by e⁻⁴⁵ from its highest, it no longer counts in a double."""


def log_bessel_k(order: float, x: Float64[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape"]:
    """`log K_ν(x)`, to about 1e-13.

    Args:
      order: ν, any real number; the function is even in it.
      x: > 0.
    Returns:
      float64 of the shape of x; infinite where x is 0.
    """
    nu = abs(order)
    with np.errstate(divide="ignore"):
        logs = _by_trapezoids(nu, np.where(x > 0, x, 1.0))
    return np.where(x > 0, logs, np.inf)


def _by_trapezoids(nu: float, x: Float64[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape"]:
    """The exponent `ν·t − x·cosh t` is highest at `asinh(ν/x)`, and falls from there by `c·(cosh δ − 1) ± ν·(…)`."""
    peak, c = np.arcsinh(nu / x), np.hypot(nu, x)
    fall = _LOST / c
    left = np.maximum(peak - (fall + np.sqrt(fall * (fall + 8))) / 2, 0.0)
    right = peak + np.arccosh(1 + fall)
    step = (right - left) / _NODES
    t = left + step * np.arange(_NODES + 1).reshape(-1, *(1,) * x.ndim)
    exponent = nu * t - x * np.cosh(t) + np.log1p(np.exp(-2 * nu * t)) - np.log(2.0)
    highest = exponent.max(axis=0)
    values = np.exp(exponent - highest)
    total = values.sum(axis=0) - (values[0] + values[-1]) / 2
    return highest + np.log(step * total)
