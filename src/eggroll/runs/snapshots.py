"""Snapshots of a run: orbax checkpoints, one folder per generation, each whole or absent."""

from __future__ import annotations

import gc
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from eggroll.runs.folder import RunError, RunFolder


def save(folder: RunFolder, generation: int, tree: dict[str, Any], *, keep: int) -> None:
    """Write a snapshot atomically, then remove all but the newest `keep`.

    Args:
      tree: nested dicts of arrays.
      generation: how many generations the tree has seen.
    """
    import orbax.checkpoint as ocp

    target = _path(folder, generation).absolute()
    if not target.exists():
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(target, tree)
            checkpointer.wait_until_finished()
    for old in generations(folder)[:-keep]:
        _remove(_path(folder, old))


def load(folder: RunFolder, generation: int | None = None) -> tuple[int, dict[str, Any]]:
    """The snapshot of a generation, or the newest; NumPy arrays in nested dicts.

    Raises:
      RunError: there is none, or it cannot be read.
    """
    present = generations(folder)
    wanted = generation if generation is not None else (present[-1] if present else None)
    if wanted not in present:
        have = ", ".join(map(str, present)) or "none"
        which = "a snapshot" if wanted is None else f"a snapshot of generation {wanted}"
        raise RunError(f"expected {which} in {folder.path}, got {have}; let the run write one")
    path = _path(folder, wanted)
    with _silence():
        try:
            return wanted, _restore(path.absolute())
        except Exception as error:  # a damaged checkpoint raises nearly anything
            reason = " ".join(str(error).split())[:200] or type(error).__name__
        gc.collect()  # asyncio logs the failure of a task when it is collected
    raise RunError(f"expected a readable snapshot {path}, got {reason}; use another one")


def _restore(path: Path) -> dict[str, Any]:
    """Without restore arguments orbax would put the arrays back on the devices that wrote them, and warn about it."""
    import jax
    import orbax.checkpoint as ocp

    with ocp.PyTreeCheckpointer() as checkpointer:
        written = checkpointer.metadata(path).item_metadata
        if written is None:
            raise ValueError("one whose metadata cannot be read")
        as_numpy = jax.tree.map(lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray), written.tree)
        return checkpointer.restore(path, restore_args=as_numpy)


@contextmanager
def _silence() -> Iterator[None]:
    """No log lines: orbax and asyncio log what we raise."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _remove(path: Path) -> None:
    """Rename first, so that a half-removed snapshot is never taken for a finished one."""
    doomed = path.with_name(f"{path.name}.removed")
    path.rename(doomed)
    shutil.rmtree(doomed)


def generations(folder: RunFolder) -> list[int]:
    """The generations that have a finished snapshot, ascending."""
    if not folder.snapshots.is_dir():
        return []
    return sorted(int(path.name) for path in folder.snapshots.iterdir() if path.name.isdecimal())


def _path(folder: RunFolder, generation: int) -> Path:
    return folder.snapshots / f"{generation:08d}"
