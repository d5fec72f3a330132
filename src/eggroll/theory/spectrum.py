"""Figure `spectrum`: the averaged update has full rank, though every perturbation has rank r.

A layer `W` (m × n) with fitness `−½·mean ‖X·Wᵀ − Y‖²`, evaluated and updated by the library's own draws, products and
estimate.

Source: arXiv 2511.16652, section 4.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64

from eggroll.core.distribution import Plan
from eggroll.core.draws import draw_noise, perturb
from eggroll.core.estimate import estimate_gradient
from eggroll.core.lowrank import apply_perturbed
from eggroll.core.noise import seed_words
from eggroll.theory import style
from eggroll.theory.fitting import Check, at_least, near
from eggroll.theory.noise import plan_of

SHAPE, SIGMA, INPUTS = (96, 64), 0.05, 128
PAIRS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 4096, 16384)
SPECTRA = (4, 16, 64, 1024, 16384)
"""Pairs whose whole spectra are drawn."""
LEAST = 1e-6
"""A singular value counts from this share of the largest."""
METHODS = {"rank 1": 1, "rank 4": 4, "Gaussian ES": 0}
SIGNALS = ("full", "low", "none")
"""What fitness says: a gradient of full rank, one of rank 2, or nothing but chance."""

CHUNK = 128
"""Pairs at a time."""

Numbers = dict[str, Any]
Batch = tuple[Float[Array, "inputs n"], Float[Array, "inputs m"]]


def fitness(params: Any, x: Float[Array, "inputs n"], y: Float[Array, "inputs m"]) -> Array:
    """One member's: minus half the squared error of a linear layer."""
    return -jnp.mean(jnp.sum((x @ params["w"].T - y) ** 2, axis=1)) / 2


def chance(params: Any, x: Float[Array, "inputs n"], y: Float[Array, "inputs m"]) -> Array:
    """A fitness that hangs on the parameters, but so that no direction can be followed: the sine of a large number."""
    return jnp.sin(1e4 * jnp.sum(x @ params["w"].T * y))


def batch_of(signal: str, seed: int) -> Batch:
    """Inputs and targets, so that the gradient at W = 0, `mean y·xᵀ`, has full rank or rank 2."""
    draw = np.random.default_rng(seed).normal
    rows, columns = SHAPE
    x = draw(size=(INPUTS, columns))
    teacher = draw(size=(rows, columns)) if signal != "low" else draw(size=(rows, 2)) @ draw(size=(2, columns))
    return jnp.asarray(x, jnp.float32), jnp.asarray(x @ teacher.T / math.sqrt(columns), jnp.float32)


def averaged_updates(rank: int, populations: Sequence[int], signal: str, seed: int) -> list[Float64[np.ndarray, "m n"]]:
    """The library's estimate of the gradient from the first P pairs, for each P, at W = 0.

    A pair's noise and fitness do not hang on how many others there are, so that one pass serves all.

    Args:
      rank: of EGGROLL with its default law; 0 for Gaussian ES.
      populations: the P, ascending.
      signal: one of `SIGNALS`.
    """
    plan = plan_of(SHAPE, rank, "popcount" if rank else "normal")
    words, batch = jnp.array(seed_words(seed), jnp.int32), batch_of(signal, seed)
    total, found, waiting = np.zeros(SHAPE), [], list(populations)
    for first in range(0, populations[-1], CHUNK):
        pairs = jnp.arange(first, first + CHUNK, dtype=jnp.int32)
        weights = _weights(plan, chance if signal == "none" else fitness, words, pairs, batch)
        while waiting and waiting[0] <= first + CHUNK:
            within = jnp.where(pairs < waiting[0], weights, 0.0)
            found.append((total + np.asarray(_share(plan, words, pairs, within), float)) / waiting.pop(0))
        total += np.asarray(_share(plan, words, pairs, weights), float)
    return found


@functools.partial(jax.jit, static_argnames=("plan", "function"))
def _weights(plan: Plan, function: Any, words: Array, pairs: Array, batch: Batch) -> Float[Array, " pairs"]:
    """Half the difference of fitness between the two members of each pair."""
    params = {"w": jnp.zeros(SHAPE)}

    def member(own: Any, sigma: Array) -> Array:
        return apply_perturbed(function, perturb(plan, params, own, sigma), *batch)

    drawn = draw_noise(plan, seed=words, generation=jnp.int32(0), pairs=pairs)
    sigma = jnp.float32(SIGMA)
    return jax.vmap(lambda own: (member(own, sigma) - member(own, -sigma)) / 2)(drawn)


@functools.partial(jax.jit, static_argnames="plan")
def _share(plan: Plan, words: Array, pairs: Array, weights: Array) -> Float[Array, "m n"]:
    """`(1/σ)·Σ_p w_p·E_p`, by the library's estimate."""
    settings = {"seed": words, "generation": jnp.int32(0), "sigma": jnp.float32(SIGMA)}
    (share,) = estimate_gradient(plan, weights, pairs, **settings, population_size=2, chunk_pairs=CHUNK)
    if share is None:
        raise TypeError("expected the share of a leaf that is trained, got none")
    return share


