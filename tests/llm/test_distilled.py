"""The report of distillation: teacher, rounded and distilled student over seeds with teachers of their own."""

import json

import numpy as np
import pytest

from eggroll.cli import extras_of, main
from eggroll.llm.distilled import compared
from eggroll.runs.report.history import read_run


def make_run(path, levels, seed, *, lines=20):
    """A run whose perplexity falls from 3 to 2.25 (of the teacher: 2), validated every fourth generation."""
    path.mkdir(parents=True)
    settings = {"job": "distill", "task": "countdown", "task_options": '{"numbers": [3]}', "levels": levels}
    settings |= {"seed": seed, "teacher": f"teacher-{seed}", "run_dir": str(path)}
    (path / "config.json").write_text(json.dumps(settings))
    rows = []
    for generation in range(lines):
        row = {"generation": generation, "fitness_mean": 0.1, "seconds": 1.0}
        if generation % 4 == 3:
            share = (generation + 1) / lines
            row |= {"perplexity": 3 - 0.75 * share, "kl": 0.4 - 0.3 * share, "accuracy": 0.2 + 0.1 * share}
        rows.append(json.dumps(row))
    (path / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    models = {"teacher_": (2.0, 0.35), "start_": (3.0, 0.2), "": (2.25 + seed / 100, 0.3)}
    told = {f"{prefix}{name}": value for prefix, pair in models.items()
            for name, value in zip(("perplexity", "accuracy"), pair, strict=True)}  # fmt: skip
    told |= {"start_kl": 0.4, "kl": 0.1, "gap_closed": 0.75 - seed / 100, "generations": lines, "seconds": 20.0}
    (path / "summary.json").write_text(json.dumps(told | {"main_metric": "perplexity"}))
    return read_run(path, bins=64)


@pytest.fixture
def runs(tmp_path):
    return [make_run(tmp_path / f"{levels}-{seed}", levels, seed) for levels in (7, 127) for seed in range(3)]


def test_table_has_all_three_models(runs):
    page = str(compared(runs).sections[1][1])
    assert page.count("levels ±7") == 3 == page.count("levels ±127")
    assert "3 of 3" in page and "0.74" in page
    assert f"2.2600 ± {np.std([2.25, 2.26, 2.27], ddof=1) / 3**0.5:.4f}" in page


def test_page_and_picture(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["report", *(str(run.path) for run in runs), "--png", "curves.png"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (tmp_path / told["distill_png"]).read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "report.html").read_text()
    assert "Student against teacher" in page and "held-out perplexity" in page and "held-out score" in page


def test_runs_that_say_nothing(tmp_path):
    path = tmp_path / "bare"
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"job": "distill", "levels": None, "task": 3}))
    (path / "metrics.jsonl").write_text('{"generation": 0, "perplexity": "high"}\n')
    (extra,) = extras_of([read_run(path, bins=64)])
    assert "no validations" in str(extra.sections[0][1]) and extra.picture is None
