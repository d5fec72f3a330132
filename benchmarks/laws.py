"""Do cheap noise laws learn as well as the normal? Three tasks of `examples/`, every law, over seeds.

`python benchmarks/laws.py` prints mean and standard error of each task's final score; `--out` writes one JSON.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from eggroll.runs.environment import environment

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
TASKS = {
    "digits_nnx": {"generations": 40, "population_size": 512},
    "copy_gru_equinox": {"generations": 150, "population_size": 512},
    "modular_transformer": {"generations": 60, "population_size": 512},
}
"""Stopped before the score is full, so that a worse law would show."""
LAWS = ("normal", "popcount", "table_normal", "signs")


def measure(task: str, law: str, seeds: int) -> dict[str, Any]:
    """The final score of a task under a law, over seeds."""
    train = importlib.import_module(task).train
    scores = [train(**TASKS[task], seed=seed, law=law)[1] for seed in range(seeds)]
    error = statistics.stdev(scores) / len(scores) ** 0.5 if len(scores) > 1 else 0.0
    return {"task": task, "law": law, "scores": scores, "mean": statistics.mean(scores), "standard_error": error}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each run")
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write as well")
    options = parser.parse_args()
    sys.path.insert(0, str(EXAMPLES))
    rows = []
    for task in TASKS:
        for law in LAWS:
            rows.append(measure(task, law, options.seeds))
            print(json.dumps(rows[-1]), flush=True)
    if options.out:
        options.out.write_text(json.dumps({"environment": environment(), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
