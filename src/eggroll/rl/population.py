"""The population of a run of reinforcement learning: evaluated whole, in ranges, or for several seeds at once.

What a run keeps beside its parameters (`RunState.shared`): the environment steps so far, and the statistics of
observations where these are normalised. Both stand in the journal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from eggroll.core.state import State, seed_words
from eggroll.core.strategy import EvolutionStrategy
from eggroll.rl.config import SearchConfig
from eggroll.rl.rollout import Statistics, Sums, merged, no_statistics
from eggroll.rl.strategy import Aux, Setup
from eggroll.runs.evolution import learning_rate_at
from eggroll.runs.job import Evaluated, Part, RangeWork, RunState
from eggroll.runs.metrics import Metrics
from eggroll.runs.training import info_metrics

Fitness = Callable[..., Any]
T = TypeVar("T")


def start_shared(config: SearchConfig, made: Setup) -> dict[str, Any]:
    """`RunState.shared` at generation 0."""
    shared: dict[str, Any] = {"environment_steps": np.zeros((), np.int64)}
    if getattr(config, "normalize_observations", False):
        size = made.environment.observation_size
        shared["statistics"] = jax.tree.map(np.asarray, no_statistics(size))
    return shared


def statistics_of(shared: Any) -> Statistics | None:
    """By which observations are normalised now, on the device; None: they are not."""
    known = shared.get("statistics")
    return None if known is None else jax.tree.map(jnp.asarray, known)


def make_evaluator(es: EvolutionStrategy, config: SearchConfig, fitness: Fitness) -> Callable[..., Evaluated]:
    """The whole population on all the run's devices."""
    seed = seed_words(config.seed)

    def evaluate(state: RunState, generation: int) -> Evaluated:
        own = State(state.parameters, (), seed, jnp.int32(generation))
        arguments = _arguments(state.shared)
        weights, info, evaluation = es.evaluate(own, fitness, *arguments, has_aux=True)
        return evaluated(np.asarray(weights), info, [tally(evaluation.aux)], config, state.shared, generation)

    return evaluate


def make_seeds_evaluator(
    es: EvolutionStrategy, configs: Sequence[SearchConfig], fitness: Fitness
) -> Callable[[dict[int, tuple[RunState, int]]], dict[int, Evaluated]]:
    """Several seeds' populations in one vmapped program; those that are not asked for are computed for nothing."""
    seeds = jnp.stack([seed_words(config.seed) for config in configs])

    @jax.jit
    def program(params: Any, generations: Any, arguments: Any) -> Any:
        def one(params: Any, seed: Any, generation: Any, arguments: Any) -> Any:
            return es.evaluate(State(params, (), seed, generation), fitness, *arguments, has_aux=True)

        return jax.vmap(one)(params, seeds, generations, arguments)

    def evaluate(asked: dict[int, tuple[RunState, int]]) -> dict[int, Evaluated]:
        lanes = lanes_of(asked, len(configs))
        params, arguments = stacked([state.parameters for state, _ in lanes]), [_arguments(s.shared) for s, _ in lanes]
        generations = jnp.array([generation for _, generation in lanes], jnp.int32)
        weights, info, evaluation = program(params, generations, stacked(arguments))
        weights, info, aux = jax.tree.map(np.asarray, (weights, info, evaluation.aux))
        found = {}
        for k, (state, generation) in asked.items():
            own, own_info, own_aux = jax.tree.map(lambda leaf, lane=k: leaf[lane], (weights, info, aux))
            found[k] = evaluated(own, own_info, [tally(own_aux)], configs[k], state.shared, generation)
        return found

    return evaluate


def lanes_of(asked: dict[int, T], count: int) -> list[T]:
    """What each of `count` lanes of a program gets; those that are not asked for get what some other does."""
    some = next(iter(asked.values()))
    return [asked.get(k, some) for k in range(count)]


def stacked(trees: Sequence[Any]) -> Any:
    """One tree with a leading axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def range_work(es: EvolutionStrategy, config: SearchConfig, fitness: Fitness) -> RangeWork:
    """The population in ranges of pairs, for workers that hold some of it."""
    seed = seed_words(config.seed)

    def one_range(state: RunState, generation: int, first_pair: int, pairs: int) -> Part:
        own, span = State(state.parameters, (), seed, jnp.int32(generation)), {"first_pair": first_pair, "pairs": pairs}
        result = es.evaluate_range(own, fitness, *_arguments(state.shared), has_aux=True, **span)
        return Part(np.asarray(result.fitness).reshape(pairs, -1), tally(result.aux), None)

    def combine(values: np.ndarray, tallies: Sequence[np.ndarray], state: RunState, generation: int) -> Evaluated:
        own = State(state.parameters, (), seed, jnp.int32(generation))
        weights, info = es.weigh(own, values.reshape(es.population_size))
        return evaluated(np.asarray(weights), info, tallies, config, state.shared, generation)

    return RangeWork(one_range, combine, None)


def tally(aux: Aux) -> np.ndarray:
    """What the run needs of some members: steps, and the sums of their observations.

    Returns:
      (1,) or (2 + 2 · size,) float64.
    """
    total = lambda leaf: np.asarray(leaf).sum(0, dtype=np.float64).reshape(-1)
    return np.concatenate([total(aux.steps), *(total(leaf) for leaf in jax.tree.leaves(aux.sums))])


def evaluated(
    weights: np.ndarray, info: Any, tallies: Sequence[np.ndarray], config: SearchConfig, shared: Any, generation: int
) -> Evaluated:
    """The generation's result from the parts of the population."""
    total = np.sum(tallies, axis=0)
    steps = int(total[0])
    new = dict(shared) | {"environment_steps": shared["environment_steps"] + np.int64(steps)}
    if "statistics" in shared:
        size = (len(total) - 2) // 2
        sums = Sums(*(jnp.asarray(part, jnp.float32) for part in (total[1], total[2 : 2 + size], total[2 + size :])))
        new["statistics"] = jax.tree.map(np.asarray, _merge(statistics_of(shared), sums))
    metrics: Metrics = info_metrics(info) | {
        "learning_rate": float(learning_rate_at(config, generation)),
        "generation_steps": steps,
        "environment_steps": int(new["environment_steps"]),
        "episode_length": steps / (config.population_size * config.episodes),
    }
    return Evaluated(weights, None, metrics, new)


_merge = jax.jit(merged)


def _arguments(shared: Any) -> tuple[Any, ...]:
    statistics = statistics_of(shared)
    return () if statistics is None else (statistics,)
