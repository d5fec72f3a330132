"""loop.py with a job of plain NumPy: what is called when, what is written, how a run is stopped and gone on with."""

import json
import os
import shutil
import signal

import numpy as np
import pytest

from eggroll.runs import loop, snapshots
from eggroll.runs.folder import RunError, RunFolder
from eggroll.runs.journal import Journal
from eggroll.runs.ledger import FolderLedger
from eggroll.runs.metrics import MetricsFile
from eggroll.runs.resume import finished_summary
from tests.runs.fake import PAIRS, Fake, train

STOPS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(tmp_path / "run", "fake", {"job": "fake"})


def metrics(folder):
    return [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]


def without_times(lines):
    times = ("things_per_second", "seconds", "update_seconds")
    return [{name: value for name, value in line.items() if name not in times} for line in lines]


def end_of(folder):
    """What a run leaves that does not depend on when it ran."""
    generation, tree = snapshots.load(folder)
    arrays = {name: np.asarray(tree["parameters"]["w"]).tolist() for name in tree if name == "parameters"}
    return generation, arrays, str(tree.get("optimizer")), str(tree.get("carry")), folder.journal.read_bytes()


def test_a_whole_run(folder, monkeypatch):
    saved = []
    monkeypatch.setattr(snapshots, "save", lambda _, done, tree, keep: saved.append((done, tuple(tree), keep)))
    fake = Fake()
    outcome = loop.run(fake.job(), folder, extra={"corpus": "c"}, prefix_seconds=1.5)
    steps = [[("evaluate", g), ("update", g)] for g in range(7)]
    assert [call for call in fake.calls if call[0] != "validate"] == [call for step in steps for call in step]
    at = [i for i, call in enumerate(fake.calls) if call[0] == "validate"]
    assert at == [0, 7, 14, 17]  # before generation 0, after 3, 6 and 7
    trees = ("parameters", "optimizer", "shared", "carry")
    assert saved == [(2, trees, 2), (4, trees, 2), (6, trees, 2), (7, trees, 2)]
    lines = metrics(folder)
    assert [line["generation"] for line in lines] == list(range(7))
    assert ["loss" in line for line in lines] == [False, False, True, False, False, True, True]
    for generation, line in enumerate(lines):
        assert line["fitness_mean"] == -generation and "replayed" not in line
        assert line["things_per_second"] == pytest.approx(50 / line["seconds"])
        assert 0 <= line["update_seconds"] <= line["seconds"]
    summary = outcome.summary
    assert outcome.exit_status == 0 and summary == folder.read_json("summary.json")
    expected = {"job": "fake", "finished": True, "generations": 7, "startup_seconds": 1.5, "start_loss": 0.0}
    assert expected.items() <= summary.items() and "resumed_at" not in summary
    assert summary["loss"] == lines[-1]["loss"] == sum(line["moved"] for line in lines)
    assert summary["corpus"] == "c" and summary["run_dir"] == str(folder.path)
    assert summary["journal_bytes"] == folder.journal.stat().st_size
    assert {"eggroll", "jax", "python", "device", "devices", "processor"} <= summary.keys()


def test_the_journal_has_what_the_update_saw(folder):
    fake = Fake(loses={2: (5, 12)})
    seen = {}
    job = fake.job()
    update = job.learner.update
    job.learner.update = lambda p, o, weights, g: seen.update({g: weights}) or update(p, o, weights, g)
    loop.run(job, folder, extra={})
    with Journal.open(folder.journal) as journal:
        assert journal.generations == 7 and journal.torn == 0
        for generation in range(7):
            record = journal.record(generation)
            np.testing.assert_array_equal(record.weights, seen[generation])
            assert record.lost == ((5, 12) if generation == 2 else ())
        assert seen[2][2] == seen[2][6] == 0


