"""The job `eggroll vllm`: settings to run folder, with the weights in engines."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from eggroll.core.errors import UsageError
from eggroll.distributed.ray_fleet import Placement, check_ray
from eggroll.runs.environment import peak_memory
from eggroll.runs.folder import RunFolder
from eggroll.runs.going_on import go_on
from eggroll.runs.job import Evaluated, Job, Learner, RunState, job_of
from eggroll.runs.loop import Outcome, run
from eggroll.runs.metrics import Metrics
from eggroll.runs.peers import Alone
from eggroll.runs.settings import from_json
from eggroll.runs.tracking import check_trackers
from eggroll.runs.trees import filled
from eggroll.runs.weights import load_parameters
from eggroll.tasks.registry import make_task
from eggroll.vllm.blueprint import Blueprint, blueprint_of
from eggroll.vllm.checkpoint import export, folder_of, pack_kept, read_leaves, read_parts
from eggroll.vllm.config import VllmConfig
from eggroll.vllm.crew import Crew
from eggroll.vllm.engine import EngineSettings
from eggroll.vllm.hands import Here, ray_hands
from eggroll.vllm.learner import (
    LAW,
    Standing,
    as_kept,
    as_state,
    environment_of,
    start_of,
    step_of,
    whole_learner,
)
from eggroll.vllm.leaves import Leaf, Part, check_cover
from eggroll.vllm.mean import MeanSettings
from eggroll.vllm.population import Judge
from eggroll.vllm.prompts import Prompts

CHECKPOINT = "checkpoint"
"""Folder of a run with its weights, as Hugging Face has them."""
_EXPERTS = "*.experts.*"
_MEASURED: dict[str, Any] = {"main_metric": "reward", "units": ("tokens", "generation_tokens")}


class Plan(NamedTuple):
    """A run before engines are started."""

    config: VllmConfig
    folder: Path  # of the model
    blueprint: Blueprint
    prompts: Prompts
    start: tuple[dict[str, np.ndarray], dict[str, Any]]


def vllm(config: VllmConfig, *, report: Callable[[str], None], started: float | None = None) -> Outcome:
    """Fine-tune as `config` says and leave a run folder behind, or go on with one.

    Args:
      report: takes the lines that are for a person to read.
      started: `time.perf_counter()` when the program began; start-up is counted from it.
    Raises:
      UsageError: the model, the task or the settings cannot be used; nothing was written.
    """
    started = time.perf_counter() if started is None else started
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    check_trackers(config.track)
    if config.ray:
        check_ray(config.ray)
    folder = None
    if config.resume:
        jobs = lambda recorded, wanted: (_silent_job(planned(recorded)), _silent_job(planned(wanted)))
        folder, config, finished = go_on(config, "vllm", jobs, say=report, peers=Alone())
        if finished is not None:
            return Outcome(finished, 0, RunState(()))
    plan = planned(config)
    report(describe(plan))
    with engines(plan, report) as (crew, parts):
        job = _job(plan, crew, parts)
        if folder is None:
            folder = RunFolder.create(plan.config.run_dir, "vllm", plan.config.as_json())
        extra = {"task": plan.prompts.task.name, "parameters": plan.blueprint.parameters, "engines": config.engines}
        outcome = run(job, folder, extra=extra, prefix_seconds=time.perf_counter() - started, say=report)
        kept = read_parts(crew.save(), parts)
    export(plan.folder, folder.path / CHECKPOINT, kept["weight"], folder.journal)
    outcome.summary.update(
        peak_memory_bytes=peak_memory(), engines_revived=crew.revived, checkpoint=str(folder.path / CHECKPOINT)
    )
    folder.write_json("summary.json", outcome.summary)
    return outcome


def planned(config: VllmConfig) -> Plan:
    """Model, task and start weights; and the settings with numbers in place of "auto" and 0, which are recorded.

    Raises:
      UsageError: the model, the task or the settings cannot be used.
    """
    folder = folder_of(config.model)
    frozen = config.frozen
    if not (torch.cuda.is_available() or config.worker_gpus):
        frozen = (*frozen, _EXPERTS)  # vLLM's adapters of experts run on a GPU alone
    blueprint = blueprint_of(folder, config.trainable, frozen)
    dtype: Any = blueprint.dtype if config.dtype == "auto" else config.dtype
    task = make_task(config.task, data=config.task_data, options=config.options())
    prompts = Prompts(task, folder, config)
    recorded = dataclasses.replace(config, dtype=dtype, prompt_tokens=prompts.length, chunk_size=config.chunk)
    smallest = min(min(leaf.rows, leaf.columns) for leaf in blueprint.leaves)
    if config.rank > smallest:
        raise UsageError(f"expected --rank of at most {smallest}, the smallest side of a matrix, got {config.rank}")
    start = start_of(recorded, read_leaves(folder, blueprint.leaves, getattr(torch, dtype)))
    return Plan(recorded, folder, blueprint, prompts, start)


def describe(plan: Plan) -> str:
    """A line for a person."""
    config, task = plan.config, plan.prompts.task
    kinds = sorted({name.rpartition(".")[0].rpartition(".")[2] or name for name in plan.blueprint.frozen})
    return (
        f"{config.model}: {plan.blueprint.parameters:,} parameters in {len(plan.blueprint.leaves)} matrices evolve in "
        f"{config.dtype}, frozen are {', '.join(kinds)}; {task.name}: {task.size('train'):,} prompts, "
        f"{len(plan.prompts.validation)} held out, of at most {config.prompt_tokens} tokens; population "
        f"{config.population_size:,} on {config.engines} engine(s) of {config.tensor_parallel} device(s), "
        f"{config.chunk} at a time, groups of {config.group} with {config.prompts} prompts"
    )


@contextmanager
def engines(plan: Plan, say: Callable[[str], None]) -> Iterator[tuple[Crew, list[list[Part]]]]:
    """The engines of a run, and what each rank of one holds.

    Raises:
      UsageError: they cannot be started, or hold other matrices than the checkpoint says.
    """
    config, settings = plan.config, engine_settings(plan)
    if config.ray:
        placement = Placement(config.ray, config.workers, 1.0, config.worker_gpus)
        with ray_hands(settings, placement) as hands:
            parts = [hand.parts for hand in hands]
            check_cover(plan.blueprint.leaves, [part for rank in parts[0] for part in rank])
            yield Crew(hands, say), parts[0]
        return
    here = Here(settings)
    check_cover(plan.blueprint.leaves, [part for rank in here.parts for part in rank])
    yield Crew([here], say), here.parts


def engine_settings(plan: Plan) -> EngineSettings:
    """How each engine is started."""
    config, names = plan.config, tuple(leaf.name for leaf in plan.blueprint.leaves)
    mean = MeanSettings(config.seed, config.rank, LAW, config.optimizer, config.precision, names)
    targets = {"experts" if ".experts." in name else name.split(".")[-2] for name in names}
    return EngineSettings(
        str(plan.folder),
        mean,
        adapters=config.chunk,
        targets=tuple(sorted(targets)),
        tensor_parallel=config.tensor_parallel,
        dtype=config.dtype,
        context=config.prompt_tokens + config.tokens,
        options=config.further(),
    )


class _Weights:
    """The loop's view of weights that engines hold."""

    def __init__(self, config: VllmConfig, crew: Crew, parts: list[list[Part]]) -> None:
        self._config, self._crew, self._parts = config, crew, parts

    def settle(self, state: RunState) -> None:
        """Have the engines hold the weights of a state."""
        if isinstance(state.parameters, Standing):
            return
        generation = int(state.optimizer["count"])
        if generation != self._crew.generation:
            self._crew.load(pack_kept(as_kept(state.parameters, state.optimizer)), generation)

    def update(self, parameters: Any, optimizer: Any, weights: Any, generation: int) -> tuple[Any, Any, Metrics]:
        """As `job.Updater`."""
        self.settle(RunState(parameters, optimizer))
        self._crew.update(step_of(self._config, generation), np.asarray(weights, np.float32))
        standing = Standing(generation + 1)
        return standing, standing, {}

    def gathered(self, state: RunState) -> RunState:
        """With arrays, for a snapshot."""
        if not isinstance(state.parameters, Standing):
            return state
        kept = read_parts(self._crew.save(), self._parts)
        self._crew.keep(pack_kept(kept))
        parameters, optimizer = as_state(kept, self._crew.generation)
        return state._replace(parameters=parameters, optimizer=optimizer)


