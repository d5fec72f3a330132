"""The expected updates of EGGROLL and of Gaussian ES on small fitness functions, to high precision.

`g = (1/σ)·E[f(M + σE)·E]`. On a sum of ridge functions, `f(W) = Σ_j v_j·φ(w_j·x)` (a layer with a linear read-out),
each `e_j·x` has the law of one entry times ‖x‖, so that the update is a one-dimensional integral, exact for Gaussian
factors. On a network with squared error there is no such form: there it is the coupled quasi-Monte Carlo of `quasi`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64

from eggroll.theory import entry, quasi
from eggroll.theory.entry import Rank

Function = Callable[[np.ndarray], np.ndarray]

FUNCTIONS: dict[str, Function] = {
    "tanh": np.tanh,
    "sine": np.sin,
    "bump": lambda z: np.exp(-(z**2)),
    "step": lambda z: (z > 0).astype(float),
}
"""Read-outs: three smooth ones, and one with a jump; all bounded, as the paper's theorem asks."""


@runtime_checkable
class Fitness(Protocol):
    """A fitness of one matrix, around its mean."""

    @property
    def weight(self) -> Float64[np.ndarray, "m n"]:
        """The mean."""
        ...

    def fitness(self, offset: Float64[np.ndarray, "*batch m n"]) -> Float64[np.ndarray, "*batch"]:
        """At `weight + offset`."""
        ...

    def gradient(self) -> Float64[np.ndarray, "m n"]:
        """At `weight`."""
        ...


@dataclass(frozen=True)
class Ridge:
    """`F(W) = Σ_j v_j·φ(w_j·x)`: one layer of named units, one input x, a linear read-out v."""

    weight: Float64[np.ndarray, "m n"]
    readout: Float64[np.ndarray, " m"]
    input: Float64[np.ndarray, " n"]
    function: str

    @classmethod
    def random(cls, function: str, seed: int, rows: int = 6, columns: int = 4) -> Ridge:
        """One whose units get numbers of order one."""
        draw = np.random.default_rng(seed).normal
        x = draw(size=columns)
        return cls(draw(size=(rows, columns)), draw(size=rows), x / np.linalg.norm(x), function)

    def fitness(self, offset: Float64[np.ndarray, "*batch m n"]) -> Float64[np.ndarray, "*batch"]:
        """F at `W + offset`."""
        return np.asarray(FUNCTIONS[self.function]((self.weight + offset) @ self.input) @ self.readout)

    def gradient(self, step: float = 1e-5) -> Float64[np.ndarray, "m n"]:
        """∇F at W, by central differences."""
        z, function = self.weight @ self.input, FUNCTIONS[self.function]
        return np.outer(self.readout * (function(z + step) - function(z - step)) / (2 * step), self.input)

    def update(self, rank: Rank, sigma: float, *, edgeworth: bool = False) -> Float64[np.ndarray, "m n"]:
        """The expected update: `v_j·x/‖x‖·E[s·φ(z_j + σ‖x‖s)]/σ`, with s one entry of the perturbation.

        Args:
          rank: of a perturbation with Gaussian factors; infinite for Gaussian ES.
          edgeworth: under the entry's density to order 1/r in place of its own.
        """
        length, z = float(np.linalg.norm(self.input)), self.weight @ self.input
        if self.function == "step":
            factor = step_factor(rank, z, sigma * length)
        else:
            factor = ridge_factor(rank, FUNCTIONS[self.function], z, sigma * length, edgeworth=edgeworth)
        return np.outer(self.readout * factor, self.input)


def ridge_factor(
    rank: Rank, function: Function, at: Float64[np.ndarray, " units"], scale: float, *, edgeworth: bool = False
) -> Float64[np.ndarray, " units"]:
    """`E[s·φ(z + scale·s)] / scale` for each z, with s an entry of a rank-r perturbation; `φ'(z)` as scale → 0.

    Args:
      at: the z, what each unit gets at the mean.
      scale: σ·‖x‖.
      edgeworth: under the entry's density to order 1/r in place of its own.
    """
    integrate = entry.edgeworth_expectation if edgeworth else entry.expectation
    return integrate(rank, lambda s: s[:, None] * function(at[None, :] + scale * s[:, None])) / scale


def step_factor(rank: Rank, at: Float64[np.ndarray, " units"], scale: float) -> Float64[np.ndarray, " units"]:
    """The same for the step, whose integrand jumps: `(1/scale)·∫ s·p_r(s) ds` from |z|/scale on."""
    nodes, weights = np.polynomial.legendre.leggauss(64)
    found = []
    for low in np.abs(at) / scale:
        edges = low + np.concatenate([[0.0], np.geomspace(0.05, 48.0, 24)])
        half, middle = np.diff(edges)[:, None] / 2, (edges[1:] + edges[:-1])[:, None] / 2
        s = middle + half * nodes
        found.append(float(np.sum(half * weights * s * entry.density(rank, s))) / scale)
    return np.array(found)


