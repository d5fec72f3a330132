"""Population, rank, σ, learning rate, group size: what they do to learning, on two tasks of seconds, over seeds.

python benchmarks/choosing.py run      # every point of every study; what is there is not made again
python benchmarks/choosing.py draw     # figures, and benchmarks/choosing.json
python benchmarks/choosing.py table    # the numbers, as Markdown

All runs of a task make the same number of evaluations (members × generations × data of a member), so that a busy
machine changes nothing of what is learned. Times are ratios, taken by turns in one process. Every point goes into
`results.jsonl` under --out as soon as it is measured.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from choosing_references import backpropagation, log_likelihood, unanswered_of
from choosing_tasks import TASKS, Setting, Task, distribution, fitness_of

import eggroll
from eggroll.runs.environment import environment
from eggroll.runs.timing import interleaved

CHECKPOINTS = 20
RATES = (0.003, 0.01, 0.03, 0.1, 0.3)
SIGMAS = (0.01, 0.03, 0.1, 0.3, 1.0)
GRADIENT_RATES = (0.01, 0.03, 0.1, 0.3, 1.0)
RANKS = {"digits": (1, 2, 4, 8, 0), "pendulum": (1, 2, 4, 0)}
POPULATIONS = {"digits": (32, 128, 512, 2048, 8192), "pendulum": (16, 64, 256, 1024, 4096)}
GROUPS = {"digits": (2, 8, 32, 128, 512), "pendulum": (2, 8, 32, 256)}
SHARES = {"digits": (4, 16, 64, 256), "pendulum": (1, 4, 16)}
SHAPINGS = {
    "digits": ("group_z_score", "z_score", "centred_rank", "antithetic_sign"),
    "pendulum": ("z_score", "centred_rank", "antithetic_sign"),
}
HIGH = {"digits": 0.1, "pendulum": 0.3}
"""A learning rate that is high for a whole run."""
ENOUGH = {"digits": 0.9, "pendulum": -250.0}
"""A score that says no class was lost; that the pendulum is swung up and held."""
SCHEDULES = ("constant", "rate falls", "sigma falls", "both fall")
TURNS = 7
REFERENCES = "references digits"


@dataclass(frozen=True)
class Scale:
    """How much of it: the real thing, or a trial of the code."""

    seeds: int = 8
    share_of_budget: float = 1.0

    def generations(self, task: Task, setting: Setting) -> int:
        """Updates, at equal cost: evaluations times data of a member."""
        evaluations = self.share_of_budget * task.budget * task.base.share / setting.share
        return max(1, round(evaluations / setting.population))


# ── one point ──


def at(schedule: str, done: float) -> tuple[float, float]:
    """Factors on σ and on the learning rate after that share of a run; both end at a tenth."""
    fallen = 0.1**done
    return (
        fallen if schedule in ("sigma falls", "both fall") else 1.0,
        fallen if schedule in ("rate falls", "both fall") else 1.0,
    )


@functools.cache
def block_of(task: Task, setting: Setting, generations: int) -> Callable[..., Any]:
    """Compiled: (seeds, states, σ, rate) → states after so many generations and their scores; seeds side by side.

    `setting` has σ, rate and schedule at 0: they are arguments, and the same program serves all of them.
    """
    fitness = fitness_of(task, setting)

    def advance(seed: Any, state: Any, sigma: Any, rate: Any) -> Any:
        es = strategy(task, setting, lambda generation: 1.0 if isinstance(generation, int) else sigma)
        opt_state = state.opt_state._replace(hyperparams={"learning_rate": rate})

        def generation(state: Any, _: Any) -> Any:
            return es.step(state, fitness, *task.data(seed, state.generation, setting))[0], None

        state = jax.lax.scan(generation, state._replace(opt_state=opt_state), length=generations)[0]
        return state, task.score(seed, state.params)

    return jax.jit(jax.vmap(advance, in_axes=(0, 0, None, None)))


def strategy(task: Task, setting: Setting, sigma: Any) -> eggroll.EvolutionStrategy:
    """With a step size that is part of its state."""
    kind = {"adam": optax.adam, "sgd": optax.sgd}[setting.optimizer]
    shapes = jax.eval_shape(lambda: task.init(0))
    return eggroll.EvolutionStrategy(
        optax.inject_hyperparams(kind)(learning_rate=0.0),
        population_size=setting.population,
        sigma=sigma,
        distribution=distribution(setting, shapes),
        shaping=setting.shaping,
        group_size=setting.group,
        chunk_size=min(setting.population, 4096 // setting.share, 64 if task.name == "digits" else 512),
    )


@functools.cache
def start_of(task_name: str, optimizer: str, seeds: int) -> Any:
    """(states, scores) of so many seeds before the first generation; no other setting changes them."""
    task = TASKS[task_name]
    setting = task.base._replace(optimizer=optimizer)

    def start(seed: Any) -> Any:
        params = task.init(seed)
        state = strategy(task, setting, 1.0).init(params)
        return state._replace(seed=jnp.stack([seed, jnp.int32(1)])), task.score(seed, params)

    return jax.jit(jax.vmap(start))(jnp.arange(seeds, dtype=jnp.int32))


def shape_of(setting: Setting) -> Setting:
    """What is compiled of a setting."""
    return setting._replace(sigma=0.0, rate=0.0, schedule="")


def trained(task: Task, setting: Setting, scale: Scale) -> tuple[list[int], list[Any], Any]:
    """One point: generations and scores (seeds,) of each checkpoint, the first before any update, and the states."""
    total = scale.generations(task, setting)
    each = max(1, round(total / CHECKPOINTS))
    seeds = jnp.arange(scale.seeds, dtype=jnp.int32)
    states, first = start_of(task.name, setting.optimizer, scale.seeds)
    advance, done, scores = block_of(task, shape_of(setting), each), [0], [np.asarray(first)]
    while done[-1] < total:
        factors = at(setting.schedule, done[-1] / total)
        sigma, rate = (jnp.float32(x * f) for x, f in zip((setting.sigma, setting.rate), factors, strict=True))
        states, found = advance(seeds, states, sigma, rate)
        done.append(done[-1] + each)
        scores.append(np.asarray(found))
    return done, scores, states


def measure(task: Task, setting: Setting, scale: Scale) -> dict[str, Any]:
    """The learning curve of one point: scores (checkpoints, seeds)."""
    done, scores, _ = trained(task, setting, scale)
    return {"generations": done, "scores": np.asarray(scores, np.float64).round(5).tolist()}


def references(task: Task, scale: Scale) -> dict[str, Any]:
    """Of the digits: backpropagation, and how many classes a seed never answers, beside its score."""
    found = backpropagation(task, scale.seeds, scale.generations(task, task.base))
    smooth = task._replace(fitness=log_likelihood)
    for name, own, rank in (("rank 1", task, 1), ("full rank", task, 0), ("rank 1, log-likelihood", smooth, 1)):
        _, scores, states = trained(own, task.base._replace(rank=rank), scale)
        counts = unanswered_of(states.params, scale.seeds)
        found[name] = {"unanswered": counts, "scores": np.asarray(scores[-1], np.float64).round(5).tolist()}
    return found


# ── the studies ──


def points(task: Task) -> Iterator[tuple[str, Setting]]:
    """Every study's points; a setting that two studies share is measured once."""
    base = task.base
    for sigma in SIGMAS:
        for rate in RATES:
            yield "sigma and rate", base._replace(sigma=sigma, rate=rate)
    for schedule in SCHEDULES:
        yield "schedule", base._replace(schedule=schedule, rate=HIGH[task.name])
    for population in POPULATIONS[task.name]:
        for rate in RATES[1:]:
            yield "population", base._replace(population=population, group=min(base.group, population), rate=rate)
    for rank in RANKS[task.name]:
        yield "rank", base._replace(rank=rank)
    for group in GROUPS[task.name]:
        yield "group", base._replace(group=group)
    for share in SHARES[task.name]:
        population = base.population * base.share // share
        yield "share", base._replace(share=share, population=population, group=min(base.group, population))
    for shaping in SHAPINGS[task.name]:
        yield "shaping", base._replace(shaping=shaping)
    for sigma in (base.sigma / 10, base.sigma):
        for rate in GRADIENT_RATES:
            yield "optimizer", base._replace(optimizer="sgd", sigma=sigma, rate=rate)


