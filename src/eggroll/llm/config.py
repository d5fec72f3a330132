"""Settings of `eggroll finetune`, and those that it shares with other jobs on a task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from eggroll.core.errors import UsageError
from eggroll.runs.evolution import EvolutionSettings, GroupSettings
from eggroll.runs.settings import check_at_least, expect
from eggroll.tasks.flags import SampleFlags, TaskFlags

GRADIENT = ("grpo", "supervised")
"""Algorithms that follow a gradient."""
TINY = "tiny"
"""The model that begins with random weights; tiny:LAYERSxWIDTH is one of another size."""
_WIDTHS = range(32, 4097, 32)
"""Heads have 32 numbers each."""


@dataclass(frozen=True)
class TaskSettings(GroupSettings, TaskFlags):
    """What jobs have in common in which a population reads prompts of a task."""

    tokenizer: str = ""
    """tokenizer.json, RWKV's vocabulary (.txt) or bytes; none: what stands beside the weights."""
    population_size: int = 64
    """Members of the population, even."""
    trainable: tuple[str, ...] = ()
    """Patterns of the leaves that evolve; none: every matrix of the blocks; all: everything."""
    stop: str = ""
    """Text whose single token ends a completion, beside the tokenizer's own end."""
    validate_every: int = 20
    """Generations between validations of the mean model."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_task()


@dataclass(frozen=True)
class FinetuneConfig(TaskSettings, EvolutionSettings, SampleFlags):
    """Fine-tune a language model on a task's rewards, or on its answers."""

    model: str = TINY
    """Weights (.pth, .safetensors or a folder), a run's folder, or tiny (tiny:LAYERSxWIDTH): random ones, a million."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the weights while they are trained."""
    algorithm: Literal["auto", "eggroll", "openes", "grpo", "supervised"] = "auto"
    """What learns; auto: eggroll, and supervised of a model with random weights, which gets no reward."""
    objective: Literal["reward", "likelihood"] = "reward"
    """Fitness of eggroll and openes: the task's reward, or the log-likelihood of its answers."""
    optimizer: Literal["sgd", "adam", "radam"] = "adam"
    """Optimiser of the estimated gradient, or of the true one."""
    noise_reuse: int = 1
    """Generations that a perturbation lives."""
    clip: float = 0.2
    """grpo: how far the ratio of probabilities may move the objective."""
    epochs: int = 1
    """grpo: steps on the completions of an iteration."""
    generations: int = 200
    """Updates to make; of grpo and supervised, iterations."""
    target: float | None = None
    """Accuracy on the validation prompts at which the run ends; none: it makes all generations."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("noise_reuse", "epochs"):
            check_at_least(name, getattr(self, name), 1)
        self.check_sampling()
        expect(0 < self.clip < 1, "clip", "in (0, 1)", self.clip)
        self._check_baselines()
        if is_random(self.model):
            random_size(self.model)
        if self.coordinator:
            raise UsageError("expected eggroll finetune in one process, got --coordinator; use --ray or --listen")
        if self.is_fleet and self.learner in GRADIENT:
            raise UsageError(
                f"expected --ray or --listen with eggroll or openes, got {self.learner}; leave the workers out"
            )

    def _check_baselines(self) -> None:
        if self.learner == "grpo" and (self.temperature == 0 or self.samples < 2):
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
        return "supervised" if is_random(model) else "eggroll"
    return algorithm


def is_random(model: str) -> bool:
    """Whether a model begins with random weights."""
    return model == TINY or model.startswith(f"{TINY}:")


def random_size(model: str) -> tuple[int, int]:
    """Layers and width of a model that begins with random weights.

    Raises:
      UsageError: it names none.
    """
    if model == TINY:
        return 4, 128
    layers, _, width = model.removeprefix(f"{TINY}:").partition("x")
    numbers = [int(text) if text.isascii() and text.isdecimal() and len(text) < 5 else 0 for text in (layers, width)]
    if not 1 <= numbers[0] <= 64 or numbers[1] not in _WIDTHS:
        raise UsageError(
            f"expected tiny:LAYERSxWIDTH, 1 to 64 layers and a width of 32, 64, … 4096, got {model}; such as tiny:3x64"
        )
    return numbers[0], numbers[1]
