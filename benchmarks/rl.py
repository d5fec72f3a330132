"""Reinforcement learning on two cores: every environment, EGGROLL against OpenES and a baseline, in a queue.

    python benchmarks/rl.py run [ENV …]     # each run leaves its folder; what is there is not made again
    python benchmarks/rl.py table           # what the folders say, as Markdown
    python benchmarks/rl.py throughput      # CartPole, population 2048: perturbed against unperturbed

One process for each environment trains three seeds of each algorithm, one after the other with one compilation, and
then takes turns between generations of EGGROLL and OpenES, alone on the machine (a lock), to time them. Environments
that take minutes to compile are compiled with less optimisation, for all algorithms alike.
"""

from __future__ import annotations

import argparse
import dataclasses
import fcntl
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from eggroll.rl.config import MarlConfig, RlConfig, for_seed
from eggroll.rl.environments.registry import environment_names, multi_agent_names
from eggroll.rl.parts import make_algorithm, make_job, with_chunk
from eggroll.rl.presets import HEAVY, settings_for
from eggroll.rl.strategy import Setup, episodes, make_fitness, make_strategy, setup, start_parameters
from eggroll.runs.folder import RunFolder, put_whole
from eggroll.runs.loop import run

SECONDS = {"CartPole-v1": 60.0, "Pendulum-v1": 100.0, "InvertedDoublePendulum": 170.0, "MPE_simple_spread_v3": 30.0}
"""Of training for each seed; the others have --seconds."""
TURNS = 7


def algorithms(env: str) -> tuple[str, ...]:
    """In this order."""
    return ("eggroll", "openes", "ippo" if env in multi_agent_names() else "ppo")


def settings(env: str, algorithm: str, seconds: float) -> Any:
    """The two-core preset, for so many seconds; PPO stops by the clock, as the others do."""
    config = settings_for(MarlConfig if env in multi_agent_names() else RlConfig, env, "small", algorithm)
    most = SECONDS.get(env, seconds)
    episodes = 32 if env in HEAVY else config.validation_episodes
    every = 5 if env in HEAVY else config.validate_every
    every = max(every, config.generations // 20) if config.is_baseline else every
    limits = {"generations": 100_000, "max_seconds": most, "validate_every": every, "validation_episodes": episodes}
    return dataclasses.replace(config, **limits, snapshot_every=1000)


@contextmanager
def turn(home: Path, kind: int) -> Iterator[None]:
    """Training shares the machine with another queue, timing does not."""
    with (home / ".lock").open("w") as file:
        fcntl.flock(file, kind)
        yield


def one(env: str, home: Path, seconds: float, seeds: int, baseline: bool) -> None:
    """All of an environment that is not there yet."""
    known: dict[str, Any] = {}
    for algorithm in algorithms(env) if baseline else algorithms(env)[:2]:
        config = settings(env, algorithm, seconds)
        places = {seed: home / f"{env.replace('/', '-')}-{algorithm}-{seed}" for seed in range(seeds)}
        missing = [seed for seed, place in places.items() if not (place / "summary.json").exists()]
        timed = (home / f"{env.replace('/', '-')}-timing.json").exists()
        if not missing and (timed or config.is_baseline):
            continue
        config, made = with_chunk(config, make_algorithm(config))
        if algorithm == "openes" and "eggroll" in known:
            made = made._replace(score=known["eggroll"][1].score)  # the same policy, compiled once
        known[algorithm] = (config, made)
        for seed in missing:
            own = for_seed(config, seed)
            place = places[seed]
            folder = RunFolder.open(place) if place.exists() else RunFolder.create(place, own.job, own.as_json())
            with turn(home, fcntl.LOCK_SH):
                outcome = run(make_job(own, made), folder, extra={"algorithm": algorithm, "environment": env})
            told = outcome.summary
            print(env, algorithm, seed, {k: told.get(k) for k in ("start_return", "return", "generations", "seconds")})
            sys.stdout.flush()
            if outcome.exit_status:
                raise SystemExit(outcome.exit_status)
    if {"eggroll", "openes"} <= known.keys():
        with turn(home, fcntl.LOCK_EX):
            timing = time_generations({name: known[name] for name in ("eggroll", "openes")})
        put_whole(home / f"{env.replace('/', '-')}-timing.json", [json.dumps(timing).encode()])


def time_generations(known: dict[str, tuple[Any, Any]]) -> dict[str, list[float]]:
    """Seconds of a generation (evaluation and update) from the start parameters, in turns."""
    calls = {}
    for name, (config, made) in known.items():
        job = make_job(config, made)
        state = job.start()

        def generation(job: Any = job, state: Any = state) -> None:
            weights = job.evaluate(state, 0).weights
            jax.block_until_ready(job.learner.update(state.parameters, state.optimizer, weights, 0)[0])

        generation()
        calls[name] = generation
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(TURNS):
        for name, call in calls.items():
            begun = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - begun)
    return seconds


