"""Tasks: prompts, and verifiers that score what a model answers; neither JAX nor PyTorch is needed.

Names load on first use.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {"Example": "base", "Task": "base", "make_task": "registry", "names": "registry"}

__all__ = ["Example", "Task", "make_task", "names"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'eggroll.tasks' has no attribute {name!r}")
    return getattr(importlib.import_module(f"eggroll.tasks.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
