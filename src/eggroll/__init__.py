"""EGGROLL: train any model without gradients, with low-rank perturbations and populations of 10³ to 10⁶.

Names load on first use, so that `import eggroll` is quick.
"""

from __future__ import annotations

import importlib
from typing import Any

from eggroll._version import __version__ as __version__

_HOMES = {
    "EvolutionStrategy": "eggroll.core.strategy",
    "FullRank": "eggroll.core.distribution",
    "LowRank": "eggroll.core.distribution",
    "add_lora": "eggroll.core.adapters",
    "device_mesh": "eggroll.core.mesh",
    "merge_lora": "eggroll.core.adapters",
    "per_group": "eggroll.core.population",
    "replay": "eggroll.runs.training",
    "train": "eggroll.distributed.training",
    "with_lora": "eggroll.core.adapters",
}

__all__ = [
    "EvolutionStrategy",
    "FullRank",
    "LowRank",
    "__version__",
    "add_lora",
    "device_mesh",
    "merge_lora",
    "per_group",
    "replay",
    "train",
    "with_lora",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'eggroll' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
