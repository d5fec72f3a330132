"""Timing: calls taken in turns, so that what disturbs the machine disturbs them all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

LONG = 0.02
"""Seconds of a call beside which starting it and waiting for it count for nothing."""


def seconds(call: Callable[[], Any], queued: int = 1) -> float:
    """Wall time of one call, results waited for; or its share of several that are started without waiting."""
    start = time.perf_counter()
    jax.block_until_ready([call() for _ in range(queued)])
    return (time.perf_counter() - start) / queued


def interleaved(
    calls: Mapping[str, Callable[[], Any]], repeats: int, *, warm: bool = False, queued: int = 1
) -> dict[str, float]:
    """Median seconds of each call, taken in turns after one call of each that is not counted (it compiles).

    Args:
      warm: precede each timed call by one that is not, so that none pays for what the call before it left behind: cold
        caches and memory just given back (seen: a factor of 2 after a call that holds dense noise).
      queued: calls, at most, that are started one after the other before the last is waited for, where a call is short:
        on an accelerator starting a call and waiting for it take as long as a layer does.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    together = {}
    for name, call in calls.items():
        seconds(call)
        together[name] = max(1, min(queued, int(LONG / seconds(call)))) if queued > 1 else 1
    for _ in range(repeats):
        for name, call in calls.items():
            if warm:
                seconds(call)
            times[name].append(seconds(call, together[name]))
    return {name: statistics.median(values) for name, values in times.items()}
