"""Snapshots of a run: orbax checkpoints, one folder per generation, each whole or absent, each with its own hashes.

A snapshot is written under a hidden name with a `MANIFEST.json` of every file's size and SHA-256, and then renamed: a
kill at any instant leaves it finished or unfinished, and what has rotted since is refused before orbax reads it.
"""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import math
import shutil
import stat
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from eggroll.runs.folder import JSON_LIMIT, RunError, RunFolder, reason, replace_file, shown, sync_folder, writing
from eggroll.runs.trees import as_arrays, nested

MANIFEST = "MANIFEST.json"
SIZE_LIMIT = (64 * 2**20, 10_000)
"""A snapshot may declare arrays of so many bytes, or so many times its bytes on the disk where that is more: zeros
compress well, a forged size does not."""
CHUNK_LIMIT = 4096
"""Most chunks of an array; `save` writes it as one."""


def save(folder: RunFolder, generation: int, tree: dict[str, Any], *, keep: int) -> None:
    """Write a snapshot atomically, then remove all but the newest `keep` of those up to it.

    Args:
      generation: how many generations the tree has seen.
      tree: name → pytree of arrays.
    Raises:
      RunError: it cannot be written; the snapshots are as they were.
    """
    target = _path(folder, generation)
    if target.exists() and _fault(target) is not None:
        _remove(target)
    if not target.exists():
        partial = _hidden(target, "partial")
        try:
            with writing(target):
                folder.snapshots.mkdir(exist_ok=True)
            held = {path: leaf for path, leaf in as_arrays(tree).items() if leaf.size}  # orbax takes no empty arrays
            _write(partial.absolute(), nested(held))
            with writing(target):
                replace_file(partial / MANIFEST, [json.dumps(_hashes(partial)).encode()])
                partial.rename(target)
                sync_folder(folder.snapshots)
        except BaseException:
            tidy(folder)
            raise
    for old in [g for g in generations(folder) if g <= generation][:-keep]:
        _remove(_path(folder, old))


def _checkpointer() -> Any:
    """For this process: among several, orbax would wait for the others, who do not come."""
    import jax
    import orbax.checkpoint as ocp

    if jax.process_count() == 1:
        return ocp.PyTreeCheckpointer()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(), active_processes={jax.process_index()}, barrier_sync_key_prefix="eggroll"
    )
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(multiprocessing_options=alone), multiprocessing_options=alone)


def _write(path: Path, tree: dict[str, Any]) -> None:
    try:
        with _silence(), _checkpointer() as checkpointer:
            checkpointer.save(path, tree)
        return
    except Exception as error:  # a full disk raises nearly anything
        why = reason(error)
    raise RunError(f"expected to write a snapshot in {path.parent}, got {why}; mend that, then go on with --resume")


def load(folder: RunFolder, generation: int | None = None, *, only: str | None = None) -> tuple[int, dict[str, Any]]:
    """The snapshot of a generation, or the newest; NumPy arrays in nested dicts.

    Args:
      only: the name of the one tree to read.
    Raises:
      RunError: there is none, it has changed since it was written, or it cannot be read.
    """
    present = generations(folder)
    wanted = generation if generation is not None else (present[-1] if present else None)
    if wanted not in present:
        have = ", ".join(map(str, present)) or "none"
        which = "a snapshot" if wanted is None else f"a snapshot of generation {wanted}"
        raise RunError(f"expected {which} in {folder.path}, got {have}; let the run write one")
    path = _path(folder, wanted)
    return wanted, read(path, only=only)


def read(path: Path, *, only: str | None = None) -> dict[str, Any]:
    """A snapshot's folder; as `load`."""
    _check_manifest(path)
    with _silence():
        try:
            return _restore(path.absolute(), only)
        except Exception as error:  # a damaged checkpoint raises nearly anything
            why = reason(error)
        gc.collect()  # asyncio logs the failure of a task when it is collected
    raise RunError(f"expected a readable snapshot {path}, got {why}; use another one")


def _restore(path: Path, only: str | None) -> dict[str, Any]:
    """Without restore arguments orbax would put the arrays back on the devices that wrote them, and warn about it."""
    import jax
    import orbax.checkpoint as ocp

    with _checkpointer() as checkpointer:
        written = checkpointer.metadata(path).item_metadata
        if written is None:
            raise ValueError("one whose metadata cannot be read")
        tree = {name: part for name, part in dict(written.tree).items() if only in (None, name)}
        if not tree:
            raise ValueError(f"one without {only}")
        _check_size(tree, path)
        as_numpy = jax.tree.map(lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        arguments = ocp.args.PyTreeRestore(item=tree, restore_args=as_numpy, partial_restore=True)
        restored: dict[str, Any] = checkpointer.restore(path, args=arguments)
    for leaf, declared in zip(jax.tree.leaves(restored), jax.tree.leaves(tree), strict=True):
        if not isinstance(leaf, np.ndarray) or leaf.shape != declared.shape:
            raise ValueError("arrays that do not fit its metadata")
    return restored


def _check_size(tree: Any, path: Path) -> None:
    import jax

    declared = sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree))
    held = sum(file.stat().st_size for file in _files(path))
    least, times = SIZE_LIMIT
    if declared > max(least, times * held):
        raise ValueError(f"arrays of {declared:,} bytes in {held:,} on the disk")
    for leaf in jax.tree.leaves(tree):
        _check_chunks(leaf.shape, leaf.storage.chunk_shape)


