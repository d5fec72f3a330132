"""Fine-tuning stories260k on vLLM: rewards that can be checked, three seeds; and the speed of a generation.

python benchmarks/engines.py run       # each run leaves its folder; what is there is not made again
python benchmarks/engines.py table     # what the folders say, as Markdown
python benchmarks/engines.py speed     # members against plain vLLM, update and synchronise, in one run
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT.parent / "shared" / "models" / "stories260k"
STARTS = ("Once upon a time", "One day, a boy", "Lily and Tom", "The sun was", "Tim was a", "A little bird")
STARTS += ("Mom and Dad", "There was a girl", "In the park", "The old man", "Sue had a", "It was a cold day")
ENDS = ("", " who", " and his", " that", " in the", " with a", " named", " was very")
REWARDS = {"a dog": "dog", "60 letters": "short", "rhymes with day": "rhyme"}
FLAGS = ["--population-size=64", "--prompts=4", "--tokens=48", "--generations=30", "--sigma=0.02",
         "--learning-rate=0.003", "--validation-prompts=32", "--validate-every=5"]  # fmt: skip


def data(home: Path) -> Path:
    """Beginnings of stories, a third of them held out."""
    home.mkdir(parents=True, exist_ok=True)
    rows = [
        {"prompt": start + end, "split": "test" if number % 3 == 2 else "train"}
        for number, (start, end) in enumerate((start, end) for start in STARTS for end in ENDS)
    ]
    path = home / "stories.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def run(home: Path, seeds: int, rewards: list[str]) -> None:
    """Every reward and seed."""
    for reward in rewards:
        for seed in range(seeds):
            place = home / f"{reward}-{seed}"
            if (place / "summary.json").exists():
                continue
            own = [
                f"--task=tests.vllm.stories:{reward}",
                f"--data={data(home)}",
                f"--seed={seed}",
                f"--run-dir={place}",
            ]
            command = [sys.executable, "-m", "eggroll", "vllm", f"--model={MODEL}", *own, *FLAGS]
            subprocess.run(command, cwd=ROOT, check=True)


def table(home: Path) -> str:
    """Start and end of each reward: mean and standard error over seeds."""
    lines = ["| reward | start | end | times, by seed | seconds |", "|---|---|---|---|---|"]
    for name, reward in REWARDS.items():
        found = [json.loads(path.read_text()) for path in sorted(home.glob(f"{reward}-*/summary.json"))]
        if found:
            start, end = ([one[key] for one in found] for key in ("start_reward", "reward"))
            times = ", ".join(f"{b / a:.2f}" if a else "from 0" for a, b in zip(start, end, strict=True))
            seconds = np.mean([one["seconds"] for one in found])
            lines.append(f"| {name} | {_told(start)} | {_told(end)} | {times} | {seconds:.0f} |")
    return "\n".join(lines)


def _told(values: list[float]) -> str:
    error = np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{np.mean(values):.3f} ± {error:.3f}"


def speed(members: int = 64, prompts: int = 4, tokens: int = 64, repeats: int = 5) -> str:
    """Tokens a second of members over those of the plain engine, in turns; shares of update and synchronise."""
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # vLLM imports Ray, which reads it once
    from eggroll.vllm.blueprint import blueprint_of
    from eggroll.vllm.engine import Engine, EngineSettings, Row, Sampling
    from eggroll.vllm.mean import MeanSettings
    from eggroll.vllm.step import Step
    from vllm import LLM, SamplingParams

    blueprint = blueprint_of(MODEL)
    mean = MeanSettings(0, 1, "popcount", "adam", "master", tuple(leaf.name for leaf in blueprint.leaves))
    engine = Engine(EngineSettings(str(MODEL), mean, members, dtype="float32", context=128))
    plain = LLM(str(MODEL), dtype="float32", enforce_eager=True, max_model_len=128, disable_log_stats=True, seed=0)
    row = Row(list(range(5, 15)))
    rows, given = [[row] * prompts] * members, [{"prompt_token_ids": list(row.prompt)}] * (members * prompts)
    asked = SamplingParams(temperature=0, max_tokens=tokens)
    seconds: dict[str, list[float]] = {name: [] for name in ("members", "plain", "perturb", "update", "digest")}
    rates: dict[str, list[float]] = {"members": [], "plain": []}
    for generation in range(repeats + 1):
        for name in ("members", "plain"):
            start = time.perf_counter()
            if name == "members":
                written = engine.complete_members((generation, 0.01), 0, rows, Sampling(tokens))
                count = sum(each.tokens for own in written for each in own)
            else:
                outputs = plain.generate(given, asked, use_tqdm=False)
                count = sum(len(output.outputs[0].token_ids) for output in outputs)
            took = time.perf_counter() - start
            seconds[name].append(took)
            rates[name].append(count / took)
        for name in ("perturb", "update", "digest"):
            start = time.perf_counter()
            if name == "perturb":
                engine.call("perturb", generation, 0.01, 0, members)
            elif name == "update":
                engine.update(Step(generation, generation, 0.01, 0.001, members), np.ones(members // 2, np.float32))
            else:
                engine.digest()
            seconds[name].append(time.perf_counter() - start)
    seconds["synchronise"] = synchronising(engine.settings, repeats)
    ratios = np.array(rates["members"][1:]) / np.array(rates["plain"][1:])
    after = sum(np.median(seconds[name][1:]) for name in ("perturb", "update", "digest"))
    whole, both = np.median(seconds["members"][1:]), after + np.median(seconds["synchronise"][1:])
    lines = [
        f"members {np.median(rates['members'][1:]):,.0f} tokens/s, plain {np.median(rates['plain'][1:]):,.0f}",
        f"ratio {np.median(ratios):.0%} (each turn: {', '.join(f'{ratio:.0%}' for ratio in ratios)})",
        f"adapters, update and hash: {after / whole:.1%} of the members' time of {whole:.2f} s",
        f"with all weights and moments sent to another engine once: {both / whole:.1%}",
    ]
    return "\n".join(lines)


def synchronising(settings: Any, repeats: int) -> list[float]:
    """Seconds in which an engine takes all weights and moments from another, connection included; a first time too."""
    from eggroll.distributed.ray_fleet import LOCAL, Placement
    from eggroll.vllm.crew import Crew
    from eggroll.vllm.hands import ray_hands

    seconds = []
    with ray_hands(settings, Placement(LOCAL, 2)) as hands:
        crew = Crew(hands, lambda line: None)
        for _ in range(repeats + 1):
            crew.stale.add(1)
            start = time.perf_counter()
            crew.check()
            seconds.append(time.perf_counter() - start)
    return seconds


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["run", "table", "speed"])
    parser.add_argument("--home", type=Path, default=ROOT / "runs" / "vllm-benchmark")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rewards", nargs="*", default=list(REWARDS.values()))
    arguments = parser.parse_args()
    if arguments.command == "run":
        run(arguments.home, arguments.seeds, arguments.rewards)
    print(speed() if arguments.command == "speed" else table(arguments.home))


if __name__ == "__main__":
    main()