@pytest.mark.parametrize("frames", ["float16", "float32"])
def test_the_update_sees_decoded_weights(folder, frames):
    job = Fake(carries=False, drift=1 / 3).job(frames=frames)
    update, seen = job.learner.update, []
    job.learner.update = lambda p, o, weights, g: seen.append(weights) or update(p, o, weights, g)
    loop.run(job, folder, extra={})
    dtype = np.dtype(frames)
    expected = (Fake().weights(0, 0) + np.float32(1 / 3)).astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(seen[0], expected)
    assert seen[0].dtype == np.float32


def test_a_frame_is_on_the_disk_before_its_update(folder, monkeypatch):
    """fsync after the frame, update after the fsync, the next evaluation after that."""
    order = []
    fsync, write = os.fsync, os.pwrite
    monkeypatch.setattr(os, "fsync", lambda file: order.append("fsync") or fsync(file))
    monkeypatch.setattr(os, "pwrite", lambda *args: order.append("write") or write(*args))
    fake = Fake()
    job = fake.job(generations=3, snapshot_every=100)
    update, evaluate = job.learner.update, job.evaluate
    job.learner.update = lambda *args: order.append("update") or update(*args)
    job.evaluate = lambda *args: order.append("evaluate") or evaluate(*args)
    loop.run(job, folder, extra={})
    first = order.index("evaluate")
    assert order[first : first + 12] == ["evaluate", "write", "fsync", "update"] * 3


@pytest.mark.parametrize("number", STOPS)
def test_a_signal_ends_the_generation(folder, number):
    before = [signal.getsignal(each) for each in STOPS]
    fake = Fake(at=4, signals=(number,))
    outcome = loop.run(fake.job(generations=100, snapshot_every=1000), folder, extra={})
    assert [name for name, _ in fake.calls[-3:]] == ["evaluate", "update", "validate"]
    assert outcome.exit_status == 130
    assert {"finished": False, "generations": 5}.items() <= folder.read_json("summary.json").items()
    assert len(metrics(folder)) == 5 and "loss" in metrics(folder)[-1]
    assert snapshots.load(folder)[0] == 5
    assert [signal.getsignal(each) for each in STOPS] == before


def test_a_signal_in_the_last_generation_changes_nothing(folder):
    outcome = loop.run(Fake(at=6, signals=(signal.SIGTERM,)).job(), folder, extra={})
    assert outcome.exit_status == 0 and outcome.summary["finished"]


def test_a_signal_after_a_generation_is_written_down_ends_the_next(folder, monkeypatch):
    """Whenever it comes, what the summary counts is what the newest snapshot holds."""
    append = MetricsFile.append

    def append_then_signal(self, line):
        append(self, line)
        if line["generation"] == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(MetricsFile, "append", append_then_signal)
    outcome = loop.run(Fake().job(generations=100, snapshot_every=1000), folder, extra={})
    assert (outcome.exit_status, outcome.summary["generations"]) == (130, 4)
    assert snapshots.generations(folder) == [4]


