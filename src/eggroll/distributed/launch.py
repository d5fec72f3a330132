"""A job's flags to a fleet: nothing, workers that Ray starts, or workers that people start."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from eggroll.core.errors import UsageError
from eggroll.distributed.connection import serve
from eggroll.distributed.fleet import FleetOptions, on_fleet
from eggroll.distributed.ray_fleet import Placement, check_ray, ray_workers
from eggroll.distributed.worker import Built, Worker
from eggroll.runs.folder import RunFolder
from eggroll.runs.job import Job, RangeWork
from eggroll.runs.settings import RunSettings, host_and_port

TOKEN = "EGGROLL_TOKEN"
"""Environment variable with the secret that workers and coordinator share."""
Build = Callable[[dict[str, Any]], Built]


def check_fleet(settings: RunSettings) -> None:
    """Refuse, before anything is written, what `fleet_for` could not do.

    Raises:
      UsageError: an address is none or nobody is there, the token is missing, or Ray is not installed.
    """
    if settings.listen:
        place_of(settings.listen, "--listen")
    if settings.ray:
        check_ray(settings.ray)
    elif settings.listen:
        _token(needed=True)


@contextmanager
def fleet_for(
    settings: RunSettings,
    job: Job[Any],
    work: RangeWork,
    folder: RunFolder | None,
    build: Build,
    *,
    say: Callable[[str], None],
) -> Iterator[Job[Any]]:
    """The job as the flags want it evaluated: by workers, or as it is.

    Args:
      work: the evaluation in ranges.
      folder: of the run; None in a process that has none.
      build: a run's settings → the job, in a worker; a function of an importable module.
      say: takes lines for a person.
    Raises:
      UsageError: an address cannot be used, there is no token, or Ray cannot be started.
    """
    if not settings.is_fleet or folder is None:
        yield job
        return
    listen = place_of(settings.listen, "--listen") if settings.listen else ("127.0.0.1", 0)
    token = _token(needed=not settings.ray)
    options = FleetOptions(settings.workers, token, listen, lease_seconds=settings.lease_seconds)
    with on_fleet(job, work, folder, options, checks={"data": job.data}, say=say) as (fleet_job, server):
        if not settings.ray:
            host, port = server.address
            say(f"waiting for {settings.workers} workers at {host}:{port}")
            yield fleet_job
            return
        placement = Placement(settings.ray, settings.workers, 1.0, settings.worker_gpus)
        with ray_workers(placement, server.address, token, build, say=say):
            yield fleet_job
            server.close("the run has ended")  # before Ray ends them, which would look like a loss


def work_for(address: str, build: Build, *, patience: float, say: Callable[[str], None]) -> None:
    """Be a worker of the coordinator at `address` until the run ends.

    Raises:
      UsageError: nobody answers for `patience` seconds, the token is missing or another, or the data is another.
    """
    serve(Worker(build, _token(needed=True)), place_of(address, "the address"), patience=patience, say=say)


def _token(*, needed: bool) -> bytes:
    token = os.environ.get(TOKEN, "")
    if not token and needed:
        raise UsageError(
            f"expected a secret in the environment variable {TOKEN}, the same for coordinator and workers, got none; "
            f"make one: export {TOKEN}=$(openssl rand -hex 16)"
        )
    return token.encode() or secrets.token_bytes(16)


def place_of(address: str, what: str) -> tuple[str, int]:
    """Host and port of an address.

    Raises:
      UsageError: it is no HOST:PORT.
    """
    found = host_and_port(address)
    if found is None:
        raise UsageError(f"expected {what} as HOST:PORT, got {address!r}; such as 127.0.0.1:7070")
    return found
