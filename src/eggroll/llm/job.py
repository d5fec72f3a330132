"""The job `eggroll finetune`: settings to run folder, by evolution or by a gradient."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from eggroll.core.errors import UsageError
from eggroll.distributed.launch import check_fleet, fleet_for
from eggroll.distributed.worker import Built
from eggroll.llm.config import GRADIENT, TINY, FinetuneConfig
from eggroll.llm.evolve import patterns_of
from eggroll.llm.gradient import grpo, supervised
from eggroll.llm.population import (
    Population,
    arguments_of,
    make_evaluator,
    make_fitness,
    make_strategy,
    range_work,
    sampling_of,
)
from eggroll.llm.prompts import Prompts
from eggroll.llm.source import SIZES, keep_weights, load_model
from eggroll.llm.validation import Validator
from eggroll.runs.environment import peak_memory
from eggroll.runs.folder import RunFolder
from eggroll.runs.going_on import go_on
from eggroll.runs.job import Job, Learner, RunState
from eggroll.runs.loop import Loop, Outcome, run
from eggroll.runs.peers import Alone
from eggroll.runs.settings import from_json
from eggroll.runs.tracking import check_trackers
from eggroll.runs.training import strategy_learner
from eggroll.runs.trees import filled
from eggroll.runs.weights import load_parameters
from eggroll.tasks.registry import make_task

_LEAST_ROWS = 512
"""Completions that a CPU writes at once, at least: fewer, though their states stay in its cache, take up to 1.5 times
as long for a model of a million weights."""


class Prepared(NamedTuple):
    """A run's job and what it is made of."""

    job: Job[Any]
    prompts: Prompts
    population: Population | None  # None: a gradient is followed
    parameters: Any


def finetune(config: FinetuneConfig, *, report: Callable[[str], None], started: float | None = None) -> Outcome:
    """Fine-tune as `config` says and leave a run folder behind, or go on with one.

    Args:
      report: takes the lines that are for a person to read.
      started: `time.perf_counter()` when the program began; start-up is counted from it.
    Raises:
      UsageError: the model, the task or the settings cannot be used; nothing was written.
    """
    started = time.perf_counter() if started is None else started
    check_trackers(config.track)
    check_fleet(config)
    folder = None
    if config.resume:
        folder, config, finished = go_on(config, "finetune", _jobs, say=report, peers=Alone())
        if finished is not None:
            return Outcome(finished, 0, RunState(()))
    config, made = prepared(config)
    if folder is None:
        folder = RunFolder.create(config.run_dir, "finetune", config.as_json())
    report(describe(config, made))
    extra = {"algorithm": config.learner, "task": made.prompts.task.name, "parameters": _count(made.parameters)}
    seconds = time.perf_counter() - started
    settings: dict[str, Any] = {"extra": extra, "prefix_seconds": seconds, "say": report}
    if config.is_fleet and made.population is not None:
        work = range_work(made.population)
        with fleet_for(config, made.job, work, folder, worker_job, say=report) as fleet_job:
            outcome = run(fleet_job, folder, **settings)
    else:
        outcome = run(made.job, folder, **settings)
    keep_weights(_end_of(outcome, made.job, folder), folder)
    outcome.summary["peak_memory_bytes"] = peak_memory()
    folder.write_json("summary.json", outcome.summary)
    return outcome


def _end_of(outcome: Outcome, job: Job[Any], folder: RunFolder) -> Any:
    """The parameters at the end; of a run that was finished before, replayed."""
    if jax.tree.leaves(outcome.state.parameters):
        return outcome.state.parameters
    with Loop(job, folder, say=lambda line: None) as loop:
        while loop.generation < loop.ledger.generations:
            loop.advance()
        return loop.state.parameters


def prepared(config: FinetuneConfig) -> tuple[FinetuneConfig, Prepared]:
    """The job; and its settings with numbers in place of "auto" and 0, which are what is recorded.

    Raises:
      UsageError: the model, the task or the settings cannot be used.
    """
    start, tokenizer = load_model(config)
    task = make_task(config.task, data=config.task_data, options=config.options())
    prompts = Prompts(task, tokenizer, config)
    config = dataclasses.replace(config, prompt_tokens=prompts.length)
    params = jax.tree.map(jnp.asarray, start)
    if config.learner in GRADIENT:
        learner, evaluate = (grpo if config.learner == "grpo" else supervised)(config, prompts, params)
        return config, Prepared(_job(config, prompts, learner, evaluate), prompts, None, params)
    try:
        config, population = _population(config, prompts, params)
        learner = strategy_learner(population.es, population.es.init(params, config.seed))
    except ValueError as error:  # a pattern or a rank that does not fit this model
        raise UsageError(str(error)) from None
    job = _job(config, prompts, learner, make_evaluator(population))
    return config, Prepared(job, prompts, population, params)


