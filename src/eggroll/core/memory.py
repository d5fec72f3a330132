"""How many members fit at a time: the compiler is asked what a small chunk needs, and the rest is division.

Working memory grows in proportion to the chunk (noise and activations of its members), so that one compilation of a
probe of `PROBE_PAIRS` pairs tells the bytes of a pair.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from eggroll.core.distribution import LeafPlan

PROBE_PAIRS = 8
SHARE_OF_FREE = 0.5
"""Of an accelerator's free memory; the rest is for the population's own arrays, the update and the allocator."""
CACHE_BUDGET = (8 * 2**20, 32 * 2**20)
"""Least and most bytes of a chunk on a CPU: half of its last cache, within these. A chunk that leaves the cache is two
to three times slower (benchmarks/README.md)."""


def memory_budget(params: Any, sharing: int = 1, device: Any = None) -> int:
    """Bytes that one chunk may take for noise, activations and what the compiler keeps between.

    On an accelerator a share of the free memory. On a CPU what stays in its cache; or as much as the parameters take,
    where that is more, so that enough members share each pass over the weights; at most an eighth of the free memory.

    Args:
      sharing: devices of this process that evaluate side by side; on a CPU all of them live in one memory.
      device: that evaluates; none: the first of this process, which the others are like.
    """
    own = device_memory(jax.local_devices()[0] if device is None else device)
    if own is not None:
        return max(int(SHARE_OF_FREE * own[0]), 1)
    least, most = CACHE_BUDGET
    cache = min(max(_system("SC_LEVEL3_CACHE_SIZE") // 2, least), most)
    weights = _bytes_of(params)
    free = host_memory()[0] or 8 * most
    return min(max(cache, weights), free // (8 * sharing))


def device_memory(device: Any) -> tuple[int, int] | None:
    """Free bytes of an accelerator's own memory, and how many it has that JAX may take; None where it has none."""
    statistics = device.memory_stats() or {}
    if "bytes_limit" not in statistics:
        return None
    limit = int(statistics["bytes_limit"])
    return limit - int(statistics.get("bytes_in_use", 0)), limit


def host_memory() -> tuple[int, int]:
    """Free bytes of the host's memory, and how many it has; 0 where the system does not tell."""
    page = _system("SC_PAGE_SIZE")
    return _system("SC_AVPHYS_PAGES") * page, _system("SC_PHYS_PAGES") * page


def update_budget(leaves: Sequence[LeafPlan]) -> int:
    """Bytes of noise that the update may draw at a time on any machine: a small cache, or as much as these leaves."""
    return max(CACHE_BUDGET[0], sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves))


def _bytes_of(tree: Any) -> int:
    return sum(np.size(x) * jnp.result_type(x).itemsize for x in jax.tree.leaves(tree))


def _system(name: str) -> int:
    """A number that the system tells, or 0."""
    try:
        return max(os.sysconf(name), 0)
    except (OSError, ValueError, AttributeError):
        return 0


def working_bytes(function: Callable[..., Any], *args: Any) -> int:
    """What the compiled function needs beside its arguments: temporaries and results, in bytes.

    Args:
      function: is compiled for abstract values like `args`, not run.
    Raises:
      ValueError: the backend does not tell.
    """
    shapes = jax.tree.map(_abstract, args)
    statistics = jax.jit(function).lower(*shapes).compile().memory_analysis()
    if statistics is None:
        raise ValueError(
            f"expected a backend that tells what a compiled function needs for chunk_size='auto', got "
            f"{jax.default_backend()}; give chunk_size a number of members"
        )
    return int(statistics.temp_size_in_bytes + statistics.output_size_in_bytes)


def _abstract(value: Any) -> jax.ShapeDtypeStruct:
    array = value if hasattr(value, "dtype") else jnp.asarray(value)
    known = isinstance(array, jax.Array) and not isinstance(array, jax.core.Tracer)
    sharding = array.sharding if known and isinstance(array.sharding, NamedSharding) else None
    return jax.ShapeDtypeStruct(np.shape(array), array.dtype, sharding=sharding)


def largest_chunk(pairs: int, probe_pairs: int, probe_bytes: int, budget: int) -> int:
    """Pairs of the largest chunk within the budget, evened out over the chunks; at least 1.

    Args:
      pairs: of the population.
      probe_pairs, probe_bytes: a chunk that was measured.
      budget: bytes.
    """
    fit = min(pairs, max(1, budget * probe_pairs // max(probe_bytes, 1)))
    chunks = -(-pairs // fit)
    return -(-pairs // chunks)