def _check_chunks(shape: tuple[int, ...], chunks: tuple[int, ...]) -> None:
    """Before tensorstore makes room for them, which where there is none ends the process."""
    fit = len(chunks) == len(shape) and all(
        0 < chunk <= max(size, 1) for size, chunk in zip(shape, chunks, strict=True)
    )
    if not fit or math.prod(-(-size // chunk) for size, chunk in zip(shape, chunks, strict=True)) > CHUNK_LIMIT:
        raise ValueError(f"chunks of shape {shown(chunks)} in an array of shape {shown(shape)}")


def _files(path: Path) -> list[Path]:
    """All but the manifest, sorted.

    Raises:
      ValueError: one is no plain file (a pipe would be waited for, a link leads elsewhere), or JSON of more than the
        limit.
    """
    found = sorted(file for file in path.rglob("*") if file.name != MANIFEST)
    status = {file: file.lstat() for file in found}
    files = [file for file in found if not stat.S_ISDIR(status[file].st_mode)]
    for file in files:
        name = file.relative_to(path).as_posix()
        if not stat.S_ISREG(status[file].st_mode):
            raise ValueError(f"{shown(name)}, which is no plain file")
        if name.startswith(("_", "array_metadatas/")) and status[file].st_size > JSON_LIMIT:
            raise ValueError(f"{shown(name)} of more than {JSON_LIMIT:,} bytes")
    return files


def _hashes(path: Path) -> dict[str, list[Any]]:
    """Relative name → [bytes, SHA-256] of every file."""
    found = {}
    for file in _files(path):
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        found[file.relative_to(path).as_posix()] = [file.stat().st_size, digest]
    return found


def _check_manifest(path: Path) -> None:
    """Refuse a snapshot that is not as it was written, before anything parses it."""
    fault = _fault(path)
    if fault is not None:
        raise RunError(f"expected a whole snapshot {path}, got {fault}; use another one")


def _fault(path: Path) -> str | None:
    """Why a snapshot is not as it was written; None where it is."""
    try:
        if (path / MANIFEST).stat().st_size > JSON_LIMIT:
            raise ValueError(f"a {MANIFEST} of more than {JSON_LIMIT:,} bytes")
        written = json.loads((path / MANIFEST).read_bytes())
        sizes = {file.relative_to(path).as_posix(): file.stat().st_size for file in _files(path)}
        same = isinstance(written, dict) and {name: entry[0] for name, entry in written.items()} == sizes
        return None if same and written == _hashes(path) else "files that differ from its manifest"
    except (OSError, ValueError, RecursionError, TypeError, LookupError) as error:
        return reason(error)


@contextmanager
def _silence() -> Iterator[None]:
    """No log lines, warnings or tracebacks of callbacks: orbax, asyncio and tensorstore tell what we raise."""
    before, hook = logging.root.manager.disable, sys.unraisablehook
    logging.disable(logging.CRITICAL)
    sys.unraisablehook = lambda _: None
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        sys.unraisablehook = hook
        logging.disable(before)


def _remove(path: Path) -> None:
    """Rename first, so that a half-removed snapshot is never taken for a finished one."""
    with writing(path):
        doomed = path.rename(_hidden(path, "removed"))
        shutil.rmtree(doomed)


def set_aside(folder: RunFolder, generation: int) -> Path:
    """Rename the snapshot of a generation so that it counts no more; returns where it lies now.

    Raises:
      RunError: the folder cannot be written.
    """
    path = _path(folder, generation)
    aside = path.with_name(f"{path.name}.aside")
    with writing(path):
        shutil.rmtree(aside, ignore_errors=True)
        return path.rename(aside)


def tidy(folder: RunFolder) -> None:
    """Remove what a kill left unfinished."""
    if folder.snapshots.is_dir():
        for path in folder.snapshots.iterdir():
            if path.name.startswith("."):
                shutil.rmtree(path, ignore_errors=True)


def generations(folder: RunFolder) -> list[int]:
    """The generations that have a finished snapshot, ascending."""
    if not folder.snapshots.is_dir():
        return []
    names = (path.name for path in folder.snapshots.iterdir() if path.is_dir())
    return sorted(int(name) for name in names if name.isascii() and name.isdecimal() and len(name) <= 20)


def _path(folder: RunFolder, generation: int) -> Path:
    return folder.snapshots / f"{generation:08d}"


def _hidden(path: Path, state: str) -> Path:
    return path.with_name(f".{path.name}.{state}")
