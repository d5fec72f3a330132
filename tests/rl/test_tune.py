"""The tuner: its draws, its queue when stopped and gone on with, and what it says of the trials."""

import dataclasses
import json
import math
import os
import shlex
import shutil
import signal
from pathlib import Path

import pytest

from eggroll.cli import main, parse
from eggroll.core.errors import UsageError
from eggroll.rl import draws
from eggroll.rl.config import MarlConfig, RlConfig
from eggroll.rl.draws import RANGES, command_line, draw
from eggroll.rl.job import KINDS
from eggroll.rl.presets import settings_for
from eggroll.rl.trials import best_first, table
from eggroll.rl.tune import recorded_base, tune
from eggroll.runs.folder import RunError, RunFolder
from eggroll.runs.loop import Loop

TINY = ["--hidden=8", "--population-size=8", "--generations=2", "--episode-length=10", "--validation-episodes=2"]
TINY += ["--devices=1", "--chunk-size=8"]
PINNED = {
    "rank": 4,
    "learning_rate": 0.1,
    "learning_rate_decay": 0.995,
    "sigma": 0.05,
    "sigma_decay": 1.0,
    "optimizer": "adamw",
    "shaping": "z_score",
    "deterministic": False,
    "episodes": 8,
    "population_size": 256,
}
"""Trial 0 of seed 0."""


def tiny(home, count=3, **settings):
    small = {"hidden": (8,), "population_size": 8, "generations": 2, "episode_length": 10, "validation_episodes": 2}
    return RlConfig(run_dir=home, tune=count, **(small | settings))


class Fake:
    """Trains nothing: the return is what `value` says of a trial's number."""

    def __init__(self, value=float, stop_at=None):
        self.value, self.stop_at, self.trained = value, stop_at, []

    def __call__(self, config, /, *, report):
        number = int(config.run_dir.name)
        self.trained.append((number, config.resume))
        value = self.value(number)
        if config.resume:
            folder = RunFolder.open(config.run_dir)
        else:
            folder = RunFolder.create(config.run_dir, config.job, config.as_json())
        finished = number != self.stop_at
        summary = {"finished": finished, "return": value, "return_error": 0.5, "start_return": 1.0}
        summary |= {"generations": 2 if finished else 1, "seconds": 0.0}
        if config.render is not None:
            summary["rendered"] = str(config.render)
        folder.write_json("summary.json", summary)
        return summary, 0 if finished else 130


def made(home, train, count=3, *, resume=False, lines=None, **settings):
    lines = [] if lines is None else lines
    return tune(tiny(home, count, resume=resume, **settings), train, report=lines.append)


def rows_in(home):
    return json.loads((home / "tuned.json").read_text())["trials"]


# ── draws ──


@pytest.mark.parametrize("preset", ["small", "paper"])
def test_draws_stay_in_the_papers_ranges_and_come_to_all_of_them(preset):
    config = RlConfig(preset=preset, population_size=64)
    drawn = [draw(config, trial) for trial in range(200)]
    for name, choices in RANGES.items():
        expected = (64,) if name == "population_size" and preset == "small" else choices
        assert {each[name] for each in drawn} == set(expected), name
    assert all(type(value) in (int, float, str, bool) for each in drawn for value in each.values())


def test_a_draw_depends_on_seed_and_number_alone(tmp_path):
    assert draw(RlConfig(seed=7), 2) == draw(RlConfig(seed=7, tune=50, generations=9), 2)
    assert draw(RlConfig(seed=7), 2) != draw(RlConfig(seed=8), 2)
    assert draw(RlConfig(seed=2**40), 0) != draw(RlConfig(seed=0), 0)
    made(tmp_path / "few", Fake(), 2)
    made(tmp_path / "many", Fake(), 4)
    settings = [[row["settings"] for row in rows_in(tmp_path / name)] for name in ("few", "many")]
    assert settings[0] == settings[1][:2]


def test_what_was_drawn_is_known_for_good():
    """So that a queue that was begun under an older NumPy goes on with the same trials."""
    first = draw(RlConfig(seed=0), 0)
    assert first == PINNED, first


def test_openes_keeps_its_rank():
    assert {draw(RlConfig(algorithm="openes", rank=3), trial)["rank"] for trial in range(20)} == {3}


