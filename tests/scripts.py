"""Loads a script that is no part of the package, such as an example or a benchmark."""

import importlib.util
import sys
import types
from pathlib import Path


def load(path: str) -> types.ModuleType:
    """The module at `path`, relative to the project's root."""
    file = Path(__file__).resolve().parents[1] / path
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
