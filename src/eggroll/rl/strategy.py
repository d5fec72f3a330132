"""The evolution strategy that settings describe: schedules, noise for leaves that are no plain matrices, fitness."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from eggroll.core.distribution import Distribution, FullRank, LowRank, leaf_paths
from eggroll.core.errors import UsageError
from eggroll.core.population import key_of
from eggroll.core.strategy import EvolutionStrategy
from eggroll.rl.config import SearchConfig
from eggroll.rl.environments.base import Environment
from eggroll.rl.environments.registry import make
from eggroll.rl.policy import Policy, make_policy, make_team_policy
from eggroll.rl.rollout import Episode, Statistics, run_episodes
from eggroll.runs.evolution import learning_rate_at, mesh_of, sigma_at

PARAMETERS, EPISODES = 0x7061, 0x6570
"""Which of a run's random numbers: start parameters, and episodes of its evaluations."""


class Aux(NamedTuple):
    """What a member's episodes came to beside its fitness."""

    steps: Any  # () int32
    sums: Any  # Sums over its observations, or None


class Setup(NamedTuple):
    """An environment and the policy for it."""

    environment: Environment
    policy: Policy
    max_steps: int


def setup(config: SearchConfig) -> Setup:
    """What settings train.

    Raises:
      UsageError: there is no such environment or policy.
    """
    environment = make(getattr(config, "env", ""), max_steps=config.episode_length or None)
    hidden, choice = getattr(config, "hidden", ()), {"deterministic": config.deterministic}
    if bool(environment.agents) != (config.job == "marl"):
        kind, other = ("one agent", "marl") if environment.agents else ("several agents", "rl")
        raise UsageError(
            f"expected an environment with {kind} for eggroll {config.job}, got {environment.name}; use eggroll {other}"
        )
    if environment.agents:
        shared = getattr(config, "parameters", "shared") == "shared"
        policy = make_team_policy(environment, shared=shared, hidden=hidden, **choice)
    else:
        policy = make_policy(environment, network=getattr(config, "policy", ""), hidden=hidden, **choice)
    return Setup(environment, policy, environment.max_steps)


def start_parameters(config: SearchConfig, policy: Policy) -> Any:
    """The mean at generation 0."""
    return jax.jit(policy.init)(key_of(config.seed, PARAMETERS))


def make_strategy(config: SearchConfig, params: Any) -> EvolutionStrategy:
    """The strategy; its chunk size is that of the settings.

    Args:
      params: any start parameters, for their shapes.
    """
    kinds: dict[str, Callable[..., Any]] = {"sgd": optax.sgd, "adam": optax.adam, "adamw": optax.adamw}
    return EvolutionStrategy(
        kinds[config.optimizer](lambda generation: learning_rate_at(config, generation)),
        population_size=config.population_size,
        sigma=lambda generation: sigma_at(config, generation),
        distribution=distribution_for(config, params),
        shaping=config.shaping,
        group_size=2 if config.common_random_numbers == "pair" else None,
        chunk_size=config.chunk_size,
        mesh=mesh_of(config, most=None if config.seeds == 1 else 1),  # seeds that share a program share one device
        update=config.update,
    )


def distribution_for(config: SearchConfig, params: Any) -> Distribution:
    """Low rank where a matrix has room for it.

    A side shorter than the rank would hold no more than the whole matrix does, which then gets elementwise noise; a
    leaf of three or more axes counts as a matrix whose columns are its last axis.
    """
    if config.algorithm_name == "openes":
        return FullRank()
    split = {}
    for path, leaf in zip(leaf_paths(params), jax.tree.leaves(params), strict=True):
        shape = np.shape(leaf)
        if len(shape) < 2:
            continue
        if min(math.prod(shape[:-1]), shape[-1]) < config.rank:
            split[path] = 0
        elif len(shape) > 2:
            split[path] = len(shape) - 1
    return LowRank(rank=config.rank, split=split)


def make_fitness(config: SearchConfig, made: Setup) -> Callable[..., tuple[Any, Aux]]:
    """(parameters, key[, statistics]) → (mean return of the member's episodes, `Aux`)."""
    observe = bool(getattr(config, "normalize_observations", False))

    def fitness(params: Any, key: Any, statistics: Statistics | None = None) -> tuple[Any, Aux]:
        episode = episodes(made, made.policy.act, params, jax.random.split(key, config.episodes), statistics, observe)
        sums = jax.tree.map(lambda each: each.sum(0), episode.sums)
        return episode.score.mean(), Aux(episode.steps.sum(), sums)

    return fitness


def episodes(
    made: Setup,
    act: Callable[[Any, Any, Any], Any],
    params: Any,
    keys: Any,
    statistics: Statistics | None,
    observe: bool = False,
) -> Episode:
    """Episodes of a policy, (parameters, key, observation) → action, one for each key."""

    def own(key: Any, observation: Any) -> Any:
        return act(params, key, observation)

    settings = {"max_steps": made.max_steps, "statistics": statistics, "observe": observe}
    return run_episodes(made.environment, own, keys, **settings)
