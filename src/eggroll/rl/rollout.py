"""Episodes: a policy in an environment until it is done, as one `while` loop that ends with the last episode.

Randomness: the key of an episode gives the reset's key and, by the step, those of action and environment; two members
with one key meet the same episode as long as they act alike (common random numbers).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from eggroll.rl.environments.base import Environment
from eggroll.rl.policy import OBSERVATION_LIMIT

RESET, ACT, MOVE = 0, 1, 2
"""Which of an episode's streams of random numbers."""


class Statistics(NamedTuple):
    """What is known of observations: how many, of each number the mean and the sum of squared deviations."""

    seen: Float[Array, ""]
    mean: Float[Array, " size"]
    deviations: Float[Array, " size"]


class Sums(NamedTuple):
    """Of the observations of some steps: how many, their sum and their sum of squares, about `Statistics.mean`."""

    seen: Float[Array, ""]
    total: Float[Array, " size"]
    squares: Float[Array, " size"]


class Episode(NamedTuple):
    """What an episode came to."""

    score: Float[Array, ""]  # sum of rewards; over several agents their mean
    steps: Int[Array, ""]
    sums: Sums | None


def no_statistics(size: int) -> Statistics:
    """Before anything was seen."""
    return Statistics(jnp.zeros(()), jnp.zeros(size), jnp.zeros(size))


def normalised(statistics: Statistics | None, observation: Array) -> Array:
    """(…, size): in standard deviations from the mean, within ±`OBSERVATION_LIMIT`; unchanged before two were seen."""
    if statistics is None:
        return observation
    variance = statistics.deviations / jnp.maximum(statistics.seen, 1.0)
    scale = jnp.where(statistics.seen > 1, jax.lax.rsqrt(variance + 1e-8), 1.0)
    mean = jnp.broadcast_to(statistics.mean, observation.shape)
    centred = (observation - mean) * jnp.broadcast_to(scale, observation.shape)
    limited = jnp.clip(centred, -OBSERVATION_LIMIT, OBSERVATION_LIMIT)
    return jnp.where(statistics.seen > 1, limited, observation)


def merged(statistics: Statistics, sums: Sums) -> Statistics:
    """With some more observations, whose sums are about the old mean.

    Source: Chan et al., Updating formulae and a pairwise algorithm for computing sample variances (1979).
    """
    count = statistics.seen + sums.seen
    shift = sums.total / jnp.maximum(count, 1.0)
    deviations = statistics.deviations + jnp.maximum(sums.squares - sums.total * shift, 0.0)
    return Statistics(count, statistics.mean + shift, deviations)


def run_episode(
    environment: Environment,
    act: Callable[[Any, Any], Any],
    key: Any,
    *,
    max_steps: int,
    statistics: Statistics | None = None,
    observe: bool = False,
) -> Episode:
    """One episode; under `vmap` the loop goes on until all of them are done.

    Args:
      act: (key, observation) → action.
      key: typed, of the episode.
      max_steps: after which it ends in any case.
      statistics: observations are normalised by them; None: not.
      observe: sum up the observations.
    """

    def fresh(observation: Array) -> Sums:
        rows = observation.reshape(-1, observation.shape[-1])
        centred = (
            rows - jnp.zeros_like(rows) if statistics is None else rows - jnp.broadcast_to(statistics.mean, rows.shape)
        )
        return Sums(jnp.float32(rows.shape[0]), centred.sum(0), jnp.square(centred).sum(0))

    def step(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        count, state, observation, _, score, sums = carry
        keys = jax.random.fold_in(key, count + 1)
        action = act(jax.random.fold_in(keys, ACT), normalised(statistics, observation))
        state, seen, reward, done = environment.step(jax.random.fold_in(keys, MOVE), state, action)
        if observe:
            sums = jax.tree.map(jnp.add, sums, fresh(observation))
        return count + 1, state, seen, done, score + jnp.mean(reward), sums

    state, observation = environment.reset(jax.random.fold_in(key, RESET))
    empty = jax.tree.map(jnp.zeros_like, fresh(observation)) if observe else None
    start = (jnp.int32(0), state, observation, jnp.bool_(False), jnp.float32(0), empty)
    end = jax.lax.while_loop(lambda carry: (carry[0] < max_steps) & ~carry[3], step, start)
    return Episode(end[4], end[0], end[5])


def run_episodes(environment: Environment, act: Callable[[Any, Any], Any], keys: Any, **settings: Any) -> Episode:
    """Several episodes side by side, (episodes,) on every leaf; as `run_episode`."""
    return jax.vmap(lambda key: run_episode(environment, act, key, **settings))(keys)


def record_episode(
    environment: Environment,
    act: Callable[[Any, Any], Any],
    key: Any,
    *,
    max_steps: int,
    statistics: Statistics | None = None,
) -> tuple[list[Any], float]:
    """One episode step by step, to look at.

    Returns:
      Its states in order, leaves in NumPy, and its score.
    """
    step = jax.jit(environment.step)
    choose = jax.jit(lambda key, observation: act(key, normalised(statistics, observation)))
    state, observation = jax.jit(environment.reset)(jax.random.fold_in(key, RESET))
    states, score, done = [jax.tree.map(np.asarray, state)], 0.0, False
    for count in range(max_steps):
        keys = jax.random.fold_in(key, count + 1)
        action = choose(jax.random.fold_in(keys, ACT), observation)
        state, observation, reward, done = step(jax.random.fold_in(keys, MOVE), state, action)
        states.append(jax.tree.map(np.asarray, state))
        score += float(np.mean(reward))
        if bool(done):
            break
    return states, score
