"""Environments of gymnax: classic control, bsuite, MinAtar (github.com/RobertTLange/gymnax)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnax
import jax.numpy as jnp
import numpy as np
from gymnax.environments import spaces
from jaxtyping import Array

from eggroll.core.errors import UsageError
from eggroll.rl.environments._settle import draw, flat, number, off_screen, settle, truth
from eggroll.rl.environments.base import ActionSpace, Box, Discrete, Environment, Frames, Step

_CLASSIC = ("Acrobot-v1", "CartPole-v1", "Pendulum-v1", "MountainCar-v0", "MountainCarContinuous-v0")
_DRAWN = (  # those that gymnax's visualiser knows; the rest would be an empty frame
    *("Catch-bsuite", "PointRobot-misc", "MetaMaze-misc", "FourRooms-misc", "Pong-misc"),
    *("Asterix-MinAtar", "Breakout-MinAtar", "Freeway-MinAtar", "Seaquest-MinAtar", "SpaceInvaders-MinAtar"),
)
_NO_LIMIT = 1000  # steps, where an environment has no limit of its own


def names() -> list[str]:
    """The names that gymnax knows."""
    return list(gymnax.registered_envs)


def make(name: str) -> Environment:
    """An environment of gymnax with its own parameters; `done` is its natural end, the time limit is `max_steps`.

    Args:
      name: one of `names()`.
    Returns:
      An Environment; Discrete or Box actions.
    Raises:
      UsageError: its actions are neither.
    """
    env, parameters = gymnax.make(name)
    space = env.action_space(parameters)
    shape = space.shape

    def reset(key: Any) -> tuple[Any, Array]:
        observation, state = env.reset_env(key, parameters)
        return settle(state), flat(observation)

    def step(key: Any, state: Any, action: Any) -> Step:
        action = jnp.asarray(action).reshape(shape)
        observation, after, reward, terminated, _ = env.step_env(key, state, action, parameters)
        return Step(settle(after, state), flat(observation), number(reward), truth(terminated))

    def render(states: Sequence[Any]) -> Frames:
        return _classic(name, states, parameters) if name in _CLASSIC else _visualised(env, states, parameters)

    return Environment(
        name=name,
        reset=reset,
        step=step,
        observation_size=_size(env.observation_space(parameters)),
        action_space=_actions(name, space),
        max_steps=int(getattr(parameters, "max_steps_in_episode", _NO_LIMIT)),
        render=render if name in _CLASSIC + _DRAWN else None,
        seconds_per_step=float(getattr(parameters, "dt", getattr(parameters, "tau", 0.05))),
    )


def _actions(name: str, space: Any) -> ActionSpace:
    if isinstance(space, spaces.Discrete):
        return Discrete(int(space.n))
    if isinstance(space, spaces.Box):
        low, high = (np.broadcast_to(np.asarray(bound), space.shape).ravel() for bound in (space.low, space.high))
        return Box(tuple(map(float, low)), tuple(map(float, high)))
    raise UsageError(f"expected an environment with Discrete or Box actions, got {name} with {space!r}; choose another")


def _size(space: Any) -> int:
    """Numbers of an observation of that space."""
    if isinstance(space, spaces.Dict):
        return sum(_size(part) for part in space.spaces.values())
    return int(np.prod(space.shape))


def _classic(name: str, states: Sequence[Any], parameters: Any) -> Frames:
    """Gymnasium's own drawing of each state; one window-less Gymnasium environment draws them all."""
    import gymnasium
    from gymnax.visualize import vis_gym

    env: Any = gymnasium.make(name, render_mode="rgb_array").unwrapped
    try:
        env.reset()
        vis_gym.set_gym_params(env, name, parameters)
        return [_classic_frame(env, name, state, vis_gym.get_gym_state(state, name)) for state in states]
    finally:
        env.close()


def _classic_frame(env: Any, name: str, state: Any, vector: np.ndarray) -> np.ndarray:
    env.state = vector
    if name == "Pendulum-v1":
        env.last_u = float(state.last_u)
    return np.asarray(env.render(), dtype=np.uint8)


def _visualised(env: Any, states: Sequence[Any], parameters: Any) -> Frames:
    from gymnax.visualize import Visualizer

    with off_screen():
        visualizer = Visualizer(env, parameters, list(states))
        visualizer.init()
        return draw(visualizer.fig, visualizer.update, len(states))
