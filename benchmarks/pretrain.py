"""Speed, memory and learning of integer pretraining on this machine, as `make bench` prints them.

One process measures ratios with interleaved repeats; whole runs of the command line give start-up, peak memory and
validation. Everything ends in one JSON file and a table.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eggroll.integer.arithmetic import cpu_operand_dtype
from eggroll.integer.model import init_parameters, zero_state
from eggroll.integer.population import evaluate
from eggroll.integer.update import pair_signs, threshold, update
from eggroll.pretrain.config import PretrainConfig
from eggroll.pretrain.population import chunk_pairs
from eggroll.runs.environment import environment
from eggroll.runs.timing import interleaved

MATMUL_FLOP_PER_BYTE = 2 * 12 * 256**2 * 6
"""Of the 6 × 256 model's blocks: 9.4 million, without the head."""
PUBLIC_BYTES_PER_SECOND = (885, 1459)
"""nano-egg, unmodified, same model and population on this kind of machine; given figures, not measured here."""


def gemm(dtype: Any, rows: int = 1024, repeats: int = 20) -> tuple[Callable[[], Any], float]:
    """The MLP's two products, again and again, summed in float32 or int32: a call, and its operations."""
    accumulator = jnp.int32 if dtype == jnp.int8 else jnp.float32
    x, up, down = (jnp.zeros(shape, dtype) for shape in ((rows, 256), (1024, 256), (256, 1024)))
    contract_last = (((1,), (1,)), ((), ()))

    def product(x: jax.Array, weight: jax.Array) -> jax.Array:
        return jax.lax.dot_general(x, weight, contract_last, preferred_element_type=accumulator).astype(dtype)

    @jax.jit
    def run(x: jax.Array, up: jax.Array, down: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda c, _: (product(product(c, up), down), None), x, None, length=repeats)[0]

    return functools.partial(run, x, up, down), 2.0 * rows * 256 * 1024 * 2 * repeats


