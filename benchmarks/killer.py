"""Ends the process that it is loaded into with SIGKILL at a chosen instant, and notes what that was busy with.

For `kill.py` and the test of the same name. Nothing of the library knows of it: it puts itself around functions of the
library (what a run is busy with) and of the system (what that does), by their public names.
"""

from __future__ import annotations

import contextlib
import functools
import mmap
import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SYSTEM = ("pwrite", "write", "fsync", "ftruncate", "truncate", "rename", "replace", "rmtree", "orbax save")
LIBRARY = ("evaluate", "update", "validate", "snapshot", "metrics line", "metrics sync", "journal")
LIBRARY += ("new journal", "new folder", "whole file", "loading", "tidying", "opening")
POINTS = SYSTEM + LIBRARY
"""Where a kill may be aimed at."""
WHEN = ("before", "during", "after")
START, BETWEEN = "start-up and compiling", "between"
_LONGEST = {"evaluate": 0.02, "update": 0.01, "validate": 0.05, "snapshot": 0.06, "orbax save": 0.05, "loading": 0.05}
_PAUSE = 0.002
"""Seconds into a call at which `during` may strike, at most."""


@dataclass(frozen=True)
class Kill:
    """Strike at the `count`-th call (from 1) of a point.

    Args:
      share: in [0, 1), of the bytes that `during` writes, of the files that it removes, or of the longest delay.
    """

    point: str
    count: int
    when: str
    share: float = 0.5


class Board:
    """What a process is busy with, legible after its death: shared memory made before the fork."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 8)

    def reset(self) -> None:
        self._memory[:] = bytes(8)

    def set(self, layer: int, index: int) -> int:
        """Note a point (0: none) of a layer, 0 library, 1 system; returns what stood there."""
        before, self._memory[layer] = self._memory[layer], index
        return before

    @property
    def training(self) -> bool:
        """Whether a second evaluation has begun: all is compiled."""
        return bool(self._memory[2])

    @training.setter
    def training(self, value: bool) -> None:
        self._memory[2] = value

    @property
    def phase(self) -> str:
        """Such as "snapshot / rename"."""
        idle = BETWEEN if self.training else START
        library, system = (POINTS[index - 1] if index else "" for index in self._memory[:2])
        return " / ".join(part for part in (library or idle, system) if part)


class Killer:
    """Watches the points of this process from `install` on, which is for good.

    Attributes:
      calls: of every point, so far.
      compiled: `time.perf_counter()` when the second evaluation began.
    """

    def __init__(self, board: Board, kill: Kill | None = None) -> None:
        self.board, self.kill, self.calls = board, kill, Counter[str]()
        self.compiled = 0.0

    def install(self) -> None:
        """Put a watch around every point."""
        import orbax.checkpoint as ocp

        from eggroll.runs import loop, snapshots
        from eggroll.runs.folder import RunFolder
        from eggroll.runs.journal import Journal
        from eggroll.runs.metrics import MetricsFile

        for name in ("pwrite", "write", "fsync", "ftruncate", "truncate"):
            self._around(os, name, name)
        for owner, attribute, point in (
            (Path, "rename", "rename"),
            (Path, "replace", "replace"),
            (shutil, "rmtree", "rmtree"),
            (ocp.PyTreeCheckpointer, "save", "orbax save"),
            (snapshots, "save", "snapshot"),
            (snapshots, "load", "loading"),
            (snapshots, "tidy", "tidying"),
            (MetricsFile, "append", "metrics line"),
            (MetricsFile, "sync", "metrics sync"),
            (Journal, "append", "journal"),
            (Journal, "create", "new journal"),
            (Journal, "open", "opening"),
            (RunFolder, "create", "new folder"),
            (RunFolder, "write_json", "whole file"),
        ):
            self._around(owner, attribute, point)
        answered = {of: self._watched(loop.answer, of) for of in ("evaluate", "update", "validate")}
        loop.answer = lambda job, call: answered[call.of](job, call)

    def _around(self, owner: Any, attribute: str, point: str) -> None:
        raw = vars(owner)[attribute] if isinstance(owner, type) and attribute in vars(owner) else None
        if isinstance(raw, classmethod):
            setattr(owner, attribute, classmethod(self._watched(raw.__func__, point)))
        else:
            setattr(owner, attribute, self._watched(getattr(owner, attribute), point))

    def _watched(self, function: Callable[..., Any], point: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def watched(*args: Any, **settings: Any) -> Any:
            self.calls[point] += 1
            with self._noted(point):
                if self.kill is None or (point, self.calls[point]) != (self.kill.point, self.kill.count):
                    return function(*args, **settings)
                if self.kill.when == "before":
                    die()
                if self.kill.when == "during":
                    self._strike_during(function, args)
                result = function(*args, **settings)
                die()
                return result

        return watched

    @contextlib.contextmanager
    def _noted(self, point: str) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        if point == "evaluate" and self.calls[point] == 2:
            self.board.training, self.compiled = True, time.perf_counter()
        layer = int(point in SYSTEM)
        before = self.board.set(layer, 1 + POINTS.index(point))
        try:
            yield
        finally:
            self.board.set(layer, before)

    def _strike_during(self, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        """Part of the call and then the end, or the end in a moment, from another thread."""
        assert self.kill is not None
        if self.kill.point in ("pwrite", "write"):
            file, data, *rest = args
            function(file, data[: int(self.kill.share * len(data))], *rest)
            die()
        if self.kill.point == "rmtree":
            files = sorted(file for file in Path(args[0]).rglob("*") if file.is_file())
            for file in files[: 1 + int(self.kill.share * len(files))]:
                file.unlink()
            die()
        delay = self.kill.share * _LONGEST.get(self.kill.point, _PAUSE)
        threading.Thread(target=lambda: (time.sleep(delay), die()), daemon=True).start()


def die() -> None:
    """At once, without any clean-up."""
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)
