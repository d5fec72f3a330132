"""Timing: calls taken in turns, so that what disturbs the machine disturbs them all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax


def seconds(call: Callable[[], Any]) -> float:
    """Wall time of one call, results waited for."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def interleaved(calls: Mapping[str, Callable[[], Any]], repeats: int, *, warm: bool = False) -> dict[str, float]:
    """Median seconds of each call, taken in turns after one call of each that is not counted (it compiles).

    Args:
      warm: precede each timed call by one that is not, so that none pays for what the call before it left behind: cold
        caches and memory just given back (seen: a factor of 2 after a call that holds dense noise).
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        seconds(call)
    for _ in range(repeats):
        for name, call in calls.items():
            if warm:
                seconds(call)
            times[name].append(seconds(call))
    return {name: statistics.median(values) for name, values in times.items()}
