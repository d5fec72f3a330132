"""What surviving costs: bytes and time of a demo run's journal, of its metrics and of its progress bar; and a replay.

Runs `eggroll pretrain` (the demo) in this process under a pseudo-terminal, so that the bar is drawn, with a clock
around each call that writes something down; then `eggroll replay`. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pty
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from eggroll.pretrain.config import preset
from eggroll.pretrain.job import learner_of, pretrain
from eggroll.runs import snapshots
from eggroll.runs.environment import environment
from eggroll.runs.journal import Journal
from eggroll.runs.metrics import MetricsFile
from eggroll.runs.progress import GenerationBar
from eggroll.runs.replay import ReplayConfig, replay_command


class Clock:
    """Seconds of the main thread inside some functions, and of the processor in the thread that draws the bar."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.drawing = 0.0

    def around(self, owner: Any, name: str, what: str) -> None:
        function = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - start

        setattr(owner, name, timed)

    def around_drawing(self) -> None:
        from rich.live import _RefreshThread

        run = _RefreshThread.run

        def timed(thread: Any) -> None:
            start = time.thread_time()
            run(thread)
            self.drawing += time.thread_time() - start

        _RefreshThread.run = timed


def on_a_terminal(call: Callable[[], Any]) -> Any:
    """Call with standard error as a pseudo-terminal that somebody reads."""
    controller, terminal = pty.openpty()
    reader = threading.Thread(target=_drain, args=(controller,), daemon=True)
    reader.start()
    before, sys.stderr = sys.stderr, os.fdopen(terminal, "w", buffering=1)
    try:
        return call()
    finally:
        sys.stderr.close()
        sys.stderr = before
        reader.join()


def _drain(controller: int) -> None:
    try:
        while os.read(controller, 65536):
            pass
    except OSError:
        pass  # the other end is closed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--generations", type=int, default=2800)
    arguments = parser.parse_args()
    clock = Clock()
    clock.around(Journal, "append", "journal")
    clock.around(MetricsFile, "append", "metrics")
    clock.around(GenerationBar, "advance", "bar")
    clock.around(snapshots, "save", "snapshots")
    clock.around_drawing()
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        config = dataclasses.replace(preset("demo"), run_dir=run_dir, generations=arguments.generations)
        outcome = on_a_terminal(lambda: pretrain(config, report=lambda line: None))
        lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        training = sum(line["seconds"] for line in lines)
        replayed = replay_command(ReplayConfig(run_dir), learner_of)
    parameters, journal = outcome.summary["parameters"], outcome.summary["journal_bytes"]
    share = {name: seconds / training for name, seconds in clock.seconds.items()} | {
        "drawing": clock.drawing / training
    }
    result = {
        "generations": arguments.generations,
        "training_seconds": round(training, 2),
        "generation_ms": round(1000 * training / len(lines), 3),
        "microseconds_a_generation": {n: round(1e6 * s / len(lines), 1) for n, s in clock.seconds.items()},
        "share_of_training": {name: round(value, 5) for name, value in share.items()},
        "journal_progress_metrics": round(sum(share[name] for name in ("journal", "metrics", "bar", "drawing")), 5),
        "journal_bytes": journal,
        "journal_bytes_a_generation": round(journal / len(lines), 1),
        "parameter_bytes": parameters,
        "replay_seconds": replayed["seconds"],
        "replay_share_of_training": round(replayed["seconds"] / training, 4),
        "verified": replayed["verified"],
        "bits_per_byte": outcome.summary["bits_per_byte"],
        **environment(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