def _job(plan: Plan, crew: Crew, parts: list[list[Part]]) -> Job[Any]:
    config, held = plan.config, _Weights(plan.config, crew, parts)
    judge = Judge(config, plan.prompts, crew)

    def evaluate(state: RunState, generation: int) -> Evaluated:
        held.settle(state)
        return judge.weights(generation)

    def validate(state: RunState) -> Metrics:
        held.settle(state)
        return judge.validate()

    whole = whole_learner(config, plan.blueprint, plan.start)
    learner = dataclasses.replace(
        whole,
        update=held.update,
        environment=environment_of(config, tensor_parallel=config.tensor_parallel),
    )
    shown = lambda parameters: judge.shown()
    return job_of(config, learner, evaluate, **_MEASURED, validate=validate, sample=shown, gather=held.gathered)


def _silent_job(plan: Plan) -> Job[Any]:
    """For a comparison of settings: it computes nothing."""
    learner = whole_learner(plan.config, plan.blueprint, plan.start)
    evaluate = lambda state, generation: Evaluated(np.zeros(0), None, {})
    return job_of(plan.config, learner, evaluate, **_MEASURED, validate=lambda state: {})


def learner_of(header: dict[str, Any], base: Path | None = None) -> Learner[Any]:
    """The learner that a journal's header describes; it needs the model's files and PyTorch, no engine.

    Args:
      base: start parameters of elsewhere, in place of the recorded model's.
    Raises:
      UsageError: its settings are none of this job's, or its model is not here any more.
    """
    config = header.get("config")
    if not isinstance(config, dict) or header.get("job") != "vllm":
        raise UsageError("expected settings of eggroll vllm in the journal's header, got none; use another journal")
    recorded = from_json(VllmConfig, config, "the journal's header")
    folder = folder_of(recorded.model)
    blueprint = _recorded_blueprint(header, recorded)
    start = start_of(recorded, read_leaves(folder, blueprint.leaves, getattr(torch, recorded.dtype)))
    if base is not None:
        start = (filled(start[0], load_parameters(base), str(base)), start[1])
    return whole_learner(recorded, blueprint, start)


def _recorded_blueprint(header: dict[str, Any], config: VllmConfig) -> Blueprint:
    """Of the matrices that the header names, so that transformers need not be here."""
    listed = (header.get("strategy") or {}).get("trainable")
    try:
        leaves = [(name, shape.split("x")) for name, shape in (line.split(" ") for line in listed or ())]
        found = tuple(Leaf(name, int(rows), int(columns)) for name, (rows, columns) in leaves)
    except (ValueError, AttributeError, TypeError):
        found = ()
    if not found:
        raise UsageError("expected the names of matrices in the journal's header, got none; use another journal")
    return Blueprint(found, (), config.dtype)
