"""Peak memory of one training step at population 65,536 on a 3×256 MLP, as a process of its own.

`python benchmarks/memory.py` prints it beside what the population times the parameters would take.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import jax
import jax.numpy as jnp
import optax

import eggroll
from eggroll.bench.policy import policy_params, rollout
from eggroll.runs.environment import environment, peak_memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--population-size", type=int, default=65_536, help="members, even")
    parser.add_argument("--steps", type=int, default=10, help="environment steps of each member")
    options = parser.parse_args()
    params = policy_params()
    es = eggroll.EvolutionStrategy(optax.adam(0.01), population_size=options.population_size, sigma=0.05)
    state = es.init(params)
    before = peak_memory()
    start = time.perf_counter()
    for _ in range(2):
        state, info = es.step(state, rollout, jnp.zeros(options.steps, jnp.int32))
    jax.block_until_ready(state.params)
    parameters = sum(x.size for x in jax.tree.leaves(params))
    result: dict[str, Any] = {
        "population_size": options.population_size,
        "parameters": parameters,
        "chunk_size": es.chunk_size,
        "peak_mib": peak_memory() / 2**20,
        "of_which_before_the_first_step_mib": before / 2**20,
        "population_times_parameters_mib": 4 * parameters * options.population_size / 2**20,
        "seconds_of_two_steps_and_compiling": time.perf_counter() - start,
        "fitness_mean": float(info.fitness_mean),
        **environment(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
