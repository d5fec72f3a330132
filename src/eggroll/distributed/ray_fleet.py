"""Workers that Ray starts, places and starts again: on this machine, or on a cluster that comes and goes.

Ray moves processes, not data: what workers and coordinator say to each other goes over their own connection. An actor
that dies is started anew, wherever Ray finds room; the coordinator takes the newcomer for a worker like any other.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
import secrets
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from eggroll.core.errors import UsageError
from eggroll.runs.folder import reason

LOCAL = "local"
LOOPBACK = "127.0.0.2" if sys.platform == "linux" else "127.0.0.1"
"""Where a Ray of our own lives. It takes 127.0.0.1 for a mistake, and looks for the machine's address in its place."""
_POLL_SECONDS = 1.0
_REACH_SECONDS = 5.0
_QUICK_SECONDS = 20.0
"""A worker that ends sooner after its start has failed to start."""
_MOST_QUICK = 5


class Placement(NamedTuple):
    """Where workers run.

    Args:
      address: LOCAL, or that of a cluster ("auto", "HOST:PORT", "ray://…").
      workers: how many to keep running.
      cpus, gpus: what Ray sets aside for each.
    """

    address: str
    workers: int
    cpus: float = 1.0
    gpus: float = 0.0


class _Slot(NamedTuple):
    """A worker that runs."""

    actor: Any
    ended: Any  # Ray's promise of its end
    since: float


def check_ray(address: str) -> None:
    """Whether Ray is here and somebody listens at HOST:PORT; Ray itself would try for minutes.

    Raises:
      UsageError: not so.
    """
    if importlib.util.find_spec("ray") is None:
        raise UsageError('expected the package ray for --ray, got none; pip install "eggroll-es[ray]"')
    host, _, port = address.rpartition(":")
    if address in (LOCAL, "auto") or "/" in host or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, error) from None


def _no_cluster(address: str, error: BaseException) -> UsageError:
    return UsageError(
        f"expected a Ray cluster at {address}, got {reason(error)}; start one (ray start --head), or give --ray "
        "without an address for one on this machine"
    )


@contextmanager
def ray_workers(
    placement: Placement,
    coordinator: tuple[str, int],
    token: bytes,
    build: Callable[[dict[str, Any]], Any],
    *,
    say: Callable[[str], None],
) -> Iterator[Fleet]:
    """Keep workers running for as long as the context lasts.

    Args:
      coordinator: host and port, as the workers see it.
      build: a function of an importable module; see `worker.Worker`.
      say: takes lines for a person.
    Raises:
      UsageError: Ray is not installed, cannot be reached, or has no room for a single worker.
    """
    with started_ray(placement) as ray:
        fleet = Fleet(ray, placement, (coordinator, token, build), say)
        try:
            yield fleet
        finally:
            fleet.stop()


@contextmanager
def started_ray(placement: Placement) -> Iterator[Any]:
    """The module ray, connected to a cluster, or to one of its own on this machine with room for the workers.

    Raises:
      UsageError: Ray is not installed, or cannot be reached.
    """
    check_ray(placement.address)
    _settle_environment(placement)
    import ray

    _start_ray(ray, placement)
    try:
        yield ray
    finally:
        with contextlib.suppress(Exception):
            ray.shutdown()


