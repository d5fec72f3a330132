"""Navix's environments: MiniGrid in JAX, such as DoorKey, Dynamic-Obstacles and FourRooms."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import navix
import numpy as np
from jaxtyping import Array, Int
from navix.environments import Timestep
from navix.rendering.cache import RenderingCache

from eggroll.core.errors import UsageError
from eggroll.rl.environments._settle import flat
from eggroll.rl.environments.base import Discrete, Environment, Step

_NO_PICTURES = RenderingCache(patches=jnp.zeros((0, 1, 1, 3), jnp.uint8))
"""In place of the pictures that every state carries: 70 kB for each member of FourRooms."""

_ENLARGED = 3
"""Pixels a pixel: Navix draws only 8 a cell."""


class State(NamedTuple):
    """Where an episode is."""

    time: Int[Array, ""]
    grid: Any  # navix's own state, its pictures taken out


def names() -> list[str]:
    """All that Navix has registered, such as `Navix-DoorKey-8x8-v0`."""
    return sorted(navix.registry())


def make(name: str) -> Environment:
    """One of Navix's environments, by its registered name or the middle of it (`DoorKey-8x8`, `FourRooms`).

    The observation is the registered one: the whole grid, for each cell the tag of what is there, its colour and its
    state (a door's, or the way that the agent looks), (height, width, 3) flattened, not scaled. An episode is done when
    its task ends it (the goal; a ball or lava where the task has them) and when Navix cuts it off after `max_steps`,
    which is the 100 that `navix.make` gives unless told.

    Raises:
      UsageError: no such environment.
    """
    env = navix.make(_registered(name))

    def reset(key: Any) -> tuple[State, Array]:
        first = env.reset(jax.random.key_data(key), _NO_PICTURES)
        return State(first.t, first.state.replace(cache=None)), flat(first.observation)

    def step(key: Any, state: State, action: Any) -> Step:
        after = env.step(_timestep(state), action)
        grid = after.state.replace(cache=None)
        reward = jnp.asarray(after.reward, jnp.float32)
        return Step(State(after.t, grid), flat(after.observation), reward, after.is_done())

    _, observation = jax.eval_shape(reset, jax.random.key(0))
    return Environment(
        name=name,
        reset=reset,
        step=step,
        observation_size=observation.size,
        action_space=Discrete(len(env.action_set)),
        max_steps=int(env.max_steps),
        render=_render,
        seconds_per_step=0.1,
    )


def _registered(name: str) -> str:
    known = names()
    for full in (name, f"Navix-{name}-v0"):
        if full in known:
            return full
    near = difflib.get_close_matches(f"Navix-{name}-v0", known, n=3, cutoff=0.4)
    raise UsageError(f"expected one of Navix's environments, got {name!r}; near it: {', '.join(near) or 'none'}")


def _timestep(state: State) -> Any:
    """What `step` needs of a timestep: a type of plain 0, known while tracing, leaves no reset in the compiled step."""
    grid = state.grid.replace(cache=_NO_PICTURES)
    return Timestep(t=state.time, observation=None, action=None, reward=None, step_type=0, state=grid)


@jax.jit
def _picture(grid: Any) -> Array:
    return navix.observations.rgb(grid.replace(cache=RenderingCache.init(grid.grid)))


def _render(states: Sequence[State]) -> list[np.ndarray]:
    """Navix's own picture of the whole grid, 24 pixels a cell."""
    pictures = (np.asarray(_picture(state.grid)) for state in states)
    return [picture.repeat(_ENLARGED, axis=0).repeat(_ENLARGED, axis=1) for picture in pictures]