@pytest.mark.parametrize("first", STOPS)
def test_a_second_interrupt_stops_at_once_and_loses_nothing(tmp_path, first):
    before = [signal.getsignal(each) for each in STOPS]
    whole = train(tmp_path / "whole", Fake())[1]
    fake = Fake(at=5, signals=(first, signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", fake)
    folder = RunFolder.open(tmp_path / "run")
    assert fake.calls[-1] == ("evaluate", 5) and len(metrics(folder)) == 5
    assert not (folder.path / "summary.json").exists()
    assert [signal.getsignal(each) for each in STOPS] == before
    with Journal.open(folder.journal) as journal:
        assert journal.generations == 5
    assert train(tmp_path / "run", Fake())[0].summary["resumed_at"] == 4
    assert end_of(folder) == end_of(whole)


def test_the_folder_is_let_go_while_the_failure_is_still_looked_at(folder):
    """As in a notebook, which keeps the last traceback."""
    job = Fake().job()
    evaluate = job.evaluate

    def fail(state, generation):
        raise OSError("the simulator died")

    job.evaluate = fail
    with pytest.raises(OSError, match="simulator died") as kept:
        loop.run(job, folder, extra={})
    job.evaluate = evaluate
    assert loop.run(job, folder, extra={}).summary["finished"] and kept.traceback


def test_handlers_are_restored_and_the_lock_let_go_after_a_failure(folder):
    before = [signal.getsignal(each) for each in STOPS]
    job = Fake().job()
    job.learner.update = lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        loop.run(job, folder, extra={})
    assert [signal.getsignal(each) for each in STOPS] == before
    with folder.locked():
        pass


# ── going on ──


def stopped_at(path, generation, **kind):
    """A run that a failing evaluation has ended in the middle, as a kill would: no snapshot, no summary."""
    fake = Fake(**kind)
    evaluate = fake.evaluate

    def fail(state, at):
        if at == generation:
            raise OSError("killed")
        return evaluate(state, at)

    fake.evaluate = fail
    with pytest.raises(OSError, match="killed"):
        train(path, fake)
    return RunFolder.open(path)


KINDS = [{}, {"carries": False}, {"carries": False, "shares": True}, {"shares": True, "loses": {3: (0, 9)}}]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("generation", [0, 1, 2, 5, 6])
def test_a_run_that_was_cut_ends_as_one_that_was_not(tmp_path, kind, generation):
    outcome, whole, _ = train(tmp_path / "whole", Fake(**kind))
    folder = stopped_at(tmp_path / "run", generation, **kind)
    fake = Fake(**kind)
    again, _, said = train(tmp_path / "run", fake)
    assert said == [] and end_of(folder) == end_of(whole)
    assert without_times(metrics(folder)) == without_times(metrics(whole))
    start = generation // 2 * 2
    assert again.summary.get("resumed_at", 0) == start
    evaluated = [g for name, g in fake.calls if name == "evaluate"]
    assert evaluated == list(range(start if kind.get("carries", True) else generation, 7))
    times = {"seconds", "first_generation_seconds", "resumed_at", "run_dir"}
    one, other = ({k: v for k, v in x.summary.items() if k not in times} for x in (outcome, again))
    assert one == other


def test_without_carry_the_journal_is_replayed(tmp_path):
    """A kill after the frame and before the metrics: the generation has its line, marked as replayed."""
    folder = stopped_at(tmp_path / "run", 5, carries=False)
    path = folder.path / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:4]) + '{"generation": 4, "fit')
    train(tmp_path / "run", Fake(carries=False))
    assert [line.get("replayed", False) for line in metrics(folder)] == [g == 4 for g in range(7)]


def test_metrics_that_were_taken_out_cost_no_others(tmp_path):
    folder = stopped_at(tmp_path / "run", 5)
    path = folder.path / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[1:3], lines[4]]))
    train(tmp_path / "run", Fake())
    assert [line["generation"] for line in metrics(folder)] == [1, 2, 4, 5, 6]


def test_a_torn_tail_is_cut_and_said(tmp_path):
    whole = train(tmp_path / "whole", Fake())[1]
    folder = stopped_at(tmp_path / "run", 4)
    with folder.journal.open("ab") as file:
        file.write(b"\x17\0\0\0\1\4")
    said = train(tmp_path / "run", Fake())[2]
    assert said == [f"{folder.journal}: cut 6 bytes of a torn tail after 4 generations"]
    assert end_of(folder) == end_of(whole)


def test_a_damaged_snapshot_is_passed_over(tmp_path):
    whole = train(tmp_path / "whole", Fake())[1]
    folder = stopped_at(tmp_path / "run", 5)
    assert snapshots.generations(folder) == [2, 4]
    (folder.snapshots / "00000004" / "_METADATA").write_bytes(b"{}")
    outcome, _, said = train(tmp_path / "run", Fake())
    assert len(said) == 1 and said[0].startswith("passed over the snapshot of generation 4: expected a whole snapshot")
    assert outcome.summary["resumed_at"] == 2 and end_of(folder) == end_of(whole)
    (folder.snapshots / "00000006" / "_METADATA").write_bytes(b"{}")
    shutil.rmtree(folder.snapshots / "00000007")
    assert train(tmp_path / "run", Fake())[0].exit_status == 0
    assert end_of(folder) == end_of(whole)


