"""Figure `variance`: the estimator's variance per pair, by rank and law, and what it comes to per unit of compute.

For a linear fitness a pair gives `⟨G, E⟩·E`, whose variance over ‖G‖² is `moments.energy − 1`: with Gaussian factors
`mn + 1 + 2(m+n+1)/r`, with signs `mn + 1 − 2/r`, with dense Gaussian noise `mn + 1`. Noise of standard deviation τ in
each member's fitness adds `τ²·mn/(2σ²)`, whatever rank and law.

Source: worked out in docs/theory; the cost model is that of `cost`.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from eggroll.runs.environment import environment
from eggroll.theory import style
from eggroll.theory.chips import CHIPS
from eggroll.theory.cost import measured_seconds, modelled_seconds
from eggroll.theory.fitting import Check, at_least, at_most, near
from eggroll.theory.moments import dense_energy, energy, law_kurtosis
from eggroll.theory.noise import mean_and_error, perturbations

RANKS = (1, 2, 4, 8, 0)
"""0 is dense noise."""
LAWS = ("normal", "popcount", "table_normal", "signs")
SIDES, DRAWN_SIDES = (8, 16, 32, 64, 128, 256), (8, 16, 32, 64)
NETWORK_SIDE, NETWORK_SIGMAS = 32, (0.1, 1.0)
TOKENS = (1, 4, 16, 64, 256, 1024)
LARGE, POPULATION = 8192, 1024
SMALL, SMALL_PAIRS, SMALL_TOKENS = (512, 512), 128, (1, 16)

Numbers = dict[str, Any]


def name_of(rank: int) -> str:
    """How tables call it."""
    return f"rank {rank}" if rank else "dense"


def linear_variance(rank: int, shape: tuple[int, int], law: str) -> float:
    """Variance of a pair's estimate over ‖G‖², linear fitness."""
    kurtosis = law_kurtosis(law)
    return (energy(rank, *shape, kurtosis) if rank else dense_energy(*shape, kurtosis)) - 1


def measured_linear(rank: int, side: int, law: str, pairs: int, seed: int) -> tuple[float, float]:
    """The same on the library's perturbations, for a random G, and its standard error."""
    gradient = np.random.default_rng(seed).normal(size=(side, side))
    unit = jnp.asarray(gradient / np.linalg.norm(gradient), jnp.float32)
    parts = [
        np.asarray(jnp.tensordot(e, unit, axes=2) ** 2 * jnp.sum(e**2, axis=(1, 2)), float)
        for e in perturbations((side, side), rank, law, pairs, seed)
    ]
    mean, error = mean_and_error(np.concatenate(parts))
    return mean - 1, error


@functools.cache
def network(seed: int) -> tuple[Float[Array, "w w"], Float[Array, " w"], Float[Array, "k w"], Float[Array, " k"]]:
    """A hidden matrix, a read-out, features and targets, of order one."""
    draw = np.random.default_rng(seed).normal
    sizes = (NETWORK_SIDE, NETWORK_SIDE), NETWORK_SIDE, (16, NETWORK_SIDE), 16
    weight, readout, features, targets = (jnp.asarray(draw(size=size), jnp.float32) for size in sizes)
    return weight, readout, features, targets


@functools.partial(jax.jit, static_argnames="seed")
def _halves(noise: Float[Array, "some w w"], sigma: Array, seed: int) -> Float[Array, " some"]:
    """Half the difference of a pair's fitness over σ: `−½·mean (v·tanh(W·h/√w)/√w − y)²`."""
    weight, readout, features, targets = network(seed)

    def fitness(moved: Array) -> Array:
        hidden = jnp.tanh(features @ moved.T / math.sqrt(NETWORK_SIDE))
        return -jnp.mean((hidden @ readout / math.sqrt(NETWORK_SIDE) - targets) ** 2) / 2

    pair = lambda e: (fitness(weight + sigma * e) - fitness(weight - sigma * e)) / (2 * sigma)
    return jax.vmap(pair)(noise)


def network_variance(rank: int, law: str, sigma: float, pairs: int, seed: int) -> tuple[float, float]:
    """Variance of a pair's estimate over the squared norm of its mean, on the network; and its standard error.

    The squared norm of the mean is had without bias from two halves of the pairs.
    """
    squares, sums, count = [], np.zeros((2, NETWORK_SIDE, NETWORK_SIDE)), 0
    for noise in perturbations((NETWORK_SIDE, NETWORK_SIDE), rank, law, pairs, seed):
        weight = _halves(noise, jnp.float32(sigma), seed)
        squares.append(np.asarray(weight**2 * jnp.sum(noise**2, axis=(1, 2)), float))
        for half in (0, 1):
            own = jnp.einsum("p,pij->ij", weight[half::2], noise[half::2], precision="highest")
            sums[half] += np.asarray(own, float)
        count += len(weight)
    signal = float(np.sum(sums[0] * sums[1])) / (count / 2) ** 2
    mean, error = mean_and_error(np.concatenate(squares))
    return mean / signal - 1, error / signal


