"""A progress bar on a terminal: generation, the job's main metric, throughput, time left; silent elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class GenerationBar:
    """Context manager around a rich progress bar on standard error; does nothing where that is no terminal."""

    def __init__(self, job: str, total: int) -> None:
        console = Console(file=sys.stderr)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[metric]}"),
            TextColumn("{task.fields[throughput]}"),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._progress.add_task(job, total=total, metric="", throughput="")

    def __enter__(self) -> GenerationBar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def advance(self, metric: str, throughput: str) -> None:
        """One generation is done."""
        self._progress.update(self._task, advance=1, metric=metric, throughput=throughput)

    def note(self, line: str) -> None:
        """Print a line above the bar, on any kind of standard error."""
        self._progress.console.print(line, highlight=False, markup=False)