def _settle_environment(placement: Placement) -> None:
    """Before Ray is imported. Its servers listen on every interface whatever address a node has (tried: 2.50 to 2.60),
    so that a Ray of our own must at least know who may speak to it.

    Raises:
      UsageError: Ray was imported already, and reads its mode once.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if placement.address == LOCAL:
        if "ray" in sys.modules and os.environ.get("RAY_AUTH_MODE") != "token":
            raise UsageError(
                "expected to set up a Ray of our own before Ray is imported, got it imported already (vLLM does so); "
                "set RAY_AUTH_MODE=token before the program starts"
            )
        os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"] = "token", secrets.token_hex(32)


def _start_ray(ray: Any, placement: Placement) -> None:
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False, "configure_logging": False}
    own = {
        "num_cpus": max(placement.workers * placement.cpus, 1),
        "include_dashboard": False,
        "_node_ip_address": LOOPBACK,
    }
    try:
        with warnings.catch_warnings(action="ignore"), contextlib.redirect_stderr(io.StringIO()):
            ray.init(address=placement.address, **quiet, **(own if placement.address == LOCAL else {}))
    except Exception as error:  # whatever Ray raises, it is one line for us
        raise _no_cluster(placement.address, error) from None


class Fleet:
    """Starts actors, and starts anew those that die; see `ray_workers`."""

    def __init__(self, ray: Any, placement: Placement, work: tuple[Any, ...], say: Callable[[str], None]) -> None:
        self._ray, self._placement, self._work, self._say = ray, placement, work, say
        self._actor = ray.remote(RayWorker)
        self._slots: dict[int, _Slot | None] = dict.fromkeys(range(placement.workers))
        self._quick = dict.fromkeys(self._slots, 0)
        self._stopping = threading.Event()
        for number in self._slots:
            self._slots[number] = self._start(number)
        self._thread = threading.Thread(target=self._watch, name="eggroll ray", daemon=True)
        self._thread.start()

    def _start(self, number: int) -> _Slot:
        options = {"num_cpus": self._placement.cpus, "num_gpus": self._placement.gpus, "max_restarts": 0}
        actor = self._actor.options(**options).remote(f"ray-{number}", str(Path.cwd()), self._core(number))
        return _Slot(actor, actor.work.remote(*self._work), time.monotonic())

    def _core(self, number: int) -> int | None:
        """On this machine, where there is a core for each worker, each keeps to its own."""
        placement = self._placement
        if placement.address != LOCAL or placement.cpus != 1 or not hasattr(os, "sched_getaffinity"):
            return None
        cores = sorted(os.sched_getaffinity(0))
        return cores[number] if placement.workers <= len(cores) else None

    def process_ids(self, seconds: float = 60.0) -> dict[int, int]:
        """Slot → process id of the workers that run, for whoever wants to see one die."""
        found = {}
        for number, slot in list(self._slots.items()):
            if slot is not None:
                with contextlib.suppress(Exception):
                    found[number] = self._ray.get(slot.actor.process_id.remote(), timeout=seconds)
        return found

    def _watch(self) -> None:
        while not self._stopping.wait(_POLL_SECONDS):
            for number, slot in list(self._slots.items()):
                if slot is not None:
                    self._look_after(number, slot)

    def _look_after(self, number: int, slot: _Slot) -> None:
        ended, _ = self._ray.wait([slot.ended], timeout=0)
        if not ended or self._stopping.is_set():
            return
        try:
            self._ray.get(slot.ended)
            why = "it was sent away"
        except Exception as error:  # an actor dies of anything
            why = reason(error)
        self._quick[number] = self._quick[number] + 1 if time.monotonic() - slot.since < _QUICK_SECONDS else 0
        if self._quick[number] >= _MOST_QUICK:
            self._say(f"worker ray-{number} failed {_MOST_QUICK} times as it started and is given up: {why}")
            self._slots[number] = None
            return
        self._say(f"worker ray-{number} ended ({why}) and is started again")
        self._slots[number] = self._start(number)

    def stop(self) -> None:
        """Start no more, and end those that run."""
        self._stopping.set()
        self._thread.join(timeout=10)
        for slot in self._slots.values():
            if slot is not None:
                with contextlib.suppress(Exception):
                    self._ray.kill(slot.actor)


class RayWorker:
    """What runs in an actor's process.

    Args:
      name: shown to people.
      folder: where the run was started, from which relative paths of its data go out; if it is here.
      core: of this machine, to which the process keeps; None: any.
    """

    def __init__(self, name: str, folder: str, core: int | None) -> None:
        self._name = name
        with contextlib.suppress(OSError):
            os.chdir(folder)
        if core is not None:
            os.sched_setaffinity(0, {core})  # before JAX counts the cores

    def process_id(self) -> int:
        """Of this process."""
        return os.getpid()

    def work(self, coordinator: tuple[str, int], token: bytes, build: Callable[[dict[str, Any]], Any]) -> None:
        """Serve the coordinator until it says that the run has ended."""
        from eggroll.distributed.connection import serve
        from eggroll.distributed.worker import Worker

        serve(Worker(build, token, f"{self._name}:{os.getpid()}"), coordinator)
