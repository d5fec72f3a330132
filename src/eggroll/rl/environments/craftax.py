"""Craftax and Craftax-Classic: crafting and survival in a procedural world (arXiv 2402.16801)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib import import_module
from typing import Any

import jax
import numpy as np
from craftax.craftax_env import make_craftax_env_from_name
from jaxtyping import Array

from eggroll.rl.environments._settle import flat, number, settle, truth
from eggroll.rl.environments.base import Discrete, Environment, Frames, Step

_NAMES = ("Craftax-Classic-Symbolic-v1", "Craftax-Classic-Pixels-v1", "Craftax-Symbolic-v1", "Craftax-Pixels-v1")


def names() -> list[str]:
    """The names that Craftax knows."""
    return list(_NAMES)


def make(name: str) -> Environment:
    """An environment of Craftax without auto-reset.

    Args:
      name: one of `names()`.
    Returns:
      An Environment; Discrete actions; observations between 0 and 1: 1345 numbers for Classic-Symbolic, 8268 for
      Symbolic.
    """
    env = make_craftax_env_from_name(name, auto_reset=False)
    parameters = env.default_params

    def reset(key: Any) -> tuple[Any, Array]:
        # Raw words: the state keeps the key, and a state is told apart from a typed key where it becomes NumPy.
        observation, state = env.reset_env(jax.random.key_data(key), parameters)
        return settle(state), flat(observation)

    def step(key: Any, state: Any, action: Any) -> Step:
        observation, after, reward, done, _ = env.step_env(jax.random.key_data(key), state, action, parameters)
        return Step(settle(after, state), flat(observation), number(reward), truth(done))

    def render(states: Sequence[Any]) -> Frames:
        return _render("craftax.craftax_classic" if "Classic" in name else "craftax.craftax", states)

    return Environment(
        name=name,
        reset=reset,
        step=step,
        observation_size=int(np.prod(env.observation_space(parameters).shape)),
        action_space=Discrete(int(env.num_actions)),
        max_steps=int(parameters.max_timesteps),
        render=render,
        seconds_per_step=0.1,
    )


def _render(package: str, states: Sequence[Any]) -> Frames:
    """Pictures of 16 pixels a block; the first ever takes a minute, in which Craftax scales its textures."""
    size = import_module(f"{package}.constants").BLOCK_PIXEL_SIZE_IMG
    pixels = jax.jit(import_module(f"{package}.renderer").make_craftax_pixel_renderer(size))
    with redirect_stdout(io.StringIO()):  # it prints where its textures come from
        return [np.clip(np.asarray(pixels(state)), 0, 255).astype(np.uint8) for state in states]
