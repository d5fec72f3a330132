"""What has to be known of the arguments before they are parsed: other defaults hang on it."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from eggroll.cli.parsing import asks_for_help, parse
from eggroll.core.errors import UsageError


def values_of(arguments: Sequence[str], flag: str) -> list[str]:
    """What follows a flag, every time that it is given."""
    found = []
    for name, value in itertools.pairwise([*arguments, ""]):
        if name == flag:
            found.append(value)
        elif name.startswith(f"{flag}="):
            found.append(name.split("=", 1)[1])
    return found


def ray_named(arguments: Sequence[str]) -> list[str]:
    """`--ray` without an address is a Ray of its own on this machine."""
    found = []
    for flag, after in itertools.pairwise([*arguments, ""]):
        found.append(flag)
        if flag == "--ray" and (not after or after.startswith("--")):
            found.append("local")
    return found


def preset_named(arguments: Sequence[str]) -> str | None:
    """The preset must be known before the flags are parsed, since it is their defaults; the last one counts."""
    return next(iter(reversed(values_of(arguments, "--preset"))), None)


def check_data(arguments: Sequence[str]) -> None:
    """Refuse `--data` with nothing after it, which would train on the default corpus.

    Raises:
      UsageError: there is nothing.
    """
    for flag, after in itertools.pairwise([*arguments, ""]):
        if flag == "--data" and (after.startswith("--") or not after):
            raise UsageError(
                "expected a file, folder, glob or hf:NAME after --data, got nothing; leave --data out for "
                "the standard library"
            )


def resumed(arguments: Sequence[str]) -> Path | None:
    """The folder that is to be gone on with."""
    folders = values_of(arguments, "--run-dir")
    asked = "--resume" in arguments and not asks_for_help(arguments)
    return Path(folders[-1]) if asked and folders else None


def recorded(
    command: str,
    kind: type[Any],
    arguments: Sequence[str],
    *chosen: str,
    seeds_in: Callable[[Path], list[Path]] = lambda home: [],
) -> Any:
    """With --resume, flags that are not given are those of the run; None where the run is another's by one of `chosen`,
    flags that other defaults hang on. `seeds_in` finds the folders of a run of several seeds, lowest first."""
    place = resumed(arguments)
    if place is None:
        return None
    from eggroll.runs.folder import RunFolder
    from eggroll.runs.going_on import recorded_settings

    seeds = seeds_in(place)
    found = recorded_settings(RunFolder.open(seeds[0] if seeds else place), kind, command)
    found = dataclasses.replace(found, seeds=len(seeds)) if seeds else found
    asked = {name: values_of(arguments, f"--{name}")[-1:] for name in chosen}
    return None if any(value and value != [getattr(found, name)] for name, value in asked.items()) else found


def peers_of(command: str, arguments: Sequence[str]) -> contextlib.AbstractContextManager[Any]:
    """The processes of the run, found before anything else is done; this one alone without --coordinator."""
    from eggroll.runs.peers import Alone

    fleet = values_of(arguments, "--ray") + values_of(arguments, "--listen")  # refused together, before any is met
    if fleet or not values_of(arguments, "--coordinator") or asks_for_help(arguments):
        return contextlib.nullcontext(Alone())
    from eggroll.distributed.hosts import join
    from eggroll.runs.settings import HostSettings

    settings = parse(HostSettings, command, arguments, return_unknown_args=True)[0]
    return join(settings, name=f"eggroll {command}")
