"""Versions and the machine, as summaries, journals and benchmark tables name them."""

from __future__ import annotations

import platform
import resource
import sys
from pathlib import Path
from typing import Any

import jax

from eggroll._version import __version__


def environment() -> dict[str, Any]:
    """Versions and the device, for summaries and benchmark tables."""
    device = jax.devices()[0]
    return {
        "eggroll": __version__,
        "jax": jax.__version__,
        "python": platform.python_version(),
        "device": f"{device.platform} {device.device_kind}".strip(),
        "devices": jax.device_count(),
        "processor": processor(),
    }


def processor() -> str:
    """The processor's name as Linux tells it, else the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def peak_memory() -> int:
    """Peak resident memory of this process, in bytes.

    Where /proc tells it, from there: `getrusage` would count what the process that started this one held at the time.
    """
    try:
        status = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
