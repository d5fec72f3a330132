"""What `--data` names: which files it means, and which documents lie in a file or in a Hugging Face data set.

A document is UTF-8 without 0 bytes, since a 0 byte marks where one begins. In a text file one is refused, because the
file is no text; in a JSON or Hugging Face string it is removed.
"""

from __future__ import annotations

import glob
import json
import os
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from eggroll.core.errors import UsageError
from eggroll.runs.hub import load_splits

SUFFIXES = (".txt", ".py", ".md", ".jsonl", ".npy")
_LISTED = " ".join(SUFFIXES)

# Parts of the standard library's folder that are left out: what others installed, tests (some are no UTF-8 on
# purpose), and what differs between machines that run the same Python.
_INSTALLED = ("site-packages", "dist-packages", "sitecustomize.py")
_TESTS = ("test", "tests", "idle_test")
_LEFT_OUT_PREFIXES = ("config-", "_sysconfigdata")


class CorpusError(UsageError):
    """The data cannot be used; one line: what was expected, what was got, how to mend it."""

    def __init__(self, expected: str, got: str, mend: str) -> None:
        message = f"expected {expected}, got {got}; {mend}"
        super().__init__(" ".join(message.encode("utf-8", "backslashreplace").decode().splitlines()))


# Which files


def standard_library() -> Iterator[bytes]:
    """The sources of the running Python's standard library, without its tests and what others installed."""
    folder = Path(sysconfig.get_path("stdlib"))
    for file in _walk(folder, (".py",), left_out=_no_library):
        yield from documents_in(file)


def _no_library(name: str) -> bool:
    return name in _INSTALLED or name in _TESTS or name.startswith(_LEFT_OUT_PREFIXES)


def _walk(folder: Path, suffixes: tuple[str, ...], left_out: Callable[[str], bool]) -> list[Path]:
    """Files below `folder` with one of the suffixes, sorted by relative path as POSIX writes it."""
    found = []
    for parent, folders, names in os.walk(folder, onerror=_unreadable):
        folders[:] = [name for name in folders if not left_out(name)]
        paths = [Path(parent, name) for name in names if not left_out(name)]
        found += [path for path in paths if path.suffix in suffixes and path.is_file()]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def _unreadable(error: OSError) -> None:
    got = f"{error.filename}: {error.strerror}"
    raise CorpusError("readable data", got, "check the path and its permissions")


def files_named(value: str) -> list[Path]:
    """The files that one `--data` value names.

    Raises:
      CorpusError: there are none, or a named file is empty or of another kind.
    """
    try:
        path = Path(value).expanduser()
        exists, folder = path.exists(), path.is_dir()
        names = [] if exists else glob.glob(str(path), recursive=True)  # noqa: PTH207 (absolute patterns)
    except (OSError, RuntimeError, ValueError) as error:
        raise CorpusError("a path", f"{value!r} ({error})", "check the path given to --data") from None
    if not exists:
        return _matches(value, names)
    return _folder(path) if folder else [_named_file(path)]


def _matches(value: str, names: list[str]) -> list[Path]:
    files = [path for path in map(Path, sorted(names)) if path.suffix in SUFFIXES and path.is_file()]
    if not files and glob.has_magic(value):
        raise CorpusError(f"files with suffix {_LISTED}", f"no match of {value!r}", "mend the pattern")
    if not files:
        raise CorpusError("an existing file or folder", repr(value), "check the path given to --data")
    return files


def _folder(path: Path) -> list[Path]:
    files = _walk(path, SUFFIXES, left_out=lambda name: name.startswith("."))
    if not files:
        raise CorpusError(f"files with suffix {_LISTED}", f"none in {path}", "name another folder")
    return files


def _named_file(path: Path) -> Path:
    if path.suffix not in SUFFIXES:
        got = f"{path.suffix!r} in {path}"
        raise CorpusError(f"a suffix among {_LISTED}", got, "rename or convert the file")
    if path.stat().st_size == 0:
        raise CorpusError("a file with text in it", f"{path}, which is empty", "name another file")
    return path


# What is in a file


