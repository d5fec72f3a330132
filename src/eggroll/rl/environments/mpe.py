"""The multi-agent particle environments of JaxMARL (arXiv 2311.10090): particles that move, and words between them."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from eggroll.core.errors import UsageError
from eggroll.rl.environments._settle import draw, flat, number, off_screen, settle, truth
from eggroll.rl.environments.base import Discrete, Environment, Frames, Step


@contextmanager
def _untouched_streams() -> Iterator[None]:
    """Nothing is printed inside, and the four standard streams are as they were afterwards.

    At import JaxMARL prints which of its families are here, after setting sys.stdout and sys.stderr to the
    interpreter's first ones: whoever had redirected them (pytest, a notebook) would lose them.
    """
    names = ("stdout", "__stdout__", "stderr", "__stderr__")
    before = {name: getattr(sys, name) for name in names}
    sink = io.StringIO()
    for name in names:
        setattr(sys, name, sink if "stdout" in name else before["stderr"])
    try:
        yield
    finally:
        for name, stream in before.items():
            setattr(sys, name, stream)


with _untouched_streams():
    import jaxmarl


def names() -> list[str]:
    """The names of JaxMARL's particle environments."""
    return [name for name in jaxmarl.registered_envs if name.startswith("MPE_")]


def make(name: str) -> Environment:
    """A particle environment of JaxMARL with discrete actions.

    Args:
      name: one of `names()`.
    Returns:
      An Environment of several agents: observation (agents, size), shorter ones filled with zeros; reward (agents,);
      an action is int32 (agents,), each clipped to its agent's own number of actions. Done when all are.
    """
    env: Any = jaxmarl.make(name)
    agents = tuple(env.agents)
    unsuited = [agent for agent in agents if not hasattr(env.action_space(agent), "n")]
    if unsuited:
        raise UsageError(
            f"expected a game in which every agent has discrete actions, got {name}, where {unsuited[0]} has others; "
            f"choose another"
        )
    actions = tuple(int(env.action_space(agent).n) for agent in agents)
    size = max(int(env.observation_space(agent).shape[0]) for agent in agents)

    def observe(observations: dict[str, Array]) -> Float[Array, "agents size"]:
        rows = [flat(observations[agent]) for agent in agents]
        return jnp.stack([jnp.pad(row, (0, size - row.shape[0])) for row in rows])

    def reset(key: Any) -> tuple[Any, Array]:
        observations, state = env.reset(key)
        return settle(state), observe(observations)

    def step(key: Any, state: Any, action: Any) -> Step:
        chosen = jnp.clip(action, 0, jnp.asarray(actions) - 1)
        observations, after, rewards, dones, _ = env.step_env(key, state, dict(zip(agents, chosen, strict=True)))
        reward = jnp.stack([number(rewards[agent]) for agent in agents])
        return Step(settle(after, state), observe(observations), reward, truth(dones["__all__"]))

    return Environment(
        name=name,
        reset=reset,
        step=step,
        observation_size=size,
        action_space=Discrete(max(actions)),
        max_steps=int(env.max_steps),
        agents=agents,
        actions=actions,
        render=lambda states: _render(env, states),
        seconds_per_step=float(env.dt),
    )


def _render(env: Any, states: Sequence[Any]) -> Frames:
    from jaxmarl.environments.mpe.mpe_visualizer import MPEVisualizer

    with off_screen(), redirect_stdout(io.StringIO()):  # it prints whether the agents can talk
        visualizer = MPEVisualizer(env, list(states))
        return draw(visualizer.fig, visualizer.update, len(states))