def key_of(task: str, setting: Setting) -> str:
    return json.dumps([task, *setting])


def rank_times(task: Task, scale: Scale) -> dict[str, float]:
    """Seconds of a generation at each rank over those at rank 1, taken by turns."""
    seeds = jnp.arange(scale.seeds, dtype=jnp.int32)
    calls = {}
    for rank in RANKS[task.name]:
        setting = shape_of(task.base._replace(rank=rank))
        each = max(1, round(scale.generations(task, setting) / CHECKPOINTS))
        states, _ = start_of(task.name, setting.optimizer, scale.seeds)
        numbers = jnp.float32(task.base.sigma), jnp.float32(task.base.rate)
        calls[str(rank)] = functools.partial(block_of(task, setting, each), seeds, states, *numbers)
    times = interleaved(calls, TURNS)
    return {rank: seconds / times["1"] for rank, seconds in times.items()}


def run(out: Path, names: Sequence[str], scale: Scale) -> None:
    """Measure what is not there yet."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / "results.jsonl"
    there = {line["key"] for line in lines_of(file)}
    for name in names:
        task, began = TASKS[name], time.perf_counter()
        for study, setting in points(task):
            if key_of(name, setting) in there:
                continue
            there.add(key_of(name, setting))
            found = measure(task, setting, scale)
            note(file, {"key": key_of(name, setting), **found})
            told = np.mean(found["scores"][-1])
            print(f"{time.perf_counter() - began:6.1f} s  {name}, {study}: {setting}: {told:.4g}", flush=True)
        if name == "digits" and REFERENCES not in there:
            note(file, {"key": REFERENCES, **references(task, scale)})
        if f"times {name}" not in there:
            note(file, {"key": f"times {name}", "times": rank_times(task, scale), **environment()})


def note(file: Path, line: dict[str, Any]) -> None:
    with file.open("a") as stream:
        stream.write(json.dumps(line) + "\n")


def lines_of(file: Path) -> list[dict[str, Any]]:
    """What was measured; a line that a kill has cut short does not count."""
    found = []
    for text in file.read_text().splitlines() if file.exists() else ():
        try:
            found.append(json.loads(text))
        except ValueError:
            continue
    return found


def summarised(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard error."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return statistics.mean(values), error


def reached(task_name: str, scores: Sequence[float]) -> int:
    """How many seeds got there."""
    return sum(score >= ENOUGH[task_name] for score in scores)


def collected(file: Path) -> dict[str, Any]:
    """Everything by task and study, as `benchmarks/choosing.json` has it."""
    known = {line["key"]: line for line in lines_of(file)}
    result: dict[str, Any] = {}
    for name, task in TASKS.items():
        studies: dict[str, list[dict[str, Any]]] = {}
        for study, setting in points(task):
            line = known.get(key_of(name, setting))
            if line is not None:
                mean, error = summarised(line["scores"][-1])
                values = {"mean": mean, "standard_error": error, "reached": reached(name, line["scores"][-1])}
                curve = {"generations": line["generations"], "scores": line["scores"]}
                keep = curve if study in ("schedule", "rank", "population") else {}
                studies.setdefault(study, []).append({**setting._asdict(), **values, **keep})
        times = known.get(f"times {name}", {})
        if studies:
            result[name] = {"goal": task.goal, "budget": task.budget, "base": task.base._asdict(), **studies}
            result[name]["times"] = times.get("times", {})
            result[name]["enough"] = ENOUGH[name]
            result[name]["references"] = known.get(REFERENCES, {}) if name == "digits" else {}
            result["environment"] = {key: value for key, value in times.items() if key not in ("key", "times")}
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("run", "draw", "table"), help="measure, draw, or print the tables")
    parser.add_argument("--out", type=Path, default=Path("runs/choosing"), help="folder of what was measured")
    parser.add_argument("--figures", type=Path, default=Path("docs/choosing"), help="folder of the figures")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/choosing.json"), help="file of the numbers")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS), help="which")
    parser.add_argument("--seeds", type=int, default=Scale.seeds, help="runs of each point")
    parser.add_argument("--budget", type=float, default=1.0, help="share of the evaluations, to try the code")
    options = parser.parse_args(arguments)
    if options.what == "run":
        run(options.out, options.tasks, Scale(options.seeds, options.budget))
        return
    result = collected(options.out / "results.jsonl")
    if options.what == "table":
        from choosing_tables import tables

        print(tables(result))
        return
    from choosing_figures import draw

    options.json.write_text(json.dumps(result) + "\n")
    draw(result, options.figures)


if __name__ == "__main__":
    main()