class Generation:
    """Evaluation and update of one configuration, compiled, to be called one by one."""

    def __init__(self, config: PretrainConfig) -> None:
        self.config, self.model = config, config.model()
        self.parameters = jax.tree.map(jnp.asarray, init_parameters(self.model, 0))
        self.state = zero_state(self.model, 2, config.population_size // 2)
        generator = np.random.default_rng(0)
        shape = (config.population_size // config.group_size, config.seq_len + 1)
        self.lanes = jnp.asarray(generator.integers(1, 256, shape, dtype=np.uint8))
        self.counters = {"seed": jnp.asarray([1, 2], jnp.int32), "generation": jnp.int32(0)}
        sizes = {"group_size": config.group_size, "chunk_pairs": chunk_pairs(config)}
        self._evaluate = jax.jit(functools.partial(evaluate, config=self.model, **sizes), donate_argnums=1)
        self._update = jax.jit(functools.partial(update, config=self.model))
        self.signs = pair_signs(self.evaluate())
        self.update()

    def evaluate(self) -> jax.Array:
        scores, self.state = self._evaluate(self.parameters, self.state, self.lanes, **self.counters)
        return scores

    def update(self) -> Any:
        level = np.int32(threshold(0.5, self.config.population_size // 2))
        return self._update(self.parameters, self.signs, level, **self.counters)

    @property
    def bytes(self) -> int:
        return self.config.population_size * self.config.seq_len


def big_model(population: int, repeats: int) -> dict[str, float]:
    """6 × 256, 100 bytes, group 16: bytes per second, and the share of what the matmuls alone would allow."""
    config = PretrainConfig(layers=6, width=256, population_size=population, group_size=16, seq_len=100, sigma_shift=4)
    generation = Generation(config)
    single, flop = gemm(jnp.float32)
    native, _ = gemm(cpu_operand_dtype())
    calls = {
        "evaluate": generation.evaluate,
        "update": generation.update,
        "float32": single,
        "native": native,
    }
    median = interleaved(calls, repeats)
    speed = generation.bytes / (median["evaluate"] + median["update"])
    return {
        "population": population,
        "bytes_per_second": speed,
        "float32_gflops": flop / median["float32"] / 1e9,
        "native_gflops": flop / median["native"] / 1e9,
        "share_of_float32_matmuls": speed * MATMUL_FLOP_PER_BYTE * median["float32"] / flop,
        "share_of_native_matmuls": speed * MATMUL_FLOP_PER_BYTE * median["native"] / flop,
        "times_public_code": speed / PUBLIC_BYTES_PER_SECOND[1],
        "update_share": median["update"] / (median["evaluate"] + median["update"]),
    }


def demo_scaling(repeats: int) -> dict[str, Any]:
    """The demo model at three populations: time of a generation, doubling ratios, update share."""
    sizes = (4096, 8192, 16384)
    generations = {size: Generation(PretrainConfig(population_size=size)) for size in sizes}
    calls = {f"evaluate {size}": generation.evaluate for size, generation in generations.items()}
    calls |= {f"update {size}": generation.update for size, generation in generations.items()}
    median = interleaved(calls, repeats)
    total = {size: median[f"evaluate {size}"] + median[f"update {size}"] for size in sizes}
    return {
        "bytes_per_second": {size: generations[size].bytes / total[size] for size in sizes},
        "update_share": {size: median[f"update {size}"] / total[size] for size in sizes},
        "doubling": [total[b] / total[a] for a, b in itertools.pairwise(sizes)],
    }


def whole_run(folder: Path, *flags: str) -> dict[str, Any]:
    """`eggroll pretrain` as a process of its own; its closing line."""
    command = [sys.executable, "-m", "eggroll", "pretrain", "--run-dir", str(folder), *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def learning(folder: Path, seeds: int) -> dict[str, Any]:
    """12 generations at population 256, group 16, alpha 4, over seeds."""
    shape = {"layers": 6, "width": 256, "population-size": 256, "group-size": 16, "seq-len": 100, "generations": 12}
    shape |= {"sigma-shift": 4, "alpha": 4, "decay": 1000}
    flags = [text for name, value in shape.items() for text in (f"--{name}", str(value))]
    runs = [whole_run(folder / f"learn{seed}", *flags, "--seed", str(seed)) for seed in range(seeds)]
    bits = [run["bits_per_byte"] for run in runs]
    return {
        "validation_bits": bits,
        "mean": statistics.mean(bits),
        "standard_error": statistics.stdev(bits) / len(bits) ** 0.5 if len(bits) > 1 else None,
        "start_bits": [run["start_bits_per_byte"] for run in runs],
        "startup_seconds": max(run["startup_seconds"] for run in runs),
        "peak_memory_gib": max(run["peak_memory_bytes"] for run in runs) / 2**30,
    }


def memory(folder: Path) -> dict[str, float]:
    """Peak resident GiB of two generations of the demo model at growing populations."""
    peaks = {}
    for exponent in (12, 13, 16):
        flags = ["--population-size", str(2**exponent), "--generations", "2"]
        peaks[f"2^{exponent}"] = whole_run(folder / f"memory{exponent}", *flags)["peak_memory_bytes"] / 2**30
    return peaks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write as well")
    parser.add_argument("--repeats", type=int, default=5, help="interleaved repeats")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the learning runs")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result: dict[str, Any] = {
            "date": datetime.date.today().isoformat(),
            "environment": environment(),
            "operands": str(cpu_operand_dtype()),
        }
        for key, measure in {
            "6x256, population 256": lambda: big_model(256, options.repeats),
            "6x256, population 1024": lambda: big_model(1024, options.repeats),
            "demo model": lambda: demo_scaling(options.repeats),
            "12 generations": lambda: learning(folder, options.seeds),
            "peak memory of the demo model (GiB)": lambda: memory(folder),
        }.items():
            result[key] = measure()
            print(key, json.dumps(result[key], indent=2), flush=True)
    text = json.dumps(result, indent=2)
    if options.out:
        options.out.write_text(text + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
