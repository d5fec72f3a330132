"""Settings of `eggroll finetune`, and those that it shares with other jobs on a task."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from eggroll.core.errors import UsageError
from eggroll.runs.evolution import EvolutionSettings, PopulationSettings, expect
from eggroll.runs.settings import check_at_least

GRADIENT = ("grpo", "supervised")
"""Algorithms that follow a gradient."""
TINY = "tiny"
"""The model that begins with random weights."""


@dataclass(frozen=True)
class TaskSettings(PopulationSettings):
    """What jobs have in common in which a population reads prompts of a task."""

    tokenizer: str = ""
    """tokenizer.json, RWKV's vocabulary (.txt) or bytes; none: what stands beside the weights."""
    task: str = "countdown"
    """countdown, gsm8k, maths, reasoning_gym:NAME, or MODULE:NAME of your own."""
    task_data: Annotated[str, tyro.conf.arg(aliases=["--data"])] = ""
    """File or folder that the task reads; none: the task's own."""
    task_options: str = "{}"
    """Settings of the task as JSON, such as '{"numbers": [2, 3]}'."""
    population_size: int = 64
    """Members of the population, even."""
    group_size: int = 0
    """Members that have the same prompts, even; 0: all."""
    prompts: int = 16
    """Prompts of each group in a generation (of an algorithm that follows a gradient: of an iteration)."""
    trainable: tuple[str, ...] = ()
    """Patterns of the leaves that evolve; none: every matrix of the blocks; all: everything."""
    tokens: int = 16
    """Most tokens of a completion, or of an answer."""
    prompt_tokens: int = 0
    """Most tokens of a prompt, longer ones are left out; 0: as many as the validation's longest has."""
    stop: str = ""
    """Text whose single token ends a completion, beside the tokenizer's own end."""
    validate_every: int = 20
    """Generations between validations of the mean model."""
    validation_prompts: int = 128
    """Held-out prompts of a validation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("prompts", "tokens", "validation_prompts"):
            check_at_least(name, getattr(self, name), 1)
        check_at_least("prompt_tokens", self.prompt_tokens, 0)
        size, group = self.population_size, self.group
        fits = group >= 2 and group % 2 == 0 and size % group == 0
        expect(fits, "group_size", f"even and a divisor of population size {size}", group)
        self.options()

    def options(self) -> dict[str, Any]:
        """Settings of the task.

        Raises:
          UsageError: they are no JSON object.
        """
        try:
            held = json.loads(self.task_options)
        except ValueError:
            held = None
        if not isinstance(held, dict):
            raise UsageError(f"""expected --task-options as a JSON object, got {self.task_options}; such as '{{}}'""")
        return held

    @property
    def group(self) -> int:
        """Members that have the same prompts."""
        return self.group_size or self.population_size

    @property
    def groups(self) -> int:
        """How many sets of prompts a generation has."""
        return self.population_size // self.group


@dataclass(frozen=True)
class FinetuneConfig(TaskSettings, EvolutionSettings):
    """Fine-tune a language model on a task's rewards, or on its answers."""

    model: str = TINY
    """Weights (.pth, .safetensors or a folder), the folder of a run of this command, or tiny: a million random ones."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the weights while they are trained."""
    algorithm: Literal["auto", "eggroll", "openes", "grpo", "supervised"] = "auto"
    """What learns; auto: eggroll, and supervised of a model with random weights, which gets no reward."""
    objective: Literal["reward", "likelihood"] = "reward"
    """Fitness of eggroll and openes: the task's reward, or the log-likelihood of its answers."""
    samples: int = 1
    """Completions of each prompt and member; of grpo the size of a group, 8 in the paper."""
    pass_k: int = 1
    """Fitness is the chance that at least one of so many completions is right, estimated from --samples of them."""
    optimizer: Literal["sgd", "adam", "radam"] = "adam"
    """Optimiser of the estimated gradient, or of the true one."""
    noise_reuse: int = 1
    """Generations that a perturbation lives."""
    temperature: float = 0.0
    """Of the members' completions; 0 takes the likeliest token. grpo and --samples above 1 need more."""
    top_p: float = 1.0
    """Draw from the fewest likeliest tokens whose probabilities sum to this."""
    clip: float = 0.2
    """grpo: how far the ratio of probabilities may move the objective."""
    epochs: int = 1
    """grpo: steps on the completions of an iteration."""
    generations: int = 200
    """Updates to make; of grpo and supervised, iterations."""
    target: float | None = None
    """Accuracy on the validation prompts at which the run ends; none: it makes all generations."""
    validation_samples: int = 1
    """Completions of each of them; with more than one, drawn at --temperature, distinct right answers are counted."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("samples", "pass_k", "noise_reuse", "epochs", "validation_samples"):
            check_at_least(name, getattr(self, name), 1)
        expect(0 < self.top_p <= 1, "top_p", "in (0, 1]", self.top_p)
        expect(0 <= self.temperature < math.inf, "temperature", "of at least 0", self.temperature)
        expect(0 < self.clip < 1, "clip", "in (0, 1)", self.clip)
        self._check_sampling()
        if self.coordinator:
            raise UsageError("expected eggroll finetune in one process, got --coordinator; use --ray or --listen")
        if self.is_fleet and self.learner in GRADIENT:
            raise UsageError(
                f"expected --ray or --listen with eggroll or openes, got {self.learner}; leave the workers out"
            )

    def _check_sampling(self) -> None:
        greedy = self.temperature == 0
        expect(self.pass_k <= self.samples, "pass_k", f"at most --samples, {self.samples}", self.pass_k)
        if greedy and (self.pass_k > 1 or self.samples > 1 or self.validation_samples > 1):
            raise UsageError(
                "expected --temperature above 0 with --pass-k, --samples or --validation-samples above 1, got 0: "
                "greedy completions are all the same; try 1.0"
            )
        if self.learner == "grpo" and (greedy or self.samples < 2):
            raise UsageError(
                f"expected --temperature above 0 and --samples of at least 2 with grpo, got {self.temperature} and "
                f"{self.samples}; the paper has 1.0 and 8"
            )
        if self.pass_k > 1 and self.learner not in ("eggroll", "openes"):
            raise UsageError(f"expected --pass-k 1 with {self.learner}, got {self.pass_k}; pass@k is for eggroll")

    @property
    def origin(self) -> str:
        """Where the model comes from."""
        return self.model

    @property
    def learner(self) -> str:
        """What learns, never auto."""
        return learner_named(self.algorithm, self.model)

    def as_json(self) -> dict[str, Any]:
        """For `config.json` and the journal."""
        return super().as_json() | {"job": "finetune"}


def learner_named(algorithm: str, model: str) -> str:
    """What learns under these settings, never auto."""
    if algorithm == "auto":
        return "supervised" if model == TINY else "eggroll"
    return algorithm
