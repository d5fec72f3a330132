"""loop.py with a job of plain NumPy: what is called when, what is written, and how a run is stopped."""

import json
import os
import signal
from dataclasses import dataclass, field

import numpy as np
import pytest

from eggroll.runs import loop, snapshots
from eggroll.runs.folder import RunFolder

STOPS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class Fake:
    """Counts up: parameters are the generation, the carry is twice that. Sends `signals` during one evaluation."""

    at: int = -1
    signals: tuple[int, ...] = ()
    calls: list[tuple[str, int]] = field(default_factory=list)

    def evaluate(self, parameters, carry, generation):
        self.calls.append(("evaluate", generation))
        assert parameters["n"] == generation and carry["n"] == 2 * generation
        if generation == self.at:
            for number in self.signals:
                os.kill(os.getpid(), number)
        return np.array([generation]), {"n": carry["n"] + 2}, {"fitness_mean": -float(generation)}

    def update(self, parameters, weights, generation):
        self.calls.append(("update", generation))
        assert weights == [generation]
        return {"n": parameters["n"] + 1}, {"moved": generation}

    def validate(self, parameters):
        self.calls.append(("validate", int(parameters["n"])))
        return {"loss": 10.0 - float(parameters["n"])}

    def job(self, **settings):
        start = {"n": np.zeros((), np.int32)}
        shape = {"generations": 7, "validate_every": 3, "snapshot_every": 2} | settings
        return loop.Job(
            "fake", start, start, self.evaluate, self.update, self.validate, "loss", ("things", 50), **shape
        )


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(tmp_path / "run", "fake", {})


def metrics(folder):
    return [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]


def test_a_whole_run(folder, monkeypatch):
    saved = []
    monkeypatch.setattr(
        snapshots, "save", lambda _, done, tree, keep: saved.append((done, int(tree["parameters"]["n"]), keep))
    )
    fake = Fake()
    outcome = loop.run(fake.job(), folder, extra={"corpus": "c"}, prefix_seconds=1.5)
    steps = [[("evaluate", g), ("update", g)] + ([("validate", g + 1)] if g in (2, 5, 6) else []) for g in range(7)]
    assert fake.calls == [("validate", 0), *(call for step in steps for call in step)]
    assert saved == [(2, 2, 2), (4, 4, 2), (6, 6, 2), (7, 7, 2)]
    lines = metrics(folder)
    assert [line["generation"] for line in lines] == list(range(7))
    assert [line.get("loss") for line in lines] == [None, None, 7.0, None, None, 4.0, 3.0]
    for generation, line in enumerate(lines):
        assert (line["fitness_mean"], line["moved"]) == (-generation, generation)
        assert line["things_per_second"] == pytest.approx(50 / line["seconds"])
        assert 0 <= line["update_seconds"] <= line["seconds"]
    summary = outcome.summary
    assert outcome.exit_status == 0 and summary == folder.read_json("summary.json")
    expected = {
        "job": "fake",
        "finished": True,
        "generations": 7,
        "startup_seconds": 1.5,
        "start_loss": 10.0,
        "loss": 3.0,
    }
    assert expected.items() <= summary.items()
    assert summary["corpus"] == "c" and summary["run_dir"] == str(folder.path)
    assert {"eggroll", "jax", "python", "device", "devices", "processor"} <= summary.keys()


@pytest.mark.parametrize("number", STOPS)
def test_a_signal_ends_the_generation(folder, number):
    before = [signal.getsignal(each) for each in STOPS]
    fake = Fake(at=4, signals=(number,))
    outcome = loop.run(fake.job(generations=100, snapshot_every=1000), folder, extra={})
    assert fake.calls[-3:] == [("evaluate", 4), ("update", 4), ("validate", 5)]
    assert outcome.exit_status == 130
    assert {"finished": False, "generations": 5, "loss": 5.0}.items() <= folder.read_json("summary.json").items()
    assert len(metrics(folder)) == 5 and metrics(folder)[-1]["loss"] == 5.0
    generation, tree = snapshots.load(folder)
    assert generation == 5 and tree["parameters"]["n"] == 5
    assert [signal.getsignal(each) for each in STOPS] == before


def test_a_signal_in_the_last_generation_changes_nothing(folder):
    outcome = loop.run(Fake(at=6, signals=(signal.SIGTERM,)).job(), folder, extra={})
    assert outcome.exit_status == 0 and outcome.summary["finished"]


def test_a_signal_after_a_generation_is_written_down_ends_the_next(folder, monkeypatch):
    """Whenever it comes, what the summary counts is what the newest snapshot holds."""
    append = RunFolder.append_metrics

    def append_then_signal(self, line):
        append(self, line)
        if line["generation"] == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(RunFolder, "append_metrics", append_then_signal)
    outcome = loop.run(Fake().job(generations=100, snapshot_every=1000), folder, extra={})
    assert (outcome.exit_status, outcome.summary["generations"]) == (130, 4)
    assert snapshots.generations(folder) == [4]


@pytest.mark.parametrize("first", STOPS)
def test_a_second_interrupt_stops_at_once(folder, first):
    before = [signal.getsignal(each) for each in STOPS]
    fake = Fake(at=1, signals=(first, signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        loop.run(fake.job(), folder, extra={})
    assert fake.calls[-1] == ("evaluate", 1) and len(metrics(folder)) == 1
    assert not (folder.path / "summary.json").exists()
    assert [signal.getsignal(each) for each in STOPS] == before


def test_handlers_are_restored_after_a_failure(folder):
    before = [signal.getsignal(each) for each in STOPS]
    job = Fake().job()
    job.update = lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        loop.run(job, folder, extra={})
    assert [signal.getsignal(each) for each in STOPS] == before
