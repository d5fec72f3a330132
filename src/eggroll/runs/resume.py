"""Going on with a run: which settings hold, whether there is anything left to do, and settings that change midway."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from eggroll.runs.folder import RunError, RunFolder
from eggroll.runs.job import Job
from eggroll.runs.journal import Journal
from eggroll.runs.loop import Loop
from eggroll.runs.peers import Peers
from eggroll.runs.settings import OBSERVING
from eggroll.runs.trees import as_arrays, filled


def recorded_config(folder: RunFolder) -> dict[str, Any]:
    """The settings that the run had last: those of its journal's newest header, or of `config.json` without a journal.

    Raises:
      RunError: neither can be read.
    """
    if folder.journal.exists():
        with Journal.open(folder.journal) as journal:
            config = journal.header.get("config")
        if not isinstance(config, dict):
            raise RunError(f"expected settings in the header of {folder.journal}, got none; the journal is forged")
        return config
    return folder.read_json("config.json")


def differences(recorded: dict[str, Any], given: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Setting → (recorded, given) where they differ; those that merely observe the run are left out."""
    names = [name for name in given if name not in OBSERVING]
    return {name: (recorded.get(name), given[name]) for name in names if recorded.get(name) != given[name]}


def check_change(changes: dict[str, tuple[Any, Any]], on_change: str) -> None:
    """Refuse changed settings unless it was said which side wins.

    Raises:
      RunError: with every difference.
    """
    if changes and on_change == "refuse":
        listed = ", ".join(f"{name} {old!r} → {new!r}" for name, (old, new) in changes.items())
        raise RunError(
            f"expected the settings that the run records, got {listed}; add --on-change given or --on-change recorded"
        )


def finished_summary(folder: RunFolder, generations: int, target: float | None = None) -> dict[str, Any] | None:
    """The summary of a run that has made all its generations, or reached its target; None where there is something left
    to do, such as after the seconds that it was given."""
    if not (folder.path / "summary.json").exists():
        return None
    summary = folder.read_json("summary.json")
    done = summary.get("generations")
    reached = target is not None and summary.get("target") == target
    through = isinstance(done, int) and done >= generations
    return summary if summary.get("finished") is True and (through or reached) else None


def change_settings(
    old: Job[Any], new: Job[Any], folder: RunFolder | None, *, say: Callable[[str], None], peers: Peers | None = None
) -> None:
    """Bring the run to the end of its journal under the old settings, and write down that the new ones follow.

    Args:
      folder, peers: as of `loop.run`.
    Raises:
      RunError: a state under the old settings does not fit the new ones; nothing has changed.
    """
    with Loop(old, folder, say=say, peers=peers) as loop:
        header = new.header(loop.environment)
        loop.ledger.check_change(new, header)
        filled(new.start(), as_arrays(loop.whole_state()), "the state under the recorded settings")
        while loop.generation < loop.ledger.generations:
            line = loop.advance()
            if loop.is_new(line):
                loop.ledger.note(line)
        loop.snapshot()
        loop.ledger.change(new, header)
