"""The one loop that every job runs: evaluate, shape, update, note down; stop cleanly when asked to.

The loop knows no application. A job hands it an `Evaluator` and an `Updater`.
"""

from __future__ import annotations

import platform
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import jax

from eggroll.runs import snapshots
from eggroll.runs.folder import RunFolder
from eggroll.runs.progress import GenerationBar

STATUS_INTERRUPTED = 130

Metrics = dict[str, float | int]
P = TypeVar("P")
"""Parameters of a job: nested dicts of arrays."""
P_contra = TypeVar("P_contra", contravariant=True)
C = TypeVar("C")
"""Carry of a job: what its evaluation keeps from one generation to the next, one entry per member."""


@runtime_checkable
class Evaluator(Protocol[P_contra, C]):
    """Members → weights, carry: evaluates the whole population of one generation."""

    def __call__(self, parameters: P_contra, carry: C, generation: int) -> tuple[Any, C, Metrics]:
        """Returns one weight per antithetic pair, the new carry, and metrics of the population."""
        ...


@runtime_checkable
class Updater(Protocol[P]):
    """Decoded weights → new parameters."""

    def __call__(self, parameters: P, weights: Any, generation: int) -> tuple[P, Metrics]:
        """Returns the new parameters and metrics of the step."""
        ...


@dataclass
class Job(Generic[P, C]):
    """Everything about a job that the loop needs.

    Args:
      name: sub-command, shown on the bar.
      parameters, carry: at generation 0.
      validate: parameters → metrics, called before generation 0, every `validate_every` and after the last.
      main_metric: the metric that the bar shows.
      units: what throughput counts ("bytes"), and how many of it one generation processes.
    """

    name: str
    parameters: P
    carry: C
    evaluate: Evaluator[P, C]
    update: Updater[P]
    validate: Callable[[P], Metrics]
    main_metric: str
    units: tuple[str, int]
    generations: int
    validate_every: int
    snapshot_every: int
    snapshots_kept: int = 2


@dataclass
class Outcome:
    """How a run ended: `summary.json` and the exit status."""

    summary: dict[str, Any]
    exit_status: int


def run(job: Job[P, C], folder: RunFolder, *, extra: dict[str, Any], prefix_seconds: float = 0.0) -> Outcome:
    """Train to the end, or to the end of the generation in which Ctrl-C or SIGTERM came.

    Args:
      extra: the job's own entries of the summary.
      prefix_seconds: what the job spent before the loop; reported as `startup_seconds`. The first generation's
        seconds, reported beside it, are mostly compilation.
    """
    start, done, first_seconds = time.perf_counter(), 0, 0.0
    with _stop_requests() as stop, GenerationBar(job.name, job.generations) as bar:
        first_validation = latest = dict(job.validate(job.parameters))
        last = job.generations == 0 or bool(stop)
        if last:
            snapshots.save(folder, 0, {"parameters": job.parameters}, keep=job.snapshots_kept)
        while not last:
            line = _generation(job, done)
            first_seconds = first_seconds or line["seconds"]
            done += 1
            last = done == job.generations or bool(stop)
            if last or done % job.validate_every == 0:
                latest = dict(job.validate(job.parameters))
                line |= latest
            folder.append_metrics(line)
            if last or done % job.snapshot_every == 0:
                snapshots.save(folder, done, {"parameters": job.parameters}, keep=job.snapshots_kept)
            throughput = f"{line[f'{job.units[0]}_per_second']:,.0f} {job.units[0]}/s"
            bar.advance(_metric(job.main_metric, line | latest), throughput)
    summary = {
        "job": job.name,
        "finished": done == job.generations,
        "generations": done,
        "seconds": round(time.perf_counter() - start, 3),
        "startup_seconds": round(prefix_seconds, 3),
        "first_generation_seconds": round(first_seconds, 3),
        **{f"start_{name}": value for name, value in first_validation.items()},
        **latest,
        **extra,
        **environment(),
        "run_dir": str(folder.path),
    }
    folder.write_json("summary.json", summary)
    return Outcome(summary, 0 if done == job.generations else STATUS_INTERRUPTED)


def _generation(job: Job[P, C], generation: int) -> Metrics:
    start = time.perf_counter()
    weights, job.carry, measured = job.evaluate(job.parameters, job.carry, generation)
    evaluated = time.perf_counter()
    job.parameters, stepped = job.update(job.parameters, weights, generation)
    end = time.perf_counter()
    name, amount = job.units
    return {
        "generation": generation,
        **measured,
        **stepped,
        f"{name}_per_second": amount / (end - start),
        "seconds": end - start,
        "update_seconds": end - evaluated,
    }


def _metric(name: str, metrics: Metrics) -> str:
    return f"{name} {metrics[name]:.3f}" if name in metrics else ""


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """A list that SIGINT or SIGTERM puts its number in; a second SIGINT stops at once."""
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def environment() -> dict[str, Any]:
    """Versions and the device, for summaries and benchmark tables."""
    device = jax.devices()[0]
    return {
        "eggroll": metadata.version("eggroll-es"),
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
