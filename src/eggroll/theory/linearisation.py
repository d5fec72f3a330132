"""Figure `linearisation`: when the update tends to the gradient as the dimension grows, and when it does not.

Source: arXiv 2511.16652, Theorems 1 to 3.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from eggroll.theory import style
from eggroll.theory.entry import INFINITE
from eggroll.theory.families import FAMILIES, Family, measured
from eggroll.theory.fitting import Check, near, power_law
from eggroll.theory.tangent import WideNetwork, kernel_error, nonlinearity, update_error

SIDES = (4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
"""Of square matrices; d is their square."""
START, FIRST = 0.2, 4
"""σ at the first side; the exponents' fits start at side 128."""
ALPHAS = (0.125, 0.25, 0.5, 0.75)
ALPHAS_WIDE = (-0.125, 0.0, 0.125)
SIGMA_WIDE = 0.3
METHODS: dict[str, tuple[float, int]] = {"EGGROLL rank 1": (1.0, 1), "Gaussian ES": (INFINITE, 0)}
"""Name → rank in closed forms, and rank where the library draws (0: elementwise)."""

Numbers = dict[str, Any]


def sigma_at(alpha: float, side: int) -> float:
    """`σ·d^α` held at what it is for the first side."""
    return START * (side / FIRST) ** (-2 * alpha)


def predicted_exponent(family: Family, method: str, alpha: float) -> float:
    """The power of d that the error grows by: `β·(α_c − α)`."""
    critical = family.critical[list(METHODS).index(method)]
    return family.degree * (critical - alpha)