@pytest.mark.parametrize(
    ("command", "env", "flags"),
    [
        ("rl", "CartPole-v1", TINY),
        ("rl", "Humanoid", ["--target=-12.5", "--chunk-size", "4", "--max-seconds", "1e-3", "--preset", "paper"]),
        ("rl", "Pendulum-v1", ["--algorithm", "openes", "--track", "tensorboard", "--hidden", "4", "5"]),
        ("marl", "MPE_simple_spread_v3", ["--parameters", "own", "--common-random-numbers", "pair"]),
    ],
)
def test_the_command_makes_the_same_settings(command, env, flags):
    kind = KINDS[command]
    preset = "paper" if "paper" in flags else "small"
    algorithm = "openes" if "openes" in flags else "eggroll"
    base = parse(kind, command, flags, default=settings_for(kind, env, preset, algorithm))
    for trial in range(6):
        config = dataclasses.replace(base, **draw(base, trial))
        program, *words = shlex.split(command_line(config))
        assert (program, words[0]) == ("eggroll", command)
        assert words[1:3] == ["--env", env] and "--sigma" in words
        usual = settings_for(kind, env, preset, algorithm)
        assert parse(kind, command, words[1:], default=usual) == config


# ── the queue ──


def test_trials_one_after_the_other_and_the_best_one_told(tmp_path):
    home, train, lines = tmp_path / "queue", Fake(lambda number: [2.0, math.nan, 7.0, -1.0][number]), []
    summary, status = made(home, train, 4, lines=lines, render=tmp_path / "best.gif")
    assert status == 0 and summary["finished"]
    assert train.trained == [(0, False), (1, False), (2, False), (3, False), (2, True)]  # the last to draw the best
    assert (summary["best_trial"], summary["return"], summary["return_error"]) == (2, 7.0, 0.5)
    assert summary["rendered"] == str(tmp_path / "best.gif")
    assert (summary["trials"], summary["trials_finished"], summary["trials_failed"]) == (4, 4, 0)
    assert summary["settings"] == draw(tiny(None), 2) and summary["command"].startswith("eggroll rl --env CartPole-v1")
    assert sorted(path.name for path in (home / "trials").iterdir()) == ["000", "001", "002", "003"]
    heading = next(index for index, line in enumerate(lines) if "rate decay" in line)
    assert [line.split()[0] for line in lines[heading + 1 :]] == ["002", "000", "003", "001"]
    assert sum(line.startswith("trial 002 finished: 7.000 ± 0.500 from 1.000; ") for line in lines) == 1


def test_a_larger_number_adds_trials_and_makes_none_again(tmp_path):
    home = tmp_path / "queue"
    made(home, Fake(), 2)
    before = rows_in(home)
    train = Fake()
    summary, _ = made(home, train, 4, resume=True)
    assert train.trained == [(2, False), (3, False)]
    assert rows_in(home)[:2] == before and len(rows_in(home)) == 4 and summary["best_trial"] == 3
    base = recorded_base(home, RlConfig, "rl")
    assert base is not None and base.tune == 4 and base.hidden == (8,)


def test_a_stopped_trial_ends_the_queue_and_goes_on_first(tmp_path):
    home, lines = tmp_path / "queue", []
    summary, status = made(home, Fake(stop_at=1), lines=lines)
    assert status == 130 and not summary["finished"] and summary["best_trial"] == 0
    assert [row["status"] for row in rows_in(home)] == ["finished", "unfinished"]
    assert lines[-1].split()[:2] == ["001", "unfinished"]
    train = Fake()
    summary, status = made(home, train, resume=True)
    assert train.trained == [(1, True), (2, False)] and status == 0 and summary["trials_finished"] == 3
    again = Fake()
    assert made(home, again, resume=True)[0]["best_trial"] == 2 and again.trained == []


@pytest.mark.parametrize("where", ["settings", "run"])
def test_a_failing_trial_is_recorded_and_the_queue_goes_on(tmp_path, monkeypatch, where):
    home, lines = tmp_path / "queue", []

    def value(number):
        if where == "run" and number == 1:
            raise ValueError("expected better settings,\ngot these; draw others")
        return float(number)

    if where == "settings":
        drawn = draws.draw
        refused = lambda config, number: drawn(config, number) | ({"sigma": -1.0} if number == 1 else {})
        monkeypatch.setattr("eggroll.rl.tune.draw", refused)
    summary, status = made(home, Fake(value), lines=lines)
    said = "expected --sigma > 0 and finite, got -1.0; change it"
    said = "expected better settings, got these; draw others" if where == "run" else said
    assert status == 0 and (summary["trials_finished"], summary["trials_failed"]) == (2, 1)
    row = rows_in(home)[1]
    assert row["status"] == "failed" and row["reason"] == said and f"trial 001 failed: {said}" in lines
    assert lines[-1].split()[:2] == ["001", "failed"]


def test_nothing_but_failures_is_an_error(tmp_path):
    def value(number):
        raise ValueError("expected other settings")

    with pytest.raises(UsageError, match="got 3 that failed, the first as: expected other settings"):
        made(tmp_path / "queue", Fake(value))
    assert {row["status"] for row in rows_in(tmp_path / "queue")} == {"failed"}


