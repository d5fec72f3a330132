"""Figure `rank`: the expected update of EGGROLL tends to that of Gaussian ES as 1/r.

Source: arXiv 2511.16652, Theorem 4 and appendix D.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from jaxtyping import Float64

from eggroll.theory import moments, style
from eggroll.theory.entry import INFINITE, Rank
from eggroll.theory.fitting import Check, at_most, near, power_law
from eggroll.theory.updates import FUNCTIONS, Network, Ridge, coupled_difference, norm_with_error

RANKS = (1, 2, 4, 8, 11, 16, 23, 32, 45, 64, 91, 128)
FROM = 8
"""The rank from which slopes are fitted."""
SIGMA_RIDGE, SIGMA_CUBIC, SIGMAS_NETWORK = 0.5, 0.5, (0.3, 0.6)
CUBIC_SHAPE = (4, 3)

Numbers = dict[str, Any]


def random_cubic(seed: int, shape: tuple[int, int]) -> Float64[np.ndarray, "d d d"]:
    """A symmetric tensor of third derivatives, elements of order one."""
    size = shape[0] * shape[1]
    return moments.symmetrised(np.random.default_rng(seed).normal(size=(size, size, size)))


def exact_differences(seed: int) -> Numbers:
    """‖g_r − g_∞‖ over ranks, for a cubic by moments and for ridge functions by quadrature."""
    cubic, found = random_cubic(seed, CUBIC_SHAPE), {}
    for law in ("normal", "popcount", "signs"):
        kurtosis = moments.law_kurtosis(law)
        updates = {r: moments.cubic_update(r, SIGMA_CUBIC, cubic, CUBIC_SHAPE, kurtosis) for r in (*RANKS, INFINITE)}
        found[f"cubic, {law}"] = _distances(updates)
    for name in FUNCTIONS:
        ridge = Ridge.random(name, seed)
        found[name] = _distances({r: ridge.update(float(r), SIGMA_RIDGE) for r in (*RANKS, INFINITE)})
    return found


def _distances(updates: dict[Rank, Float64[np.ndarray, "m n"]]) -> list[float]:
    return [float(np.linalg.norm(updates[rank] - updates[INFINITE])) for rank in RANKS]


def network_differences(seed: int, sigma: float, count: int, shifts: int) -> Numbers:
    """The same for a network with squared error, by quasi-Monte Carlo, with standard errors; own points a rank."""
    network = Network.random(seed)
    pairs = [
        norm_with_error(coupled_difference(network, rank, sigma, count=count, shifts=shifts, seed=seed + rank))
        for rank in RANKS
    ]
    gradient = float(np.linalg.norm(network.gradient()))
    return {
        "sigma": sigma,
        "gradient_norm": gradient,
        "difference": [norm for norm, _ in pairs],
        "standard_error": [error for _, error in pairs],
    }


def enumerated_update(rank: int, sigma: float, fitness: Any, shape: tuple[int, int]) -> Float64[np.ndarray, "m n"]:
    """The expected update with signs as factors, by adding up every A and every B there is.

    Args:
      fitness: of (count, m, n) offsets.
    """
    total, count = np.zeros(shape), 0
    a_all = [np.reshape(signs, (shape[0], rank)) for signs in itertools.product((-1.0, 1.0), repeat=shape[0] * rank)]
    b_all = np.array(list(itertools.product((-1.0, 1.0), repeat=shape[1] * rank))).reshape(-1, shape[1], rank)
    for a in a_all:
        noise = np.einsum("ik,bjk->bij", a, b_all) / np.sqrt(rank)
        total += np.einsum("b,bij->ij", fitness(sigma * noise), noise)
        count += len(noise)
    return total / (count * sigma)


def quadratic_difference(seed: int, sigma: float = 0.5) -> float:
    """The largest part of `g_r − ∇f` on a random quadratic over ranks 1 to 3, with signs: 0 but for rounding."""
    draw, shape = np.random.default_rng(seed).normal, (2, 2)
    linear, square = draw(size=4), draw(size=(4, 4))

    def quadratic(offset: np.ndarray) -> np.ndarray:
        flat = offset.reshape(-1, 4)
        return flat @ linear + np.einsum("bi,ij,bj->b", flat, square, flat)

    updates = [enumerated_update(rank, sigma, quadratic, shape) for rank in (1, 2, 3)]
    return float(max(np.abs(update.reshape(-1) - linear).max() for update in updates))


def compute(seed: int, quick: bool) -> tuple[Numbers, list[Check]]:
    """The numbers of the figure, and its claims."""
    ranks, kept = np.array(RANKS, float), np.array(RANKS) >= FROM
    exact = exact_differences(seed)
    count, shifts = (2**11, 8) if quick else (2**14, 16)
    networks = [network_differences(seed + 1, sigma, count, shifts) for sigma in SIGMAS_NETWORK]
    slopes: Numbers = {name: power_law(ranks[kept], np.array(values)[kept]) for name, values in exact.items()}
    for own in networks:
        value, error = np.array(own["difference"]), np.array(own["standard_error"])
        slopes[f"network, σ = {own['sigma']}"] = power_law(ranks[kept], value[kept], error[kept])
    quadratic = quadratic_difference(seed)
    checks = [at_most("a quadratic's updates do not differ", quadratic, 1e-12)]
    checks += [near(f"slope of ‖g_r − g_∞‖, {name}", law.exponent, -1.0, 0.15) for name, law in slopes.items()]
    numbers = {
        "ranks": list(RANKS),
        "sigma_ridge": SIGMA_RIDGE,
        "sigma_cubic": SIGMA_CUBIC,
        "exact": exact,
        "networks": networks,
        "quadratic_largest_difference": quadratic,
        "slopes_from_rank_8": {name: {"slope": law.exponent, "error": law.error} for name, law in slopes.items()},
    }
    return numbers, checks


def draw(numbers: Numbers) -> Any:
    """The differences, in closed form, with error bars, and times r."""
    figure = style.new_figure(3)
    exact, measured, flat = figure.subplots(1, 3)
    ranks = np.array(numbers["ranks"])
    fitted = numbers["slopes_from_rank_8"]
    for (name, values), colour, mark in zip(
        numbers["exact"].items(), (*style.SERIES, style.BLACK), (*style.MARKS, "x"), strict=True
    ):
        label = f"{name} ({fitted[name]['slope']:.3f})"
        exact.loglog(ranks, values, marker=mark, color=colour, label=label, linewidth=1, markersize=4)
        flat.semilogx(ranks, ranks * values / (ranks[-1] * values[-1]), marker=mark, color=colour, markersize=4)
    for own, colour, mark in zip(numbers["networks"], style.SERIES, style.MARKS, strict=False):
        name = f"network, σ = {own['sigma']}"
        value = np.array(own["difference"]) / own["gradient_norm"]
        error = np.array(own["standard_error"]) / own["gradient_norm"]
        label = f"σ = {own['sigma']} ({fitted[name]['slope']:.3f} ± {fitted[name]['error']:.3f})"
        measured.errorbar(
            ranks, value, 2 * error, marker=mark, color=colour, label=label, capsize=3, linestyle="none", markersize=4
        )
        measured.plot(ranks, value[-1] * ranks[-1] / ranks, color=colour, linewidth=1, linestyle="--")
    measured.set_xscale("log")
    measured.set_yscale("log")
    exact.set_ylim(bottom=1e-4)
    for axis in (exact, measured, flat):
        style.whole_ticks(axis, [1, 2, 4, 8, 16, 32, 64, 128])
    style.finish(exact, "exact (slope from r = 8)", "rank r", "‖g_r − g_∞‖", legend="lower left")
    style.finish(
        measured,
        "network, squared error: bars are 2 standard errors",
        "rank r",
        "‖g_r − g_∞‖ / ‖∇f‖",
        legend="lower left",
        heading="(slope from r = 8), dashed: 1/r",
    )
    flat.axhline(1.0, color=style.GREY, linewidth=1)
    style.finish(
        flat,
        "r·‖g_r − g_∞‖, as a share of r = 128 (colours as at the left)",
        "rank r",
        "1 where the law is 1/r",
        legend=None,
    )
    return figure
