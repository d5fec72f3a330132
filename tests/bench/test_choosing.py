"""The benchmark of settings trains as the library does, spends the same on every point, goes on, and draws."""

import json
import types
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eggroll
from tests.scripts import load


@pytest.fixture(scope="module")
def choosing() -> types.ModuleType:
    load("benchmarks/choosing_tasks.py")
    load("benchmarks/choosing_references.py")
    module = load("benchmarks/choosing.py")
    load("benchmarks/choosing_tables.py")
    load("benchmarks/choosing_figures.py")
    return module


def made_up(choosing: types.ModuleType, file: Path) -> int:
    """Results for every point, and how many there are."""
    lines = {}
    for name, task in choosing.TASKS.items():
        for place, (_, setting) in enumerate(choosing.points(task)):
            curve = [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6 + place / 1000]]
            lines[choosing.key_of(name, setting)] = {"generations": [0, 5], "scores": curve}
        lines[f"times {name}"] = {"times": {str(rank): 1.0 + rank for rank in choosing.RANKS[name]}, "jax": "x"}
    lines[choosing.REFERENCES] = {
        "rates": [0.1, 0.3],
        "updates": 5,
        "scores": [[0.7, 0.8], [0.8, 0.9]],
        "rank 1": {"unanswered": [0, 2], "scores": [0.9, 0.7]},
    }
    with file.open("w") as stream:
        for key, line in lines.items():
            stream.write(json.dumps({"key": key, **line}) + "\n")
        stream.write('{"key": "torn')
    return len(lines)


@pytest.mark.parametrize("name", ["digits", pytest.param("pendulum", marks=pytest.mark.heavy)])
def test_a_point_is_what_the_library_does(choosing: types.ModuleType, name: str) -> None:
    """Against `es.step` with plain settings, generation by generation, for each seed alone."""
    task = choosing.TASKS[name]
    setting = task.base._replace(population=8, group=4, share=2, rate=0.1)
    scale = choosing.Scale(seeds=2, share_of_budget=24 / task.budget * 2 / task.base.share)
    found = choosing.measure(task, setting, scale)
    assert found["generations"] == [0, 1, 2, 3]
    es = eggroll.EvolutionStrategy(
        optax.adam(0.1),
        population_size=8,
        sigma=setting.sigma,
        distribution=choosing.distribution(setting, task.init(0)),
        shaping=setting.shaping,
        group_size=4,
    )
    fitness = choosing.fitness_of(task, setting)
    seed = 1
    state = es.init(task.init(seed))._replace(seed=jnp.array([seed, 1], jnp.int32))
    scores = [float(task.score(seed, state.params))]
    for _ in range(3):
        state, _ = es.step(state, fitness, *task.data(seed, state.generation, setting))
        scores.append(float(task.score(seed, state.params)))
    np.testing.assert_allclose(np.array(found["scores"])[:, seed], scores, rtol=1e-3, atol=1e-4)
    assert len(set(scores)) > 1


def test_every_point_of_a_task_costs_the_same(choosing: types.ModuleType) -> None:
    for task in choosing.TASKS.values():
        cost = task.budget * task.base.share
        for _, setting in choosing.points(task):
            spent = choosing.Scale().generations(task, setting) * setting.population * setting.share
            assert spent == pytest.approx(cost, rel=0.05), setting
            assert setting.population % setting.group == 0


def test_backpropagation_learns_and_repeats(choosing: types.ModuleType) -> None:
    task = choosing.TASKS["digits"]
    task = task._replace(base=task.base._replace(population=4, group=2, share=16))
    found = choosing.backpropagation(task, 2, 30, (0.0, 0.03))
    start, end = np.array(found["scores"])
    assert found["updates"] == 30 and start.shape == (2,)
    np.testing.assert_allclose(start, [task.score(seed, task.init(seed)) for seed in range(2)], atol=1e-4)
    assert (end > start + 0.3).all()


def test_a_class_that_is_never_answered_is_counted(choosing: types.ModuleType) -> None:
    params = choosing.TASKS["digits"].init(0)
    whole = choosing.unanswered_of(stacked(params), 1)[0]
    last = params[-1] | {"kernel": 0 * params[-1]["kernel"], "bias": jnp.eye(10)[3]}
    assert 0 <= whole < 9 and choosing.unanswered_of(stacked([*params[:-1], last]), 1) == [9]


def stacked(params: Any) -> Any:
    """Of one seed."""
    return jax.tree.map(lambda leaf: leaf[None], params)


@pytest.mark.parametrize("schedule", ["constant", "rate falls", "sigma falls", "both fall"])
def test_schedules_end_at_a_tenth(choosing: types.ModuleType, schedule: str) -> None:
    assert choosing.at(schedule, 0.0) == (1.0, 1.0)
    falls = {"sigma falls": (0.1, 1.0), "rate falls": (1.0, 0.1), "both fall": (0.1, 0.1)}.get(schedule, (1.0, 1.0))
    assert choosing.at(schedule, 1.0) == pytest.approx(falls)


def test_a_finished_benchmark_measures_nothing_more(choosing: types.ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    made_up(choosing, file)
    before = file.read_bytes()
    choosing.run(tmp_path, list(choosing.TASKS), choosing.Scale())
    assert file.read_bytes() == before


def test_figures_and_tables_of_all_studies(
    choosing: types.ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made_up(choosing, tmp_path / "results.jsonl")
    places = ["--out", str(tmp_path), "--figures", str(tmp_path / "figures"), "--json", str(tmp_path / "all.json")]
    choosing.main(["draw", *places])
    figures = {path.name: path.read_bytes() for path in (tmp_path / "figures").iterdir()}
    assert len(figures) == 6 and all(held[:4] == b"\x89PNG" for held in figures.values())
    kept = json.loads((tmp_path / "all.json").read_text())
    assert set(kept) == {*choosing.TASKS, "environment"} and kept["digits"]["times"]["1"] == 2.0
    choosing.main(["table", *places])
    told = capsys.readouterr().out
    assert "| 5 | 2048 | 0.5" in told
    assert "| rank 1 | 0.800 ± 0.100 (1) | 1 with 0, 1 with 2 |" in told and "0.750 ± 0.050 (0)" in told
    assert "nan" not in told and "–" not in told and "full rank (OpenES)" in told
    assert told.count("\n## ") + told.startswith("## ") == len(choosing.TASKS)