def numerical_rank(singular: Float64[np.ndarray, " k"]) -> int:
    """How many singular values exceed `LEAST` times the largest."""
    return int(np.sum(singular > LEAST * singular[0]))


def effective_rank(singular: Float64[np.ndarray, " k"]) -> float:
    """`exp` of the entropy of the singular values as shares of their sum. Source: Roy & Vetterli (EUSIPCO 2007)."""
    share = singular / singular.sum()
    share = share[share > 0]
    return float(np.exp(-np.sum(share * np.log(share))))


def compute(seed: int, quick: bool) -> tuple[Numbers, list[Check]]:
    """The numbers of the figure, and its claims."""
    pairs = tuple(p for p in PAIRS if p <= 1024) if quick else PAIRS
    rows: Numbers = {signal: {} for signal in SIGNALS}
    for signal in SIGNALS:
        for name, rank in METHODS.items():
            updates = averaged_updates(rank, pairs, signal, seed)
            found = [np.linalg.svd(update, compute_uv=False) for update in updates]
            rows[signal][name] = {
                "numerical_rank": [numerical_rank(s) for s in found],
                "effective_rank": [effective_rank(s) for s in found],
                "spectra": {str(p): (s / s[0]).tolist() for p, s in zip(pairs, found, strict=True) if p in SPECTRA},
            }
    numbers = {"shape": list(SHAPE), "pairs": list(pairs), "signals": rows}
    return numbers, _checks(numbers)


def _checks(numbers: Numbers) -> list[Check]:
    pairs, smallest, checks = numbers["pairs"], min(numbers["shape"]), []
    for signal, rows in numbers["signals"].items():
        for name, own in rows.items():
            rank = METHODS[name] or smallest
            wrong = sum(found != min(p * rank, smallest) for p, found in zip(pairs, own["numerical_rank"], strict=True))
            checks.append(near(f"populations whose rank is not min(P·r, m, n), {signal}, {name}", wrong, 0, 0))
            share = own["effective_rank"][-1] / rows["Gaussian ES"]["effective_rank"][-1]
            if METHODS[name]:
                checks.append(at_least(f"effective rank over that of Gaussian ES, {signal}, {name}", share, 0.9))
    return checks


def draw(numbers: Numbers) -> Any:
    """Spectra at rank 1, numerical rank, and effective rank where fitness has a gradient of full rank, and none."""
    figure = style.new_figure(2, 2)
    spectra, rank, full, other = figure.subplots(2, 2).flat
    pairs, smallest = np.array(numbers["pairs"]), min(numbers["shape"])
    rows = numbers["signals"]["full"]
    for (count, own), colour in zip(rows["rank 1"]["spectra"].items(), style.SERIES, strict=False):
        index = np.arange(1, smallest + 1)
        spectra.semilogy(index, np.maximum(own, 1e-9), color=colour, label=f"P = {int(count):,}", linewidth=1.4)
        gaussian = rows["Gaussian ES"]["spectra"][count]
        spectra.semilogy(index, np.maximum(gaussian, 1e-9), color=colour, linestyle="--", linewidth=1)
    spectra.axhline(LEAST, color=style.GREY, linewidth=1)
    spectra.set_ylim(1e-9, 3)
    for (name, own), colour, mark in zip(rows.items(), style.SERIES, style.MARKS, strict=False):
        rank.loglog(pairs, own["numerical_rank"], mark, color=colour, label=name, markersize=5)
        wanted = np.minimum(pairs * (METHODS[name] or smallest), smallest)
        rank.loglog(pairs, wanted, color=colour, linewidth=1)
        full.semilogx(pairs, own["effective_rank"], marker=mark, color=colour, label=name, markersize=4)
        for signal, line in (("low", "-"), ("none", ":")):
            values = numbers["signals"][signal][name]["effective_rank"]
            label = name if line == "-" else None
            other.semilogx(pairs, values, marker=mark, color=colour, linestyle=line, label=label, markersize=4)
    for axis in (rank, full, other):
        axis.set_xticks([1, 16, 256, 4096], ["1", "16", "256", "4,096"])
        axis.minorticks_off()
    rank.set_yticks([1, 4, 16, 64], ["1", "4", "16", "64"])
    rank.minorticks_off()
    shape = f"{numbers['shape'][0]} × {numbers['shape'][1]}"
    style.finish(
        spectra, f"{shape}: rank 1 (dashed: Gaussian ES)", "number", "singular value / largest", legend="center"
    )
    style.finish(
        rank,
        "numerical rank (lines: min(P·r, m, n))",
        "pairs P",
        "values above 10⁻⁶ of the largest",
        legend="lower right",
    )
    style.finish(full, "a gradient of full rank", "pairs P", "effective rank", legend="lower right")
    style.finish(
        other, "a gradient of rank 2 (solid); chance (dotted)", "pairs P", "effective rank", legend="lower right"
    )
    return figure
