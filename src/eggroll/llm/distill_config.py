"""Settings of `eggroll distill`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from eggroll.core.errors import UsageError
from eggroll.llm.config import TaskSettings
from eggroll.runs.settings import check_at_least, expect


@dataclass(frozen=True)
class DistillConfig(TaskSettings):
    """Train an int8 model to match its float teacher on a task's answers."""

    teacher: str = ""
    """Float weights (.pth, .safetensors or a folder), or the folder of a run of eggroll finetune."""
    levels: int = 127
    """Largest magnitude of an int8 weight: 127, or 7 for what fits into four bits."""
    inputs: int = 0
    """Largest magnitude of a quantised matrix's inputs, rounded token by token, such as 127; 0: they stay floats."""
    quantised: tuple[str, ...] = ()
    """Patterns of the weights to quantise; none: all matrices of linear layers, embedding and head."""
    population_size: int = 512
    """Members of the population, even."""
    prompts: int = 8
    """Prompts of each group in a generation."""
    trainable: tuple[str, ...] = ()
    """Patterns of the weights that learn; none: all that are quantised."""
    sigma: float = 0.4
    """Standard deviation of a perturbation, in steps of the int8 weights."""
    reach: float = 1.0
    """Levels from the teacher's own value within which a weight stays; 0: it may go anywhere."""
    alpha: float = 0.003
    """Share of the weights, at most, that chance alone would move in a generation."""
    alpha_decay: float = 0.99
    """Factor on alpha for each generation, in (0, 1]."""
    beta1_shift: int = 5
    """The running mean of gradients forgets 2^-this of itself in a generation."""
    beta2_shift: int = 5
    """The running mean of their squares forgets 2^-this of itself in a generation."""
    generations: int = 200
    """Updates to make."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.teacher and not self.resume:
            raise UsageError("expected --teacher, got none; give float weights or a run of eggroll finetune")
        expect(1 <= self.levels <= 127, "levels", "in [1, 127]", self.levels)
        expect(0 <= self.inputs <= 127, "inputs", "in [0, 127]", self.inputs)
        expect(self.rank <= 516, "rank", "of at most 516, whose sums float32 holds", self.rank)
        expect(0 <= self.reach <= 256, "reach", "in [0, 256]", self.reach)
        expect(0 < self.alpha < 1, "alpha", "in (0, 1)", self.alpha)
        expect(0 < self.alpha_decay <= 1, "alpha_decay", "in (0, 1]", self.alpha_decay)
        for name in ("beta1_shift", "beta2_shift"):
            check_at_least(name, getattr(self, name), 1)
            expect(getattr(self, name) <= 8, name, "of at most 8, what bfloat16 holds", getattr(self, name))
        expect(self.update != "rows", "update", "auto, redraw or reduce", self.update)
        if self.coordinator:
            raise UsageError("expected eggroll distill in one process, got --coordinator; use --ray or --listen")

    @property
    def origin(self) -> str:
        """Where the model comes from."""
        return self.teacher

    def alpha_at(self, generation: int) -> float:
        """Of a generation."""
        return self.alpha * self.alpha_decay**generation

    def as_json(self) -> dict[str, Any]:
        """For `config.json` and the journal."""
        return super().as_json() | {"job": "distill"}
