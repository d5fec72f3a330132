"""What the update costs beside the evaluation: a 3×256 policy, many environment steps, one update."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from eggroll.core.distribution import LowRank, make_plan
from eggroll.core.estimate import estimate_gradient
from eggroll.core.population import Setting, evaluate

OBSERVATION, HIDDEN, LAYERS, ACTIONS = 8, 256, 3, 4

Params = dict[str, Array]


def policy_params() -> Params:
    """An MLP of three hidden layers of 256, float32."""
    sizes = [OBSERVATION, *[HIDDEN] * LAYERS, ACTIONS]
    pairs = itertools.pairwise(sizes)
    layers = {f"w{i}": jnp.ones(shape, jnp.float32) / shape[0] for i, shape in enumerate(pairs)}
    return layers | {f"b{i}": jnp.zeros(n, jnp.float32) for i, n in enumerate(sizes[1:])}


def rollout(params: Params, key: Any, steps: Float[Array, " steps"]) -> Array:
    """The policy in a toy environment of linear dynamics: the environment costs next to nothing."""

    def step(observation: Array, _: Array) -> tuple[Array, Array]:
        x = observation
        for i in range(LAYERS):
            x = jax.nn.relu(x @ params[f"w{i}"] + params[f"b{i}"])
        action = jnp.tanh(x @ params[f"w{LAYERS}"] + params[f"b{LAYERS}"])
        return 0.9 * observation + jnp.tile(action, OBSERVATION // ACTIONS), -jnp.square(observation).sum()

    return lax.scan(step, jnp.ones(OBSERVATION, jnp.float32), steps)[1].sum()


def policy_calls(population_size: int, steps: int, law: str, chunk_size: int = 1024) -> dict[str, Callable[[], Any]]:
    """One evaluation and one update of the population, compiled apart."""
    params, pairs = policy_params(), jnp.arange(population_size // 2, dtype=jnp.int32)
    plan = make_plan(LowRank(law=law), params)
    chunk = min(chunk_size, population_size) // 2
    counters = {"seed": jnp.zeros(2, jnp.int32), "generation": jnp.int32(0), "sigma": jnp.float32(0.05)}
    setting = Setting(population_size, population_size, chunk)
    evaluation = jax.jit(functools.partial(evaluate, rollout, plan, setting=setting))
    estimate = jax.jit(functools.partial(estimate_gradient, plan, population_size=population_size, chunk_pairs=chunk))
    arguments = (params, pairs, (jnp.zeros(steps, jnp.float32),))
    return {
        "evaluate": functools.partial(evaluation, *arguments, **counters),
        "update": functools.partial(estimate, jnp.ones(population_size // 2), pairs, **counters),
    }
