"""The population of a fine-tuning run: members complete prompts, or tell how likely the right completions are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax

from eggroll.core.population import per_group
from eggroll.core.state import State, seed_words
from eggroll.core.strategy import EvolutionStrategy
from eggroll.llm.config import FinetuneConfig
from eggroll.llm.evolve import distribution_for, patterns_of
from eggroll.llm.generate import Completions, Sampling, generate, log_probabilities
from eggroll.llm.prompts import Batch, Prompts
from eggroll.llm.score import pass_at, rewards
from eggroll.runs.evolution import learning_rate_at, mesh_of, sigma_at
from eggroll.runs.job import Evaluated, Part, RangeWork, RunState
from eggroll.runs.metrics import Metrics
from eggroll.runs.training import info_metrics

Fitness = Callable[..., Any]


class Population(NamedTuple):
    """What evaluates the members of a run.

    Attributes:
      es: the strategy, with a chunk size.
      fitness: of one member; what it is worth comes last, as `aux`.
      prompts: of the run.
    """

    es: EvolutionStrategy
    fitness: Fitness
    prompts: Prompts
    config: FinetuneConfig


def optimizer_of(config: FinetuneConfig) -> optax.GradientTransformation:
    """The optimiser that settings name, with its schedule."""
    kinds: dict[str, Callable[..., Any]] = {"sgd": optax.sgd, "adam": optax.adam, "radam": optax.radam}
    return kinds[config.optimizer](lambda generation: learning_rate_at(config, generation))


def make_strategy(config: FinetuneConfig, params: Any) -> EvolutionStrategy:
    """The strategy of a run, its chunk size as in the settings."""
    return EvolutionStrategy(
        optimizer_of(config),
        population_size=config.population_size,
        sigma=lambda generation: sigma_at(config, generation),
        distribution=distribution_for(params, config.rank, dense=config.learner == "openes"),
        shaping="group_per_prompt",
        group_size=config.group,
        chunk_size=config.chunk_size,
        noise_reuse=config.noise_reuse,
        trainable=patterns_of(config.trainable, params),
        mesh=mesh_of(config),
        update=config.update,
    )


def sampling_of(config: FinetuneConfig, prompts: Prompts, *, validation: bool = False) -> Sampling:
    """How members write, or the mean model in a validation: greedily, unless several samples are asked for."""
    ends = [prompts.tokenizer.end, *stop_tokens(config, prompts)]
    if not validation:
        return Sampling(config.tokens, tuple(ends), config.samples, config.temperature, config.top_p)
    many = config.validation_samples > 1
    drawn = (config.temperature, config.top_p) if many else (0.0, 1.0)
    return Sampling(config.tokens, tuple(ends), config.validation_samples, *drawn)


def stop_tokens(config: FinetuneConfig, prompts: Prompts) -> list[int]:
    """The token of `config.stop`, if there is one; its last, where it takes several."""
    return prompts.tokenizer.encode(config.stop)[-1:] if config.stop else []


def make_fitness(config: FinetuneConfig, prompts: Prompts) -> Fitness:
    """Of one member: nothing yet, and as aux its `Completions`; or (prompts,) mean log-likelihoods of the answers."""
    how = sampling_of(config, prompts)

    def completing(params: Any, key: Any, tokens: Any, mask: Any) -> tuple[Any, Completions]:
        return jnp.float32(0), generate(params, tokens, mask, key, how)

    def likely(params: Any, key: Any, tokens: Any, mask: Any, answers: Any, known: Any) -> tuple[Any, Any]:
        return jnp.float32(0), likelihood(params, tokens, mask, answers, known)

    return likely if config.objective == "likelihood" else completing


def likelihood(params: Any, tokens: Any, mask: Any, answers: Any, known: Any) -> Any:
    """Mean log-probability of each prompt's answer by token, (prompts,); differentiable.

    Args:
      tokens, mask: prompts filled at the left.
      answers, known: what follows, filled at the right.
    """
    whole = jnp.concatenate([tokens, answers], axis=1)
    there = jnp.concatenate([mask, jnp.ones_like(known)], axis=1)
    own = log_probabilities(params, whole, there)[:, tokens.shape[1] - 1 :]
    return jnp.where(known, own, 0).sum(-1) / known.sum(-1)


def arguments_of(population: Population, batch: Batch) -> tuple[Any, ...]:
    """What fitness gets after the key, for each group its own."""
    parts: tuple[Any, ...] = (batch.tokens, batch.mask)
    if population.config.objective == "likelihood":
        parts += population.prompts.answers(batch, population.config.tokens)
    return tuple(per_group(jnp.asarray(part)) for part in parts)


def make_evaluator(population: Population) -> Callable[[RunState, int], Evaluated]:
    """The whole population on all the run's devices."""
    es, config = population.es, population.config
    seed = seed_words(config.seed)

    def evaluate(state: RunState, generation: int) -> Evaluated:
        batch = population.prompts.of_generation(generation)
        own = State(state.parameters, (), seed, jnp.int32(generation))
        _, _, found = es.evaluate(own, population.fitness, *arguments_of(population, batch), has_aux=True)
        values, tally = worth(population, found.aux, batch, 0)
        return _evaluated(population, values, [tally], own)

    return evaluate


