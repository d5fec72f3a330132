"""Settings that mean the same in every job, and settings from a file."""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from eggroll.core.errors import UsageError
from eggroll.runs.folder import RunError, shown

T = TypeVar("T")
NOT_RECORDED = ("run_dir", "resume", "on_change")
"""Settings that say where and how to start, not what runs."""
OBSERVING = ("log_every", "track", "devices", "update")
"""Settings that change nothing of what a run computes: on `--resume` those given count."""


@dataclass(frozen=True)
class RunSettings:
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

    def __post_init__(self) -> None:
        for name, least in (("snapshot_every", 1), ("snapshots_kept", 1), ("log_every", 0)):
            check_at_least(name, getattr(self, name), least)
        if self.resume and self.run_dir is None:
            raise UsageError("expected --run-dir with --resume, got none; give the folder of the run to go on with")

    def as_json(self) -> dict[str, Any]:
        """What `config.json` and the journal record."""
        values = {key: _plain(value) for key, value in dataclasses.asdict(self).items()}
        return {key: value for key, value in values.items() if key not in NOT_RECORDED}


def check_at_least(name: str, value: int, least: int) -> None:
    """Refuse a setting below `least`.

    Raises:
      UsageError: it is.
    """
    if value < least:
        flag = "--" + name.replace("_", "-")
        raise UsageError(f"expected {flag} of at least {least}, got {value}; give a larger number")


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
