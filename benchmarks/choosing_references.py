"""What the scores of `choosing.py` on the digits stand beside: backpropagation, and the digits that are never answered.

- Backpropagation trains the same network from the same starts with Adam on the cross-entropy, as many updates as the
  base setting makes, each on as many digits as a generation of it reads.
- An accuracy says nothing to a class whose output is never the largest, for any member: `unanswered` counts those of
  the mean, after the base setting, at full rank, and with the log-likelihood as fitness instead.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from choosing_tasks import CLASSES, Task, held_out_places, inputs, minibatches, outputs

RATES = (0.001, 0.003, 0.01, 0.03, 0.1)


def cross_entropy(params: Any, x: Any, y: Any) -> Any:
    """Mean over the digits; x (digits, 64), y (digits,)."""
    return optax.softmax_cross_entropy_with_integer_labels(outputs(params, x), y).mean()


def log_likelihood(params: Any, key: Any, x: Any, y: Any) -> Any:
    """A fitness of ONE member that has a gradient, and tells of every class."""
    return -cross_entropy(params, x, y)


def backpropagated(task: Task, updates: int, seed: Any, rate: Any) -> Any:
    """Accuracy on held-out digits after so many updates; each sees the digits of a whole generation."""
    optimizer = optax.adam(rate)

    def update(state: Any, generation: Any) -> tuple[Any, None]:
        params, opt_state = state
        x, y = (data.value for data in minibatches(seed, generation, task.base))
        gradient = jax.grad(cross_entropy)(params, x.reshape(-1, x.shape[-1]), y.reshape(-1))
        change, opt_state = optimizer.update(gradient, opt_state, params)
        return (optax.apply_updates(params, change), opt_state), None

    params = task.init(seed)
    (params, _), _ = jax.lax.scan(update, (params, optimizer.init(params)), jnp.arange(updates))
    return task.score(seed, params)


def backpropagation(task: Task, seeds: int, updates: int, rates: Sequence[float] = RATES) -> dict[str, Any]:
    """Scores (rates, seeds) of the same starts and the same digits."""
    run = jax.jit(jax.vmap(functools.partial(backpropagated, task, updates), in_axes=(0, None)))
    starts = jnp.arange(seeds, dtype=jnp.int32)
    scores = [np.asarray(run(starts, jnp.float32(rate)), np.float64).round(5).tolist() for rate in rates]
    return {"rates": list(rates), "updates": updates, "scores": scores}


def unanswered(seed: Any, params: Any) -> Any:
    """How many of the ten digits the mean model answers to none of the held-out images."""
    answers = jnp.argmax(outputs(params, inputs(held_out_places(seed))), axis=-1)
    return CLASSES - (jnp.bincount(answers, length=CLASSES) > 0).sum()


def unanswered_of(params: Any, seeds: int) -> list[int]:
    """The same for the parameters of several seeds, side by side."""
    return [int(count) for count in jax.vmap(unanswered)(jnp.arange(seeds, dtype=jnp.int32), params)]
