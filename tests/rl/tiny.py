"""Environments of a few lines, which compile at once, and a place for them among the known ones."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eggroll.rl.environments.base import ActionSpace, Box, Discrete, Environment, Step


def walk(space: ActionSpace | None = None, max_steps: int = 12, ends_beyond: float = 2.0) -> Environment:
    """A walker between two ends: actions push it, noise too; its reward is how near to 0.3 it stays."""
    space = space or Discrete(3)

    def observed(at: Any) -> Any:
        return jnp.stack([at, jnp.square(at), jnp.float32(1), jnp.sin(3 * at)])

    def reset(key: Any) -> tuple[Any, Any]:
        at = jax.random.uniform(key, minval=-1.0)
        return {"at": at}, observed(at)

    def step(key: Any, state: Any, action: Any) -> Step:
        push = action[0] if isinstance(space, Box) else 0.4 * (action.astype(jnp.float32) - 1)
        at = state["at"] + push + jax.random.uniform(key, minval=-0.3, maxval=0.3)
        return Step({"at": at}, observed(at), 1 - jnp.abs(at - 0.3), jnp.abs(at) > ends_beyond)

    return Environment("walk", reset, step, 4, space, max_steps, render=pictures)


def pictures(states: Sequence[Any]) -> list[np.ndarray]:
    """As bright as it is far to the right."""
    return [np.full((4, 6, 3), int(np.clip(100 + 40 * state["at"], 0, 255)), np.uint8) for state in states]


def team(max_steps: int = 6) -> Environment:
    """Two agents with three and two actions; each is paid for its own, and sees a number of its own."""
    names, actions = ("ant", "bee"), (3, 2)

    def observed(seen: Any) -> Any:
        return jnp.stack([seen, jnp.square(seen)], axis=1)

    def reset(key: Any) -> tuple[Any, Any]:
        seen = jax.random.uniform(key, (2,))
        return {"seen": seen}, observed(seen)

    def step(key: Any, state: Any, action: Any) -> Step:
        seen = 0.9 * state["seen"] + 0.3 * jax.random.uniform(key, (2,))
        return Step({"seen": seen}, observed(seen), action + seen, seen.max() > 2.5)

    return Environment("team", reset, step, 2, Discrete(3), max_steps, names, actions)


def make(name: str, *, max_steps: int | None = None) -> Environment:
    """In place of the registry's: the walker, with choices or a Box, and the team of two."""
    kinds = {"CartPole-v1": walk, "Pendulum-v1": lambda: walk(Box((-0.5,), (0.5,))), "MPE_simple_spread_v3": team}
    environment = dataclasses.replace(kinds[name](), name=name)
    return environment if max_steps is None else dataclasses.replace(environment, max_steps=max_steps)
