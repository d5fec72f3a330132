"""What a baseline is, the environment as it trains on it, and its state as plain arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from eggroll.rl.environments.base import Environment, Step


class Baseline(NamedTuple):
    """A training algorithm that follows a gradient, on one environment: pure functions, deterministic, to be vmapped.

    Fields:
      start: typed key → state, a pytree of plain arrays (keys in it as uint32 words), to be saved and vmapped over.
      iterate: state → state after one iteration, which collects steps and then learns from them.
      act: (state, typed key, observation) → an action for the environment, drawn as in training.
      steps: environment steps of one iteration, all environments together.
    """

    start: Callable[[Any], Any]
    iterate: Callable[[Any], Any]
    act: Callable[[Any, Any, Any], Any]
    steps: int


class Running(NamedTuple):
    """An environment's state within an episode, and the steps made in it."""

    state: Any
    elapsed: Any  # () int32


class Endless(NamedTuple):
    """An environment that begins anew by itself: reset: key → (Running, observation); step: as the environment's."""

    reset: Callable[[Any], tuple[Running, Any]]
    step: Callable[[Any, Running, Any], Step]


def endless(environment: Environment, reward_scale: float = 1.0) -> Endless:
    """One episode after another: past an end, by `done` or after `max_steps`, comes the start of the next episode.

    The step that ends an episode has `done`, the reward of its last step (times `reward_scale`), and the first
    state and observation of the next one.
    """

    def reset(key: Any) -> tuple[Running, Any]:
        state, observation = environment.reset(key)
        return Running(state, jnp.zeros((), jnp.int32)), observation

    def step(key: Any, running: Running, action: Any) -> Step:
        step_key, reset_key = jax.random.split(key)
        after = environment.step(step_key, running.state, action)
        elapsed = running.elapsed + 1
        # A baseline bootstraps no value over `done`, so the time limit counts as the end of all reward to come. That is
        # how purejaxrl, rejax and JaxMARL train too; the returns that are reported are those of one episode anyway.
        done = after.done | (elapsed >= environment.max_steps)
        fresh = reset(reset_key)
        going_on = (Running(after.state, elapsed), after.observation)
        state, observation = jax.tree.map(lambda new, old: jnp.where(done, new, old), fresh, going_on)
        return Step(state, observation, after.reward * reward_scale, done)

    return Endless(reset, step)


def to_words(tree: Any) -> Any:
    """The tree with each typed key as its uint32 words, and each number as an array of a dtype of its own.

    JAX's "weak" dtypes would become strong ones in the first iteration, and have the second one compiled anew.
    """
    return jax.tree.map(
        lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else jnp.asarray(leaf, jnp.result_type(leaf)), tree
    )


def from_words(tree: Any, like: Any) -> Any:
    """Undo `to_words`, for a tree whose keys stand where those of `like` (arrays or their shapes) do."""
    return jax.tree.map(lambda leaf, known: jax.random.wrap_key_data(leaf) if _is_key(known) else leaf, tree, like)


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
