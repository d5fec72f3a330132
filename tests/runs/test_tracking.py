"""tracking.py and progress.py with the real things: files that TensorBoard and W&B wrote are read back by others."""

import importlib.util
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from eggroll.core.errors import UsageError
from eggroll.runs import tracking
from tests.runs.fake import Fake, train

needs_track = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("tensorboardX", "wandb", "tensorboard")),
    reason='needs the extra track and tensorboard: pip install -e ".[test]"',
)


@needs_track
def test_tensorboard_reads_what_was_written(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tmp_path / "run", Fake(), trackers=("tensorboard",))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    fitness = events.Scalars("fitness_mean")
    assert [(event.step, event.value) for event in fitness] == [(g, -g) for g in range(7)]
    assert [event.step for event in events.Scalars("loss")] == [2, 5, 6]


@needs_track
def test_weights_and_biases_offline(tmp_path):
    """In a process of its own, since wandb starts threads and services; its file holds every generation."""
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2])\n"
        "from tests.runs.fake import Fake, train\n"
        "outcome = train(Path(sys.argv[1]), Fake(), trackers=('wandb',))\n"
        "assert outcome[2] == [], outcome[2]"
    )
    here = str(tmp_path / "run"), str(Path.cwd())
    environment = os.environ | {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code, *here], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    data = file.read_bytes()
    assert data.count(b"fitness_mean") >= 7 and b"things_per_second" in data


def test_an_unknown_or_absent_tracker_is_one_line(monkeypatch):
    with pytest.raises(UsageError, match=r"^expected --track among tensorboard, wandb, got 'csv'; .*$"):
        tracking.check_trackers(("csv",))
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UsageError, match=r'^expected the package wandb .*, got none; pip install "eggroll-es\[track\]"$'
    ):
        tracking.check_trackers(("wandb",))


@pytest.mark.parametrize("where", ["__init__", "write", "finish"])
def test_a_tracker_that_fails_never_ends_a_run(tmp_path, monkeypatch, where, capsys):
    class Broken:
        module = "json"

        def __init__(self, folder, config):
            self.fail("__init__")

        def fail(self, at):
            if at == where:
                raise ConnectionError("the service\nis away")

        def write(self, line):
            self.fail("write")

        def finish(self, summary):
            self.fail("finish")

    monkeypatch.setitem(tracking.KINDS, "wandb", Broken)
    outcome, _, _ = train(tmp_path / "run", Fake(), trackers=("wandb",))
    assert outcome.exit_status == 0
    assert capsys.readouterr().err == "--track wandb stopped: the service is away; the run goes on\n"


def test_quiet_where_there_is_no_terminal(tmp_path, capfd):
    train(tmp_path / "run", Fake())
    assert capfd.readouterr() == ("", "")


def test_log_every(tmp_path, capsys):
    train(tmp_path / "run", Fake(), log_every=3)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["fake 3/7", "fake 6/7", "fake 7/7"]
    assert "loss " in lines[0] and lines[0].endswith("things/s")


def test_the_bar_on_a_terminal(tmp_path):
    """In a pseudo-terminal: generation, metric, throughput and time left."""
    code = (
        "from eggroll.runs.progress import GenerationBar\n"
        "with GenerationBar('pretrain', 40) as bar:\n"
        "    run = bar.of('', 40)\n    run.begin(10)\n"
        "    for _ in range(30):\n        run.advance('loss 1.250', '99 bytes/s')\n"
        "    bar.note('a note')"
    )
    controller, terminal = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen([sys.executable, "-c", code], stderr=terminal, env=environment)
    os.close(terminal)
    shown = b""
    while True:
        try:
            piece = os.read(controller, 4096)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        shown += piece
    os.close(controller)
    assert process.wait() == 0
    text = shown.decode()
    assert all(part in text for part in ("pretrain", "40/40", "loss 1.250", "99 bytes/s", "a note", "0:00:00"))
