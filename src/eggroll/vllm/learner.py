"""A run's weights from its start and its journal, without an engine: the update on whole leaves, in PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import torch

from eggroll.core import noise
from eggroll.runs.evolution import learning_rate_at, sigma_at
from eggroll.runs.job import Learner
from eggroll.runs.metrics import Metrics
from eggroll.vllm.blueprint import Blueprint
from eggroll.vllm.config import VllmConfig
from eggroll.vllm.draws import Settings
from eggroll.vllm.leaves import Leaf, Part
from eggroll.vllm.step import MOMENTS, Held, Step, update

LAW = "popcount"
Kept = Mapping[str, Mapping[str, torch.Tensor]]


@jax.tree_util.register_static
@dataclass(frozen=True)
class Standing:
    """Weights that engines hold: a tree without leaves."""

    generation: int


def step_of(config: VllmConfig, generation: int) -> Step:
    """Of a generation."""
    drawn = config.noise_generation(generation)
    sigma, rate = (float(each(config, generation)) for each in (sigma_at, learning_rate_at))
    return Step(generation, drawn, sigma, rate, config.population_size)


def as_state(kept: Kept, generation: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Parameters and optimiser state of a run, as snapshots hold them."""
    arrays = {kind: {name: to_numpy(value) for name, value in own.items()} for kind, own in kept.items()}
    parameters = arrays.pop("weight")
    return parameters, {"count": np.int32(generation), **arrays}


def as_kept(parameters: Mapping[str, Any], optimizer: Mapping[str, Any]) -> Kept:
    """The same as engines take them."""
    moments = {kind: own for kind, own in optimizer.items() if kind != "count"}
    return {
        kind: {name: to_torch(value) for name, value in own.items()}
        for kind, own in {"weight": parameters, **moments}.items()
    }


def to_numpy(value: torch.Tensor) -> np.ndarray:
    """bfloat16 as JAX's."""
    if value.dtype == torch.bfloat16:
        return np.asarray(value.contiguous().view(torch.int16).numpy()).view(jax.numpy.bfloat16.dtype)
    return np.asarray(value.contiguous().numpy())


def to_torch(value: Any) -> torch.Tensor:
    """A copy."""
    array = np.array(value)
    if array.dtype == jax.numpy.bfloat16.dtype:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def start_of(config: VllmConfig, weights: Mapping[str, torch.Tensor]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Parameters and optimiser state at generation 0.

    Args:
      weights: as the engine has them.
    """
    masters = {name: value.float() if config.precision == "master" else value for name, value in weights.items()}
    zeros = {name: torch.zeros_like(value, dtype=torch.float32) for name, value in weights.items()}
    return as_state({"weight": masters, **dict.fromkeys(MOMENTS[config.optimizer], zeros)}, 0)


def settings_of(config: VllmConfig, blueprint: Blueprint) -> dict[str, Any]:
    """Everything that updates depend on, as JSON."""
    return {
        "population_size": config.population_size,
        "antithetic": True,
        "group_size": config.group,
        "sigma": [config.sigma, config.sigma_decay],
        "learning_rate": [config.learning_rate, config.learning_rate_decay, config.rate_units],
        "optimizer": config.optimizer,
        "precision": config.precision,
        "distribution": "LowRank",
        "rank": config.rank,
        "noise": noise.noise_version([LAW]),
        "noise_reuse": config.noise_reuse,
        "shaping": "group_per_prompt",
        "trainable": [f"{leaf.name} {leaf.rows}x{leaf.columns}" for leaf in blueprint.leaves],
    }


def whole_learner(
    config: VllmConfig, blueprint: Blueprint, start: tuple[dict[str, np.ndarray], dict[str, Any]]
) -> Learner[Any]:
    """The learner of a replay."""
    drawn = Settings(config.seed, config.rank, LAW)

    def updated(parameters: Any, optimizer: Any, weights: np.ndarray, generation: int) -> tuple[Any, Any, Metrics]:
        kept = as_kept(parameters, optimizer)
        values, step = torch.from_numpy(np.asarray(weights, np.float32)), step_of(config, generation)
        with torch.inference_mode():
            for leaf in blueprint.leaves:
                update(_held(leaf, kept), drawn, values, step)
        return *as_state(kept, generation + 1), {}

    return Learner(
        *start,
        updated,
        "float32",
        config.population_size // 2,
        settings_of(config, blueprint),
        environment_of(config, tensor_parallel=1),
    )


def _held(leaf: Leaf, kept: Kept) -> Held:
    moments = {kind: own[leaf.name] for kind, own in kept.items() if kind != "weight"}
    return Held(Part.whole(leaf), kept["weight"][leaf.name], None, moments)


def environment_of(config: VllmConfig, *, tensor_parallel: int) -> dict[str, Any]:
    """What the rounding of updates depends on."""
    return {"torch": torch.__version__, "tensor_parallel": tensor_parallel, "dtype": config.dtype}
