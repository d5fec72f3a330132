"""The job `eggroll distill`: an int8 student trained to match its float teacher on a task's answers.

Source: arXiv 2511.16652, int8 distillation.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from eggroll.core.errors import UsageError
from eggroll.distributed.running import Prepared, carried_out
from eggroll.distributed.worker import Built
from eggroll.llm.distill_config import DistillConfig
from eggroll.llm.fitness import stop_tokens
from eggroll.llm.generate import Sampling
from eggroll.llm.population import TOKENS, chunked, make_evaluator, range_work
from eggroll.llm.prompts import Prompts
from eggroll.llm.rwkv7 import Params
from eggroll.llm.source import keep_weights, load_student
from eggroll.llm.student import Student, answer_log_probabilities, learner_for, population_of
from eggroll.llm.validation import Validator
from eggroll.runs.job import Learner, job_of, parameter_count
from eggroll.runs.loop import Outcome
from eggroll.runs.metrics import Metrics
from eggroll.runs.settings import from_json
from eggroll.runs.trees import filled
from eggroll.runs.weights import load_parameters
from eggroll.tasks.registry import make_task

_AT_ONCE = 64
"""Prompts of a validation whose probabilities, (prompts, tokens, vocabulary), are in memory together."""


def distill(config: DistillConfig, *, report: Callable[[str], None], started: float | None = None) -> Outcome:
    """Distil as `config` says and leave a run folder behind, or go on with one.

    Args:
      report: takes the lines that are for a person to read.
      started: `time.perf_counter()` when the program began; start-up is counted from it.
    Raises:
      UsageError: the teacher, the task or the settings cannot be used; nothing was written.
    """
    return carried_out(config, "distill", prepared, worker_job, report=report, started=started)


def prepared(config: DistillConfig) -> tuple[DistillConfig, Prepared]:
    """The job; and its settings with numbers in place of "auto" and 0, which are what is recorded.

    Raises:
      UsageError: the teacher, the task or the settings cannot be used.
    """
    teacher, start, tokenizer = load_student(config)
    prompts = Prompts(make_task(config.task, data=config.task_data, options=config.options()), tokenizer, config)
    config = dataclasses.replace(config, prompt_tokens=prompts.length)
    student, teacher = Student(start, teacher, config), jax.tree.map(jnp.asarray, teacher)
    population = chunked(population_of(config, prompts, teacher, student), student.start, config.prompts)
    config = dataclasses.replace(config, chunk_size=population.es.chunk_size or "auto")
    measure = _Measure(config, prompts, teacher)
    job = job_of(
        config,
        learner_for(config, student),
        make_evaluator(population),
        units=TOKENS,
        main_metric="perplexity",
        falls=True,
        validate=lambda state: measure(student.model(state.parameters)),
        sample=lambda lattice: measure.shown(student.model(lattice)),
    )

    def extra() -> dict[str, Any]:
        found = {f"teacher_{name}": value for name, value in measure(teacher).items() if name != "kl"}
        return {**found, "task": prompts.task.name, "parameters": parameter_count(teacher)}

    keep = lambda lattice, folder: keep_weights(student.model(lattice), folder)
    line = _describe(config, prompts, teacher, student)
    return config, Prepared(job, lambda: range_work(population), line, keep, extra, gap_closed, population)


def gap_closed(summary: dict[str, Any]) -> dict[str, Any]:
    """The share of what rounding cost the teacher in perplexity that the student has won back; none without a cost."""
    rounded, teacher, end = (summary.get(name) for name in ("start_perplexity", "teacher_perplexity", "perplexity"))
    if rounded is None or teacher is None or end is None or not rounded > teacher:
        return {}
    return {"gap_closed": (rounded - end) / (rounded - teacher)}


class _Measure:
    """Held-out perplexity, divergence from the teacher, and the task's score, of any model."""

    def __init__(self, config: DistillConfig, prompts: Prompts, teacher: Params) -> None:
        ends = (prompts.tokenizer.end, *stop_tokens(config, prompts))
        self._score = Validator(prompts, Sampling(config.tokens, ends))
        batch = prompts.validation
        answers = prompts.answers(batch, config.tokens)
        self._held_out = tuple(part[0] for part in (batch.tokens, batch.mask, *answers))
        self._teacher, self._sums = teacher, jax.jit(_sums)
        self.shown = self._score.shown

    def __call__(self, params: Params) -> Metrics:
        likelihood, apart, count = np.asarray(self._sums(self._teacher, params, *self._held_out), np.float64)
        score = self._score(params)
        return {"perplexity": math.exp(-likelihood / count), "kl": float(apart / count), **score}


def _sums(teacher: Params, params: Params, *held_out: Any) -> Any:
    """Σ log-probability of the answers' tokens, Σ KL to the teacher, and how many tokens there are."""

    def one(row: Any) -> Any:
        own, theirs = (answer_log_probabilities(model, *(part[None] for part in row))[0] for model in (params, teacher))
        answers, known = row[2:]
        right = jnp.take_along_axis(own, answers[:, None], axis=-1)[:, 0]
        apart = (jnp.exp(theirs) * (theirs - own)).sum(-1)
        return jnp.stack([jnp.where(known, right, 0).sum(), jnp.where(known, apart, 0).sum(), known.sum()])

    return lax.map(one, held_out, batch_size=_AT_ONCE).sum(0)


def _describe(config: DistillConfig, prompts: Prompts, teacher: Params, student: Student) -> str:
    moving, task = parameter_count(student.start), prompts.task
    return (
        f"{config.teacher}: {parameter_count(teacher):,} parameters, of which {moving:,} learn as integers in "
        f"[-{config.levels}, {config.levels}]; {task.name}: {task.size('train'):,} prompts, "
        f"{len(prompts.validation.examples[0])} held out, of at most {config.prompt_tokens} tokens; population "
        f"{config.population_size:,} in chunks of {config.chunk_size}, groups of {config.group} with {config.prompts} "
        "prompts"
    )


def learner_of(header: dict[str, Any], base: Path | None = None) -> Learner[Any]:
    """The learner that a journal's header describes, on the devices that are here.

    Args:
      base: start parameters of elsewhere, in place of the rounded teacher's.
    Raises:
      UsageError: its settings are none of this job's, or its teacher is not here any more.
    """
    config = dataclasses.replace(_config_in(header), devices="auto", update="auto")
    teacher, start, _ = load_student(config)
    student = Student(start, teacher, config)
    learner = learner_for(config, student)
    if base is not None:
        learner.parameters = jax.tree.map(jnp.asarray, filled(student.start, load_parameters(base), str(base)))
    return learner


def worker_job(welcome: dict[str, Any]) -> Built:
    """The job as a worker of a fleet makes it, of the header that the run sends.

    Raises:
      UsageError: its settings are none of this job's, or the teacher or the data is not on this machine.
    """
    config = dataclasses.replace(_config_in(welcome["header"]), devices=1)  # a worker is for one device
    _, made = prepared(config)
    if made.work is None:
        raise UsageError("expected a run with a population to work for, got none; start no workers")
    return Built(made.job.learner, made.work(), (), {"data": made.job.data})


def _config_in(header: dict[str, Any]) -> DistillConfig:
    config = header.get("config")
    if not isinstance(config, dict) or header.get("job") != "distill":
        raise UsageError("expected settings of eggroll distill in the journal's header, got none; use another journal")
    return from_json(DistillConfig, config, "the journal's header")