def queue(envs: list[str], home: Path, seconds: float, seeds: int, baseline: bool) -> None:
    """Environment after environment, each in a process of its own."""
    home.mkdir(parents=True, exist_ok=True)
    for env in envs:
        begun = time.perf_counter()
        command = [sys.executable, __file__, "one", env, "--home", str(home), "--seconds", str(seconds)]
        command += [] if baseline else ["--no-baseline"]
        flags = os.environ.get("XLA_FLAGS", "") + (" --xla_backend_optimization_level=0" if env in HEAVY else "")
        environment = os.environ | {"XLA_FLAGS": flags.strip()}
        status = subprocess.run([*command, "--seeds", str(seeds)], check=False, env=environment).returncode
        print(f"{env}: status {status} after {time.perf_counter() - begun:.0f} s", flush=True)


def summaries(home: Path, env: str, algorithm: str) -> list[dict[str, Any]]:
    """Of the seeds that are there."""
    places = sorted(home.glob(f"{env.replace('/', '-')}-{algorithm}-[0-9]"))
    files = [place / "summary.json" for place in places]
    return [json.loads(file.read_text()) for file in files if file.exists()]


def row(home: Path, env: str, algorithm: str) -> dict[str, Any] | None:
    """Mean and standard error over seeds of start, end and improvement."""
    found = summaries(home, env, algorithm)
    if not found:
        return None
    start, end = (np.array([each[name] for each in found], float) for name in ("start_return", "return"))
    error = lambda values: float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else float("nan")
    gain, spread = float((end - start).mean()), error(end - start)
    generations = [each["generations"] for each in found]
    measured = {"start": float(start.mean()), "end": float(end.mean()), "error": error(end), "gain": gain}
    return measured | {"gain_error": spread, "seeds": len(found), "generations": float(np.mean(generations))}


