"""Fitness functions of a matrix whose expected updates are known in closed form in any dimension.

Each is `f(X) = ⟨A, X⟩ + c(X − M)` at `X = M + σE`, with `c` odd and of one degree, and so `g − ∇f(M) = E[c(σE)·E]/σ`:

* radial: `c(X) = ⟨U, X⟩·‖X‖^β`, ‖U‖ = 1. With β = 2 it is the cubic that attains the paper's bound (Theorem 2); with
  β = 1 its gradient is Lipschitz and no smoother.
* spectral: `c(X) = tr(X·Xᵀ·X·Uᵀ)`, a cubic that sees singular values rather than elements.

All have third derivatives (for β = 1, slopes of the gradient) that are bounded in operator norm, whatever the
dimension. The error is a multiple of U; `d = m·n`, the factors of EGGROLL are Gaussian.

Source of the first: arXiv 2511.16652, appendix C.2. The other and all of EGGROLL's are worked out in docs/theory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from eggroll.theory.entry import INFINITE, Rank
from eggroll.theory.noise import mean_and_error, perturbations


@dataclass(frozen=True)
class Family:
    """A family of fitness functions, one for each shape.

    Args:
      kind: "radial" or "spectral".
      degree: β, so that the error falls as σ^β.
      critical: the exponent of d for EGGROLL of rank 1 and for Gaussian ES: with `σ ∝ d^(−α)` the update tends to
        the gradient just where α is larger.
    """

    name: str
    kind: str
    degree: float
    critical: tuple[float, float]

    def error(self, rank: Rank, rows: int, columns: int, sigma: float) -> float:
        """`‖g − ∇f(M)‖` over the norm of U."""
        if self.kind == "radial":
            return sigma**self.degree * radial_moment(rank, rows, columns, self.degree)
        return sigma**2 * spectral_moment(rank, rows, columns)

    def along(self, noise: Float[Array, "some m n"]) -> Float[Array, " some"]:
        """`⟨U, E⟩·c(E)` of drawn perturbations, whose mean is the error at σ = 1, averaged over all U of norm 1.

        The mean is the same for every U; averaged over U it has less variance: `‖E‖^(β+2)/d` and `tr((E·Eᵀ)²)/d`.
        """
        size = noise.shape[1] * noise.shape[2]
        if self.kind == "radial":
            return jnp.sum(noise**2, axis=(1, 2)) ** (self.degree / 2 + 1) / size
        gram = jnp.einsum("pik,pjk->pij", noise, noise, precision="highest")
        return jnp.sum(gram**2, axis=(1, 2)) / size


FAMILIES = (
    Family("⟨U, X⟩·‖X‖²", "radial", 2.0, (0.5, 0.5)),
    Family("⟨U, X⟩·‖X‖", "radial", 1.0, (0.5, 0.5)),
    Family("tr(X·Xᵀ·X·Uᵀ)", "spectral", 2.0, (0.5, 0.25)),
)


def norm_moment(size: int, degree: float) -> float:
    """`E‖v‖^degree` of a standard normal vector: `2^(k/2)·Γ((d+k)/2)/Γ(d/2)`."""
    return math.exp(degree / 2 * math.log(2) + math.lgamma((size + degree) / 2) - math.lgamma(size / 2))


def radial_moment(rank: Rank, rows: int, columns: int, degree: float) -> float:
    """`E[⟨U, E⟩²·‖E‖^β]` for ‖U‖ = 1; at ranks between 1 and infinity for β = 2 alone.

    Raises:
      ValueError: another β at such a rank, for which there is no closed form here.
    """
    size = rows * columns
    gaussian = norm_moment(size, degree + 2) / size
    if rank == INFINITE:
        return gaussian
    one = norm_moment(rows, degree + 2) / rows * norm_moment(columns, degree + 2) / columns
    if rank != 1 and degree != 2:
        raise ValueError(
            f"expected rank 1 or an infinite one for degree {degree}, got rank {rank}; choose one of these"
        )
    return gaussian + (one - gaussian) / rank


def spectral_moment(rank: Rank, rows: int, columns: int) -> float:
    """`E[⟨U, E⟩·tr(E·Eᵀ·E·Uᵀ)]`: `m + n + 1` for Gaussian noise, `(m+2)(n+2)` at rank 1, between them as 1/r."""
    gaussian = rows + columns + 1.0
    return gaussian + ((rows + 2.0) * (columns + 2.0) - gaussian) / rank


def measured(rank: int, side: int, pairs: int, seed: int) -> dict[str, tuple[float, float]]:
    """`‖g − ∇f(M)‖` of every family at σ = 1 on the library's own perturbations, and its standard error.

    Args:
      rank: 0 for Gaussian ES.
      side: of a square matrix.
    """
    along: dict[str, list[np.ndarray]] = {family.name: [] for family in FAMILIES}
    for noise in perturbations((side, side), rank, "normal", pairs, seed):
        for family in FAMILIES:
            along[family.name].append(np.asarray(family.along(noise), float))
    return {name: mean_and_error(np.concatenate(parts)) for name, parts in along.items()}
