"""A progress bar on a terminal: generation, the job's main metric, throughput, time left.

Elsewhere it is quiet, or a plain line every so many generations.
"""

from __future__ import annotations

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

REFRESHES_PER_SECOND = 1.0
"""Drawing takes some milliseconds of a core."""


class GenerationBar:
    """Context manager around a rich progress bar on standard error.

    Args:
      job: what stands before the bar.
      total, done: generations, in all and so far.
      log_every: generations between plain lines; 0: none.
      hidden: show nothing at all.
    """

    def __init__(self, job: str, total: int, done: int = 0, log_every: int = 0, hidden: bool = False) -> None:
        self._job, self._total, self._done, self._log_every = job, total, done, 0 if hidden else log_every
        console = Console(file=sys.stderr)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[metric]}"),
            TextColumn("{task.fields[throughput]}"),
            TimeRemainingColumn(),
        )
        quiet = hidden or not console.is_terminal
        self._progress = Progress(
            *columns, console=console, disable=quiet, refresh_per_second=REFRESHES_PER_SECOND, redirect_stdout=False
        )
        self._task = self._progress.add_task(job, total=total, completed=done, metric="", throughput="")

    def __enter__(self) -> GenerationBar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def advance(self, metric: str = "", throughput: str = "") -> None:
        """One generation is done."""
        self._done += 1
        if not self._progress.disable:
            self._progress.update(self._task, advance=1, metric=metric, throughput=throughput)
        if self._log_every and (self._done % self._log_every == 0 or self._done == self._total):
            parts = (f"{self._job} {self._done}/{self._total}", metric, throughput)
            self.note("  ".join(part for part in parts if part))

    def note(self, line: str) -> None:
        """Print a line above the bar, on any kind of standard error."""
        self._progress.console.print(line, highlight=False, markup=False, soft_wrap=True)
