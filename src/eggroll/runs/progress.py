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
      total: generations, of all runs that it shows.
      log_every: generations between plain lines; 0: none.
      hidden: show nothing at all.
    """

    def __init__(self, job: str, total: int, log_every: int = 0, hidden: bool = False) -> None:
        self.job, self.log_every = job, 0 if hidden else log_every
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
        self._task = self._progress.add_task(job, total=total, metric="", throughput="")

    def __enter__(self) -> GenerationBar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def of(self, run: str, total: int) -> Shown:
        """The part of one run of `total` generations; `run` names it in plain lines where there are several."""
        return Shown(self, run, total)

    def move(self, generations: int, metric: str = "", throughput: str = "") -> None:
        """So many more are done."""
        if not self._progress.disable:
            self._progress.update(self._task, advance=generations, metric=metric, throughput=throughput)

    def note(self, line: str) -> None:
        """Print a line above the bar, on any kind of standard error."""
        self._progress.console.print(line, highlight=False, markup=False, soft_wrap=True)


class Shown:
    """One run on a bar, which may be that of several."""

    def __init__(self, bar: GenerationBar, run: str, total: int) -> None:
        self._bar, self._run, self._total, self._done = bar, run, total, 0

    def begin(self, done: int) -> None:
        """It stands at a generation."""
        self._done = done
        self._bar.move(done)

    def advance(self, metric: str = "", throughput: str = "") -> None:
        """One generation is done."""
        bar = self._bar
        self._done += 1
        bar.move(1, metric, throughput)
        if bar.log_every and (self._done % bar.log_every == 0 or self._done == self._total):
            name = " ".join(part for part in (bar.job, self._run) if part)
            parts = (f"{name} {self._done}/{self._total}", metric, throughput)
            self.note("  ".join(part for part in parts if part))

    def note(self, line: str) -> None:
        """Print a line above the bar."""
        self._bar.note(line)