@dataclass(frozen=True)
class Network:
    """`F(W) = −½·mean_k (Σ_j v_j·tanh(w_j·x_k) − y_k)²`: a hidden layer W (m × n) and a fixed read-out v."""

    weight: Float64[np.ndarray, "m n"]
    readout: Float64[np.ndarray, " m"]
    inputs: Float64[np.ndarray, "k n"]
    targets: Float64[np.ndarray, " k"]

    @classmethod
    def random(cls, seed: int, rows: int = 3, columns: int = 2, data: int = 3) -> Network:
        """One with weights and data of order one."""
        draw = np.random.default_rng(seed).normal
        return cls(draw(size=(rows, columns)), draw(size=rows), draw(size=(data, columns)), draw(size=data))

    def fitness(self, offset: Float64[np.ndarray, "*batch m n"]) -> Float64[np.ndarray, "*batch"]:
        """F at `W + offset`."""
        hidden = np.tanh((self.weight + offset) @ self.inputs.T)
        error = np.einsum("...jk,j->...k", hidden, self.readout) - self.targets
        return np.asarray(-np.mean(error**2, axis=-1) / 2)

    def gradient(self) -> Float64[np.ndarray, "m n"]:
        """∇F at W."""
        hidden = np.tanh(self.weight @ self.inputs.T)
        error = (self.readout @ hidden - self.targets) / len(self.targets)
        return -((self.readout[:, None] * (1 - hidden**2) * error[None, :]) @ self.inputs)


def coupled_difference(
    function: Fitness, rank: int, sigma: float, *, count: int, shifts: int, seed: int
) -> Float64[np.ndarray, "shifts m n"]:
    """`g_EGGROLL − g_Gaussian`, once for each random shift of the points: their scatter is the error.

    Antithetic twice: E and −E, as the estimator itself, and the numbers behind the root mirrored. A linear fitness,
    whose update is the same at every rank, is taken off first: the gradient, so that little is left.

    Args:
      rank: of a perturbation with Gaussian factors, at least n − 1.
      count: points of each shift.
    """
    rows, columns = function.weight.shape
    dense, gradient = rows * columns, function.gradient()
    draw = np.random.default_rng(seed)

    def weighted(noise: np.ndarray) -> np.ndarray:
        odd = (function.fitness(sigma * noise) - function.fitness(-sigma * noise)) / 2
        remainder = odd - sigma * np.einsum("bij,ij->b", noise, gradient)
        return np.einsum("b,bij->ij", remainder, noise) / (sigma * len(noise))

    found = []
    for _ in range(shifts):
        dimensions = dense + quasi.root_dimensions(columns)
        uniform = quasi.points(count, dimensions, draw.uniform(size=dimensions))
        z = quasi.normals(uniform[:, :dense]).reshape(-1, rows, columns)
        roots = [quasi.wishart_root(u, rank, columns) for u in (uniform[:, dense:], 1 - uniform[:, dense:])]
        low = np.mean([weighted(z @ root.transpose(0, 2, 1)) for root in roots], axis=0)
        found.append(low - weighted(z))
    return np.stack(found)


def first_order(
    function: Fitness, sigma: float, *, count: int, shifts: int, seed: int
) -> Float64[np.ndarray, "shifts m n"]:
    """`c` in `g_r = g_∞ + c/r + …`, once for each random shift: `E[q(E)·f(M + σE)·E]/(4σ)` under Gaussian noise.

    The joint density of a rank-r perturbation with Gaussian factors is to order 1/r the Gaussian one times
    `1 + q/(4r)`, with `S = EᵀE` and `q = tr S² − 2(m+n+1)·tr S + mn(m+n+1)`: the fourth cumulants contracted with
    Hermite polynomials. For one entry it is He₄.
    """
    rows, columns = function.weight.shape
    dense, draw = rows * columns, np.random.default_rng(seed)
    found = []
    for _ in range(shifts):
        z = quasi.normals(quasi.points(count, dense, draw.uniform(size=dense))).reshape(-1, rows, columns)
        odd = (function.fitness(sigma * z) - function.fitness(-sigma * z)) / 2
        linear = np.einsum("b,bij->ij", odd, z) / count  # q leaves second moments alone: taken off, it halves the error
        remainder = odd - np.einsum("bij,ij->b", z, linear)
        found.append(np.einsum("b,bij->ij", remainder * edgeworth_weight(z), z) / (4 * sigma * count))
    return np.stack(found)


def edgeworth_weight(noise: Float64[np.ndarray, "count m n"]) -> Float64[np.ndarray, " count"]:
    """`q` of `first_order`."""
    rows, columns = noise.shape[1:]
    gram = np.einsum("bki,bkj->bij", noise, noise)
    trace, square = np.einsum("bii->b", gram), np.einsum("bij,bij->b", gram, gram)
    return square - 2 * (rows + columns + 1) * trace + rows * columns * (rows + columns + 1)


def norm_with_error(samples: Float64[np.ndarray, "shifts m n"]) -> tuple[float, float]:
    """The norm of the mean, and its standard error: that of the samples' parts along the mean."""
    mean = samples.mean(axis=0)
    norm = float(np.linalg.norm(mean))
    along = np.einsum("sij,ij->s", samples, mean) / norm
    return norm, float(along.std(ddof=1)) / len(samples) ** 0.5
