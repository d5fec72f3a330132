"""What all seeds of a setting share: environment, policy, strategy or baseline, and their compiled programs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from eggroll.core.errors import UsageError
from eggroll.core.population import key_of
from eggroll.core.strategy import EvolutionStrategy
from eggroll.rl.baselines.settings import PpoSettings, ppo_settings
from eggroll.rl.config import SearchConfig
from eggroll.rl.population import lanes_of, make_evaluator, make_seeds_evaluator, stacked, start_shared, statistics_of
from eggroll.rl.rendering import check_rendering
from eggroll.rl.strategy import (
    EPISODES,
    PARAMETERS,
    Setup,
    episodes,
    make_fitness,
    make_strategy,
    start_parameters,
)
from eggroll.rl.strategy import setup as set_up
from eggroll.runs.job import Evaluated, Job, Learner, RunState, job_of
from eggroll.runs.metrics import Metrics
from eggroll.runs.training import strategy_learner
from eggroll.runs.trees import filled
from eggroll.runs.weights import load_parameters


class Algorithm(NamedTuple):
    """What learns, compiled once for all seeds of a setting."""

    made: Setup
    es: EvolutionStrategy | None  # None: a baseline
    fitness: Callable[..., Any] | None
    baseline: Any | None  # a `baselines.base.Baseline`
    iterate: Callable[[Any], Any] | None  # the baseline's, compiled
    score: Callable[[Any, Any, Any], Any]
    """(parameters, statistics, keys) → returns of the policy, (episodes,)."""

    act: Callable[[Any, Any, Any], Any]
    """(parameters, key, observation) → action."""


def make_algorithm(config: SearchConfig) -> Algorithm:
    """Everything that does not depend on the seed.

    Raises:
      UsageError: no such environment or policy, or a package is missing.
    """
    made = set_up(config)
    if config.render is not None:
        check_rendering(made.environment, config.render)
    baseline = _baseline(config, made) if config.is_baseline else None
    act = made.policy.act if baseline is None else baseline.act

    @jax.jit
    def score(parameters: Any, statistics: Any, keys: Any) -> Any:
        return episodes(made, act, parameters, keys, statistics).score

    if baseline is not None:
        return Algorithm(made, None, None, baseline, jax.jit(baseline.iterate), score, act)
    shapes = jax.eval_shape(made.policy.init, jax.random.key(0))
    return Algorithm(made, make_strategy(config, shapes), make_fitness(config, made), None, None, score, act)


def baseline_settings(config: SearchConfig) -> PpoSettings:
    """The published settings; for two cores with fewer environments side by side."""
    settings = ppo_settings(str(getattr(config, "env", "")))
    return settings if config.preset == "paper" else settings.small(config.num_envs)


def _baseline(config: SearchConfig, made: Setup) -> Any:
    settings = baseline_settings(config)
    if config.algorithm_name == "ippo":
        from eggroll.rl.baselines.ippo import make_ippo

        return make_ippo(made.environment, settings)
    try:
        from eggroll.rl.baselines.ppo import make_ppo
    except ModuleNotFoundError as error:
        raise UsageError(
            f'expected the package {error.name} for --algorithm ppo, got none; pip install "eggroll-es[rl]"'
        ) from None
    return make_ppo(made.environment, settings)


def with_chunk(config: Any, algorithm: Algorithm) -> tuple[Any, Algorithm]:
    """The settings with a number as chunk size, which is that of one seed; together the seeds take no more memory."""
    es, fitness = algorithm.es, algorithm.fitness
    if es is None or fitness is None:
        return config, algorithm
    if config.chunk_size == "auto":
        state = es.init(start_parameters(config, algorithm.made.policy), config.seed)
        statistics = statistics_of(start_shared(config, algorithm.made))
        arguments = () if statistics is None else (statistics,)
        whole = es.resolve_chunk_size(state, fitness, *arguments, has_aux=True)
        share = 1 if jax.default_backend() == "cpu" else config.seeds  # a CPU's chunk is small against its memory
        config = dataclasses.replace(config, chunk_size=max(2, whole // share // 2 * 2))
    return config, algorithm._replace(es=es.with_chunk_size(config.chunk_size))


def make_learner(config: SearchConfig, algorithm: Algorithm, base: Path | None = None) -> Learner[Any]:
    """Start and update of one seed.

    Args:
      base: start parameters of elsewhere, in place of those of the seed.
    """
    if algorithm.es is None:
        return _baseline_learner(config, algorithm)
    parameters = start_parameters(config, algorithm.made.policy)
    if base is not None:
        parameters = jax.tree.map(jnp.asarray, filled(parameters, load_parameters(base), str(base)))
    return strategy_learner(algorithm.es, algorithm.es.init(parameters, config.seed))


def _baseline_learner(config: SearchConfig, algorithm: Algorithm) -> Learner[Any]:
    """A baseline's iteration is all in its update, which needs no weights: its journal's frames hold a zero."""
    baseline, iterate = algorithm.baseline, algorithm.iterate
    assert baseline is not None and iterate is not None
    start = jax.jit(baseline.start)(key_of(config.seed, PARAMETERS))
    own = baseline_settings(config)
    settings = {"algorithm": config.algorithm_name, "seed": config.seed, **dataclasses.asdict(own)}
    settings |= {"hidden": list(own.hidden), "max_grad_norm": str(own.max_grad_norm)}  # as JSON gives them back

    def update(state: Any, optimizer: Any, weights: np.ndarray, generation: int) -> tuple[Any, Any, Metrics]:
        return jax.block_until_ready(iterate(state)), optimizer, {}

    return Learner(start, (), update, "ternary", 1, settings)


def make_job(config: Any, algorithm: Algorithm) -> Job[Any]:
    """The job of one seed."""
    made, learner = algorithm.made, make_learner(config, algorithm)
    keys = jax.random.split(key_of(config.seed, EPISODES), config.validation_episodes)

    def validate(state: RunState) -> Metrics:
        return returns(algorithm.score(state.parameters, statistics_of(state.shared), keys))

    return job_of(
        config,
        learner,
        _evaluator(config, algorithm),
        validate=validate,
        main_metric="return",
        units=("environment_steps", "generation_steps"),
        shared=start_shared(config, made),
    )


def _evaluator(config: SearchConfig, algorithm: Algorithm) -> Callable[..., Evaluated]:
    if algorithm.es is not None:
        assert algorithm.fitness is not None
        return make_evaluator(algorithm.es, config, algorithm.fitness)
    assert algorithm.baseline is not None
    steps = int(algorithm.baseline.steps)

    def evaluate(state: RunState, generation: int) -> Evaluated:
        total = state.shared["environment_steps"] + np.int64(steps)
        shared = dict(state.shared) | {"environment_steps": total}
        metrics: Metrics = {"generation_steps": steps, "environment_steps": int(total)}
        return Evaluated(np.zeros(1, np.int8), None, metrics, shared)

    return evaluate


def returns(scores: Any) -> Metrics:
    """Mean return and its standard error."""
    values = np.asarray(scores, np.float64)
    error = float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return {"return": float(values.mean()), "return_error": error}


def answers_for(
    configs: Sequence[Any], jobs: Sequence[Job[Any]], algorithm: Algorithm
) -> Callable[[str, dict[int, tuple[Any, ...]]], dict[int, Any]]:
    """What several seeds' loops ask for, each answered by one vmapped program; see `runs.loop.run_together`."""
    keys = jnp.stack([jax.random.split(key_of(c.seed, EPISODES), c.validation_episodes) for c in configs])
    score = jax.jit(jax.vmap(algorithm.score))
    evaluate = iterate = None
    if algorithm.es is not None and algorithm.fitness is not None:
        evaluate = make_seeds_evaluator(algorithm.es, configs, algorithm.fitness)
    elif algorithm.baseline is not None:
        iterate = jax.jit(jax.vmap(algorithm.baseline.iterate))

    def validate(asked: dict[int, tuple[Any, ...]]) -> dict[int, Any]:
        states = [state for (state,) in lanes_of(asked, len(configs))]
        statistics = stacked([statistics_of(state.shared) for state in states])
        scores = np.asarray(score(stacked([state.parameters for state in states]), statistics, keys))
        return {k: returns(scores[k]) for k in asked}

    def update(asked: dict[int, tuple[Any, ...]]) -> dict[int, Any]:
        assert iterate is not None
        new = jax.block_until_ready(iterate(stacked([parameters for parameters, *_ in lanes_of(asked, len(configs))])))
        return {k: (jax.tree.map(lambda leaf, lane=k: leaf[lane], new), asked[k][1], {}) for k in asked}

    def answers(of: str, asked: dict[int, tuple[Any, ...]]) -> dict[int, Any]:
        if of == "validate":
            return validate(asked)
        if of == "evaluate" and evaluate is not None:
            return evaluate({k: (state, generation) for k, (state, generation) in asked.items()})
        if of == "update" and iterate is not None:
            return update(asked)
        each = {k: jobs[k].learner.update if of == "update" else jobs[k].evaluate for k in asked}
        return {k: each[k](*arguments) for k, arguments in asked.items()}

    return answers
