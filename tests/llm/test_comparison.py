"""The report of fine-tuning: algorithms over seeds, each seed with a start model of its own."""

import json

import numpy as np
import pytest

from eggroll.cli import extras_of, main
from eggroll.llm.comparison import compared, settings_of
from eggroll.runs.report.history import read_run

GAIN = {"eggroll": 0.30, "grpo": 0.10}


def make_run(path, algorithm, seed, *, lines=20, seconds=1.0, told=None, **config):
    """A run whose accuracy rises from .2 + seed/100 by its gain, validated every fourth generation."""
    path.mkdir(parents=True)
    settings = {"job": "finetune", "task": "countdown", "task_options": '{"numbers": [3]}', "algorithm": algorithm}
    settings |= {"seed": seed, "model": f"start-{seed}", "run_dir": str(path)} | config
    (path / "config.json").write_text(json.dumps(settings))
    start, gain = 0.2 + seed / 100, GAIN.get(algorithm, 0.0) * (1 + seed / 10)
    rows = []
    for generation in range(lines):
        row = {"generation": generation, "fitness_mean": 0.1, "seconds": seconds}
        if generation % 4 == 3:
            row |= {"accuracy": start + gain * (generation + 1) / lines} | (told or {})
        rows.append(json.dumps(row))
    (path / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    summary = {"main_metric": "accuracy", "start_accuracy": start, "accuracy": start + gain, "generations": lines}
    (path / "summary.json").write_text(json.dumps(summary | {"seconds": lines * seconds, "peak_memory_bytes": 2**30}))
    return read_run(path, bins=64)


@pytest.fixture
def runs(tmp_path):
    return [make_run(tmp_path / f"{name}-{seed}", name, seed) for name in GAIN for seed in range(3)]


def test_seeds_with_starts_of_their_own_are_one_setting(runs):
    settings, labels = settings_of(runs)
    assert labels == ("eggroll", "grpo")
    assert [(one.label, len(one.runs)) for one in settings] == [("eggroll", 3), ("grpo", 3)]


def test_curve_is_mean_and_standard_error_along_seconds(runs):
    settings, _ = settings_of(runs)
    curve = settings[0].learned("accuracy")
    ends = np.array([0.2 + seed / 100 + 0.3 * (1 + seed / 10) for seed in range(3)])
    assert curve.mean.at.tolist() == [0, 4, 8, 12, 16, 20]
    assert curve.mean.value[0] == pytest.approx(0.21) and curve.mean.value[-1] == pytest.approx(ends.mean())
    assert curve.error[-1] == pytest.approx(ends.std(ddof=1) / 3**0.5)
    assert settings[0].learned("distinct_right") is None


def test_settings_of_one_algorithm_are_told_apart(tmp_path):
    runs = [
        make_run(tmp_path / f"{k}-{seed}", "eggroll", seed, pass_k=k, told={"distinct_right": 1.5})
        for k in (1, 4)
        for seed in (0, 1)
    ]
    settings, labels = settings_of(runs)
    assert labels == ("eggroll, pass_k 1", "eggroll, pass_k 4") and [len(one.runs) for one in settings] == [2, 2]
    page = str(compared(runs).sections[0][1])
    assert "distinct right answers" in page and "held-out accuracy" in page


def test_automatic_algorithm_is_named_by_what_learned(tmp_path):
    runs = [make_run(tmp_path / "a", "auto", 0, model="tiny"), make_run(tmp_path / "b", "auto", 0, model="runs/a")]
    assert settings_of(runs)[1] == ("eggroll", "supervised")


def test_page_and_picture(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["report", *(str(run.path) for run in runs), "--png", "curves.png"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (tmp_path / told["finetune_png"]).read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "report.html").read_text()
    assert "Held-out accuracy against wall-clock time" in page
    assert "3 of 3" in page and "1 GiB" in page


def test_runs_that_say_nothing(tmp_path):
    path = tmp_path / "bare"
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"job": "finetune", "algorithm": 7, "task": None}))
    (path / "metrics.jsonl").write_text('{"generation": 0, "accuracy": "high"}\n')
    (extra,) = extras_of([read_run(path, bins=64)])
    assert "no validations" in str(extra.sections[0][1]) and extra.picture is None
