"""Figure `score`: density and score of one entry of a rank-r perturbation, and how fast they become Gaussian.

Source: arXiv 2511.16652, Figure 3 and Theorem 6.
"""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64

from eggroll.core.distribution import LowRank, make_plan
from eggroll.core.draws import Factors, draw_noise
from eggroll.core.noise import seed_words
from eggroll.theory import entry, style
from eggroll.theory.entry import INFINITE, Rank
from eggroll.theory.fitting import Check, at_most, near, power_law

SHOWN: tuple[Rank, ...] = (1, 2, 5, 10, 50, INFINITE)
RANKS = (1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 128, 181, 256, 362, 512)
FROM = 8
EDGES = np.array([-6, -4, -3, -2.5, -2, -1.5, -1, -0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3, 4, 6.0])
"""Of the bins in which drawn entries are counted."""

Numbers = dict[str, Any]


def drawn_entries(rank: int, pairs: int, seed: int) -> Float64[np.ndarray, " entries"]:
    """Independent entries of the library's own perturbations, law "normal": the diagonals of so many pairs."""
    side = max(rank, 32)
    plan = make_plan(LowRank(rank=rank, law="normal"), {"w": jnp.zeros((side, side))})
    words = jnp.array(seed_words(seed), jnp.int32)
    found = []
    for first in range(0, pairs, 256):
        chosen = jnp.arange(first, min(first + 256, pairs), dtype=jnp.int32)
        (own,) = draw_noise(plan, seed=words, generation=jnp.int32(0), pairs=chosen)
        if not isinstance(own, Factors):
            raise TypeError(f"expected factors, got {type(own).__name__}")
        found.append(np.einsum("pik,pik->pi", np.asarray(own.a, float), np.asarray(own.b, float)).reshape(-1))
    return np.concatenate(found) / math.sqrt(rank)


def histogram(rank: int, pairs: int, seed: int) -> Numbers:
    """Drawn entries by bin against the density: counts, what it expects, and chi-square per degree of freedom."""
    values = drawn_entries(rank, pairs, seed)
    counts = np.histogram(values, EDGES)[0]
    expected = entry.probabilities(rank, EDGES) * len(values)
    outside = len(values) - counts.sum(), len(values) - expected.sum()
    chi = float(np.sum((counts - expected) ** 2 / expected) + (outside[0] - outside[1]) ** 2 / max(outside[1], 1.0))
    return {"entries": len(values), "counts": counts.tolist(), "expected": expected.tolist(), "chi_square": chi}


def grid() -> Float64[np.ndarray, " points"]:
    """Where largest differences are looked for: close to 0, where the densities of low rank are steep, and out to 9."""
    return np.concatenate([np.logspace(-6, -1, 301), np.linspace(0.1, 9, 1500)])


def distances(rank: Rank, x: Float64[np.ndarray, " points"]) -> tuple[float, float, float]:
    """Largest difference from the Gaussian: of the density, of x times it, and of the score times it.

    Infinite where it is: density and score at rank 1.
    """
    density = float(np.max(np.abs(entry.density(rank, x) - entry.density(INFINITE, x))))
    times_x = float(np.max(np.abs(x * (entry.density(rank, x) - entry.density(INFINITE, x)))))
    slope = float(np.max(np.abs(entry.slope(rank, x) - entry.slope(INFINITE, x))))
    return (math.inf, times_x, math.inf) if rank == 1 else (density, times_x, slope)


