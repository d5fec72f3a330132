"""Environments of Brax: rigid bodies with motors (arXiv 2106.13281)."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from eggroll.rl.environments._settle import flat, number, settle, truth
from eggroll.rl.environments.base import Box, Environment, Html, Step

# It tells of packages that other engines need, and with each model that it is in no development any more.
with contextlib.redirect_stdout(io.StringIO()):
    import brax.envs
    from brax.io import html


_MAX_STEPS = 1000  # the episode_length of brax.envs.create


def names() -> list[str]:
    """The names that Brax knows."""
    return sorted(brax.envs._envs)


def make(name: str) -> Environment:
    """An environment of Brax with its own physics backend ("generalized"), without its time limit and auto-reset.

    Args:
      name: one of `names()`.
    Returns:
      An Environment; Box actions between −1 and 1, to which they are clipped; a page to watch, whose viewer a browser
      loads from a CDN.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="brax")
        env = brax.envs.get_environment(name)

    def reset(key: Any) -> tuple[Any, Array]:
        state = settle(env.reset(key))
        return state, flat(state.obs)

    def step(key: Any, state: Any, action: Any) -> Step:
        same = jax.tree.map(lambda leaf: leaf, state)  # Brax overwrites the metrics of the state that it is given
        after = settle(env.step(same, jnp.clip(action, -1.0, 1.0)), state)
        return Step(after, flat(after.obs), number(after.reward), truth(after.done))

    def render(states: Sequence[Any]) -> Html:
        # The viewer takes the timestep for the time between pictures, which here are whole control steps.
        system = env.sys.tree_replace({"opt.timestep": env.dt})
        return Html(html.render(system, [state.pipeline_state for state in states], colab=False))

    return Environment(
        name=name,
        is_page=True,
        reset=reset,
        step=step,
        # Brax's own observation_size runs a whole reset to find out, a minute for Humanoid.
        observation_size=int(jax.eval_shape(env.reset, jax.random.key(0)).obs.shape[-1]),
        action_space=Box((-1.0,) * env.action_size, (1.0,) * env.action_size),
        max_steps=_MAX_STEPS,
        render=render,
        seconds_per_step=float(env.dt),
    )
