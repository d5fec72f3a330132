"""Bits per byte against population and against group size, at fixed generations, on the demo model.

The paper's ablations, small: `make scaling` trains every point, over seeds, and writes one JSON and one PNG.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from eggroll.pretrain.config import PretrainConfig, preset
from eggroll.pretrain.job import pretrain
from eggroll.runs.environment import environment

POPULATIONS = tuple(2**k for k in range(6, 15))
GROUP_SIZES = (2, 8, 32, 128, 512, 4096)


def train(config: PretrainConfig, folder: Path) -> dict[str, Any]:
    """One run; its summary."""
    return pretrain(dataclasses.replace(config, run_dir=folder), report=lambda _: None).summary


def curve(base: PretrainConfig, changes: list[dict[str, int]], seeds: int, folder: Path) -> list[dict[str, Any]]:
    """Validation bits at each change of the base settings: mean and standard error over seeds."""
    points = []
    for change in changes:
        bits = []
        for seed in range(seeds):
            name = "-".join(f"{key}{value}" for key, value in change.items())
            config = dataclasses.replace(base, **change, seed=seed)
            summary = train(config, folder / f"{name}-{seed}")
            bits.append(summary["bits_per_byte"])
        error = statistics.stdev(bits) / len(bits) ** 0.5 if len(bits) > 1 else 0.0
        points.append({**change, "bits": bits, "mean": statistics.mean(bits), "standard_error": error})
        print(json.dumps(points[-1]), flush=True)
    return points


def draw(result: dict[str, Any], path: Path) -> None:
    """Both curves side by side, with the entropies of the data as lines."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    for axis, (key, label) in zip(axes, (("population_size", "population"), ("group_size", "group size")), strict=True):
        points = result[key]
        values = [[point[name] for point in points] for name in (key, "mean", "standard_error")]
        axis.errorbar(*values, marker="o", capsize=3, label="EGGROLL, int8")
        for name, style in (("unigram", ":"), ("bigram", "--")):
            axis.axhline(result[name], linestyle=style, color="grey", label=f"{name} entropy")
        axis.set_xscale("log", base=2)
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("validation bits per byte")
    axes[0].legend()
    figure.suptitle(result["title"])
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--generations", type=int, default=100, help="of every run")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each point")
    parser.add_argument("--out", type=Path, default=Path("benchmarks"), help="folder of scaling.json and scaling.png")
    options = parser.parse_args()
    base = dataclasses.replace(
        preset("demo"),
        generations=options.generations,
        decay=float(options.generations),
        validate_every=options.generations,
        snapshot_every=options.generations,
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        smallest = min(base.group_size, min(POPULATIONS))
        populations = [{"population_size": n, "group_size": min(smallest, n)} for n in POPULATIONS]
        result: dict[str, Any] = {
            "population_size": curve(base, populations, options.seeds, folder),
            "group_size": curve(base, [{"group_size": g} for g in GROUP_SIZES], options.seeds, folder),
        }
        reference = train(dataclasses.replace(base, generations=1), folder / "reference")
    result |= {"unigram": reference["unigram_entropy"], "bigram": reference["bigram_entropy"]}
    result["title"] = f"{options.generations} generations, {base.layers} × {base.width}, {options.seeds} seeds"
    result["settings"] = base.as_json()
    result["environment"] = environment()
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "scaling.json").write_text(json.dumps(result, indent=2) + "\n")
    draw(result, options.out / "scaling.png")
    print(json.dumps({key: result[key] for key in ("population_size", "group_size", "unigram", "bigram")}))


if __name__ == "__main__":
    main()
