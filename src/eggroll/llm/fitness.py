"""What members of a fine-tuning run are worth: they complete prompts, or tell how likely the right completions are."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from eggroll.core.strategy import EvolutionStrategy
from eggroll.llm.config import FinetuneConfig, TaskSettings
from eggroll.llm.evolve import distribution_for, patterns_of
from eggroll.llm.generate import Completions, Sampling, generate, log_probabilities
from eggroll.llm.population import Fitness, Judge, Population
from eggroll.llm.prompts import Batch, Prompts
from eggroll.llm.score import rewards
from eggroll.runs.evolution import learning_rate_at, mesh_of, sigma_at
from eggroll.runs.metrics import Metrics
from eggroll.tasks.score import pass_at


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


def stop_tokens(config: TaskSettings, prompts: Prompts) -> list[int]:
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


def population_of(config: FinetuneConfig, prompts: Prompts, params: Any) -> Population:
    """The population of a run, its chunk size as in the settings."""

    def arguments(batch: Batch) -> tuple[Any, ...]:
        return prompts.answers(batch, config.tokens) if config.objective == "likelihood" else ()

    es, fitness = make_strategy(config, params), make_fitness(config, prompts)
    judge = Judge(arguments, functools.partial(worth, config, prompts), functools.partial(_metrics, config))
    return Population(es, fitness, prompts, config, judge)


def worth(
    config: FinetuneConfig, prompts: Prompts, aux: Any, batch: Batch, first: int
) -> tuple[np.ndarray, np.ndarray]:
    """What some members are worth, prompt by prompt.

    Args:
      aux: of the members from `first` on.
    Returns:
      (members, prompts) float32; and [tokens, completions, ended ones, sum of rewards] float64.
    """
    group = config.group
    if config.objective == "likelihood":
        values = np.asarray(aux, np.float32)
        return values, np.array([values.size * config.tokens, values.size, values.size, np.nan])
    aux = Completions(*map(np.asarray, aux))
    members = np.arange(first, first + len(aux.lengths)) // group
    found = np.concatenate(
        [
            rewards(prompts, batch.examples[g], Completions(*(leaf[members == g] for leaf in aux)))
            for g in np.unique(members)
        ]
    )
    tally = np.array([aux.lengths.sum(), aux.lengths.size, aux.ended.sum(), found.sum()], np.float64)
    return pass_at(config.pass_k, found), tally


def _metrics(config: FinetuneConfig, tally: np.ndarray, generation: Any) -> Metrics:
    tokens, count, ended, total = tally
    metrics: Metrics = {
        "generation_tokens": int(tokens),
        "completion_length": float(tokens / count),
        "ended_share": float(ended / count),
        "learning_rate": float(learning_rate_at(config, generation)),
    }
    return metrics if np.isnan(total) else metrics | {"reward_mean": float(total / count)}