def _population(config: FinetuneConfig, prompts: Prompts, params: Any) -> tuple[FinetuneConfig, Population]:
    """The population of a run, its chunk size found."""
    es, fitness = make_strategy(config, params), make_fitness(config, prompts)
    population = Population(es, fitness, prompts, config)
    if config.chunk_size != "auto":
        return config, population
    arguments = arguments_of(population, prompts.of_generation(0))
    size = es.resolve_chunk_size(es.init(params, config.seed), fitness, *arguments, has_aux=True)
    if jax.default_backend() == "cpu":
        size = max(size, min(config.population_size, _LEAST_ROWS // (config.prompts * config.samples) // 2 * 2))
    config = dataclasses.replace(config, chunk_size=size)
    return config, population._replace(es=es.with_chunk_size(size), config=config)


def _job(config: FinetuneConfig, prompts: Prompts, learner: Learner[Any], evaluate: Any) -> Job[Any]:
    validator = Validator(config, prompts, sampling_of(config, prompts, validation=True))
    return Job(
        name="finetune",
        config=config.as_json(),
        learner=learner,
        evaluate=evaluate,
        validate=lambda state: validator(state.parameters),
        main_metric="accuracy",
        units=("tokens", "generation_tokens"),
        generations=config.generations,
        validate_every=config.validate_every,
        snapshot_every=config.snapshot_every,
        snapshots_kept=config.snapshots_kept,
        sample=validator.shown,
        trackers=config.track,
        log_every=config.log_every,
        target=config.target,
        most_seconds=config.max_seconds,
    )


def _jobs(recorded: FinetuneConfig, wanted: FinetuneConfig) -> tuple[Job[Any], Job[Any]]:
    return prepared(recorded)[1].job, prepared(wanted)[1].job


def _count(params: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def describe(config: FinetuneConfig, made: Prepared) -> str:
    """A line for a person."""
    task = made.prompts.task
    name = f"random weights ({SIZES.layers} layers of {SIZES.width})" if config.model == TINY else config.model
    what = (
        f"{name}: {_count(made.parameters):,} parameters in {config.dtype}; {task.name}: {task.size('train'):,} "
        f"prompts, {len(made.prompts.validation.examples[0])} held out, of at most {config.prompt_tokens} tokens"
    )
    if made.population is None:
        return f"{what}; {config.learner}, {config.prompts} prompts and {config.samples} completions of each"
    moving = sum(
        leaf.size
        for leaf, own in zip(jax.tree.leaves(made.parameters), made.population.es.plan(made.parameters), strict=True)
        if not own.frozen
    )
    return (
        f"{what}; {config.learner}, population {config.population_size:,} in chunks of {config.chunk_size}, groups of "
        f"{config.group} with {config.prompts} prompts, {moving:,} parameters evolve "
        f"({', '.join(patterns_of(config.trainable, made.parameters)[:2])} …)"
    )


def learner_of(header: dict[str, Any], base: Path | None = None) -> Learner[Any]:
    """The learner that a journal's header describes.

    Args:
      base: start parameters of elsewhere, in place of the recorded model.
    Raises:
      UsageError: its settings are none of this job's, or its model is not here any more.
    """
    config = _config_in(header)
    start, tokenizer = load_model(config)
    if base is not None:
        start = filled(start, load_parameters(base), str(base))
    params = jax.tree.map(jnp.asarray, start)
    if config.learner not in GRADIENT:
        es = make_strategy(config, params)
        return strategy_learner(es, es.init(params, config.seed))
    task = make_task(config.task, data=config.task_data, options=config.options())
    prompts = Prompts(task, tokenizer, config)
    return (grpo if config.learner == "grpo" else supervised)(config, prompts, params)[0]


def worker_job(welcome: dict[str, Any]) -> Built:
    """The job as a worker of a fleet makes it, of the header that the run sends.

    Raises:
      UsageError: its settings are none of this job's, or the model or the data is not on this machine.
    """
    config = dataclasses.replace(_config_in(welcome["header"]), devices=1)  # a worker is for one device
    _, made = prepared(config)
    if made.population is None:
        raise UsageError("expected a run of eggroll or openes to work for, got one by a gradient; start no workers")
    return Built(made.job.learner, range_work(made.population), (), {"data": made.job.data})


def _config_in(header: dict[str, Any]) -> FinetuneConfig:
    config = header.get("config")
    if not isinstance(config, dict) or header.get("job") != "finetune":
        raise UsageError("expected settings of eggroll finetune in the journal's header, got none; use another journal")
    return from_json(FinetuneConfig, config, "the journal's header")
