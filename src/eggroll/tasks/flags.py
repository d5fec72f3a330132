"""Settings that jobs on a task have in common."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from eggroll.core.errors import UsageError
from eggroll.runs.settings import check_at_least, expect, json_object


@dataclass(frozen=True)
class TaskFlags:
    """Which task, and how much of it a generation and a validation see."""

    task: str = "countdown"
    """countdown, gsm8k, maths, reasoning_gym:NAME, or MODULE:NAME of your own."""
    task_data: Annotated[str, tyro.conf.arg(aliases=["--data"])] = ""
    """File or folder that the task reads; none: the task's own."""
    task_options: str = "{}"
    """Settings of the task as JSON, such as '{"numbers": [2, 3]}'."""
    prompts: int = 16
    """Prompts of each group in a generation (of an algorithm that follows a gradient: of an iteration)."""
    tokens: int = 16
    """Most tokens of a completion, or of an answer."""
    prompt_tokens: int = 0
    """Most tokens of a prompt, longer ones are left out; 0: as many as the validation's longest has."""
    validation_prompts: int = 128
    """Held-out prompts of a validation."""

    def check_task(self) -> None:
        """Refuse what cannot be.

        Raises:
          UsageError: a number that is too small, or options that are no JSON object.
        """
        for name in ("prompts", "tokens", "validation_prompts"):
            check_at_least(name, getattr(self, name), 1)
        check_at_least("prompt_tokens", self.prompt_tokens, 0)
        self.options()

    def options(self) -> dict[str, Any]:
        """Settings of the task.

        Raises:
          UsageError: they are no JSON object.
        """
        return json_object("task_options", self.task_options)


@dataclass(frozen=True)
class SampleFlags:
    """How completions are drawn and counted."""

    samples: int = 1
    """Completions of each prompt and member; of grpo the size of a group, 8 in the paper."""
    pass_k: int = 1
    """Fitness is the chance that at least one of so many completions is right, estimated from --samples of them."""
    temperature: float = 0.0
    """Temperature of the members' completions; 0 takes the likeliest token. grpo and --samples above 1 need more."""
    top_p: float = 1.0
    """Draw from the fewest likeliest tokens whose probabilities sum to this."""
    validation_samples: int = 1
    """Completions of each held-out prompt; more than one are drawn at --temperature, distinct right ones counted."""

    def check_sampling(self) -> None:
        """Refuse what cannot be.

        Raises:
          UsageError: a number outside its range, or several greedy completions, which would be the same.
        """
        for name in ("samples", "pass_k", "validation_samples"):
            check_at_least(name, getattr(self, name), 1)
        expect(0 < self.top_p <= 1, "top_p", "in (0, 1]", self.top_p)
        expect(0 <= self.temperature < math.inf, "temperature", "of at least 0", self.temperature)
        expect(self.pass_k <= self.samples, "pass_k", f"at most --samples, {self.samples}", self.pass_k)
        if self.temperature == 0 and (self.pass_k > 1 or self.samples > 1 or self.validation_samples > 1):
            raise UsageError(
                "expected --temperature above 0 with --pass-k, --samples or --validation-samples above 1, got 0: "
                "greedy completions are all the same; try 1.0"
            )
