"""Fine-tuning on two cores: EGGROLL against GRPO on a small Countdown, with the same start and the same seconds.

python benchmarks/finetune.py run       # each run leaves its folder; what is there is not made again
python benchmarks/finetune.py table     # what the folders say, as Markdown
python benchmarks/finetune.py speed     # tokens per second of a population against the unperturbed model
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eggroll.llm.config import FinetuneConfig
from eggroll.llm.fitness import sampling_of
from eggroll.llm.generate import generate
from eggroll.llm.job import prepared
from eggroll.llm.population import arguments_of

TASK = '{"numbers": [2, 3], "maximum": 9, "target_maximum": 99}'
START = ["--algorithm=supervised", "--generations=100", "--prompts=64", "--learning-rate=0.003", "--target=0.1",
         "--validate-every=2"]  # fmt: skip
ALGORITHMS = {
    "eggroll": ["--population-size=128", "--prompts=16", "--sigma=0.02", "--learning-rate=0.003"],
    "grpo": ["--algorithm=grpo", "--samples=8", "--prompts=32", "--temperature=1", "--optimizer=radam",
             "--learning-rate=0.0003"],
}  # fmt: skip
TURNS = 5


def train(home: Path, name: str, flags: list[str]) -> None:
    """One run, unless it is there."""
    if (home / name / "summary.json").exists():
        return
    common = [f"--task-options={TASK}", "--prompt-tokens=9", "--tokens=9", "--validation-prompts=512"]
    common += [f"--run-dir={home / name}"]
    subprocess.run([sys.executable, "-m", "eggroll", "finetune", *flags, *common], check=True)


def queue(home: Path, seconds: float, seeds: int) -> None:
    """A start for each seed, and both algorithms from it for the same seconds."""
    for seed in range(seeds):
        train(home, f"start-{seed}", [*START, f"--seed={seed}"])
        for name, flags in ALGORITHMS.items():
            limits = ["--generations=100000", f"--max-seconds={seconds}", f"--seed={seed}", "--validate-every=20"]
            train(home, f"{name}-{seed}", [*flags, *limits, f"--model={home / f'start-{seed}'}"])


def table(home: Path) -> str:
    """Held-out accuracy: mean and standard error over seeds."""
    lines = ["| | seeds | start | end | gain | generations | peak MiB |", "|---|---|---|---|---|---|---|"]
    for name in ALGORITHMS:
        found = [json.loads(path.read_text()) for path in sorted(home.glob(f"{name}-*/summary.json"))]
        if not found:
            continue
        start, end = (np.array([each[key] for each in found]) for key in ("start_accuracy", "accuracy"))
        told = lambda v: f"{v.mean():.3f} ± {v.std(ddof=1) / len(v) ** 0.5 if len(v) > 1 else float('nan'):.3f}"
        peak = max(each["peak_memory_bytes"] for each in found) / 2**20
        generations = np.mean([each["generations"] for each in found])
        cells = [name, len(found), told(start), told(end), told(end - start), f"{generations:.0f}", f"{peak:.0f}"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def speed(**settings: Any) -> None:
    """Both write as many completions, greedily, all at once; medians of turns."""
    population = settings["population_size"]
    settings |= {"chunk_size": population, "devices": 1, "algorithm": "eggroll", "task_options": TASK}
    config, made = prepared(FinetuneConfig(**settings))
    own = made.population
    assert own is not None
    batch = own.prompts.of_generation(0)
    arguments, state = arguments_of(own, batch), own.es.init(made.job.learner.parameters, 0)
    how = sampling_of(config, own.prompts)
    tokens, mask = (jnp.asarray(np.tile(part[0], (population, 1))) for part in (batch.tokens, batch.mask))
    plain = jax.jit(lambda params: generate(params, tokens, mask, jax.random.key(0), how))
    calls = {
        "population": lambda: own.es.evaluate(state, own.fitness, *arguments, has_aux=True)[2].aux.lengths,
        "plain": lambda: plain(made.job.learner.parameters).lengths,
    }
    rates: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(TURNS + 1):
        for name, call in calls.items():
            begun = time.perf_counter()
            lengths = np.asarray(call())
            steps = int(lengths.max()) + config.prompt_tokens  # every row takes them, ended or not
            if turn:
                rates[name].append(lengths.size * steps / (time.perf_counter() - begun))
    for name, values in rates.items():
        print(f"{name}: {statistics.median(values):,.0f} tokens/s ({min(values):,.0f}–{max(values):,.0f})")
    print(f"{statistics.median(rates['population']) / statistics.median(rates['plain']):.0%}")
    for device in jax.local_devices():
        peak = (device.memory_stats() or {}).get("peak_bytes_in_use")
        print(f"{device.device_kind}: {f'{peak / 2**30:.1f} GiB at most' if peak else 'memory not told'}")


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["run", "table", "speed"])
    parser.add_argument("--home", type=Path, default=Path("runs/finetune-benchmark"))
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--population-size", type=int, default=64)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--dtype", default="float32")
    given = parser.parse_args()
    if given.command == "run":
        queue(given.home, given.seconds, given.seeds)
    elif given.command == "table":
        print(table(given.home))
    else:
        names = ("model", "population_size", "prompts", "tokens", "dtype")
        speed(**{name: getattr(given, name) for name in names})


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    main()
