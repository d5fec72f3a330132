"""The algorithm: noise, low-rank values, fitness shaping, the gradient estimate and the strategy.

Names load on first use, so that `eggroll.core.noise` comes without an array engine.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "EvolutionStrategy": "strategy",
    "FullRank": "distribution",
    "Info": "state",
    "LowRank": "distribution",
    "LowRankArray": "lowrank",
    "MaterialiseError": "lowrank",
    "Members": "state",
    "PerGroup": "population",
    "State": "state",
    "add_lora": "adapters",
    "antithetic_sign": "fitness",
    "apply_perturbed": "lowrank",
    "centred_rank": "fitness",
    "device_mesh": "mesh",
    "estimate_gradient": "estimate",
    "evaluate": "population",
    "group_z_score": "fitness",
    "merge_lora": "adapters",
    "per_group": "population",
    "per_prompt": "fitness",
    "perturbed_matmul": "lowrank",
    "shape_by_name": "fitness",
    "with_lora": "adapters",
    "z_score": "fitness",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'eggroll.core' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"eggroll.core.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
