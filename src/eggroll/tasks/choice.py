"""Which prompts of a task a generation has: a pure function of the run's seed and the generation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from eggroll.core.errors import UsageError
from eggroll.tasks.base import Example, Task

_TRIES = 100
"""Draws for one prompt that is short enough."""


def of_generation(
    task: Task, seed: int, generation: int, counts: tuple[int, int], fits: Callable[[Example], bool]
) -> list[list[Example]]:
    """The prompts of each group.

    Args:
      counts: groups, and prompts of each.
      fits: whether a prompt is short enough.
    Raises:
      UsageError: none of many that were drawn is.
    """
    generator = np.random.Generator(np.random.Philox(key=[seed, generation]))

    def draw() -> Example:
        for _ in range(_TRIES):
            example = task.example("train", int(generator.integers(task.size("train"))))
            if fits(example):
                return example
        raise UsageError(
            f"expected prompts in {task.name} that are short enough, got none in {_TRIES} draws; raise --prompt-tokens"
        )

    return [[draw() for _ in range(counts[1])] for _ in range(counts[0])]


def held_out(task: Task, most: int) -> list[Example]:
    """The first prompts of the test split.

    Raises:
      UsageError: there are none, or none to train on.
    """
    count = min(task.size("test"), most)
    if not count or not task.size("train"):
        raise UsageError(f"expected examples to train on and to test with in {task.name}, got none; give more data")
    return [task.example("test", index) for index in range(count)]
