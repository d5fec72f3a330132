"""Where metrics go beside `metrics.jsonl`: TensorBoard and Weights & Biases, both in the extra `track`.

A tracker that fails is dropped with a line of warning: it never ends a run.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from eggroll.core.errors import UsageError
from eggroll.runs.folder import RunFolder


class Tracker(Protocol):
    """One place that metrics go to."""

    def write(self, line: dict[str, Any]) -> None:
        """Takes one generation's line."""
        ...

    def finish(self, summary: dict[str, Any]) -> None:
        """Takes the summary and closes."""
        ...


class TensorBoard:
    """Event files in `RUN/tensorboard`."""

    module = "tensorboardX"

    def __init__(self, folder: RunFolder, config: dict[str, Any]) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder.path / "tensorboard"))
        rows = "\n".join(f"| {name} | {value} |" for name, value in config.items())
        self._writer.add_text("config", f"| setting | value |\n|---|---|\n{rows}")

    def write(self, line: dict[str, Any]) -> None:
        """One scalar for each number, at its generation."""
        for name, value in _numbers(line).items():
            self._writer.add_scalar(name, value, line["generation"])

    def finish(self, summary: dict[str, Any]) -> None:
        """Flush."""
        self._writer.close()


class WeightsAndBiases:
    """A run of the project `eggroll`, named after the folder; its files in `RUN/wandb`. WANDB_MODE=offline works."""

    module = "wandb"

    def __init__(self, folder: RunFolder, config: dict[str, Any]) -> None:
        import wandb

        name = folder.path.resolve().name
        self._run = wandb.init(
            project="eggroll",
            name=name,
            id=re.sub(r"[^\w-]", "-", name)[:64],
            resume="allow",
            config=config,
            dir=str(folder.path),
            settings=wandb.Settings(console="off", silent=True),
        )

    def write(self, line: dict[str, Any]) -> None:
        """One step for each generation."""
        self._run.log(_numbers(line), step=line["generation"])

    def finish(self, summary: dict[str, Any]) -> None:
        """Note the summary and wait until all is sent."""
        self._run.summary.update(summary)
        self._run.finish()


KINDS: dict[str, type[TensorBoard] | type[WeightsAndBiases]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that cannot be had, before anything is written.

    Raises:
      UsageError: a name is unknown, or its package is not installed.
    """
    for name in names:
        if name not in KINDS:
            raise UsageError(f"expected --track among {', '.join(KINDS)}, got {name!r}; choose one of these")
        if importlib.util.find_spec(KINDS[name].module) is None:
            raise UsageError(
                f"expected the package {KINDS[name].module} for --track {name}, got none; "
                'pip install "eggroll-es[track]"'
            )


class Trackers:
    """All trackers of a run; a context manager."""

    def __init__(
        self, names: Sequence[str], folder: RunFolder | None, config: dict[str, Any], *, say: Callable[[str], None]
    ) -> None:
        check_trackers(names)
        self._say = say
        self._open: dict[str, Tracker] = {}
        if folder is None:
            return
        for name in names:
            with self._guarded(name):
                self._open[name] = KINDS[name](folder, config)

    def write(self, line: dict[str, Any]) -> None:
        """Hand on one generation's line."""
        for name, tracker in list(self._open.items()):
            with self._guarded(name):
                tracker.write(line)

    def finish(self, summary: dict[str, Any]) -> None:
        """Hand on the summary and close all."""
        for name, tracker in list(self._open.items()):
            with self._guarded(name):
                tracker.finish(summary)
        self._open.clear()

    @contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever a network or a service makes of it
            self._open.pop(name, None)
            self._say(f"--track {name} stopped: {' '.join(str(error).split())[:200]}; the run goes on")

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, *_: object) -> None:
        self.finish({})


def _numbers(line: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in line.items() if isinstance(value, int | float) and name != "generation"}