def table(home: Path) -> str:
    """Markdown: one line for each environment."""
    lines = [
        "| environment | start | EGGROLL | OpenES | PPO or IPPO | gain in SE | generations (EGGROLL, OpenES) | "
        "ms per generation EGGROLL | OpenES | OpenES / EGGROLL | turn by turn |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    as_good = faster = count = improved = 0
    for env in (*environment_names(), *multi_agent_names()):
        rows = {name: row(home, env, name) for name in algorithms(env)}
        egg, dense = rows["eggroll"], rows["openes"]
        if not any(rows.values()):
            lines.append(f"| {env} | not run {'| ' * 10}|")
            continue
        cells = [f"{each['end']:.4g} ± {each['error']:.2g}" if each else "–" for each in rows.values()]
        file = home / f"{env.replace('/', '-')}-timing.json"
        times = json.loads(file.read_text()) if file.exists() else None
        timed = ["–"] * 4
        if times:
            own, other = (sorted(times[name]) for name in ("eggroll", "openes"))
            timed = [f"{1e3 * statistics.median(v):.0f} ({1e3 * v[0]:.0f}–{1e3 * v[-1]:.0f})" for v in (own, other)]
            ratios = sorted(b / a for a, b in zip(times["eggroll"], times["openes"], strict=True))
            timed.append(f"{statistics.median(other) / statistics.median(own):.2f}")
            timed.append(f"{ratios[0]:.2f}–{ratios[-1]:.2f}")
        if env in environment_names() and egg and dense:
            count += 1
            as_good += egg["end"] >= dense["end"] - np.nan_to_num(max(egg["error"], dense["error"]))
            faster += bool(times) and ratios[0] > 1
            improved += egg["gain"] >= 2 * egg["gain_error"]
        gain = f"{egg['gain'] / egg['gain_error']:.1f}" if egg and egg["gain_error"] else "–"
        many = "–" if not egg or not dense else f"{egg['generations']:.0f}, {dense['generations']:.0f}"
        lines.append(
            f"| {env} | {egg['start'] if egg else float('nan'):.4g} | {' | '.join([*cells, gain, many, *timed])} |"
        )
    counts = (
        f"{as_good} within one standard error of OpenES or better, {faster} faster than OpenES in each of {TURNS} turns"
    )
    return "\n".join([*lines, "", f"Of {count} with one agent: {improved} improved by 2 SE, {counts}."])


def endless(made: Setup) -> Setup:
    """The same, with episodes that end by their length alone: every member takes as many steps as every other."""
    environment = made.environment
    step = lambda key, state, action: environment.step(key, state, action)._replace(done=jax.numpy.bool_(False))
    return made._replace(environment=dataclasses.replace(environment, step=step))


def throughput(steps: int, population: int) -> None:
    """Environment steps per second of a population, drawing its noise, against the unperturbed policy over as many.

    Both take exactly `steps` steps in each of `population` environments.
    """
    paper = settings_for(RlConfig, "CartPole-v1", "paper", "eggroll")
    base = dataclasses.replace(paper, episode_length=steps, population_size=population)
    made = endless(setup(base))
    params = start_parameters(base, made.policy)
    calls: dict[str, Any] = {}
    for rank in (1, 4):
        for chunk in (256, 512, population):
            config = dataclasses.replace(base, rank=rank, chunk_size=chunk, devices=1)
            es, fitness = make_strategy(config, params), make_fitness(config, made)
            state = es.init(params, 0)
            calls[f"rank {rank}, chunk {chunk}"] = lambda es=es, fitness=fitness, state=state: jax.block_until_ready(
                es.evaluate(state, fitness, has_aux=True)[0]
            )
    for chunk in (256, 512, population):
        keys = jax.random.split(jax.random.key(1), population).reshape(-1, chunk)
        score = lambda params, keys: episodes(made, made.policy.act, params, keys, None).score
        plain = jax.jit(lambda params, keys, score=score: jax.lax.map(lambda own: score(params, own), keys))
        calls[f"plain, chunk {chunk}"] = lambda keys=keys, plain=plain: jax.block_until_ready(plain(params, keys))
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(5):
        for name, call in calls.items():
            begun = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - begun)
    best = min(statistics.median(values) for name, values in seconds.items() if name.startswith("plain"))
    for name, values in seconds.items():
        middle = statistics.median(values)
        rate = population * steps / middle / 1e6
        print(
            f"{name}: {rate:.2f} M steps/s, {1e3 * middle:.0f} ms ({1e3 * min(values):.0f}–{1e3 * max(values):.0f}), "
            f"{best / middle:.0%}"
        )


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["run", "one", "table", "throughput"])
    parser.add_argument("envs", nargs="*")
    parser.add_argument("--home", type=Path, default=Path("runs/rl-benchmark"))
    parser.add_argument("--seconds", type=float, default=45.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--baseline", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--steps", type=int, default=100)
    given = parser.parse_args()
    everything = [*environment_names(), *multi_agent_names()]
    if given.command == "run":
        queue(given.envs or everything, given.home, given.seconds, given.seeds, given.baseline)
    elif given.command == "one":
        one(given.envs[0], given.home, given.seconds, given.seeds, given.baseline)
    elif given.command == "table":
        print(table(given.home))
    else:
        throughput(given.steps, 2048)


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    main()