def test_a_journal_damaged_in_the_middle(tmp_path):
    """What follows the damage is kept beside it, and evaluated again."""
    whole = train(tmp_path / "whole", Fake())[1]
    folder = train(tmp_path / "run", Fake())[1]
    data = bytearray(folder.journal.read_bytes())
    with Journal.open(folder.journal) as journal:
        at = journal._starts[3] + 15
    data[at] ^= 1
    folder.journal.write_bytes(data)
    said = train(tmp_path / "run", Fake())[2]
    assert any("does not reach the snapshot of generation 6" in line for line in said)
    assert (folder.path / "journal.egg.tail-3").stat().st_size > 0
    assert end_of(folder) == end_of(whole)


def test_an_evaluation_that_differs_from_the_journal_stops(tmp_path):
    folder = stopped_at(tmp_path / "run", 3)
    before = folder.journal.read_bytes()
    fake = Fake()
    fake.weights = lambda generation, salt: np.ones(PAIRS, np.int8)
    with pytest.raises(RunError, match="expected generation 2 to evaluate as the journal says, got other weights; "):
        train(tmp_path / "run", fake)
    assert folder.journal.read_bytes() == before


def test_another_start_is_refused(tmp_path):
    folder = stopped_at(tmp_path / "run", 3)
    job = Fake().job()
    job.learner.parameters = {"w": np.ones((), np.int32)}
    with pytest.raises(RunError, match=r"with leaf 'w' of SHA-256 .*…, got .*…; give the base model"):
        loop.run(job, folder, extra={})


@pytest.mark.parametrize("change", ["law", "frames", "weights", "optimizer", "name"])
def test_another_job_is_refused(tmp_path, change):
    folder = stopped_at(tmp_path / "run", 3)
    before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    job = Fake().job()
    if change == "law":
        job.learner.settings = {"law": "other"}
    elif change == "frames":
        job.learner.frames = "float32"
    elif change == "weights":
        job.learner.weights = 8
    elif change == "optimizer":
        job.learner.optimizer = (np.zeros(2, np.int32),)
    else:
        job.name = "other"
    with pytest.raises(RunError, match=r"expected a journal with '\w+' .*, got .* in .*; use the settings"):
        loop.run(job, folder, extra={})
    assert {path: path.read_bytes() for path in before} == before


def test_fewer_generations_than_there_are_are_refused(tmp_path):
    train(tmp_path / "run", Fake())
    with pytest.raises(RunError, match="expected at least the 7 generations that the run has, got 5; "):
        train(tmp_path / "run", Fake(), generations=5)


def test_a_finished_run_can_be_made_longer(tmp_path):
    whole = train(tmp_path / "whole", Fake(), generations=9)[1]
    train(tmp_path / "run", Fake())
    outcome, folder, _ = train(tmp_path / "run", Fake(), generations=9)
    assert outcome.summary["resumed_at"] == 7
    assert end_of(folder)[:4] == end_of(whole)[:4]


