"""`metrics.jsonl`: a line for every generation, whoever crashed in between."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eggroll.runs.folder import open_plain, writing

Metrics = dict[str, float | int]
_LINE_LIMIT = 2**20


class MetricsFile:
    """Appends lines; after a crash `open` cuts what the run does not stand by.

    Attributes:
      next_generation: the first generation without a line.
    """

    def __init__(self, path: Path, next_generation: int) -> None:
        self.path, self.next_generation = path, next_generation
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)

    @classmethod
    def open(cls, path: Path, generations: int) -> MetricsFile:
        """Go on with the lines of generations below `generations`; later ones and a torn last line are cut.

        Lines that somebody took out in between cost none of the others.

        Raises:
          RunError: it cannot be written.
        """
        end, following = 0, 0
        with writing(path):
            if path.exists():
                for line, value in _lines(path):
                    generation = value.get("generation")
                    if type(generation) is not int or not following <= generation < generations:
                        break
                    end, following = end + len(line), generation + 1
                os.truncate(path, end)
            return cls(path, following)

    def append(self, line: dict[str, Any]) -> None:
        """Append the next generation's line; numbers that JSON lacks (NaN, ±inf) become null.

        Raises:
          RunError: it cannot be written.
        """
        clean = {key: None if _is_not_finite(value) else value for key, value in line.items()}
        with writing(self.path):
            os.write(self._file, (json.dumps(clean) + "\n").encode())
        self.next_generation = line["generation"] + 1

    def sync(self) -> None:
        """Have all lines on the disk."""
        with writing(self.path):
            os.fsync(self._file)

    def close(self) -> None:
        """Let the file go."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)


def _lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """The lines that are JSON objects, up to the first that is none."""
    with open(path, "rb", opener=open_plain) as file:
        while (line := file.readline(_LINE_LIMIT)).endswith(b"\n"):
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                return
            if not isinstance(value, dict):
                return
            yield line, value


def _is_not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
