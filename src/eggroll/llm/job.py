"""The job `eggroll finetune`: settings to run folder, by evolution or by a gradient."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from eggroll.core.errors import UsageError
from eggroll.distributed.running import Prepared, carried_out
from eggroll.distributed.worker import Built
from eggroll.llm.config import GRADIENT, FinetuneConfig, is_random, random_size
from eggroll.llm.evolve import patterns_of
from eggroll.llm.fitness import make_strategy, population_of, sampling_of
from eggroll.llm.gradient import grpo, supervised
from eggroll.llm.population import TOKENS, Population, chunked, make_evaluator, range_work
from eggroll.llm.prompts import Prompts
from eggroll.llm.source import keep_weights, load_model
from eggroll.llm.validation import Validator
from eggroll.runs.job import Job, Learner, job_of, parameter_count
from eggroll.runs.loop import Outcome
from eggroll.runs.settings import from_json
from eggroll.runs.training import strategy_learner
from eggroll.runs.trees import filled
from eggroll.runs.weights import load_parameters
from eggroll.tasks.registry import make_task


def finetune(config: FinetuneConfig, *, report: Callable[[str], None], started: float | None = None) -> Outcome:
    """Fine-tune as `config` says and leave a run folder behind, or go on with one.

    Args:
      report: takes the lines that are for a person to read.
      started: `time.perf_counter()` when the program began; start-up is counted from it.
    Raises:
      UsageError: the model, the task or the settings cannot be used; nothing was written.
    """
    return carried_out(config, "finetune", prepared, worker_job, report=report, started=started)


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
        return config, _made(config, prompts, params, learner, evaluate, None)
    try:
        population = population_of(config, prompts, params)
        state = population.es.init(params, config.seed)  # in memory while chunks are measured, as later
        population = chunked(population, params, config.prompts * config.samples)
        config = dataclasses.replace(config, chunk_size=population.es.chunk_size or "auto")
        learner = strategy_learner(population.es, state)
    except ValueError as error:  # a pattern or a rank that does not fit this model
        raise UsageError(str(error)) from None
    return config, _made(config, prompts, params, learner, make_evaluator(population), population)


def _made(
    config: FinetuneConfig,
    prompts: Prompts,
    params: Any,
    learner: Learner[Any],
    evaluate: Any,
    population: Population | None,
) -> Prepared:
    extra = {"algorithm": config.learner, "task": prompts.task.name, "parameters": parameter_count(params)}
    line = describe(config, prompts, params, population)
    work = None if population is None else lambda: range_work(population)
    job = _job(config, prompts, learner, evaluate)
    return Prepared(job, work, line, keep_weights, lambda: extra, population=population)


def _job(config: FinetuneConfig, prompts: Prompts, learner: Learner[Any], evaluate: Any) -> Job[Any]:
    answers = config.objective == "likelihood" or config.learner == "supervised"
    how = sampling_of(config, prompts, validation=True)
    validator = Validator(prompts, how, config.pass_k, config.tokens if answers else 0)
    parts = {"validate": lambda state: validator(state.parameters), "sample": validator.shown}
    return job_of(config, learner, evaluate, main_metric="accuracy", units=TOKENS, **parts)


def describe(config: FinetuneConfig, prompts: Prompts, params: Any, population: Population | None) -> str:
    """A line for a person."""
    task = prompts.task
    name = config.model
    if is_random(name):
        layers, width = random_size(name)
        name = f"random weights ({layers} layers of {width})"
    what = (
        f"{name}: {parameter_count(params):,} parameters in {config.dtype}; {task.name}: {task.size('train'):,} "
        f"prompts, {len(prompts.validation.examples[0])} held out, of at most {config.prompt_tokens} tokens"
    )
    if population is None:
        return f"{what}; {config.learner}, {config.prompts} prompts and {config.samples} completions of each"
    moving = sum(
        leaf.size
        for leaf, own in zip(jax.tree.leaves(params), population.es.plan(params), strict=True)
        if not own.frozen
    )
    return (
        f"{what}; {config.learner}, population {config.population_size:,} in chunks of {config.chunk_size}, groups of "
        f"{config.group} with {config.prompts} prompts, {moving:,} parameters evolve "
        f"({', '.join(patterns_of(config.trainable, params)[:2])} …)"
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
    if made.work is None:
        raise UsageError("expected a run of eggroll or openes to work for, got one by a gradient; start no workers")
    return Built(made.job.learner, made.work(), (), {"data": made.job.data})


def _config_in(header: dict[str, Any]) -> FinetuneConfig:
    config = header.get("config")
    if not isinstance(config, dict) or header.get("job") != "finetune":
        raise UsageError("expected settings of eggroll finetune in the journal's header, got none; use another journal")
    return from_json(FinetuneConfig, config, "the journal's header")
