"""A population that reads prompts: evaluated whole or in ranges of pairs, whatever its members are judged by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from eggroll.core.population import per_group
from eggroll.core.state import State, seed_words
from eggroll.core.strategy import EvolutionStrategy
from eggroll.llm.config import TaskSettings
from eggroll.llm.prompts import Batch, Prompts
from eggroll.runs.job import Evaluated, Part, RangeWork, RunState
from eggroll.runs.metrics import Metrics
from eggroll.runs.training import info_metrics

Fitness = Callable[..., Any]
TOKENS = ("tokens", "generation_tokens")
"""What throughput of these jobs counts, and the metric that tells how many a generation wrote."""
_LEAST_ROWS = 512
"""Completions that a CPU writes at once, at least: fewer, though their states stay in its cache, take up to 1.5 times
as long for a model of a million weights."""


class Judge(NamedTuple):
    """How the members of a job are judged.

    Attributes:
      arguments: batch → what fitness gets after key, tokens and mask, each part with a leading axis of groups.
      worth: (aux of members, batch, first of them) → (members, prompts) float32, and a tally that adds up over members.
      metrics: (sum of tallies, generation) → the job's own metrics.
      model: a run's parameters → the tree that members perturb.
      weights: what is kept of the pairs' weights.
    """

    arguments: Callable[[Batch], tuple[Any, ...]]
    worth: Callable[[Any, Batch, int], tuple[np.ndarray, np.ndarray]]
    metrics: Callable[[np.ndarray, Any], Metrics]
    model: Callable[[Any], Any] = lambda parameters: parameters
    weights: Callable[[np.ndarray], np.ndarray] = np.asarray


class Population(NamedTuple):
    """What evaluates the members of a run.

    Attributes:
      es: the strategy.
      fitness: of one member; what it is worth comes last, as `aux`.
      prompts: of the run.
    """

    es: EvolutionStrategy
    fitness: Fitness
    prompts: Prompts
    config: TaskSettings
    judge: Judge

    def state(self, parameters: Any, generation: int) -> State:
        """What a strategy evaluates."""
        return State(self.judge.model(parameters), (), seed_words(self.config.seed), jnp.int32(generation))


def arguments_of(population: Population, batch: Batch) -> tuple[Any, ...]:
    """What fitness gets after the key, for each group its own."""
    parts = (batch.tokens, batch.mask, *population.judge.arguments(batch))
    return tuple(per_group(jnp.asarray(part)) for part in parts)


def chunked(population: Population, parameters: Any, rows: int) -> Population:
    """The same with the chunk size that "auto" finds, of `rows` rows of text for each member."""
    if population.es.chunk_size is not None:
        return population
    es, state = population.es, population.state(parameters, 0)
    arguments = arguments_of(population, population.prompts.of_generation(0))
    size = es.resolve_chunk_size(state, population.fitness, *arguments, has_aux=True)
    if jax.default_backend() == "cpu":
        size = max(size, min(es.population_size, _LEAST_ROWS // rows // 2 * 2))
    return population._replace(es=es.with_chunk_size(size))


def make_evaluator(population: Population) -> Callable[[RunState, int], Evaluated]:
    """The whole population on all the run's devices."""

    def evaluate(state: RunState, generation: int) -> Evaluated:
        batch = population.prompts.of_generation(generation)
        own, arguments = population.state(state.parameters, generation), arguments_of(population, batch)
        _, _, found = population.es.evaluate(own, population.fitness, *arguments, has_aux=True)
        values, tally = population.judge.worth(found.aux, batch, 0)
        return _evaluated(population, values, [tally], generation)

    return evaluate


def range_work(population: Population) -> RangeWork:
    """The population in ranges of pairs, for workers that hold some of it."""

    def one_range(state: RunState, generation: int, first_pair: int, pairs: int) -> Part:
        batch = population.prompts.of_generation(generation)
        own, arguments = population.state(state.parameters, generation), arguments_of(population, batch)
        span = {"first_pair": first_pair, "pairs": pairs}
        found = population.es.evaluate_range(own, population.fitness, *arguments, has_aux=True, **span)
        values, tally = population.judge.worth(found.aux, batch, 2 * first_pair)
        return Part(values.reshape(pairs, -1), tally, None)

    def combine(values: np.ndarray, tallies: Sequence[np.ndarray], state: RunState, generation: int) -> Evaluated:
        return _evaluated(population, values.reshape(population.es.population_size, -1), tallies, generation)

    return RangeWork(one_range, combine, None)


def _evaluated(population: Population, values: np.ndarray, tallies: Sequence[np.ndarray], generation: int) -> Evaluated:
    own = State((), (), seed_words(population.config.seed), jnp.int32(generation))
    weights, info = population.es.weigh(own, values)
    metrics = info_metrics(info) | population.judge.metrics(np.sum(tallies, axis=0), generation)
    return Evaluated(population.judge.weights(np.asarray(weights)), None, metrics)
