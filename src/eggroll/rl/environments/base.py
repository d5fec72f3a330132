"""The interface of an environment: pure functions of one episode, spaces, and the length of an episode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float


@dataclass(frozen=True)
class Discrete:
    """Actions 0 … n − 1: an int32 scalar."""

    n: int


@dataclass(frozen=True)
class MultiDiscrete:
    """Several choices at once: int32 (choices,), the k-th of them in 0 … sizes[k] − 1."""

    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Box:
    """float32 (size,), each number between its own bounds, which may be infinite."""

    low: tuple[float, ...]
    high: tuple[float, ...]

    @property
    def size(self) -> int:
        """Numbers."""
        return len(self.low)


ActionSpace = Discrete | MultiDiscrete | Box


class Step(NamedTuple):
    """What a step leads to."""

    state: Any
    observation: Float[Array, " size"]  # (agents, size) where there are several
    reward: Float[Array, ""]  # (agents,) where there are several
    done: Bool[Array, ""]


class Html(NamedTuple):
    """A page on which an episode can be watched."""

    text: str


Frames = Sequence[np.ndarray]
"""Pictures of an episode in order, each (height, width, 3) uint8."""


@dataclass(frozen=True)
class Environment:
    """One episode as pure functions, for a single environment: `vmap` makes many.

    There is no reset inside `step`: what it gives after `done` means nothing. The episode also ends after `max_steps`
    steps, whatever `done` says. All functions take typed random keys.

    Args:
      name: by which `make` finds it.
      reset: key → (state, observation). An observation is a flat float32 (size,), everything that the agent sees in it.
      step: (key, state, action) → Step.
      observation_size: numbers of an observation; of one agent's, where there are several (the longest one's, the
        others filled with zeros).
      action_space: of one agent; where agents differ, the largest, and `actions` tells each agent's number.
      max_steps: of an episode, unless a job asks for another length.
      agents: their names where there are several; observation and reward then have a leading axis of agents, and an
        action is int32 (agents,).
      actions: how many of the actions each agent has.
      render: states of an episode in order (NumPy leaves) → pictures or a page; None: there is no renderer.
      seconds_per_step: between pictures.
      is_page: whether `render` gives a page.
    """

    name: str
    reset: Callable[[Any], tuple[Any, Array]]
    step: Callable[[Any, Any, Any], Step]
    observation_size: int
    action_space: ActionSpace
    max_steps: int
    agents: tuple[str, ...] = ()
    actions: tuple[int, ...] = ()
    render: Callable[[Sequence[Any]], Frames | Html] | None = None
    seconds_per_step: float = 0.05
    is_page: bool = False
