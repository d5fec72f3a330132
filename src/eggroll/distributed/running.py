"""A run of a job by one command: what it is made of, from start or resume, a fleet or not, to summary and weights."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax

from eggroll.distributed.launch import check_fleet, fleet_for
from eggroll.distributed.worker import Built
from eggroll.runs.environment import peak_memory
from eggroll.runs.evolution import PopulationSettings
from eggroll.runs.folder import RunFolder
from eggroll.runs.going_on import go_on
from eggroll.runs.job import Job, RangeWork, RunState
from eggroll.runs.loop import Loop, Outcome, run
from eggroll.runs.peers import Alone
from eggroll.runs.tracking import check_trackers

C = TypeVar("C", bound=PopulationSettings)


class Prepared(NamedTuple):
    """A run's job and what it is made of.

    Attributes:
      work: how a fleet evaluates the population; None where a gradient is followed.
      line: about all this, for a person.
      keep: (parameters at the end, folder) → weights in files.
      extra: entries of the summary, measured before the run.
      closing: the summary → further entries.
      population: what evaluates members, for those who look into a run.
    """

    job: Job[Any]
    work: Callable[[], RangeWork] | None
    line: str
    keep: Callable[[Any, RunFolder], None]
    extra: Callable[[], dict[str, Any]]
    closing: Callable[[dict[str, Any]], dict[str, Any]] = lambda summary: {}
    population: Any = None


def carried_out(
    config: C,
    name: str,
    prepared: Callable[[C], tuple[C, Prepared]],
    worker_job: Callable[[dict[str, Any]], Built],
    *,
    report: Callable[[str], None],
    started: float | None,
) -> Outcome:
    """Train as `config` says and leave a run folder behind, or go on with one.

    Args:
      name: of the command.
      prepared: settings → those that are recorded, and the job.
      worker_job: the job as a worker makes it of a header.
    Raises:
      UsageError: the model, the task or the settings cannot be used; nothing was written.
    """
    started = time.perf_counter() if started is None else started
    check_trackers(config.track)
    check_fleet(config)
    folder = None
    if config.resume:
        jobs = lambda recorded, wanted: (prepared(recorded)[1].job, prepared(wanted)[1].job)
        folder, config, finished = go_on(config, name, jobs, say=report, peers=Alone())
        if finished is not None:
            return Outcome(finished, 0, RunState(()))
    config, made = prepared(config)
    if folder is None:
        folder = RunFolder.create(config.run_dir, name, config.as_json())
    report(made.line)
    settings: dict[str, Any] = {
        "extra": made.extra(),
        "prefix_seconds": time.perf_counter() - started,
        "say": report,
    }
    if config.is_fleet and made.work is not None:
        with fleet_for(config, made.job, made.work(), folder, worker_job, say=report) as fleet_job:
            outcome = run(fleet_job, folder, **settings)
    else:
        outcome = run(made.job, folder, **settings)
    made.keep(_end_of(outcome, made.job, folder), folder)
    outcome.summary.update(made.closing(outcome.summary), peak_memory_bytes=peak_memory())
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
