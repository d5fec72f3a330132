"""Kinetix's levels: two-dimensional worlds of rigid bodies, motors and thrusters."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from kinetix.environment import ActionType, EnvParams, ObservationType, StaticEnvParams, make_kinetix_env
from kinetix.render.renderer_pixels import make_render_pixels
from kinetix.util.saving import BASE_DIR, load_from_json_file

from eggroll.core.errors import UsageError
from eggroll.rl.environments._settle import flat
from eggroll.rl.environments.base import ActionSpace, Box, Discrete, Environment, MultiDiscrete, Step

_SUFFIXES = tuple(kind.name.lower() for kind in ActionType)


def names() -> list[str]:
    """The levels that come with Kinetix, such as `s/h1_thrust_over_ball`."""
    folder = Path(BASE_DIR)
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.glob("?/*.json"))


def make(name: str) -> Environment:
    """One of Kinetix's levels, the same world at every reset.

    The actions are a Box of −1 … 1, one number a motor and thruster, unless the name ends in `:discrete` (one of them
    at a time, or none) or `:multi_discrete` (three choices a motor, two a thruster). The observation is Kinetix's flat
    symbolic one, not scaled; a world that broke (NaN) is done, and its numbers are given as 0. The reward is +1 for the
    goal, −1 for what must not be touched, and Kinetix's small one for coming nearer; an episode also ends after the
    level's `max_timesteps`, 256 steps.

    Raises:
      UsageError: no such level or kind of action.
    """
    level_name, kind = _parse(name)
    level, static, parameters = load_from_json_file(f"{level_name}.json")
    # a Python number among the leaves would come back from a step as another type
    level = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), level)
    env = make_kinetix_env(
        action_type=kind,
        observation_type=ObservationType.SYMBOLIC_FLAT,
        reset_fn=lambda key: level,  # never called, but Kinetix takes environments of the same one for the same
        env_params=parameters,
        static_env_params=static,
        auto_reset=False,
    )

    def reset(key: Any) -> tuple[Any, Array]:
        return level, _finite(env.get_obs(level))

    def step(key: Any, state: Any, action: Any) -> Step:
        observation, after, reward, done, _ = env.step_env(key, state, action, parameters)  # it draws nothing
        return Step(after, _finite(observation), jnp.asarray(reward, jnp.float32), done)

    return Environment(
        name=name,
        reset=reset,
        step=step,
        observation_size=jax.eval_shape(env.get_obs, level).size,
        action_space=_space(env.action_type, kind),
        max_steps=int(parameters.max_timesteps),
        render=_renderer(parameters, static),
        seconds_per_step=float(parameters.dt) * static.frame_skip,
    )


def _parse(name: str) -> tuple[str, ActionType]:
    level, _, suffix = name.partition(":")
    if (suffix or "continuous") not in _SUFFIXES:
        raise UsageError(f"expected :{', :'.join(_SUFFIXES)} after a level's name, got {name!r}; choose one of them")
    known = names()
    if level not in known:
        near = ", ".join(difflib.get_close_matches(level, known, n=3, cutoff=0.4)) or "none"
        raise UsageError(f"expected one of Kinetix's levels, got {level!r}; near it: {near}")
    return level, ActionType.from_string(suffix or "continuous")


def _space(actions: Any, kind: ActionType) -> ActionSpace:
    if kind is ActionType.DISCRETE:
        return Discrete(int(actions.action_space().n))
    if kind is ActionType.MULTI_DISCRETE:
        return MultiDiscrete(tuple(int(n) for n in actions.number_of_dims_per_distribution))
    size = int(actions.unified_action_space_size)
    return Box((-1.0,) * size, (1.0,) * size)


def _finite(observation: Array) -> Float[Array, " size"]:
    numbers = flat(observation)
    return jnp.where(jnp.isfinite(numbers), numbers, 0)


def _renderer(parameters: EnvParams, static: StaticEnvParams) -> Callable[[Sequence[Any]], list[np.ndarray]]:
    def render(states: Sequence[Any]) -> list[np.ndarray]:
        """Kinetix's own pictures, at half its full size: 250 pixels."""
        draw = jax.jit(make_render_pixels(parameters, static.replace(downscale=2)))
        pictures = (np.asarray(draw(state)) for state in states)
        # the first axis is the world's x, the second its y, upwards
        return [np.clip(picture, 0, 255).astype(np.uint8).swapaxes(0, 1)[::-1] for picture in pictures]

    return render
