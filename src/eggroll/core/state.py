"""What a strategy hands out: its state, the members of a generation, and what that generation was like."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from eggroll.core import noise
from eggroll.core.fitness import count_nan


def seed_words(seed: int) -> Array:
    """The seed of a `State`: (2,) int32, of a number in [0, 2⁶⁴)."""
    return jnp.asarray(noise.seed_words(seed), jnp.int32)


class State(NamedTuple):
    """Everything that a run carries from one generation to the next; a pytree."""

    params: Any  # the mean, as passed to init
    opt_state: Any  # of the optax optimiser
    seed: Array  # (2,) int32 words
    generation: Array  # () int32, from 0


class Members(NamedTuple):
    """Who is to be evaluated: integers and keys, never weights."""

    member: Array  # (members,) int32, 0 … population_size − 1
    pair: Array  # (members,) int32
    sign: Array  # (members,) int32, +1 or −1
    group: Array  # (members,) int32
    key: Array  # (members,) random keys; one for each group
    seed: Array  # (2,) int32
    generation: Array  # () int32
    noise_generation: Array  # () int32, the generation whose noise they have; another only under noise_reuse
    sigma: Array  # () float32, weight units


class Info(NamedTuple):
    """What a generation was like. Mean, max, min and std are over the finite fitnesses."""

    fitness: Array  # (members,) float32, raw; averaged over prompts where there are several
    fitness_mean: Array  # () float32
    fitness_max: Array  # () float32
    fitness_min: Array  # () float32
    fitness_std: Array  # () float32
    nan_count: Array  # () int32
    sigma: Array  # () float32, weight units
    generation: Array  # () int32, the generation that was evaluated


def summarise(scores: Array, sigma: Array, generation: Array) -> Info:
    """The statistics of a generation; NaN where no fitness is finite."""
    fitness = scores if scores.ndim == 1 else jnp.nanmean(scores, axis=tuple(range(1, scores.ndim)))
    finite = jnp.where(jnp.isfinite(fitness), fitness, jnp.nan)
    return Info(
        fitness,
        jnp.nanmean(finite),
        jnp.nanmax(finite),
        jnp.nanmin(finite),
        jnp.nanstd(finite),
        count_nan(scores),
        sigma,
        generation,
    )
