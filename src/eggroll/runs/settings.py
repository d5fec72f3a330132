"""Settings that mean the same in every job, and settings from a file."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from eggroll.core.errors import UsageError
from eggroll.runs.folder import RunError, shown

T = TypeVar("T")
HOSTS = ("coordinator", "processes", "process", "start_timeout", "peer_timeout")
"""Settings of `HostSettings`."""
FLEET = ("ray", "workers", "worker_gpus", "listen", "lease_seconds")
"""Settings of a fleet of workers."""
NOT_RECORDED = ("run_dir", "resume", "on_change", "seeds", "tune", "render", *HOSTS, *FLEET)
"""Settings that say where and how to start, not what runs."""
OBSERVING = ("log_every", "track", "devices", "update", "max_seconds", "target")
"""Settings that change nothing of what a run computes: on `--resume` those given count."""


@dataclass(frozen=True)
class HostSettings:
    """Which of several processes this one is; they may run on as many hosts. See docs/launching.md."""

    coordinator: str = ""
    """HOST:PORT of process 0; auto: what Slurm, Kubernetes or MPI say; none: this process is alone."""
    processes: int | None = None
    """Processes of the run, on all hosts."""
    process: int | None = None
    """Which this one is, from 0; 0 writes the run folder."""
    start_timeout: int = 300
    """Seconds to wait until all processes are there."""
    peer_timeout: float = 30.0
    """Seconds of silence after which a process is lost, and all end."""

    def __post_init__(self) -> None:
        check_at_least("start_timeout", self.start_timeout, 1)
        if not 1 <= self.peer_timeout <= 86_400:
            raise UsageError(
                f"expected --peer-timeout in [1, 86400] seconds, got {self.peer_timeout}; the default is 30"
            )
        given = {"--processes": self.processes, "--process": self.process}
        absent = [flag for flag, value in given.items() if value is None]
        if not self.coordinator and len(absent) < 2:
            raise UsageError("expected --coordinator with --processes and --process, got none; give that of process 0")
        if self.coordinator and self.coordinator != "auto":
            self.address()
            if absent:
                raise UsageError(
                    f"expected --coordinator, --processes and --process together, got no {' and no '.join(absent)}; "
                    "give all three, or --coordinator auto under Slurm, Kubernetes or MPI"
                )
        if self.processes is not None and self.process is not None:
            check_at_least("processes", self.processes, 1)
            if not 0 <= self.process < self.processes:
                raise UsageError(
                    f"expected --process in [0, {self.processes}), below --processes, got {self.process}; "
                    "count processes from 0"
                )

    def address(self) -> tuple[str, int]:
        """Host and port of the coordinator.

        Raises:
          UsageError: it is no HOST:PORT.
        """
        found = host_and_port(self.coordinator)
        if found is None or not found[1]:
            raise UsageError(
                f"expected --coordinator as HOST:PORT with a port in 1…65535, got {shown(self.coordinator)}; "
                "give that of process 0, such as 10.0.0.1:4321"
            )
        return found


@dataclass(frozen=True)
class RunSettings(HostSettings):
    """What every job's configuration has; see the run folder."""

    run_dir: Path | None = None
    """Folder of the run, which must not exist yet unless it is gone on with; none: a fresh name under runs/."""
    resume: bool = False
    """Go on with the run in that folder, to the same bits as if it had never stopped."""
    on_change: Literal["refuse", "recorded", "given"] = "refuse"
    """When going on under other flags than the run records: refuse, or which side wins."""
    snapshot_every: int = 100
    """Generations between snapshots."""
    snapshots_kept: int = 2
    """Newest snapshots to keep."""
    log_every: int = 0
    """Generations between plain lines of progress on standard error; 0: none."""
    track: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Where else metrics go: tensorboard, wandb (the extra track)."""
    ray: str = ""
    """Have workers evaluate that Ray starts: on this machine (no address given), or on the cluster at this address."""
    workers: int = 0
    """Workers of a fleet: how many Ray starts, or are waited for before the run begins; 0: none."""
    worker_gpus: float = 0.0
    """GPUs that Ray sets aside for each worker; 0: a CPU core."""
    listen: str = ""
    """HOST:PORT where workers are waited for (eggroll worker HOST:PORT); none, with Ray: a free port of loopback."""
    lease_seconds: float = 10.0
    """Seconds, at least, after which a late worker's range of members is given to another one too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("snapshot_every", 1), ("snapshots_kept", 1), ("log_every", 0)):
            check_at_least(name, getattr(self, name), least)
        self._check_fleet()
        if self.resume and self.run_dir is None:
            raise UsageError("expected --run-dir with --resume, got none; give the folder of the run to go on with")

    def _check_fleet(self) -> None:
        check_at_least("workers", self.workers, 0)
        if not self.lease_seconds > 0 or not self.worker_gpus >= 0:
            raise UsageError(
                f"expected --lease-seconds > 0 and --worker-gpus >= 0, got {self.lease_seconds} and "
                f"{self.worker_gpus}; the defaults are 10 and 0"
            )
        if self.is_fleet and self.coordinator:
            raise UsageError(
                "expected either --coordinator (several processes as one) or --ray and --listen (a fleet), got both; "
                "leave one out"
            )
        if self.is_fleet and not self.workers:
            raise UsageError("expected --workers with --ray or --listen, got none; say how many, such as --workers 2")
        if self.workers and not self.is_fleet:
            raise UsageError("expected --ray or --listen HOST:PORT with --workers, got neither; add --ray")

    @property
    def is_fleet(self) -> bool:
        """Whether workers evaluate the population."""
        return bool(self.ray or self.listen)

    def as_json(self) -> dict[str, Any]:
        """What `config.json` and the journal record."""
        values = {key: _plain(value) for key, value in dataclasses.asdict(self).items()}
        return {key: value for key, value in values.items() if key not in NOT_RECORDED}


