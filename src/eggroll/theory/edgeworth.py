"""Figure `edgeworth`: the expansion to order 1/r of density, score and update, and what it leaves.

Source: arXiv 2511.16652, appendix D (asymptotic rank analysis).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from eggroll.theory import entry, style
from eggroll.theory.entry import INFINITE
from eggroll.theory.fitting import Check, near, power_law
from eggroll.theory.score import grid
from eggroll.theory.updates import Network, Ridge, coupled_difference, first_order, norm_with_error

RANKS = (2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 128, 181, 256, 362, 512)
FROM, SHOWN, BOUND, SIGMA = 16, 8, 2.0, 0.5
"""Rank from which orders are fitted; the rank drawn; |x| within which the score is compared; σ of the updates."""

Numbers = dict[str, Any]


def remainders(rank: int) -> dict[str, float]:
    """Largest difference between what is exact and its expansion; of the score within |x| ≤ `BOUND`."""
    x = grid()
    inner = x[x <= BOUND]
    return {
        "density": float(np.max(np.abs(entry.density(rank, x) - entry.edgeworth_density(rank, x)))),
        "score times density": float(np.max(np.abs(entry.slope(rank, x) - entry.edgeworth_slope(rank, x)))),
        "score": float(np.max(np.abs(entry.score(rank, inner) - entry.edgeworth_score(rank, inner)))),
    }


def update_errors(function: str, rank: int, seed: int) -> tuple[float, float]:
    """‖g_r − g_∞‖ of a ridge function, and ‖g_r − its expansion‖."""
    ridge = Ridge.random(function, seed)
    exact = ridge.update(float(rank), SIGMA)
    gaussian, expanded = ridge.update(INFINITE, SIGMA), ridge.update(float(rank), SIGMA, edgeworth=True)
    return float(np.linalg.norm(exact - gaussian)), float(np.linalg.norm(exact - expanded))


def network_numbers(seed: int, count: int, shifts: int) -> Numbers:
    """`r·‖g_r − g_∞‖` of a network with squared error against the first-order term of its joint expansion."""
    network = Network.random(seed)
    ranks = (1, 2, 4, 8, 16, 32, 64, 128)
    pairs = [
        norm_with_error(rank * coupled_difference(network, rank, SIGMA, count=count, shifts=shifts, seed=seed + rank))
        for rank in ranks
    ]
    terms = first_order(network, SIGMA, count=4 * count, shifts=shifts, seed=seed)
    norm, error = float(np.linalg.norm(terms.mean(axis=0))), math.sqrt(float(terms.var(axis=0, ddof=1).sum()) / shifts)
    return {
        "sigma": SIGMA,
        "ranks": list(ranks),
        "rank_times_difference": [value for value, _ in pairs],
        "standard_error": [own for _, own in pairs],
        "first_order_norm": norm,
        "first_order_error": error,
    }


def compute(seed: int, quick: bool) -> tuple[Numbers, list[Check]]:
    """The numbers of the figure, and its claims."""
    ranks = np.array(RANKS, float)
    kept = ranks >= FROM
    rows = [remainders(rank) for rank in RANKS]
    left: Numbers = {name: [row[name] for row in rows] for name in rows[0]}
    without = {}
    for name in ("tanh", "sine", "bump"):
        pairs = [update_errors(name, rank, seed) for rank in RANKS]
        without[name], left[f"update, {name}"] = [first for first, _ in pairs], [second for _, second in pairs]
    orders = {name: power_law(ranks[kept], np.array(values)[kept]) for name, values in left.items()}
    checks = [near(f"order of the remainder, {name}", law.exponent, -2.0, 0.15) for name, law in orders.items()]
    network = network_numbers(seed + 1, 2**11 if quick else 2**14, 16)
    last, term = network["rank_times_difference"][-1], network["first_order_norm"]
    error = math.hypot(network["standard_error"][-1] / last, network["first_order_error"] / term)
    claim = "network: r·‖g_r − g_∞‖ at r = 128 over the first-order term, 5% and 4 standard errors"
    checks.append(near(claim, last / term, 1.0, 0.05 + 4 * error))
    x = np.linspace(-4, 4, 161)
    gaussian = entry.density(INFINITE, x), entry.slope(INFINITE, x), entry.score(INFINITE, x)
    exact = entry.density(SHOWN, x), entry.slope(SHOWN, x), entry.score(SHOWN, x)
    first = entry.edgeworth_density(SHOWN, x), entry.edgeworth_slope(SHOWN, x), entry.edgeworth_score(SHOWN, x)
    kinds = ("density", "score_times_density", "score")
    curves = {
        kind: {"exact_minus_gaussian": (e - g).tolist(), "expansion_minus_gaussian": (f - g).tolist()}
        for kind, g, e, f in zip(kinds, gaussian, exact, first, strict=True)
    }
    numbers = {
        "ranks": list(RANKS),
        "remainder": left,
        "update_difference_without_expansion": without,
        "orders_from_rank_16": {name: {"order": law.exponent, "error": law.error} for name, law in orders.items()},
        "network": network,
        "curves": {"rank": SHOWN, "x": x.tolist(), **curves},
    }
    return numbers, checks


def draw(numbers: Numbers) -> Any:
    """The corrections at one rank, the remainders over ranks, and the updates with and without."""
    figure = style.new_figure(3, 2, width=4.8)
    above, (remainder, update, network) = figure.subplots(2, 3)
    curves, x = numbers["curves"], np.array(numbers["curves"]["x"])
    for axis, kind, within, label in zip(above, _CURVES, (4.0, 4.0, 3.0), _CURVES.values(), strict=True):
        own, inside = curves[kind], np.abs(x) <= within
        axis.plot(x[inside], np.array(own["exact_minus_gaussian"])[inside], color=style.BLACK, label="exact")
        expansion = np.array(own["expansion_minus_gaussian"])[inside]
        axis.plot(x[inside], expansion, color=style.RED, linestyle="--", label="to order 1/r")
        place = "upper left" if kind == "score" else "upper right"
        style.finish(axis, f"{kind.replace('_', ' ')} minus Gaussian, r = {curves['rank']}", "x", label, legend=place)
    ranks, orders = np.array(numbers["ranks"]), numbers["orders_from_rank_16"]
    for name, colour, mark in zip(("density", "score times density", "score"), style.SERIES, style.MARKS, strict=False):
        label = f"{name} ({orders[name]['order']:.2f})"
        remainder.loglog(ranks, numbers["remainder"][name], marker=mark, color=colour, label=label, markersize=4)
    for name, colour, mark in zip(("tanh", "sine", "bump"), style.SERIES, style.MARKS, strict=False):
        label = f"{name} ({orders[f'update, {name}']['order']:.2f})"
        own, left = numbers["update_difference_without_expansion"][name], numbers["remainder"][f"update, {name}"]
        update.loglog(ranks, own, color=colour, linestyle=":", linewidth=1.5)
        update.loglog(ranks, left, marker=mark, color=colour, label=label, markersize=4)
    for axis in (remainder, update):
        style.whole_ticks(axis, [2, 8, 32, 128, 512])
    style.finish(remainder, "largest remainder (order from r = 16)", "rank r", "exact − expansion", legend="lower left")
    title = "ridge function's update (dotted: ‖g_r − g_∞‖)"
    style.finish(update, title, "rank r", "‖exact − expansion‖ (order from r = 16)", legend="lower left")
    _draw_network(network, numbers["network"])
    return figure


_CURVES = {"density": "p_r − φ", "score_times_density": "p_r′ − φ′", "score": "score + x"}


def _draw_network(axis: Any, own: Numbers) -> None:
    size, wide = own["first_order_norm"], 2 * own["first_order_error"] / own["first_order_norm"]
    axis.axhspan(1 - wide, 1 + wide, color=style.SKY, alpha=0.3, linewidth=0, label="first-order term")
    height, error = np.array(own["rank_times_difference"]) / size, 2 * np.array(own["standard_error"]) / size
    axis.errorbar(
        own["ranks"], height, error, marker="o", color=style.BLUE, linestyle="none", capsize=3, label="r·‖g_r − g_∞‖"
    )
    axis.set_xscale("log")
    axis.set_ylim(0, 1.3)
    style.whole_ticks(axis, own["ranks"])
    title = f"network, squared error, σ = {own['sigma']} (2 standard errors)"
    style.finish(axis, title, "rank r", "over the first-order term", legend="lower right")
