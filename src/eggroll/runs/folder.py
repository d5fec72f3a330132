"""The run folder: what every job leaves behind, and in which order it becomes true.

`config.json` is written first and `summary.json` last, each whole or not at all; `metrics.jsonl` grows by one flushed
line per generation. Nothing that exists is overwritten.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import reprlib
import secrets
import shutil
import socket
import stat
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from eggroll.core.errors import UsageError

_WORDS = (  # noqa: SIM905 (a list would take 50 lines)
    "amber aspen birch brook cedar cliff cloud coral crane delta ember fern field finch flint frost grove harbor heron "
    "hazel iris ivory juniper lark laurel linden lotus maple marsh meadow mesa moss oak olive opal otter pearl pine "
    "plover quartz raven reed ridge river robin sage shore sparrow spruce stone swift thistle tulip valley willow wren"
).split()


JSON_LIMIT = 4 * 2**20
"""Most bytes of JSON to parse: it then stays below 256 MiB in memory, whatever it says."""


class RunError(UsageError):
    """A run folder cannot be used; one line: what was expected, what was got, how to mend it."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the system says of a write into one line.

    Raises:
      RunError: the disk is full, read-only, or whatever else it was.
    """
    try:
        yield
    except OSError as error:
        raise RunError(
            f"expected to write {path}, got {error.strerror or error}; mend that, then go on with --resume"
        ) from None


def open_plain(path: str | Path, flags: int) -> int:
    """`os.open` of a plain file; an opener for `open`.

    Raises:
      OSError: it cannot be opened, or is something else, such as a pipe, which would be waited for.
    """
    file = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK)
    if stat.S_ISREG(os.fstat(file).st_mode):
        return file
    os.close(file)
    raise OSError(errno.EINVAL, "no plain file")


def shown(value: object) -> str:
    """A value from a file, for a complaint: printable, short, however deep or long it is."""
    short = reprlib.Repr()
    short.maxstring = short.maxlong = short.maxother = 80
    return short.repr(value)[:120]


def reason(error: BaseException) -> str:
    """What an exception says, for a complaint: printable, on one line."""
    line = " ".join(str(error).split())[:200]
    return "".join(c if c.isprintable() else "?" for c in line) or type(error).__name__


def replace_file(path: Path, pieces: Iterable[bytes]) -> None:
    """`put_whole`, of a run's own file.

    Raises:
      RunError: it cannot be written; what was there is as it was.
    """
    with writing(path):
        put_whole(path, pieces)


def put_whole(path: Path, pieces: Iterable[bytes]) -> None:
    """Write a file whole or not at all: under another name, synced, then renamed.

    Raises:
      OSError: it cannot be written; what was there is as it was.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with temporary.open("wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Have the names in a folder on the disk, as far as the file system can."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(folder)
    finally:
        os.close(folder)


def fresh_name(job: str) -> str:
    """A name for a run without one: job, date, a word and two digits, such as `pretrain-2026-01-31-heron-07`."""
    day = datetime.now(UTC).date().isoformat()
    return f"{job}-{day}-{secrets.choice(_WORDS)}-{secrets.randbelow(100):02d}"


def _refuse_existing(target: Path) -> None:
    """Before the rename, which would take the place of an empty folder."""
    if target.exists() or target.is_symlink():
        raise FileExistsError


def fresh_folder(job: str, parent: Path = Path("runs")) -> Path:
    """A fresh name under `parent` that nothing has yet."""
    while (target := parent / fresh_name(job)).exists():
        pass
    return target


class RunFolder:
    """One run's folder, just created (`create`) or opened (`open`)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.snapshots = path / "snapshots"
        self.journal = path / "journal.egg"

    @classmethod
    def create(cls, path: Path | None, job: str, config: dict[str, Any]) -> RunFolder:
        """Make the folder (a fresh one under `runs/` without a path) with its `config.json`, both or neither.

        Raises:
          RunError: the path exists or cannot be made; nothing was written.
        """
        target = path if path is not None else fresh_folder(job)
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        try:
            _refuse_existing(target)
            partial.mkdir(parents=True)
            cls(partial).write_json("config.json", config)
            partial.rename(target)
            sync_folder(target.parent)
        except FileExistsError:
            raise RunError(
                f"expected a run folder that does not exist yet, got {target}; choose another --run-dir, remove it, "
                "or go on with it with --resume"
            ) from None
        except OSError as error:
            raise RunError(
                f"expected a run folder that can be made, got {target}: {error.strerror}; choose another --run-dir"
            ) from None
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return cls(target)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """A run that exists.

        Raises:
          RunError: there is no `config.json` under the path.
        """
        if not (path / "config.json").is_file():
            raise RunError(f"expected a run folder with a config.json, got {path}; give the folder of a run")
        return cls(path)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from writing here; the lock goes with the process, however that ends.

        Raises:
          RunError: another process has it, or the folder cannot be written.
        """
        path = self.path / ".lock"
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise RunError(
                f"expected a run folder that can be written, got {self.path}: {error.strerror}; mend that, or copy it"
            ) from None
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(lock, 200, 0).decode(errors="replace").strip() or "another process"
                raise RunError(
                    f"expected a run folder that no process writes to, got {self.path}, in use by {holder}; "
                    "wait until that ends, or stop it"
                ) from None
            os.ftruncate(lock, 0)
            with writing(path):
                os.pwrite(lock, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
            yield
        finally:
            os.close(lock)

    def write_json(self, name: str, value: dict[str, Any]) -> None:
        """Write a JSON file whole or not at all.

        Raises:
          RunError: it cannot be written; what was there is as it was.
        """
        replace_file(self.path / name, [(json.dumps(value, indent=2) + "\n").encode()])

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON object of the run.

        Raises:
          RunError: the file is missing, too long, or no JSON object.
        """
        try:
            with open(self.path / name, "rb", opener=open_plain) as file:
                data = file.read(JSON_LIMIT + 1)
            if len(data) > JSON_LIMIT:
                raise ValueError(f"more than {JSON_LIMIT:,} bytes")
            value = json.loads(data.decode("utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise RunError(
                f"expected a readable {name} in {self.path}, got {reason(error)}; give the folder of a run"
            ) from None
        if not isinstance(value, dict):
            raise RunError(f"expected an object in {self.path / name}, got {type(value).__name__}; the file is damaged")
        return value
