"""Int8 and int4-valued students of a float teacher on two cores: how much of what rounding costs is won back.

python benchmarks/distill.py run       # each run leaves its folder; what is there is not made again
python benchmarks/distill.py table     # what the folders say, as Markdown
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

TASK = '{"numbers": [2, 3], "maximum": 50, "target_maximum": 99, "train_size": 1000000, "test_size": 16384}'
TEACHER = ["--model=tiny:3x64", "--algorithm=supervised", "--prompts=128", "--learning-rate=0.006",
           "--learning-rate-decay=0.99", "--generations=300", "--validate-every=150",
           "--validation-prompts=512"]  # fmt: skip
STUDENT = ["--population-size=1024", "--prompts=4", "--sigma=0.1", "--validation-prompts=16384",
           "--validate-every=150", "--generations=100000"]  # fmt: skip
LEVELS = (127, 7)


def train(command: str, home: Path, name: str, flags: Sequence[str]) -> None:
    """One run, unless it is there."""
    if (home / name / "summary.json").exists():
        return
    common = [f"--task-options={TASK}", "--tokens=10", "--prompt-tokens=12", f"--run-dir={home / name}"]
    subprocess.run([sys.executable, "-m", "eggroll", command, *flags, *common], check=True)


def queue(home: Path, seconds: float, seeds: int, levels: Sequence[int]) -> None:
    """A teacher for each seed, and its students."""
    for seed in range(seeds):
        train("finetune", home, f"teacher-{seed}", [*TEACHER, f"--seed={seed}"])
        for most in levels:
            own = [f"--teacher={home / f'teacher-{seed}'}", f"--levels={most}", f"--seed={seed}"]
            train("distill", home, f"levels{most}-{seed}", [*STUDENT, *own, f"--max-seconds={seconds}"])


def table(home: Path) -> str:
    """Teacher, rounded and distilled student: mean and standard error over seeds, and the gap closed by seed."""
    lines = [
        "| levels | model | perplexity | KL, 10⁻⁶ | score | closed by seed | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for most in LEVELS:
        found = [json.loads(path.read_text()) for path in sorted(home.glob(f"levels{most}-*/summary.json"))]
        if not found:
            continue
        for model, prefix in (("teacher", "teacher_"), ("rounded", "start_"), ("distilled", "")):
            told = [_told([one[f"{prefix}{name}"] for one in found], digits) for name, digits in
                    (("perplexity", 5), ("accuracy", 4))]  # fmt: skip
            apart = _told([1e6 * one[f"{prefix}kl"] for one in found], 1) if model != "teacher" else "0"
            closed = "" if prefix else ", ".join(_closed(one) for one in found)
            seconds = "" if prefix else f"{np.mean([one['seconds'] for one in found]):.0f}"
            lines.append(f"| ±{most} | {model} | {told[0]} | {apart} | {told[1]} | {closed} | {seconds} |")
    return "\n".join(lines)


def _told(values: Sequence[float], digits: int) -> str:
    error = np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{np.mean(values):.{digits}f} ± {error:.{digits}f}"


def _closed(one: dict) -> str:
    """Of the gap in perplexity, and of the divergence."""
    gap = f"{one['gap_closed']:.0%}" if "gap_closed" in one else "no gap"
    return f"{gap} (KL {1 - one['kl'] / one['start_kl']:.0%})"


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["run", "table"])
    parser.add_argument("--home", type=Path, default=Path("runs/distill-benchmark"))
    parser.add_argument("--seconds", type=float, default=400.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--levels", type=int, nargs="*", default=list(LEVELS))
    arguments = parser.parse_args()
    if arguments.command == "run":
        queue(arguments.home, arguments.seconds, arguments.seeds, arguments.levels)
    print(table(arguments.home))


if __name__ == "__main__":
    main()
