"""Engines for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from eggroll.vllm.blueprint import Blueprint, blueprint_of
from eggroll.vllm.config import VllmConfig
from eggroll.vllm.engine import Engine, EngineSettings
from eggroll.vllm.learner import LAW
from eggroll.vllm.mean import MeanSettings
from eggroll.vllm.prompts import load_tokenizer

FREEZE_EXPERTS = ("*.experts.*",)
"""vLLM's adapters of experts need a GPU."""


def config_of(folder: Path, **changes: Any) -> VllmConfig:
    values: dict[str, Any] = {
        "model": str(folder),
        "dtype": "float32",
        "population_size": 16,
        "sigma": 0.05,
        "learning_rate": 0.01,
        "seed": 3,
        "rank": 2,
    }
    return VllmConfig(**values | changes)


def settings_of(config: VllmConfig, blueprint: Blueprint, **changes: Any) -> EngineSettings:
    names = tuple(leaf.name for leaf in blueprint.leaves)
    mean = MeanSettings(config.seed, config.rank, LAW, config.optimizer, config.precision, names)
    targets = tuple(sorted({name.split(".")[-2] for name in names}))
    values: dict[str, Any] = {"adapters": 6, "targets": targets, "dtype": config.dtype, "context": 448}
    return EngineSettings(config.model, mean, **values | {"tensor_parallel": config.tensor_parallel} | changes)


def engine_of(folder: Path, **changes: Any) -> tuple[VllmConfig, Blueprint, Engine]:
    """An engine with a model's weights."""
    config = config_of(folder, **changes)
    blueprint = blueprint_of(folder, frozen=FREEZE_EXPERTS)
    return config, blueprint, Engine(settings_of(config, blueprint))


def told_by_engine(engine: Engine, prompts: list[list[int]], adapter: int, name: str) -> list[np.ndarray]:
    """Log-probabilities of each prompt's tokens after the first, as one member has them."""
    from vllm.lora.request import LoRARequest

    from vllm import SamplingParams

    asked = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    given = [{"prompt_token_ids": prompt} for prompt in prompts]
    request = LoRARequest(name, adapter + 1, "/nonexistent")
    outputs = engine.llm.generate(given, asked, lora_request=[request] * len(prompts), use_tqdm=False)
    return [
        np.array([told[token].logprob for told, token in zip(output.prompt_logprobs[1:], prompt[1:], strict=True)])
        for output, prompt in zip(outputs, prompts, strict=True)
    ]


def prompts_of(folder: Path, count: int, length: int) -> list[list[int]]:
    """Token ids that a tokenizer of the model knows."""
    size = len(load_tokenizer(folder))
    return np.random.default_rng(length).integers(3, min(size, 512), (count, length)).tolist()
