"""Settings of `eggroll vllm`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from eggroll.core.errors import UsageError
from eggroll.runs.evolution import EvolutionSettings, GroupSettings
from eggroll.runs.settings import check_at_least, expect, json_object
from eggroll.tasks.flags import SampleFlags, TaskFlags

_BUSY_ROWS, _MOST_ADAPTERS = 512, 64
"""Completions that keep an engine busy, and members that it then holds at most unless one says more."""


@dataclass(frozen=True)
class VllmConfig(GroupSettings, EvolutionSettings, TaskFlags, SampleFlags):
    """Fine-tune a Hugging Face transformer on a task's rewards, on vLLM."""

    model: str = ""
    """Folder of a checkpoint (config.json and safetensors), or a name of Hugging Face."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the engine's weights; auto: the checkpoint's own."""
    precision: Literal["master", "stochastic"] = "master"
    """How 16-bit weights are updated: float32 master copies, or rounded up or down at random (bfloat16 alone)."""
    optimizer: Literal["sgd", "adam"] = "adam"
    """Optimiser that takes the estimated gradient."""
    population_size: int = 64
    """Members of the population, even."""
    prompts: int = 8
    """Prompts of each group in a generation."""
    tokens: int = 64
    """Most tokens of a completion."""
    sigma: float = 0.01
    """Standard deviation of a perturbation, in weight units."""
    noise_reuse: int = 1
    """Generations that a perturbation lives."""
    trainable: tuple[str, ...] = ("*",)
    """Patterns of the matrices that evolve, of those of the seven linear layers."""
    frozen: tuple[str, ...] = ()
    """Patterns of matrices that stay, whatever --trainable says."""
    template: Literal["auto", "never"] = "auto"
    """Whether prompts go through the tokenizer's chat template; auto: where it has one."""
    system: str = ""
    """What the chat template says first; none: nothing."""
    stop: tuple[str, ...] = ()
    """Texts that end a completion, beside the tokenizer's own end."""
    tensor_parallel: int = 1
    """Devices of an engine, over which each matrix is shared out."""
    engine_options: str = "{}"
    """Further arguments of vllm.LLM as JSON, such as '{"gpu_memory_utilization": 0.85}'."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_task()
        self.check_sampling()
        for name in ("noise_reuse", "tensor_parallel"):
            check_at_least(name, getattr(self, name), 1)
        if not self.model and not self.resume:
            raise UsageError("expected --model, got none; give a checkpoint's folder or a name of Hugging Face")
        for name in ("listen", "coordinator"):
            expect(not getattr(self, name), name, "left out of eggroll vllm, whose engines Ray starts", "one")
        for name in ("devices", "update"):
            expect(getattr(self, name) == "auto", name, "left out of eggroll vllm; see --workers", getattr(self, name))
        float16 = self.dtype == "float16" and self.precision == "stochastic"
        expect(not float16, "precision", "master with float16", self.precision)
        self.further()

    def further(self) -> dict[str, Any]:
        """Arguments of the engine.

        Raises:
          UsageError: they are no JSON object.
        """
        return json_object("engine_options", self.engine_options)

    @property
    def engines(self) -> int:
        """How many share the members."""
        return self.workers or 1

    @property
    def chunk(self) -> int:
        """Members that an engine holds at a time."""
        if self.chunk_size != "auto":
            return min(self.chunk_size, self.population_size)
        share = -(-self.population_size // self.engines)
        size = min(share + share % 2, -(-_BUSY_ROWS // (self.prompts * self.samples)), _MOST_ADAPTERS)
        return max(2, size // 2 * 2)

    def noise_generation(self, generation: int) -> int:
        """Whose noise a generation has."""
        return generation // self.noise_reuse

    def as_json(self) -> dict[str, Any]:
        """For `config.json` and the journal."""
        return super().as_json() | {"job": "vllm"}
