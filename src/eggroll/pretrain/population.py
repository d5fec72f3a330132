"""The population of the pretraining job: evaluated whole or in ranges of pairs, with metrics that do not tell which.

What is told of a range is a tally of integers, and tallies add up exactly: metrics are the same however the population
was cut.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from eggroll.core.mesh import largest_divisor
from eggroll.core.state import seed_words
from eggroll.integer.model import Parameters, zero_state
from eggroll.integer.population import evaluate, evaluate_on
from eggroll.integer.update import pair_signs
from eggroll.pretrain.config import PretrainConfig
from eggroll.pretrain.devices import carry_sharding, mesh_of, on_mesh
from eggroll.pretrain.lanes import Lanes
from eggroll.runs.job import Evaluated, Evaluator, Part, RangeWork, RunState
from eggroll.runs.metrics import Metrics

CHUNK_ELEMENTS = {"cpu": 2**16}
"""Activations (members × width) of one chunk: what stays in a core's cache, or fills an accelerator."""
_ACCELERATOR_ELEMENTS = 2**24


def chunk_pairs(config: PretrainConfig, pairs: int | None = None) -> int:
    """Pairs evaluated at once, of the whole population or of a range of `pairs`: as told, or as many as suit."""
    pairs = config.population_size // 2 if pairs is None else pairs
    if config.chunk_size != "auto":
        return largest_divisor(pairs, config.chunk_size // 2)
    elements = CHUNK_ELEMENTS.get(jax.default_backend(), _ACCELERATOR_ELEMENTS)
    return largest_divisor(pairs, max(1, elements // (2 * config.width)))


def make_evaluator(config: PretrainConfig, lanes: Lanes) -> Evaluator:
    """The whole population, on all the run's devices; each process reads the same lanes and gets the same signs."""
    mesh = mesh_of(config)
    step = _range_step(config, config.population_size // 2, mesh)

    def evaluator(state: RunState, generation: int) -> Evaluated:
        parameters = on_mesh(mesh, state.parameters)
        carry = state.carry if mesh is None else jax.device_put(state.carry, carry_sharding(mesh))
        signs, likelihood, carry = step(parameters, carry, lanes.batch(generation), np.int32(generation), np.int32(0))
        return Evaluated(np.asarray(signs), carry, population_metrics([tally(np.asarray(likelihood))], config.seq_len))

    return evaluator


def range_work(config: PretrainConfig, lanes: Lanes) -> RangeWork:
    """The population in ranges of pairs, for workers that hold some of it."""
    model = config.model()

    def one_range(state: RunState, generation: int, first_pair: int, pairs: int) -> Part:
        step, batch = _range_step(config, pairs), jnp.asarray(lanes.batch(generation))
        signs, likelihood, carry = step(
            state.parameters, state.carry, batch, np.int32(generation), np.int32(first_pair)
        )
        return Part(np.asarray(signs), tally(np.asarray(likelihood)), carry)

    def combine(values: np.ndarray, tallies: Sequence[np.ndarray], state: RunState, generation: int) -> Evaluated:
        return Evaluated(values, None, population_metrics(tallies, config.seq_len), state.shared)

    return RangeWork(
        one_range,
        combine,
        start_carry=lambda first_pair, pairs: zero_state(model, 2, pairs),
        cut=lambda carry, first_pair, pairs: carry[:, :, first_pair : first_pair + pairs],
        join=lambda carries: np.concatenate([np.asarray(carry) for carry in carries], axis=2),
    )


@functools.lru_cache(maxsize=64)
def _range_step(config: PretrainConfig, pairs: int, mesh: Mesh | None = None) -> Any:
    """Compiled once for each number of pairs; the state's buffers are used up."""
    population = functools.partial(
        evaluate if mesh is None else functools.partial(evaluate_on, mesh),
        config=config.model(),
        group_size=config.group_size,
        chunk_pairs=chunk_pairs(config, pairs if mesh is None else pairs // mesh.size),
    )
    whole = None if mesh is None else NamedSharding(mesh, PartitionSpec())
    layout = {} if mesh is None else {"out_shardings": (whole, whole, carry_sharding(mesh))}

    @functools.partial(jax.jit, donate_argnums=1, **layout)
    def step(parameters: Parameters, state: Any, batch: jax.Array, generation: Any, first_pair: Any) -> Any:
        likelihood, state = population(
            parameters, state, batch, seed=seed_words(config.seed), generation=generation, first_pair=first_pair
        )
        return pair_signs(likelihood), likelihood, state

    return step


def tally(likelihood: np.ndarray) -> np.ndarray:
    """What metrics need of some pairs: members, Σ, Σ of squares, least, most, tied pairs.

    Args:
      likelihood: (2, pairs) int32, Σ log-likelihood of both members in sixteenths of a bit.
    Returns:
      (6,) int64.
    """
    exact = likelihood.astype(np.int64)
    ends = int(exact.min()), int(exact.max())
    tied = int((exact[0] == exact[1]).sum())
    return np.array([exact.size, exact.sum(), (exact * exact).sum(), *ends, tied], np.int64)


def population_metrics(tallies: Sequence[np.ndarray], seq_len: int) -> Metrics:
    """Fitness is the log-likelihood in bits per byte, so at most about 0; higher is better."""
    columns = list(zip(*(map(int, each) for each in tallies), strict=True))
    members, total, squares, tied = (sum(columns[k]) for k in (0, 1, 2, 5))
    unit = 16 * seq_len
    return {
        "fitness_mean": total / (members * unit),
        "fitness_max": max(columns[4]) / unit,
        "fitness_min": min(columns[3]) / unit,
        "fitness_std": math.sqrt(members * squares - total**2) / (members * unit),
        "tied_pairs": tied,
    }