def linear_numbers(pairs: int, seed: int) -> Numbers:
    """Closed form and measurement of the linear case over square shapes."""
    cases = [(rank, "normal") for rank in RANKS] + [(1, law) for law in LAWS if law != "normal"]
    found: Numbers = {}
    for rank, law in cases:
        pairs_here = {side: min(pairs, 2**24 // side**2) for side in DRAWN_SIDES}
        drawn = [measured_linear(rank, side, law, pairs_here[side], seed + side) for side in DRAWN_SIDES]
        found[f"{name_of(rank)}, {law}"] = {
            "closed_form": [linear_variance(rank, (side, side), law) for side in SIDES],
            "measured": [mean for mean, _ in drawn],
            "standard_error": [error for _, error in drawn],
        }
    return found


def modelled_work(chip: str, dtype: str, side: int, pairs: int) -> Numbers:
    """Variance times modelled time, linear fitness, normal law, by rank over tokens; absolute, in seconds."""
    return {
        name_of(rank): [
            linear_variance(rank, (side, side), "normal")
            / side**2
            * sum(modelled_seconds(CHIPS[chip], dtype, (side, side), rank=rank, pairs=pairs, tokens=tokens))
            for tokens in TOKENS
        ]
        for rank in RANKS
    }


def machine_numbers(repeats: int) -> Numbers:
    """Seconds of a generation on this machine, and variance times seconds, by tokens and rank."""
    found: Numbers = {}
    for tokens in SMALL_TOKENS:
        seconds = measured_seconds(SMALL, RANKS, pairs=SMALL_PAIRS, tokens=tokens, repeats=repeats)
        work = {rank: time * linear_variance(rank, SMALL, "popcount") for rank, time in seconds.items()}
        found[str(tokens)] = {
            "seconds": {name_of(rank): time for rank, time in seconds.items()},
            "variance_times_seconds_over_rank_1": {name_of(rank): own / work[1] for rank, own in work.items()},
        }
    return found


def compute(seed: int, quick: bool) -> tuple[Numbers, list[Check]]:
    """The numbers of the figure, and its claims."""
    linear = linear_numbers(2**11 if quick else 2**14, seed)
    pairs = 2**12 if quick else 2**15
    small: Numbers = {}
    for sigma in NETWORK_SIGMAS:
        for law in LAWS:
            rows = [network_variance(rank, law, sigma, pairs, seed) for rank in RANKS]
            small[f"σ = {sigma}, {law}"] = {"variance": [v for v, _ in rows], "standard_error": [e for _, e in rows]}
    numbers = {
        "ranks": [name_of(rank) for rank in RANKS],
        "law_kurtosis": {law: law_kurtosis(law) for law in LAWS},
        "sides": list(SIDES),
        "linear": linear,
        "network": {"side": NETWORK_SIDE, **small},
        "modelled": {
            "chip": CHIPS["h100"].name,
            "dtype": "bfloat16",
            "side": LARGE,
            "population_size": POPULATION,
            "tokens": list(TOKENS),
            "variance_times_seconds": modelled_work("h100", "bfloat16", LARGE, POPULATION // 2),
        },
        "this_machine": {"environment": environment(), "shape": list(SMALL), "pairs": SMALL_PAIRS}
        | machine_numbers(3 if quick else 9),
    }
    return numbers, _checks(numbers)


def _checks(numbers: Numbers) -> list[Check]:
    checks = []
    for name, own in numbers["linear"].items():
        triples = zip(own["closed_form"], own["measured"], own["standard_error"], strict=False)
        largest = max(abs(wanted - mean) / error for wanted, mean, error in triples)
        checks.append(near(f"closed form against drawn, in standard errors, {name}", largest, 0, 5))
    signs, dense = (numbers["linear"][name]["closed_form"][-1] for name in ("rank 1, signs", "dense, normal"))
    checks.append(at_most("variance of rank 1 with signs over that of dense Gaussian noise", signs / dense, 1.0))
    near_linear = numbers["network"][f"σ = {NETWORK_SIGMAS[0]}, normal"]["variance"]
    wanted = linear_variance(1, (NETWORK_SIDE,) * 2, "normal") / linear_variance(0, (NETWORK_SIDE,) * 2, "normal")
    checks.append(near("network, small σ: rank 1 over dense", near_linear[0] / near_linear[-1], wanted, 0.1))
    work = numbers["modelled"]["variance_times_seconds"]
    checks += [
        at_least(f"modelled work over rank 1, one token, {name}", work[name][0] / work["rank 1"][0], 1.0)
        for name in work
    ]
    checks.append(
        near("modelled work of rank 2 over rank 1, most tokens", work["rank 2"][-1] / work["rank 1"][-1], 1, 0.01)
    )
    seconds = numbers["this_machine"]["1"]["seconds"]
    checks.append(
        at_least("seconds of dense noise over rank 1, here, one token", seconds["dense"] / seconds["rank 1"], 2.0)
    )
    return checks


def draw(numbers: Numbers) -> Any:
    """Linear variance over shapes, the network's by law and rank, and variance times cost, modelled and measured."""
    figure = style.new_figure(2, 2, width=5.4)
    linear, small, modelled, here = figure.subplots(2, 2).flat
    sides, dense = np.array(numbers["sides"]), np.array(numbers["linear"]["dense, normal"]["closed_form"])
    looks = zip(
        numbers["linear"].items(), (*style.SERIES, style.BLACK, style.GREY), (*style.MARKS, "x", "*"), strict=True
    )
    for (name, own), colour, mark in looks:
        linear.semilogx(sides, own["closed_form"] / dense, color=colour, linewidth=1.2)
        few = len(own["measured"])
        height, error = own["measured"] / dense[:few], 2 * np.array(own["standard_error"]) / dense[:few]
        linear.errorbar(
            sides[:few], height, error, marker=mark, color=colour, linestyle="none", markersize=4, label=name
        )
    style.whole_ticks(linear, sides.tolist())
    style.finish(
        linear, "linear fitness (lines: closed form)", "m = n", "variance of a pair / dense Gaussian", columns=2
    )
    _draw_network(small, numbers)
    work = {name: np.array(own) for name, own in numbers["modelled"]["variance_times_seconds"].items()}
    for (name, own), colour, mark in zip(work.items(), style.SERIES, style.MARKS, strict=False):
        modelled.loglog(numbers["modelled"]["tokens"], own / work["rank 1"], marker=mark, color=colour, label=name)
    style.whole_ticks(modelled, numbers["modelled"]["tokens"])
    place = f"{numbers['modelled']['chip']}, {numbers['modelled']['dtype']}, width {numbers['modelled']['side']}"
    style.finish(
        modelled,
        f"linear fitness, model: {place}",
        "tokens a member",
        "variance × seconds / rank 1",
        legend="upper right",
    )
    _draw_machine(here, numbers["this_machine"])
    return figure


def _draw_network(axis: Any, numbers: Numbers) -> None:
    for (sigma, fill), shift in zip(zip(NETWORK_SIGMAS, ("full", "none"), strict=True), (-0.12, 0.12), strict=True):
        for law, colour, mark in zip(LAWS, style.SERIES, style.MARKS, strict=False):
            own = numbers["network"][f"σ = {sigma}, {law}"]
            places = np.arange(len(RANKS)) + shift
            error = 2 * np.array(own["standard_error"])
            look = {"color": colour, "marker": mark, "fillstyle": fill, "linestyle": "none", "markersize": 5}
            axis.errorbar(places, own["variance"], error, label=law if fill == "full" else None, **look)
    axis.set_xticks(np.arange(len(RANKS)), numbers["ranks"])
    title = f"network, hidden {numbers['network']['side']}²: filled σ = {NETWORK_SIGMAS[0]}, hollow {NETWORK_SIGMAS[1]}"
    style.finish(axis, title, "perturbation", "variance of a pair / ‖mean‖²")


def _draw_machine(axis: Any, machine: Numbers) -> None:
    for tokens, colour, mark in zip(SMALL_TOKENS, style.SERIES, style.MARKS, strict=False):
        own = machine[str(tokens)]["variance_times_seconds_over_rank_1"]
        places = np.arange(len(own))
        axis.semilogy(places, list(own.values()), marker=mark, color=colour, label=f"{tokens} a member", linewidth=1)
        axis.set_xticks(places, list(own))
    axis.axhline(1.0, color=style.GREY, linewidth=1)
    shape = f"{machine['shape'][0]} × {machine['shape'][1]}, {2 * machine['pairs']} members"
    processor = machine["environment"]["processor"]
    style.finish(
        axis, f"{shape}, on {processor}", "", "variance × seconds / rank 1", legend="upper left", heading="tokens"
    )