def test_a_fault_of_the_disk_is_none_of_the_settings(tmp_path):
    def value(number):
        raise RunError("expected to write")

    with pytest.raises(RunError, match="expected to write"):
        made(tmp_path / "queue", Fake(value))


@pytest.mark.parametrize("change", [{"generations": 3}, {"seed": 1}, {"max_seconds": 5.0}, {"hidden": (4,)}])
def test_other_settings_are_refused(tmp_path, change):
    home, train = tmp_path / "queue", Fake()
    made(home, train, 1)
    before = (home / "tune.json").read_bytes()
    with pytest.raises(RunError, match=rf"tune.json records, got {next(iter(change))} .* → .*; leave these flags out"):
        made(home, train, 2, resume=True, **change)
    assert len(train.trained) == 1 and (home / "tune.json").read_bytes() == before
    made(home, train, 2, resume=True, log_every=1)
    assert len(train.trained) == 2


def test_what_cannot_be_tuned_is_refused_before_anything_is_written(tmp_path):
    home = tmp_path / "queue"
    for settings, said in [
        ({"algorithm": "ppo"}, "got ppo"),
        ({"listen": "127.0.0.1:0", "workers": 1}, "in one process"),
        ({"coordinator": "auto"}, "in one process"),
        ({"env": "Nowhere-v9"}, "Nowhere-v9"),
    ]:
        with pytest.raises(UsageError, match=said):
            made(home, Fake(), **settings)
    assert not home.exists()
    home.mkdir()
    with pytest.raises(RunError, match="choose another --run-dir"):
        made(home, Fake())
    with pytest.raises(RunError, match=r"readable tune\.json"):
        made(home, Fake(), resume=True)


def test_damaged_and_foreign_folders(tmp_path):
    home = tmp_path / "queue"
    assert recorded_base(home, RlConfig, "rl") is None
    made(home, Fake(), 1)
    with pytest.raises(RunError, match="of another job"):
        recorded_base(home, MarlConfig, "marl")
    for text in ("{}", '{"settings": {}, "tune": "many"}', '{"settings": 3, "tune": 3}', "[", '{"tune": 1}'):
        (home / "tune.json").write_text(text)
        with pytest.raises(RunError):
            recorded_base(home, RlConfig, "rl")


def test_the_table_stands_in_order_whatever_is_in_it():
    settings = draw(RlConfig(), 0)
    rows = [{"trial": number, "status": "finished", "settings": settings} for number in range(5)]
    for row, value in zip(rows, (1.0, -math.inf, math.inf, math.nan, 2.0), strict=True):
        row |= {"return": value, "return_error": 0.0, "start_return": 0.0}
    rows += [{"trial": 5, "status": "failed", "settings": settings}]
    assert [row["trial"] for row in best_first(rows)] == [2, 4, 0, 1, 3, 5]
    assert [line.split()[0] for line in table(rows)[-6:]] == ["002", "004", "000", "001", "003", "005"]
    assert len(table(rows)) == 7 and not any("…" in line for line in table(rows))


# ── by the command, with real runs ──


def test_stopped_by_ctrl_c_and_gone_on_with_is_as_uninterrupted(tmp_path, monkeypatch, capsys):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    made(whole, Fake(lambda number: -1.0), 1, devices=1, chunk_size=8)  # trial 0 is there; 1 is for real
    assert main(["rl", "--resume", "--tune", "2", "--run-dir", str(whole), *TINY]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["finished"] and told["trials_finished"] == 2 and told["run_dir"] == str(whole)

    shutil.copytree(whole, stopped)  # as it stood between the trials
    shutil.rmtree(stopped / "trials" / "001")
    RunFolder(stopped).write_json("tuned.json", {"trials": rows_in(whole)[:1]})

    def stop(loop, received, stopping=Loop.stopping):
        if loop.generation == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return stopping(loop, received)

    go_on = ["rl", "--resume", "--run-dir", str(stopped)]
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "stopping", stop)
        assert main(go_on) == 130
    assert not json.loads(capsys.readouterr().out)["finished"]
    assert json.loads((stopped / "trials" / "001" / "summary.json").read_text())["generations"] == 1
    assert main(go_on) == 0
    again = json.loads(capsys.readouterr().out)

    for key in ("best_trial", "return", "return_error", "settings", "command", "trials_finished"):
        assert again[key] == told[key], key
    rows = [[{**row, "seconds": 0} for row in rows_in(home)] for home in (whole, stopped)]
    assert rows[0] == rows[1]
    journals = [Path(home, "trials", "001", "journal.egg").read_bytes() for home in (whole, stopped)]
    assert journals[0] == journals[1]
    assert main([*go_on, "--generations", "3"]) == 2
    assert "generations 2 → 3" in capsys.readouterr().err
