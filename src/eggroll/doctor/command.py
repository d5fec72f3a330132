"""`eggroll doctor`: everything that can be told of this machine, however much of it is broken."""

from __future__ import annotations

import functools
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from eggroll._version import __version__
from eggroll.core.errors import UsageError
from eggroll.doctor import packages
from eggroll.doctor.packages import Package

T = TypeVar("T")
_GIB = 2**30


@dataclass(frozen=True)
class DoctorConfig:
    """Say what this machine has, check that every device computes what it should, and what fits into its memory."""

    parameters: int = 0
    """Parameters of a model of your own, float32, to say what fits of it too; 0: none."""
    json: bool = False
    """Print JSON in place of text; sizes in bytes, times in seconds."""

    def __post_init__(self) -> None:
        if not 0 <= self.parameters < 2**50:
            raise UsageError(f"expected --parameters in [0, 2**50), got {self.parameters}; give the number of weights")


@dataclass
class Diagnosis:
    """What was found; `problems` are lines that say what is wrong and how to mend it."""

    packages: list[Package]
    extras: dict[str, list[Package]]
    devices: list[dict[str, Any]] = field(default_factory=list)
    checks: list[Any] = field(default_factory=list)
    rooms: list[Any] = field(default_factory=list)
    populations: list[Any] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def holds(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def as_json(self) -> dict[str, Any]:
        """Everything, in bytes and seconds."""
        return {
            "eggroll": __version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "processors": os.cpu_count(),
            "packages": {own.name: own.version or None for own in self.packages},
            "extras": {name: _extra_as_json(name, own) for name, own in self.extras.items()},
            "devices": self.devices,
            "checks": [{**own._asdict(), "holds": own.holds} for own in self.checks],
            "check_seconds": self.seconds,
            "memory": [{"where": own.where, "free_bytes": own.free, "of_bytes": own.of} for own in self.rooms],
            "populations": [own._asdict() for own in self.populations],
            "problems": self.problems,
            "notes": self.notes,
            "holds": self.holds,
        }

    def as_text(self) -> str:
        """For a person."""
        lines = [f"eggroll {__version__}, Python {platform.python_version()}, {platform.platform()}"]
        lines += [f"  {own.name} {own.version or 'absent'}{_of_problem(own)}" for own in self.packages]
        lines += [_extra_as_text(name, own) for name, own in self.extras.items()]
        lines += [f"device {own['name']}: {own['kind']}" for own in self.devices]
        lines += [f"check {own.device} {own.name}: {_outcome(own)}, {own.seconds:.2f} s" for own in self.checks]
        lines += [f"memory of {own.where}: {_gib(own.free)} free of {_gib(own.of)}" for own in self.rooms]
        lines += [f"memory of {own.where} holds {_fitting(own)}" for own in self.populations]
        lines += [f"note: {line}" for line in self.notes]
        last = [f"wrong: {line}" for line in self.problems] or [f"all holds; checked in {self.seconds:.1f} s"]
        return "\n".join([*lines, *last])


def diagnose(config: DoctorConfig) -> Diagnosis:
    """Look at everything; what fails is told among the problems, and the rest is looked at all the same."""
    found = Diagnosis(packages.core_packages(), packages.extras())
    found.problems += [_package_problem(own) for own in found.packages if not own.is_well]
    found.problems += [
        _package_problem(own) for each in found.extras.values() for own in each if own.version and own.problem
    ]
    asked = os.environ.get("JAX_PLATFORMS", "")
    wanted = f"devices that JAX can start{f' with JAX_PLATFORMS={asked}' if asked else ''}"
    devices = _tried(found, wanted, _find_devices, "; set JAX_PLATFORMS=cpu, or mend jax and jaxlib") or []
    found.devices = [{"name": f"{own.platform}:{own.id}", "kind": str(own.device_kind)} for own in devices]
    started = time.perf_counter()
    for device in devices:
        found.checks += _tried(found, f"checks on {device}", functools.partial(_check, device)) or []
    found.problems += [_check_problem(own) for own in found.checks if not own.holds]
    _tried(found, "the free memory", lambda: _measure(found, config, devices))
    found.seconds = round(time.perf_counter() - started, 2)
    found.notes += _notes(devices)
    found.problems = list(dict.fromkeys(found.problems))
    return found


def _find_devices() -> list[Any]:
    """Those of the default backend, and the processor."""
    import jax

    devices = list(jax.local_devices())
    if devices[0].platform != "cpu":
        devices += jax.local_devices(backend="cpu")[:1]
    return devices


def _check(device: Any) -> list[Any]:
    from eggroll.doctor.checks import check_device

    return check_device(device)


def _measure(found: Diagnosis, config: DoctorConfig, devices: list[Any]) -> None:
    from eggroll.doctor import room

    rooms = [room.host_room(), *map(room.room_of, devices)]
    found.rooms = [own for own in rooms if own is not None and own.of]
    for own in devices[:1]:  # the others of its kind are like it
        found.populations += room.populations(own, config.parameters)


def _tried(found: Diagnosis, what: str, look: Callable[[], T], mend: str = "; see the versions above") -> T | None:
    """What is seen, or None and a problem more: no device and no package may hide the others."""
    try:
        return look()
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        found.problems.append(f"expected {what}, got {type(error).__name__}{': ' if text else ''}{text}{mend}")
        return None


def _package_problem(own: Package) -> str:
    mend = f"pip install -U {own.name}"
    if own.version and own.problem:
        return f"expected a working {own.name}, got {own.version}: {own.problem}; {mend}"
    return f"expected the package {own.name}, got none; {mend}"


def _check_problem(own: Any) -> str:
    return (
        f"expected the check {own.name} to hold on {own.device}, got: {own.problem}; trust no run on it: try "
        "JAX_PLATFORMS=cpu, or other versions of jax and jaxlib"
    )


def _notes(devices: list[Any]) -> list[str]:
    """What is not wrong, but may not be meant."""
    if Path("/proc/driver/nvidia/version").exists() and all(own.platform == "cpu" for own in devices):
        mend = 'pip install "jax[cuda13]", or with a driver below 580 "jax[cuda12]"'
        return [f"this machine has an NVIDIA driver, and JAX uses the processor alone; {mend}"]
    return []


def _extra_as_json(name: str, own: list[Package]) -> dict[str, Any]:
    missing = [each.name for each in own if not each.is_well]
    return {"present": not missing, "missing": missing, "install": packages.install_line(name)}


def _extra_as_text(name: str, own: list[Package]) -> str:
    missing = [each.name for each in own if not each.is_well]
    if not missing:
        return f"extra {name}: present"
    return f"extra {name}: absent: {packages.install_line(name)} (missing: {', '.join(missing)})"


def _of_problem(own: Package) -> str:
    return f" ({own.problem})" if own.version and own.problem else ""


def _outcome(own: Any) -> str:
    return "holds" if own.holds else "does not hold"


def _fitting(own: Any) -> str:
    if not own.holds:
        return f"no population of {own.model}: the model itself does not fit"
    return f"a population of {own.holds:,} of {own.model}, evaluated {own.at_a_time:,} at a time"


def _gib(size: int) -> str:
    return f"{size / _GIB:.1f} GiB"
