"""Does pass@4 as the objective keep answers diverse where pass@1 collapses them? Three seeds, the same start for both.

The task has several right answers to every prompt: name a prime below 25 that divides a number of up to ten digits,
which a model of this size cannot work out. It begins with the habit of naming the smallest. Whoever is paid for each
answer does best to say 7 always; whoever is paid when one of four is right does best to spread them.

python benchmarks/pass_at_k.py run       # each run leaves its folder; what is there is not made again
python benchmarks/pass_at_k.py table     # what the folders say, as Markdown
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np

PRIMES = {7: 0.6, 11: 0.5, 13: 0.45, 17: 0.4, 19: 0.35, 23: 0.3}
"""Each with the chance that it is drawn as a factor."""
ROWS = 20_000
START = ["--algorithm=supervised", "--generations=60", "--prompts=64", "--learning-rate=0.003", "--validate-every=20"]
SPACE = ["--population-size=128", "--prompts=16", "--samples=4", "--sigma=0.05", "--learning-rate=0.01",
         "--validate-every=10", "--generations=100000"]  # fmt: skip


def divides(prompt: str, completion: str, facts: dict) -> float:
    """1 for one of the primes that divides the number asked about."""
    told = completion.strip()
    return float(told in map(str, PRIMES) and int(prompt.removesuffix(":")) % int(told) == 0)


def make_data(path: Path) -> None:
    """JSON Lines of prompts, the answer being the smallest right one."""
    draw, lines = random.Random(0), []
    while len(lines) < ROWS:
        factors = [prime for prime, chance in PRIMES.items() if draw.random() < chance]
        number = int(np.prod([draw.randrange(1, 500), *factors]))
        right = [prime for prime in PRIMES if number % prime == 0]
        if right and number < 10**10:
            lines.append(json.dumps({"prompt": f"{number}:", "answer": str(right[0])}))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def train(home: Path, name: str, flags: list[str]) -> None:
    """One run, unless it is there."""
    if (home / name / "summary.json").exists():
        return
    common = ["--task=pass_at_k:divides", f"--task-data={home / 'divisors.jsonl'}", "--prompt-tokens=11", "--tokens=3"]
    common += ["--temperature=1", "--validation-samples=8", "--validation-prompts=256", f"--run-dir={home / name}"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    subprocess.run([sys.executable, "-m", "eggroll", "finetune", *flags, *common], check=True, env=environment)


def queue(home: Path, seconds: float, seeds: int) -> None:
    """A start for each seed, and both objectives from it for the same seconds."""
    if not (home / "divisors.jsonl").exists():
        make_data(home / "divisors.jsonl")
    for seed in range(seeds):
        train(home, f"start-{seed}", [*START, f"--seed={seed}"])
        for k in (1, 4):
            own = [f"--pass-k={k}", f"--max-seconds={seconds}", f"--seed={seed}", f"--model={home / f'start-{seed}'}"]
            train(home, f"pass{k}-{seed}", [*SPACE, *own])


def summaries(home: Path, k: int) -> list[dict]:
    """Of the runs with this objective that are there, seed by seed."""
    return [json.loads(path.read_text()) for path in sorted(home.glob(f"pass{k}-*/summary.json"))]


def table(home: Path) -> str:
    """Of eight answers drawn to each held-out prompt: mean and standard error over seeds, and gains by seed."""
    lines = ["| objective | seeds | accuracy | distinct right | change of distinct right, by seed | generations |"]
    lines.append("|---|---|---|---|---|---|")
    told = lambda v: f"{np.mean(v):.3f} ± {np.std(v, ddof=1) / len(v) ** 0.5 if len(v) > 1 else float('nan'):.3f}"
    starts = summaries(home, 1)
    if starts:
        before = [told([each[f"start_{name}"] for each in starts]) for name in ("accuracy", "distinct_right")]
        lines.append(f"| start | {len(starts)} | {before[0]} | {before[1]} | | |")
    for k in (1, 4):
        if found := summaries(home, k):
            after = [told([each[name] for each in found]) for name in ("accuracy", "distinct_right")]
            change = ", ".join(f"{each['distinct_right'] - each['start_distinct_right']:+.2f}" for each in found)
            generations = np.mean([each["generations"] for each in found])
            lines.append(f"| pass@{k} | {len(found)} | {after[0]} | {after[1]} | {change} | {generations:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["run", "table"])
    parser.add_argument("--home", type=Path, default=Path("runs/pass-at-k"))
    parser.add_argument("--seconds", type=float, default=100.0)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    if given.command == "run":
        queue(given.home.absolute(), given.seconds, given.seeds)
    else:
        print(table(given.home))


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    main()