def host_and_port(address: str) -> tuple[str, int] | None:
    """ "HOST:PORT" taken apart; an IPv6 host may stand in brackets. None where it is none, or the port over 65,535."""
    host, _, port = address.rpartition(":")
    number = int(port) if port.isascii() and port.isdecimal() and len(port) <= 5 else -1
    return (host.removeprefix("[").removesuffix("]"), number) if host and 0 <= number < 2**16 else None


def check_at_least(name: str, value: int, least: int) -> None:
    """Refuse a setting below `least`.

    Raises:
      UsageError: it is.
    """
    if value < least:
        flag = "--" + name.replace("_", "-")
        raise UsageError(f"expected {flag} of at least {least}, got {value}; give a larger number")


def expect(right: bool, name: str, expected: str, got: object) -> None:
    """Refuse a setting.

    Raises:
      UsageError: it is not right.
    """
    if not right:
        raise UsageError(f"expected --{name.replace('_', '-')} {expected}, got {got}; change it")


def json_object(name: str, text: str) -> dict[str, Any]:
    """A setting that is JSON.

    Raises:
      UsageError: it is no JSON object.
    """
    try:
        held = json.loads(text)
    except ValueError:
        held = None
    if not isinstance(held, dict):
        flag = "--" + name.replace("_", "-")
        raise UsageError(f"""expected {flag} as a JSON object, got {text}; such as '{{}}'""")
    return held


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def from_json(kind: type[T], values: dict[str, Any], what: str) -> T:
    """A configuration from JSON, every value of its field's type; names that it does not know are passed over.

    Args:
      kind: a frozen dataclass.
      what: the values come from, for the complaint.
    Raises:
      UsageError: a value is of another type, or the configuration refuses it.
    """
    hints, given = typing.get_type_hints(kind), {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if field.name in values:
            value = values[field.name]
            value = tuple(value) if isinstance(value, list) else value
            if not _fits(value, hints[field.name]):
                raise RunError(
                    f"expected {field.name} as {field.type} in {what}, got {shown(value)}; the file is damaged"
                )
            given[field.name] = float(value) if isinstance(value, int) and hints[field.name] is float else value
    return kind(**given)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value from JSON may stand in a field of that type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in arguments)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(item, arguments[0]) for item in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
    if hint is int and type(value) is int:
        return abs(value) < 2**64  # a complaint about one of 4,300 digits could not be printed
    return type(value) is hint or (value is None and hint is type(None))