def family_numbers(largest: int, numbers: int, seed: int) -> Numbers:
    """Errors over the dimension for every family, α and method; on the library's own noise up to side `largest`.

    Args:
      numbers: of dense noise that are drawn for each method and side.
    """
    sides = [side for side in SIDES if side <= largest]
    found: Numbers = {family.name: {} for family in FAMILIES}
    for method, (rank, drawn) in METHODS.items():
        samples = {side: measured(drawn, side, min(2**15, numbers // side**2), seed) for side in sides}
        for family in FAMILIES:
            for alpha in ALPHAS:
                scale = np.array([sigma_at(alpha, side) ** family.degree for side in sides])
                mean, error = np.array([samples[side][family.name] for side in sides]).T
                found[family.name][f"{method}, α = {alpha}"] = {
                    "error": [family.error(rank, side, side, sigma_at(alpha, side)) for side in SIDES],
                    "measured": (scale * mean).tolist(),
                    "standard_error": (scale * error).tolist(),
                }
    return found


def wide_numbers(widths: tuple[int, ...], measured_widths: tuple[int, ...], pairs: int, seed: int) -> Numbers:
    """Of the network family: errors of update and kernel, and the nonlinearity measured with all leaves perturbed."""
    found: Numbers = {"widths": list(widths), "measured_widths": list(measured_widths)}
    networks = {width: WideNetwork.random(width, seed) for width in widths}
    for method, (rank, drawn) in METHODS.items():
        for alpha in ALPHAS_WIDE:
            sigma = {width: SIGMA_WIDE * (width / widths[0]) ** (-2 * alpha) for width in widths}
            found[f"{method}, α = {alpha}"] = {
                "update_error": [update_error(networks[w], rank, sigma[w]) for w in widths],
                "kernel_error": [kernel_error(networks[w], rank, sigma[w]) for w in widths],
                "nonlinearity": [nonlinearity(networks[w], drawn, sigma[w], pairs, seed) for w in measured_widths],
            }
    small = networks[widths[-1]]
    ratio = update_error(small, 1.0, 0.02) / update_error(small, INFINITE, 0.02)
    return found | {"ratio_rank_1_to_gaussian_at_small_sigma": ratio}


def compute(seed: int, quick: bool) -> tuple[Numbers, list[Check]]:
    """The numbers of the figure, and its claims."""
    families = family_numbers(32 if quick else 128, 2**20 if quick else 2**25, seed)
    widths = (32, 64, 128, 256) if quick else (32, 64, 128, 256, 512, 1024, 2048)
    wide = wide_numbers(widths, widths[: 3 if quick else 4], 64 if quick else 256, seed)
    dimension, checks, exponents = np.array(SIDES, float) ** 2, [], {}
    late = dimension >= 128**2
    for family in FAMILIES:
        for name, own in families[family.name].items():
            method, alpha = name.split(", α = ")
            wanted = predicted_exponent(family, method, float(alpha))
            law = power_law(dimension[late], np.array(own["error"])[late])
            exponents[f"{family.name}, {name}"] = {"exponent": law.exponent, "predicted": wanted}
            checks.append(near(f"power of d, {family.name}, {name}", law.exponent, wanted, 0.02))
    checks += _against_samples(families) + _wide_checks(wide)
    numbers = {
        "sides": list(SIDES),
        "sigma_at_first_side": START,
        "families": families,
        "exponents_from_side_128": exponents,
        "network": wide,
    }
    return numbers, checks


def _against_samples(families: Numbers) -> list[Check]:
    """The closed forms lie within five standard errors of what the library's perturbations give."""
    checks = []
    for family, rows in families.items():
        for name, own in rows.items():
            if name.endswith(f"= {ALPHAS[0]}"):
                pairs = zip(own["error"], own["measured"], own["standard_error"], strict=False)
                largest = max(abs(exact - mean) / error for exact, mean, error in pairs)
                checks.append(near(f"closed form against drawn, in standard errors, {family}, {name}", largest, 0, 5))
    return checks


def _wide_checks(wide: Numbers) -> list[Check]:
    widths = np.array(wide["widths"], float)
    checks = [near("error at rank 1 over Gaussian, small σ", wide["ratio_rank_1_to_gaussian_at_small_sigma"], 3, 0.1)]
    for method in METHODS:
        for alpha, within in ((0.0, 0.1), (0.125, 0.1)):
            law = power_law(widths**2, np.array(wide[f"{method}, α = {alpha}"]["update_error"]))
            claim = f"power of d of the network's update error, {method}, α = {alpha}"
            checks.append(near(claim, law.exponent, -2 * alpha, within))
    return checks


def draw(numbers: Numbers) -> Any:
    """One panel for each family, three for the network."""
    figure = style.new_figure(3, 2)
    above, below = figure.subplots(2, 3)
    dimension = np.array(numbers["sides"], float) ** 2
    for axis, family in zip(above, FAMILIES, strict=True):
        for alpha, colour, mark in zip(ALPHAS, style.SERIES, style.MARKS, strict=False):
            for method, line in zip(METHODS, ("-", "--"), strict=True):
                own = numbers["families"][family.name][f"{method}, α = {alpha}"]
                label = f"α = {alpha}" if line == "-" else None
                axis.loglog(dimension, own["error"], color=colour, linestyle=line, label=label, linewidth=1.3)
                few, fill = len(own["measured"]), "full" if line == "-" else "none"
                look = {"color": colour, "marker": mark, "markersize": 4, "linestyle": "none", "fillstyle": fill}
                axis.errorbar(dimension[:few], own["measured"], 2 * np.array(own["standard_error"]), **look)
        low, gaussian = family.critical
        title = f"{family.name}: critical α {low} (rank 1), {gaussian} (Gaussian)"
        style.finish(axis, title, "d = mn", "‖g − ∇f‖ / ‖U‖", legend="lower left", columns=2)
    wide = numbers["network"]
    for axis, kind, title, label in zip(below, _WIDE, _WIDE.values(), _WIDE_LABELS, strict=True):
        _draw_network(axis, wide, kind)
        style.finish(axis, f"network, critical α 0: {title}", "d = w²", label, legend="lower left")
    line = (
        "σ·d^α held. Solid, filled: EGGROLL rank 1; dashed, hollow: Gaussian ES; marks above: the library's own draws"
    )
    figure.suptitle(line, fontsize=11)
    return figure


_WIDE = {
    "update_error": "update (exact)",
    "kernel_error": "a step's effect (exact)",
    "nonlinearity": "all leaves (drawn)",
}
_WIDE_LABELS = ("‖g − ∇f‖ / ‖∇f‖", "distance from the tangent kernel", "nonlinear part / linear part")


def _draw_network(axis: Any, wide: Numbers, kind: str) -> None:
    for alpha, colour, mark in zip(ALPHAS_WIDE, (style.RED, style.BLUE, style.GREEN), style.MARKS, strict=False):
        for method, line in zip(METHODS, ("-", "--"), strict=True):
            own, fill = wide[f"{method}, α = {alpha}"][kind], "full" if line == "-" else "none"
            dimension = np.array(wide["widths"], float)[: len(own)] ** 2
            look = {"color": colour, "linestyle": line, "marker": mark, "markersize": 4, "fillstyle": fill}
            axis.loglog(dimension, own, label=f"α = {alpha}" if line == "-" else None, linewidth=1.3, **look)
