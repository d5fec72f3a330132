"""Safetensors that anyone may have written: read within limits, refused in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from eggroll.runs.folder import RunError, open_plain, put_whole, reason
from eggroll.runs.trees import Leaves

HEADER_LIMIT = 2**20
"""Most bytes of a header, some 10,000 tensors: names and shapes take a hundred times as many in memory."""


def parse_tensors(data: bytes, what: str) -> Leaves:
    """Name → array of safetensors in memory.

    Args:
      what: they are, for the complaint.
    Raises:
      RunError: they are no safetensors, have too long a header, or arrays of kinds that NumPy lacks.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        _check_header(data[:8])
        return dict(load(data))
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = reason(error)
    raise RunError(f"expected {what} as safetensors, got {why}; use another one")


def load_tensors(path: Path) -> Leaves:
    """Name → array of a file of safetensors.

    Raises:
      RunError: as `parse_tensors`, or the file cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        with open(path, "rb", opener=open_plain) as file:
            _check_header(file.read(8))
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = reason(error)
    raise RunError(f"expected a readable safetensors file, got {path}: {why}; use another one")


def _check_header(length: bytes) -> None:
    if int.from_bytes(length, "little") > HEADER_LIMIT:
        raise ValueError(f"a header of more than {HEADER_LIMIT:,} bytes")


def save_tensors(leaves: Leaves, path: Path) -> None:
    """Write a file of safetensors, which takes its place when it is whole."""
    from safetensors.numpy import save

    put_whole(path, [save({name: np.ascontiguousarray(leaf) for name, leaf in leaves.items()})])