def range_work(population: Population) -> RangeWork:
    """The population in ranges of pairs, for workers that hold some of it."""
    es, seed = population.es, seed_words(population.config.seed)

    def one_range(state: RunState, generation: int, first_pair: int, pairs: int) -> Part:
        batch = population.prompts.of_generation(generation)
        own = State(state.parameters, (), seed, jnp.int32(generation))
        span = {"first_pair": first_pair, "pairs": pairs}
        arguments = arguments_of(population, batch)
        found = es.evaluate_range(own, population.fitness, *arguments, has_aux=True, **span)
        values, tally = worth(population, found.aux, batch, 2 * first_pair)
        return Part(values.reshape(pairs, -1), tally, None)

    def combine(values: np.ndarray, tallies: Sequence[np.ndarray], state: RunState, generation: int) -> Evaluated:
        own = State(state.parameters, (), seed, jnp.int32(generation))
        return _evaluated(population, values.reshape(es.population_size, -1), tallies, own)

    return RangeWork(one_range, combine, None)


def worth(population: Population, aux: Any, batch: Batch, first: int) -> tuple[np.ndarray, np.ndarray]:
    """What some members are worth, prompt by prompt.

    Args:
      aux: of the members from `first` on.
    Returns:
      (members, prompts) float32; and [tokens, completions, ended ones, sum of rewards] float64.
    """
    config, group = population.config, population.es.group_size
    if config.objective == "likelihood":
        values = np.asarray(aux, np.float32)
        return values, np.array([values.size * config.tokens, values.size, values.size, np.nan])
    aux = Completions(*map(np.asarray, aux))
    members = np.arange(first, first + len(aux.lengths)) // group
    found = np.concatenate(
        [
            rewards(population.prompts, batch.examples[g], Completions(*(leaf[members == g] for leaf in aux)))
            for g in np.unique(members)
        ]
    )
    tally = np.array([aux.lengths.sum(), aux.lengths.size, aux.ended.sum(), found.sum()], np.float64)
    return pass_at(config.pass_k, found), tally


def _evaluated(population: Population, values: np.ndarray, tallies: Sequence[np.ndarray], own: State) -> Evaluated:
    weights, info = population.es.weigh(own, values)
    tokens, count, ended, total = np.sum(tallies, axis=0)
    metrics: Metrics = info_metrics(info) | {
        "generation_tokens": int(tokens),
        "completion_length": float(tokens / count),
        "ended_share": float(ended / count),
        "learning_rate": float(learning_rate_at(population.config, own.generation)),
    }
    if not np.isnan(total):
        metrics["reward_mean"] = float(total / count)
    return Evaluated(np.asarray(weights), None, metrics)