def compute(seed: int, quick: bool) -> tuple[Numbers, list[Check]]:
    """The numbers of the figure, and its claims."""
    x, near_x = grid(), np.linspace(-4, 4, 161)
    rows = {
        name: list(column)
        for name, column in zip(_KINDS, zip(*(distances(r, x) for r in RANKS), strict=True), strict=True)
    }
    ranks = np.array(RANKS, float)
    kept, low = ranks >= FROM, (ranks >= 2) & (ranks <= FROM)
    slopes = {name: power_law(ranks[kept], np.array(values)[kept]) for name, values in rows.items()}
    from_two = {name: power_law(ranks[low], np.array(values)[low]) for name, values in rows.items()}
    pairs = 512 if quick else 2048
    samples = {str(r): histogram(int(r), pairs, seed + int(r)) for r in SHOWN if r != INFINITE}
    degrees = len(EDGES) - 1
    checks = [near(f"slope of the sup-norm distance, {name}", law.exponent, -1.0, 0.1) for name, law in slopes.items()]
    limit = degrees + 5 * math.sqrt(2 * degrees)
    checks += [
        at_most(f"chi-square of drawn entries, rank {r}", own["chi_square"], limit) for r, own in samples.items()
    ]
    numbers = {
        "ranks": list(RANKS),
        "distance": {name: [v if math.isfinite(v) else None for v in values] for name, values in rows.items()},
        "slopes_from_rank_8": {name: {"slope": law.exponent, "error": law.error} for name, law in slopes.items()},
        "slopes_ranks_2_to_8": {name: law.exponent for name, law in from_two.items()},
        "samples": {"edges": EDGES.tolist(), "degrees_of_freedom": degrees, **samples},
        "curves": {"x": near_x.tolist(), **{_name(r): _curves(r, near_x) for r in SHOWN}},
    }
    return numbers, checks


_KINDS = ("density", "x times density", "score times density")


def _name(rank: Rank) -> str:
    return "infinite" if rank == INFINITE else str(int(rank))


def _curves(rank: Rank, x: Float64[np.ndarray, " points"]) -> Numbers:
    """None where the curve is infinite."""
    finite = lambda values: [round(float(v), 9) if math.isfinite(v) else None for v in values]
    slope = entry.slope(rank, x)
    if rank <= 2:
        slope = np.where(x == 0, np.nan, slope)
    return {"density": finite(entry.density(rank, x)), "score_times_density": finite(slope)}


def draw(numbers: Numbers) -> Any:
    """Densities with the drawn entries, both forms of score times density, and distances over ranks."""
    figure = style.new_figure(2, 2)
    density, times_x, slope, distance = figure.subplots(2, 2).flat
    x, edges = np.array(numbers["curves"]["x"]), np.array(numbers["samples"]["edges"])
    looks = list(zip(numbers["curves"].items(), (None, *style.SERIES[:5], style.BLACK), strict=True))[1:]
    for (name, own), colour in looks:
        label = "r = ∞" if name == "infinite" else f"r = {name}"
        values = np.array([np.nan if v is None else v for v in own["density"]])
        dash = {"linestyle": "--", "zorder": 5} if name == "infinite" else {}
        density.plot(x, values, color=colour, label=label, linewidth=1.4, **dash)
        times_x.plot(x, np.where(x == 0, 0.0, x * values), color=colour, label=label, linewidth=1.4, **dash)
        score = np.array([np.nan if v is None else -v for v in own["score_times_density"]])
        slope.plot(x, score, color=colour, linewidth=1.4, **dash)
        if name in ("1", "5"):
            drawn = numbers["samples"][name]
            heights = np.array(drawn["counts"]) / drawn["entries"] / np.diff(edges)
            middle = (edges[1:] + edges[:-1]) / 2
            inside = np.abs(middle) <= 4
            density.plot(middle[inside], heights[inside], "o", color=colour, markersize=4, fillstyle="none")
    density.set_ylim(0, 1.0)
    slope.set_ylim(-1.2, 1.2)
    style.finish(density, "density of an entry (circles: drawn, in bins)", "x", "p_r(x)", legend="upper right")
    style.finish(times_x, "the paper's Figure 3", "x", "x · p_r(x)", legend="upper left")
    style.finish(slope, "−score × density; r = 1 diverges at 0", "x", "−p_r′(x)", legend=None)
    ranks, fitted = np.array(numbers["ranks"], float), numbers["slopes_from_rank_8"]
    for (name, values), colour, mark in zip(numbers["distance"].items(), style.SERIES, style.MARKS, strict=False):
        heights = np.array([np.nan if v is None else v for v in values])
        label = f"{name} ({fitted[name]['slope']:.3f})"
        distance.loglog(ranks, heights, marker=mark, color=colour, label=label, linewidth=1, markersize=4)
    distance.loglog(ranks, heights[-1] * ranks[-1] / ranks, color=style.GREY, linestyle="--", linewidth=1)
    style.whole_ticks(distance, [1, 2, 8, 32, 128, 512])
    style.finish(
        distance, "largest distance from the Gaussian (slope from r = 8)", "rank r", "sup norm", legend="lower left"
    )
    return figure
