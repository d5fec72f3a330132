"""`eggroll bench speed`: how close a perturbed population comes to plain batched inference, on this machine.

Source: arXiv 2511.16652, Figures 2a and 7 and the table of arithmetic intensity.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from eggroll.bench.layers import Layer, batch_for, distributions, forward_backward, fused, inference, population, update
from eggroll.bench.policy import policy_calls
from eggroll.core import noise
from eggroll.core.errors import UsageError
from eggroll.core.mesh import largest_divisor
from eggroll.runs.environment import environment
from eggroll.runs.folder import RunFolder
from eggroll.runs.timing import interleaved

WHOLE_BYTES, CHUNK_BYTES = 2**25, 2**24
"""Inputs and outputs that a CPU takes in one go, and of a chunk where there are more: what stays in its last cache."""
QUEUED = 10
"""Calls in a row that an accelerator is given, as a training step gives it many products in a row."""
PAPER = "the paper, one GPU, width 8192, bfloat16, batch 1024, rank 1: 91 at hand, 69 redrawn; OpenES 0.41 and 0.054"


@dataclass(frozen=True)
class SpeedConfig:
    """Compare a perturbed linear layer with plain batched inference, in one run."""

    widths: tuple[int, ...] = (256, 1024)
    """Widths of the square layer."""
    batch: int = 1024
    """Members, each with inputs of its own; even."""
    tokens: tuple[int, ...] = (1, 16)
    """Rows that each member multiplies."""
    dtype: str = "float32"
    """Number format of weights and inputs: float32, bfloat16 or float16."""
    ranks: tuple[int, ...] = (1, 4)
    """Ranks of the perturbation."""
    law: str = "popcount"
    """Law of the noise, for EGGROLL and OpenES alike: signs, popcount, table_normal or normal."""
    chunk_size: int = 0
    """Members at a time, an even divisor of the batch; 0: what stays in a CPU's cache, all on an accelerator."""
    repeats: int = 7
    """Interleaved repeats; medians are reported."""
    policy_population: int = 4096
    """Members of the policy whose update is timed beside its evaluation; 0 leaves it out."""
    policy_steps: int = 100
    """Environment steps of each member of that policy."""
    intensity: float = 300.0
    """Operations a byte that the table of arithmetic intensity is for."""
    run_dir: Path | None = None
    """Folder of the results, which must not exist; none: a fresh name under runs/."""

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "bfloat16", "float16"):
            raise UsageError(f"expected --dtype float32, bfloat16 or float16, got {self.dtype!r}; choose one of these")
        for name, values in (("widths", self.widths), ("tokens", self.tokens), ("ranks", self.ranks)):
            if not values or min(values) < 1:
                raise UsageError(f"expected --{name} of at least 1, got {values}; give positive numbers")
        if self.batch < 2 or self.batch % 2 or self.policy_population < 0 or self.policy_population % 2:
            got = f"{self.batch} and {self.policy_population}"
            raise UsageError(f"expected an even --batch and --policy-population, got {got}; members come in pairs")
        if self.chunk_size and (self.chunk_size % 2 or self.chunk_size < 2 or self.batch % self.chunk_size):
            got = f"{self.chunk_size} for --batch {self.batch}"
            raise UsageError(f"expected --chunk-size 0 or an even divisor of --batch, got {got}; choose 0")
        if max(self.ranks) > min(self.widths):
            raise UsageError(f"expected --ranks up to the width {min(self.widths)}, got {self.ranks}; lower the rank")
        if self.repeats < 1 or self.policy_steps < 1 or not self.intensity > 0:
            raise UsageError("expected --repeats, --policy-steps and --intensity above 0, got less; raise them")
        try:
            noise.law(self.law)
        except ValueError as error:
            raise UsageError(str(error).replace("noise law", "--law")) from None

    def as_json(self) -> dict[str, Any]:
        """For `config.json`."""
        return asdict(self) | {"run_dir": str(self.run_dir) if self.run_dir else None, "job": "bench speed"}


