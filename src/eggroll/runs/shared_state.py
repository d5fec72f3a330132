"""State that the parameters do not hold (running observation statistics, say), as it stands in a journal."""

from __future__ import annotations

from typing import Any

import jax

from eggroll.runs.tensors import parse_tensors
from eggroll.runs.trees import as_arrays, filled


def pack_shared(shared: Any) -> bytes | None:
    """A pytree of arrays as safetensors; None where it has no leaves."""
    if not jax.tree.leaves(shared):
        return None
    from safetensors.numpy import save

    return save(as_arrays(shared))


def unpack_shared(template: Any, data: bytes | None) -> Any:
    """The pytree again, like `template`; `template` itself where there is nothing.

    Raises:
      RunError: the bytes are no safetensors, or of another tree.
    """
    if data is None:
        return template
    what = "the journal's shared state"
    return filled(template, parse_tensors(data, what), what)
