"""The jobs `eggroll rl` and `eggroll marl`: settings to run folder, by evolution or by a baseline."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from eggroll.core.errors import UsageError
from eggroll.core.population import key_of
from eggroll.distributed.launch import check_fleet, fleet_for
from eggroll.distributed.worker import Built
from eggroll.rl.config import MarlConfig, RlConfig, SearchConfig, for_seed
from eggroll.rl.environments.base import ActionSpace, Discrete, MultiDiscrete
from eggroll.rl.parts import Algorithm, answers_for, make_algorithm, make_job, make_learner, returns, with_chunk
from eggroll.rl.population import range_work, start_shared, statistics_of
from eggroll.rl.rendering import save_episode
from eggroll.rl.rollout import record_episode
from eggroll.rl.strategy import EPISODES
from eggroll.rl.tune import tune
from eggroll.runs.environment import peak_memory
from eggroll.runs.folder import RunFolder, fresh_folder
from eggroll.runs.going_on import go_on
from eggroll.runs.job import Job, Learner, RunState
from eggroll.runs.loop import Loop, Outcome, run, run_together
from eggroll.runs.peers import Alone
from eggroll.runs.settings import from_json
from eggroll.runs.tracking import check_trackers

KINDS: dict[str, type[Any]] = {"rl": RlConfig, "marl": MarlConfig}
"""Job → its settings."""
Say = Callable[[str], None]


def train(config: Any, *, report: Say, started: float | None = None) -> tuple[dict[str, Any], int]:
    """Train as `config` says and leave a run folder behind (one for each seed or trial), or go on with it.

    Args:
      config: `RlConfig` or `MarlConfig`.
      report: takes the lines that are for a person to read.
      started: `time.perf_counter()` when the program began; start-up is counted from it.
    Returns:
      The summary, of several seeds or trials what they come to, and the exit status.
    Raises:
      UsageError: the settings cannot be used; nothing was written.
    """
    started = time.perf_counter() if started is None else started
    check_trackers(config.track)
    check_fleet(config)
    if config.tune:
        return tune(config, train, report=report)
    if config.seeds > 1:
        return _train_seeds(config, report, started)
    outcome, folder, config, algorithm = _train_one(config, report, started)
    if config.render is not None:
        state = outcome.state if jax.tree.leaves(outcome.state.parameters) else _state_of(config, algorithm, folder)
        outcome.summary["rendered"] = render(config, algorithm, state)
    return outcome.summary, outcome.exit_status


def _train_one(config: Any, report: Say, started: float) -> tuple[Outcome, RunFolder, Any, Algorithm]:
    folder = None
    if config.resume:
        folder, config, finished = go_on(config, config.job, _jobs, say=report, peers=Alone())
        assert folder is not None  # of process 0
        if finished is not None:
            return Outcome(finished, 0, RunState(())), folder, config, with_chunk(config, make_algorithm(config))[1]
    config, algorithm = with_chunk(config, make_algorithm(config))
    job = make_job(config, algorithm)
    if folder is None:
        folder = RunFolder.create(config.run_dir, config.job, config.as_json())
    report(describe(config, algorithm))
    extra, seconds = facts(config, algorithm), time.perf_counter() - started
    if config.is_fleet and algorithm.es is not None and algorithm.fitness is not None:
        work = range_work(algorithm.es, config, algorithm.fitness)
        with fleet_for(config, job, work, folder, worker_job, say=report) as fleet_job:
            outcome = run(fleet_job, folder, extra=extra, prefix_seconds=seconds, say=report)
    else:
        outcome = run(job, folder, extra=extra, prefix_seconds=seconds, say=report)
    outcome.summary["peak_memory_bytes"] = peak_memory()
    folder.write_json("summary.json", outcome.summary)
    return outcome, folder, config, algorithm


def _train_seeds(config: Any, report: Say, started: float) -> tuple[dict[str, Any], int]:
    """All seeds by one program, each in a folder of its own."""
    home = config.run_dir if config.run_dir is not None else fresh_folder(config.job)
    configs = [for_seed(config, k) for k in range(config.seeds)]
    folders: list[RunFolder] = []
    places = [home / f"seed-{each.seed}" for each in configs]
    if config.resume:
        configs, folders = _seeds_again(configs, places, report)
    chunk = configs[0].chunk_size if config.resume else config.chunk_size
    shared, algorithm = with_chunk(dataclasses.replace(config, chunk_size=chunk), make_algorithm(config))
    configs = [dataclasses.replace(each, chunk_size=shared.chunk_size) for each in configs]
    jobs = [make_job(each, algorithm) for each in configs]
    if not config.resume:
        for each, place in zip(configs, places, strict=True):
            folders.append(RunFolder.create(place, config.job, each.as_json()))
    report(describe(shared, algorithm) + f"; seeds {configs[0].seed} to {configs[-1].seed} in {home}")
    answers = answers_for(configs, jobs, algorithm)
    seconds = time.perf_counter() - started
    extra = facts(shared, algorithm)
    outcomes = run_together(jobs, folders, answers, extra=extra, prefix_seconds=seconds, say=report)
    summary = together(outcomes, home)
    if config.render is not None:
        summary["rendered"] = render(configs[0], algorithm, outcomes[0].state)
    return summary, max(outcome.exit_status for outcome in outcomes)


def _seeds_again(configs: Sequence[Any], places: Sequence[Path], report: Say) -> tuple[list[Any], list[RunFolder]]:
    """Recorded settings and folders of all seeds; finished ones too, which the loop leaves at once."""
    held: list[Any] = []
    folders: list[RunFolder] = []
    for config, place in zip(configs, places, strict=True):
        if held and not place.exists():  # killed before all folders were there
            config = dataclasses.replace(held[0], seed=config.seed)
            folders.append(RunFolder.create(place, config.job, config.as_json()))
            held.append(config)
            continue
        folder, wanted, _ = go_on(
            dataclasses.replace(config, run_dir=place), config.job, _jobs, say=lambda line: None, peers=Alone()
        )
        assert folder is not None
        held.append(wanted)
        folders.append(folder)
    report(f"going on with {len(held)} seeds")
    return held, folders


def seeds_in(home: Path) -> list[Path]:
    """Folders of a run of several seeds, lowest seed first; none where `home` is that of a single run."""
    found = [path for path in home.glob("seed-*") if path.name.removeprefix("seed-").isdecimal()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("seed-")))


def together(outcomes: Sequence[Outcome], home: Path) -> dict[str, Any]:
    """One summary of several seeds: mean and standard error of what they reached."""
    summaries = [outcome.summary for outcome in outcomes]
    first = summaries[0]
    means = returns([summary["return"] for summary in summaries])
    start = returns([summary["start_return"] for summary in summaries])
    return {
        "job": first["job"],
        "finished": all(summary["finished"] for summary in summaries),
        "seeds": len(summaries),
        "start_return": start["return"],
        "return": means["return"],
        "return_error": means["return_error"],
        "returns": [summary["return"] for summary in summaries],
        "generations": [summary["generations"] for summary in summaries],
        "seconds": max(summary["seconds"] for summary in summaries),
        "startup_seconds": first["startup_seconds"],
        "environment": first["environment"],
        "algorithm": first["algorithm"],
        "peak_memory_bytes": peak_memory(),
        "run_dir": str(home),
    }


def _jobs(recorded: Any, wanted: Any) -> tuple[Job[Any], Job[Any]]:
    both = (with_chunk(each, make_algorithm(each)) for each in (recorded, wanted))
    before, after = (make_job(config, algorithm) for config, algorithm in both)
    return before, after


def facts(config: SearchConfig, algorithm: Algorithm) -> dict[str, Any]:
    """Entries of the summary that tell what was trained."""
    parameters = jax.eval_shape(algorithm.made.policy.init, jax.random.key(0))
    return {
        "environment": algorithm.made.environment.name,
        "algorithm": config.algorithm_name,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(parameters)),
        "observation_size": algorithm.made.environment.observation_size,
    }


def describe(config: SearchConfig, algorithm: Algorithm) -> str:
    """A line for a person."""
    made = algorithm.made
    own = made.environment
    what = f"{own.name}: {own.observation_size} observed numbers, {_actions(own.action_space)}"
    if algorithm.baseline is not None:
        return f"{what}; {config.algorithm_name}, {algorithm.baseline.steps:,} steps an iteration"
    return (
        f"{what}, episodes of up to {made.max_steps} steps; {config.algorithm_name}, population "
        f"{config.population_size:,} in chunks of {config.chunk_size}, {config.episodes} episodes a member"
    )


def _actions(space: ActionSpace) -> str:
    if isinstance(space, Discrete):
        return f"{space.n} actions"
    if isinstance(space, MultiDiscrete):
        return f"choices among {', '.join(map(str, space.sizes))}"
    return f"{space.size} continuous actions"


def render(config: Any, algorithm: Algorithm, state: RunState) -> str:
    """Write an episode of the mean policy to `config.render`, and return its name."""
    made = algorithm.made
    act = lambda key, observation: algorithm.act(state.parameters, key, observation)
    key = key_of(config.seed, EPISODES)
    statistics = statistics_of(state.shared) if state.shared else None
    states, _ = record_episode(made.environment, act, key, max_steps=made.max_steps, statistics=statistics)
    return str(save_episode(made.environment, states, config.render))


def _state_of(config: Any, algorithm: Algorithm, folder: RunFolder | None) -> RunState:
    """That of a finished run."""
    with Loop(make_job(config, algorithm), folder, say=lambda line: None) as loop:
        while loop.generation < loop.ledger.generations:
            loop.advance()
        return loop.state


def learner_of(header: dict[str, Any], base: Path | None = None) -> Learner[Any]:
    """The learner that a journal's header describes.

    Raises:
      UsageError: its settings are none of these jobs'.
    """
    config = _config_in(header)
    config, algorithm = with_chunk(config, make_algorithm(config))
    return make_learner(config, algorithm, base)


def worker_job(welcome: dict[str, Any]) -> Built:
    """The job as a worker of a fleet makes it, of the header that the run sends.

    Raises:
      UsageError: its settings are none of these jobs'.
    """
    config = dataclasses.replace(_config_in(welcome["header"]), devices=1)  # a worker is for one device
    config, algorithm = with_chunk(config, make_algorithm(config))
    if algorithm.es is None or algorithm.fitness is None:
        raise UsageError("expected a run of eggroll or openes to work for, got a baseline; start no workers")
    work = range_work(algorithm.es, config, algorithm.fitness)
    return Built(make_learner(config, algorithm), work, start_shared(config, algorithm.made), {"data": ""})


def _config_in(header: dict[str, Any]) -> Any:
    config, job = header.get("config"), header.get("job")
    if not isinstance(config, dict) or job not in KINDS:
        raise UsageError("expected settings of eggroll rl in the journal's header, got none; use another journal")
    return from_json(KINDS[job], config, "the journal's header")
