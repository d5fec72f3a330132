"""Killed with SIGKILL and resumed, a run has the bits, the journal and the metrics of one that was never stopped.

The small version of benchmarks/kill.py, at instants that are chosen; that has random ones, and many more.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from eggroll.runs import loop, snapshots
from eggroll.runs.folder import RunFolder
from eggroll.runs.resume import change_settings, recorded_config
from tests.runs.fake import Fake

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "kill.py"
TRAINING = [
    ("orbax save:2:during:0.1", "snapshot / orbax save"),  # it is half-written
    ("pwrite:3:during:0.6", "journal / pwrite"),  # a torn frame, and before it one that no snapshot has seen
]
BEGINNING_AND_END = [
    ("replace:1:after", "whole file / replace"),  # nothing is there yet
    ("replace:2:before", "new journal / replace"),  # only the settings are
    ("pwrite:6:during:0.4", "journal / pwrite"),
    ("loading:1:after", "loading"),
    ("whole file:1:before", "whole file"),  # all but the summary is there
]
GENERATIONS = [
    ("journal:8:after", "journal"),
    ("update:2:after", "update"),
    ("truncate:1:after", "start-up and compiling / truncate"),
    ("write:2:during:0.5", "metrics line / write"),
]
SNAPSHOTS = [
    ("orbax save:2:during:0.1", "snapshot / orbax save"),
    ("evaluate:2:before", "evaluate"),
    ("rename:1:before", "snapshot / rename"),  # it is whole, and has no name yet
    ("rename:3:after", "snapshot / rename"),  # the oldest has no name any more, and all its files
]
NUMPY = [("numpy", BEGINNING_AND_END), ("numpy", GENERATIONS), ("numpy-carry", SNAPSHOTS)]


@pytest.mark.parametrize("runs", [[("integer", TRAINING)], NUMPY], ids=["integer", "numpy"])
def test_a_killed_run_ends_as_if_it_never_was(tmp_path, runs):
    cases = [f"{job}={','.join(kill for kill, _ in deaths)}" for job, deaths in runs]
    command = [sys.executable, str(SCRIPT), "--generations", "10", "--keep", str(tmp_path), "--cases", *cases]
    quick = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    done = subprocess.run(command, env=os.environ | quick, capture_output=True, text=True, timeout=300)
    assert done.stdout, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["wrong"] == [] and result["identical"] == len(cases)
    assert result["died_in"] == dict(Counter(phase for _job, deaths in runs for _kill, phase in deaths))


class Noisy(Fake):
    """Evaluates otherwise each time, as a measurement does."""

    def weights(self, generation, salt):
        return super().weights(generation, salt + 1 - self.at)


def test_a_snapshot_beyond_a_journal_that_lost_its_end_goes(tmp_path):
    """Its weights are not those that the run comes to when it makes these generations again."""
    folder = RunFolder.create(tmp_path / "run", "fake", {})
    loop.run(Noisy(carries=False, at=-1).job(generations=6), folder, extra={})
    folder.journal.write_bytes(folder.journal.read_bytes()[:-30])
    said = []
    outcome = loop.run(Noisy(carries=False, at=-2).job(generations=6), folder, extra={}, say=said.append)
    assert outcome.summary["resumed_at"] == 4 and "does not reach the snapshot of generation 6" in "".join(said)
    assert snapshots.load(folder, 6)[1]["parameters"]["w"] == outcome.state.parameters["w"]


def test_a_kill_between_changed_settings_and_their_config_json(tmp_path, monkeypatch):
    """The journal has the new ones; whoever goes on puts them into the folder."""
    folder, fake = RunFolder.create(tmp_path / "run", "fake", {"steps": 4}), Fake()
    old, new = (fake.job(generations=n, config={"steps": n}) for n in (4, 6))
    loop.run(old, folder, extra={})

    def killed(own, name, value):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            change_settings(old, new, folder, say=print)
    assert recorded_config(folder) == {"steps": 6} and folder.read_json("config.json") == {"steps": 4}
    loop.run(new, folder, extra={})
    assert folder.read_json("config.json") == {"steps": 6}
