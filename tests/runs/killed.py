"""A run that ends as when its process is killed."""

from collections.abc import Callable

import pytest

from eggroll.runs.metrics import MetricsFile


class Killed(BaseException):
    """As the process would end: nothing catches it."""


def killed(monkeypatch, start: Callable[[], object], at: int, count: int = 1):
    """A run that ends before the metrics of generation `at` are on the disk, when `count` runs are there."""
    append, seen = MetricsFile.append, []

    def fail(self, line):
        if line["generation"] == at:
            seen.append(1)
            if len(seen) == count:
                raise Killed
        append(self, line)

    with monkeypatch.context() as patch:
        patch.setattr(MetricsFile, "append", fail)
        with pytest.raises(Killed):
            start()