@pytest.mark.parametrize("errno_text", [(28, "No space left on device"), (30, "Read-only file system")])
def test_a_disk_that_takes_no_more(tmp_path, monkeypatch, errno_text):
    """One line; the journal keeps the generations it has, and the run goes on when there is room again."""
    whole = train(tmp_path / "whole", Fake())[1]
    write, count = os.pwrite, []

    def refuse(file, data, offset):
        count.append(len(data))
        if len(count) > 6:  # lock, then five generations: the sixth is written in part
            if len(count) == 7:
                return write(file, data[:10], offset)
            raise OSError(*errno_text)
        return write(file, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", refuse)
        with pytest.raises(RunError, match=rf"expected to write .*journal.egg, got {errno_text[1]}; mend that, then"):
            train(tmp_path / "run", Fake())
    folder = RunFolder.open(tmp_path / "run")
    with Journal.open(folder.journal) as journal:
        assert (journal.generations, journal.torn) == (5, 0)
    train(tmp_path / "run", Fake())
    assert end_of(folder) == end_of(whole)


def test_a_real_full_disk(tmp_path):
    """The journal of a device that is always full."""
    folder = RunFolder.create(tmp_path / "run", "fake", {"job": "fake"})
    with Journal.create(folder.journal, Fake().job().header({})) as journal:
        size = folder.journal.stat().st_size
        os.dup2(os.open("/dev/full", os.O_RDWR), journal._file)
        with pytest.raises(RunError, match="No space left on device"):
            journal.append(np.zeros(PAIRS, np.int8))
        assert journal.generations == 0 and folder.journal.stat().st_size == size


def test_samples_are_noted(tmp_path):
    train(tmp_path / "run", Fake(), sample=lambda parameters: f"w={parameters['w']}")
    lines = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert [line["generation"] for line in lines] == [0, 3, 6, 7]
    assert lines[-1]["text"].startswith("w=")


# ── ends: a target, seconds, several runs at once ──

TIMES = {"seconds", "first_generation_seconds", "resumed_at", "run_dir"}


def without_run(summary):
    return {name: value for name, value in summary.items() if name not in TIMES}


class Many:
    """Several fake runs and what they were asked for; each has weights of its own."""

    def __init__(self, kinds, **settings):
        self.fakes = [Fake(**kind) for kind in kinds]
        for number, fake in enumerate(self.fakes):
            fake.weights = self.weights(number)
        self.jobs = [fake.job(**settings) for fake in self.fakes]
        self.asked = []

    @staticmethod
    def weights(number):
        def draw(generation, salt):
            return np.random.default_rng([number, generation, salt]).integers(-1, 2, PAIRS).astype(np.int8)

        return draw

    def answers(self, of, asked):
        self.asked.append((of, sorted(asked)))
        functions = [job.learner.update if of == "update" else getattr(job, of) for job in self.jobs]
        return {index: functions[index](*arguments) for index, arguments in asked.items()}

    def folders(self, home):
        paths = [home / f"seed-{number}" for number in range(len(self.jobs))]
        return [RunFolder.open(p) if p.exists() else RunFolder.create(p, "fake", {"job": "fake"}) for p in paths]

    def together(self, home):
        folders = self.folders(home)
        return loop.run_together(self.jobs, folders, self.answers, extra={}), folders

    def alone(self, home):
        folders = self.folders(home)
        pairs = zip(self.jobs, folders, strict=True)
        return [loop.run(job, folder, extra={}) for job, folder in pairs], folders


def assert_alike(one, other):
    """Outcomes and folders of runs that should be equal."""
    for (outcome, folder), (expected, whole) in zip(zip(*one, strict=True), zip(*other, strict=True), strict=True):
        assert end_of(folder) == end_of(whole)
        assert without_times(metrics(folder)) == without_times(metrics(whole))
        assert outcome.exit_status == expected.exit_status
        assert without_run(outcome.summary) == without_run(expected.summary)
        assert folder.read_json("summary.json") == outcome.summary
        assert outcome.state.parameters == expected.state.parameters


MIXED = [{}, {"carries": False, "shares": True}, {"loses": {3: (0, 9)}}]


def test_runs_together_are_each_alone(tmp_path):
    many = Many(MIXED)
    together = many.together(tmp_path / "together")
    assert_alike(together, Many(MIXED).alone(tmp_path / "alone"))
    assert all(runs == [0, 1, 2] for _, runs in many.asked)  # every program runs for all of them, and once
    assert [of for of, _ in many.asked].count("update") == 7
    journals = [folder.journal.read_bytes() for folder in together[1]]
    assert len(set(journals)) == 3


@pytest.mark.parametrize("killed", [(3,), (6, 1)])
def test_one_that_was_killed_catches_up(tmp_path, killed):
    whole = Many(MIXED).alone(tmp_path / "alone")
    home = tmp_path / "together"
    first = Many(MIXED)
    folders = first.folders(home)
    for number, at in enumerate(killed):
        fake, job = first.fakes[number], first.jobs[number]

        def fail(state, generation, own=fake.evaluate, at=at):
            if generation == at:
                raise OSError("killed")
            return own(state, generation)

        job.evaluate = fail
        with pytest.raises(OSError, match="killed"):
            loop.run(job, folders[number], extra={})
    again = Many(MIXED)
    assert_alike(again.together(home), whole)
    assert ("evaluate", [0, 1, 2]) in again.asked  # they meet again


def test_all_are_killed_at_once_and_gone_on_with(tmp_path):
    whole = Many(MIXED).alone(tmp_path / "alone")
    first = Many(MIXED)
    own, calls = first.answers, []

    def fail(of, asked):
        calls.append(of)
        if len(calls) == 13:
            raise OSError("killed")
        return own(of, asked)

    first.answers = fail
    with pytest.raises(OSError, match="killed"):
        first.together(tmp_path / "together")
    for folder in first.folders(tmp_path / "together"):
        assert not (folder.path / "summary.json").exists()
        with folder.locked():
            pass
    assert_alike(Many(MIXED).together(tmp_path / "together"), whole)


def test_one_ends_early_by_its_target(tmp_path):
    """The others go on without it."""
    plain = Many(MIXED, generations=9).alone(tmp_path / "plain")
    target = max(next(line["loss"] for line in metrics(folder) if "loss" in line) for folder in plain[1])
    outcomes, folders = Many(MIXED, generations=9, target=target).together(tmp_path / "together")
    assert_alike((outcomes, folders), Many(MIXED, generations=9, target=target).alone(tmp_path / "alone"))
    ends = [outcome.summary["generations"] for outcome in outcomes]
    assert min(ends) == 3 and len(set(ends)) > 1
    for outcome in outcomes:
        assert outcome.exit_status == 0 and outcome.summary["finished"]
        assert ("target" in outcome.summary) == (outcome.summary["loss"] >= target)


def test_a_stop_request_ends_all_of_them(tmp_path):
    whole = Many(MIXED).alone(tmp_path / "alone")
    many = Many([MIXED[0], MIXED[1] | {"at": 4, "signals": (signal.SIGTERM,)}, MIXED[2]])
    outcomes, folders = many.together(tmp_path / "together")
    for outcome, folder in zip(outcomes, folders, strict=True):
        assert (outcome.exit_status, outcome.summary["generations"]) == (130, 5)
        assert not outcome.summary["finished"] and snapshots.load(folder)[0] == 5
    outcomes, folders = Many(MIXED).together(tmp_path / "together")
    assert all(outcome.exit_status == 0 for outcome in outcomes)
    assert [end_of(folder) for folder in folders] == [end_of(folder) for folder in whole[1]]


class Rising(Fake):
    """Its loss is the number of generations made."""

    def validate(self, state):
        self.calls.append(("validate", int(state.optimizer[0])))
        return {"loss": float(state.optimizer[0])}


def test_a_target_ends_a_run(tmp_path):
    outcome, folder, _ = train(tmp_path / "run", Rising(), generations=20, target=5.0)
    summary = outcome.summary
    assert (outcome.exit_status, summary["finished"], summary["generations"]) == (0, True, 6)
    assert summary["target"] == 5.0 and summary["loss"] == 6.0 and summary["generations"] % 3 == 0
    assert snapshots.load(folder)[0] == 6 and len(metrics(folder)) == 6
    assert finished_summary(folder, 20, 5.0) == summary == folder.read_json("summary.json")
    for other in (None, 6.5):
        assert finished_summary(folder, 20, other) is None
    assert finished_summary(folder, 6, None) == summary


def test_a_target_that_is_not_reached_ends_nothing(tmp_path):
    outcome, folder, _ = train(tmp_path / "run", Rising(), target=100.0)
    assert outcome.summary["generations"] == 7 and outcome.summary["finished"] and "target" not in outcome.summary
    assert finished_summary(folder, 7, 100.0) and not finished_summary(folder, 8, 100.0)


def test_a_target_reached_with_the_last_generation(tmp_path):
    outcome, folder, _ = train(tmp_path / "run", Rising(), target=7.0)
    assert outcome.summary["generations"] == 7 and outcome.summary["target"] == 7.0
    assert finished_summary(folder, 9, 7.0) and not finished_summary(folder, 9, None)


@pytest.mark.parametrize("target", [8.0, None])
def test_a_run_goes_on_to_another_target(tmp_path, target):
    whole = train(tmp_path / "whole", Rising(), generations=10, target=target)
    train(tmp_path / "run", Rising(), generations=10, target=5.0)
    outcome, folder, _ = train(tmp_path / "run", Rising(), generations=10, target=target)
    assert outcome.summary["resumed_at"] == 6
    assert end_of(folder) == end_of(whole[1])
    assert without_times(metrics(folder)) == without_times(metrics(whole[1]))
    assert without_run(outcome.summary) == without_run(whole[0].summary)


@pytest.mark.parametrize("after", ["note", "save", "finish"])
def test_killed_between_the_target_and_the_summary(tmp_path, monkeypatch, after):
    """It ends at the same generation, whatever of the end was on the disk."""
    whole = train(tmp_path / "whole", Rising(), generations=20, target=5.0)
    own = getattr(FolderLedger, after)

    def fail(self, *arguments):
        at = arguments[0] if after == "save" else self.generations
        if at == 6:
            raise OSError("killed")
        return own(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(FolderLedger, after, fail)
        with pytest.raises(OSError, match="killed"):
            train(tmp_path / "run", Rising(), generations=20, target=5.0)
    outcome, folder, _ = train(tmp_path / "run", Rising(), generations=20, target=5.0)
    assert (outcome.exit_status, outcome.summary["generations"], outcome.summary["target"]) == (0, 6, 5.0)
    assert end_of(folder) == end_of(whole[1])
    assert without_times(metrics(folder)) == without_times(metrics(whole[1]))
    assert without_run(outcome.summary) == without_run(whole[0].summary)


def test_seconds_end_a_run_and_it_goes_on(tmp_path):
    whole = train(tmp_path / "whole", Fake())
    outcome, folder, _ = train(tmp_path / "run", Fake(), most_seconds=1e-9)
    # of each process the first generation, which compiles, is not counted
    assert (outcome.exit_status, outcome.summary["finished"], outcome.summary["generations"]) == (0, True, 2)
    assert outcome.summary["most_seconds"] == 1e-9 and "loss" in outcome.summary
    assert snapshots.load(folder)[0] == 2 and finished_summary(folder, 7) is None
    second = train(tmp_path / "run", Fake(), most_seconds=1e-9)[0]
    assert (second.summary["generations"], second.summary["resumed_at"]) == (4, 2)
    last, folder, _ = train(tmp_path / "run", Fake(), most_seconds=1e9)
    assert last.summary["generations"] == 7 and "most_seconds" not in last.summary
    assert end_of(folder) == end_of(whole[1])


def plain_lines(text, name):
    return [line for line in text.splitlines() if line.startswith(name)]


def test_a_run_says_a_line_every_so_many_generations(tmp_path, capsys):
    train(tmp_path / "run", Rising(), log_every=3)
    lines = plain_lines(capsys.readouterr().err, "fake ")
    assert [line.split("  ")[:2] for line in lines] == [
        ["fake 3/7", "loss 3.000"],
        ["fake 6/7", "loss 6.000"],
        ["fake 7/7", "loss 7.000"],
    ]
    assert all(line.endswith(" things/s") for line in lines)


def test_several_runs_say_their_names(tmp_path, capsys):
    Many(MIXED, log_every=3).together(tmp_path)
    lines = plain_lines(capsys.readouterr().err, "fake ")
    heads = [line.split("  ")[0] for line in lines]
    assert heads == [f"fake × 3 seed-{number} {at}/7" for at in (3, 6, 7) for number in range(3)]


def test_a_run_that_is_gone_on_with_counts_from_where_it_stands(tmp_path, capsys):
    stopped_at(tmp_path / "run", 5)
    capsys.readouterr()
    train(tmp_path / "run", Fake(), log_every=3)
    heads = [line.split("  ")[0] for line in plain_lines(capsys.readouterr().err, "fake ")]
    assert heads == ["fake 6/7", "fake 7/7"]