def documents_in(path: Path) -> Iterator[bytes]:
    """The documents of a file, by its suffix; empty ones too.

    Raises:
      CorpusError: it cannot be read, or is not what its suffix says.
    """
    try:
        if path.suffix == ".npy":
            yield from np.asarray(load_npy(path)).tobytes().split(b"\0")
        elif path.suffix == ".jsonl":
            yield from _json_lines(path)
        else:
            yield _text(path, path.read_bytes())
    except OSError as error:
        _unreadable(error)


def _text(path: Path, content: bytes, start: int = 0) -> bytes:
    """`content` itself, if it is UTF-8 without a 0 byte; it lies at byte `start` of the file."""
    zero = content.find(0)
    if zero >= 0:
        where = f"a 0 byte at byte {start + zero} of {path}"
        raise CorpusError("text", where, "leave the file out: it is binary")
    try:
        content.decode()
    except UnicodeDecodeError as error:
        where = f"{error.reason} at byte {start + error.start} of {path}"
        raise CorpusError("UTF-8 text", where, "convert the file to UTF-8 or leave it out") from None
    return content


def _json_lines(path: Path) -> Iterator[bytes]:
    start = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield _json_text(f"{path}:{number}", _text(path, line, start))
            start += len(line)


def _json_text(where: str, line: bytes) -> bytes:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise CorpusError("a JSON object", f"{error} at {where}", "mend or remove the line") from None
    if not isinstance(value, dict):
        raise CorpusError("a JSON object", f"a {type(value).__name__} at {where}", "mend or remove the line")
    return _field(where, value)


def _field(where: str, row: dict[str, Any]) -> bytes:
    """The UTF-8 bytes of the string under "text", its 0 bytes removed."""
    text = row.get("text")
    if not isinstance(text, str):
        got = f"{type(text).__name__} under it" if "text" in row else "no such field"
        raise CorpusError('a string under "text"', f"{got} at {where}", 'put the document under "text"')
    try:
        return text.encode().replace(b"\0", b"")
    except UnicodeEncodeError:
        raise CorpusError("Unicode text", f"a lone surrogate at {where}", "mend or remove the line") from None


def load_npy(path: Path) -> np.ndarray:
    """A (bytes,) uint8 stream as a memory map.

    Raises:
      CorpusError: it is anything else.
    """
    try:
        stream = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a damaged header raises nearly anything
        got = f"{path} ({type(error).__name__}: {error})"
        raise CorpusError("a .npy file of uint8", got, "write it with numpy.save") from None
    if not isinstance(stream, np.ndarray):
        stream.close()
        raise CorpusError("a .npy file of uint8", f"the archive {path}", "write it with numpy.save")
    if stream.dtype != np.uint8 or stream.ndim != 1 or not stream.size:
        kind = f"{stream.dtype} of shape {stream.shape}"
        mend = "save one byte stream, 0 before each document"
        raise CorpusError("a .npy file of uint8 with one axis and some bytes", f"{kind} in {path}", mend)
    return stream


# Hugging Face


def hub_splits(value: str) -> dict[str, Iterator[bytes]]:
    """The documents of each split of `hf:NAME`, `hf:NAME:CONFIG` or `hf:/saved/folder`; there is a split "train".

    Raises:
      CorpusError: there is no such data set, or no package to read it.
    """
    try:
        splits = load_splits(value)
    except ImportError:
        mend = 'run: pip install "eggroll-es[hf]"'
        raise CorpusError(f"the package datasets for {value}", "no such package", mend) from None
    except Exception as error:  # the network, the hub and every data set's own builder
        got = f"{type(error).__name__}: {error}"
        mend = "check the name, the config and the network"
        raise CorpusError(f"a data set at {value}", got, mend) from None
    if "train" not in splits:
        got = ", ".join(splits) or "none"
        raise CorpusError(f'a split "train" in {value}', got, "choose another data set")
    return {name: _rows(f"{value}/{name}", split) for name, split in splits.items()}


def _rows(where: str, split: Any) -> Iterator[bytes]:
    if "text" not in split.column_names:
        got = ", ".join(split.column_names) or "none"
        raise CorpusError(f'a column "text" in {where}', got, "choose or convert to a data set with one")
    number = 0
    for batch in split.select_columns(["text"]).iter(batch_size=1000):
        for text in batch["text"]:
            yield _field(f"{where}, row {number}", {"text": text})
            number += 1