def bench_speed(config: SpeedConfig, *, report: Callable[[str], None]) -> dict[str, Any]:
    """Measure all of it and leave a run folder with `speed.json` and `speed.png`; returns the summary."""
    from eggroll.bench.figure import draw

    folder = RunFolder.create(config.run_dir, "bench-speed", config.as_json())
    machine, rows = environment(), []
    for width in config.widths:
        for tokens in config.tokens:
            chunk = chunk_pairs(config, width, tokens)
            rows.append(measure(Layer(width, config.batch, tokens, config.dtype, config.law, chunk), config))
            report(describe(rows[-1]))
    result: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "environment": machine,
        "config": config.as_json(),
        "layers": rows,
        "arithmetic_intensity": intensity_table(config),
        "policy": policy_share(config) if config.policy_population else None,
    }
    if result["policy"]:
        share = 100 * result["policy"]["update_share_of_evaluation"]
        report(f"policy 3×256, population {config.policy_population}: update {share:.2f}% of the evaluation's time")
    folder.write_json("speed.json", result)
    draw(result, folder.path / "speed.png")
    report(f"figures and numbers in {folder.path}; {PAPER}")
    summary = {"job": "bench speed", "run_dir": str(folder.path), **machine, "layers": rows}
    summary["policy"] = result["policy"]
    folder.write_json("summary.json", summary)
    return summary


def chunk_pairs(config: SpeedConfig, width: int, tokens: int) -> int:
    """Pairs at a time: as told, or all, or on a CPU as many as stay in its cache."""
    pairs = config.batch // 2
    if config.chunk_size or jax.default_backend() != "cpu":
        return config.chunk_size // 2 or pairs
    per_pair = 4 * tokens * width * jnp.dtype(config.dtype).itemsize
    fit = pairs if pairs * per_pair <= WHOLE_BYTES else CHUNK_BYTES // per_pair
    return largest_divisor(pairs, fit)


def measure(layer: Layer, config: SpeedConfig) -> dict[str, Any]:
    """One layer by every way, as a share of plain inference (= 100) for the same number of members."""
    calls, members = {"inference": inference(layer), "forward + backward": forward_backward(layer)}, {}
    for name, distribution in distributions(layer.law, config.ranks).items():
        for redraw in (False, True):
            label = f"{name}, {'redrawn' if redraw else 'at hand'}"
            calls[label], members[label] = population(layer, distribution, redraw=redraw)
        calls[f"{name}, update"] = update(layer, distribution)
    if jax.default_backend() == "gpu":
        for rank in config.ranks:
            ways = {how: fused(layer, rank, redraw=how == "redrawn") for how in ("at hand", "redrawn")}
            calls |= {f"kernel rank {rank}, {how}": call for how, call in ways.items() if call is not None}
    queued = 1 if jax.default_backend() == "cpu" else QUEUED
    median = interleaved(calls, config.repeats, warm=True, queued=queued)
    whole = {name: time * layer.batch / members.get(name, layer.batch) for name, time in median.items()}
    return {
        "width": layer.width,
        "tokens": layer.tokens,
        "batch": layer.batch,
        "chunk_size": 2 * layer.chunk_pairs,
        "gflops": layer.flop / whole["inference"] / 1e9,
        "seconds": whole,
        "relative_speed": {name: 100 * whole["inference"] / time for name, time in whole.items()},
        "measured_members": members,
    }


def policy_share(config: SpeedConfig) -> dict[str, Any]:
    """Seconds of evaluation and update of the 3×256 policy, and their ratio."""
    calls = policy_calls(config.policy_population, config.policy_steps, config.law)
    median = interleaved(calls, max(3, config.repeats // 2))
    return {
        "population_size": config.policy_population,
        "steps": config.policy_steps,
        "evaluation_seconds": median["evaluate"],
        "update_seconds": median["update"],
        "update_share_of_evaluation": median["update"] / median["evaluate"],
    }


def intensity_table(config: SpeedConfig) -> dict[str, dict[str, int | None]]:
    """The batch that each width needs for so many operations a byte, plain and for each rank; 8192 for comparison."""
    itemsize = jnp.dtype(config.dtype).itemsize
    kinds: dict[str, int | None] = {"inference": None, **{f"rank {rank}": rank for rank in config.ranks}}
    widths = dict.fromkeys([*config.widths, 8192])
    return {
        str(width): {name: batch_for(config.intensity, width, itemsize, rank) for name, rank in kinds.items()}
        for width in widths
    }


def describe(row: dict[str, Any]) -> str:
    """One line: the relative speeds of a layer."""
    skip = ("inference", "update")
    speeds = ", ".join(
        f"{name} {value:.3g}" for name, value in row["relative_speed"].items() if not name.endswith(skip)
    )
    return f"width {row['width']}, tokens {row['tokens']}: inference = 100 ({row['gflops']:.0f} GFLOP/s); {speeds}"
