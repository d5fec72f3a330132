"""`--resume` of a job: the settings that hold, at every process, and the summary of a run with nothing left to do."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from eggroll.core.errors import UsageError
from eggroll.runs.folder import RunFolder
from eggroll.runs.job import Job
from eggroll.runs.peers import Peers, told
from eggroll.runs.resume import change_settings, check_change, differences, finished_summary, recorded_config
from eggroll.runs.settings import NOT_RECORDED, OBSERVING, RunSettings, from_json

C = TypeVar("C", bound=RunSettings)


def recorded_settings(folder: RunFolder, kind: type[C], job: str) -> C:
    """The settings that a run records.

    Raises:
      UsageError: the folder is of another job, or its settings are damaged.
    """
    recorded = recorded_config(folder)
    if recorded.get("job") != job:
        raise UsageError(f"expected the folder of eggroll {job}, got {folder.path} of another job; choose its own")
    return from_json(kind, recorded, str(folder.path))


def go_on(
    config: C,
    job: str,
    jobs: Callable[[C, C], tuple[Job[Any], Job[Any]]],
    *,
    say: Callable[[str], None],
    peers: Peers,
) -> tuple[RunFolder | None, C, dict[str, Any] | None]:
    """Open the run in `config.run_dir`, of which process 0 has the folder.

    A chunk size of "auto" is the recorded one.

    Args:
      job: name of the command.
      jobs: (recorded, wanted) settings → both jobs, to change from one to the other.
      say: takes lines for a person.
    Returns:
      The folder, the settings that hold, and the summary of a run that has nothing left to do.
    Raises:
      UsageError: the folder is none of this job's, or the settings differ and nobody said which side wins.
    """
    if peers.process == 0:
        folder, recorded, wanted, changed, finished = _found(config, job, say)
        told(peers, [recorded.as_json(), wanted.as_json(), changed, finished])
    else:
        folder = None
        old, new, changed, finished = told(peers)
        recorded, wanted = (from_json(type(config), each, "what process 0 sends") for each in (old, new))
    if changed and finished is None:
        before, after = jobs(recorded, wanted)
        change_settings(before, after, folder, say=say, peers=peers)
    return folder, wanted, finished


def _found(config: C, job: str, say: Callable[[str], None]) -> tuple[RunFolder, C, C, bool, dict[str, Any] | None]:
    """Folder, settings up to now and from here on, whether the latter are to be written down, and a summary."""
    folder = RunFolder.open(Path(config.run_dir or ""))  # RunSettings sees to it that there is one
    recorded = recorded_settings(folder, type(config), job)
    if getattr(config, "chunk_size", None) == "auto":
        config = dataclasses.replace(config, chunk_size=recorded.chunk_size)  # type: ignore[attr-defined,call-arg]
    changes = differences(recorded.as_json(), config.as_json())
    check_change(changes, config.on_change)
    wanted = config
    if config.on_change == "recorded" or not changes:
        own = {field.name for field in dataclasses.fields(config)}
        given = {name: getattr(config, name) for name in (*NOT_RECORDED, *OBSERVING) if name in own}
        wanted = dataclasses.replace(recorded, **given)
    generations, target = (getattr(wanted, name, None) for name in ("generations", "target"))
    summary = finished_summary(folder, generations or 0, target)
    if summary is not None:
        say(f"the run in {folder.path} is finished, after {summary['generations']} generations; nothing to do")
    return folder, recorded, wanted, bool(changes) and config.on_change == "given", summary
