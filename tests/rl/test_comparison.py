"""The comparison of algorithms of reinforcement learning: its numbers against NumPy, and its page against anything."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from eggroll.cli import extras_of, main
from eggroll.rl.comparison import compared
from eggroll.rl.comparison.curves import (
    improvement,
    learned,
    over_environments,
    ratios,
    scale_of,
)
from eggroll.rl.comparison.settings import environments
from eggroll.runs.report import ReportConfig, report
from eggroll.runs.report.charts import Curve
from eggroll.runs.report.history import read_run
from eggroll.runs.report.learning import MOST_POINTS, over_seeds
from tests.runs.test_report import EVIL, Page

ALGORITHMS = ("eggroll", "openes", "ppo")
GAIN = {"eggroll": 12.0, "openes": 7.0, "ppo": 10.0, "ippo": 10.0}
SECONDS = {"eggroll": 0.5, "openes": 2.0, "ppo": 1.0, "ippo": 1.0}
STEPS = 100
"""Environment steps of a generation."""


def make_run(
    path,
    env="CartPole-v1",
    algorithm="eggroll",
    seed=0,
    *,
    lines=20,
    gain=None,
    summary=True,
    job="rl",
    told=(),
    **config,
):
    """A run whose return rises from 5 by about `gain`, evaluated every fourth generation."""
    path.mkdir(parents=True)
    settings = {"job": job, "env": env, "algorithm": algorithm, "seed": seed, "run_dir": str(path)} | config
    (path / "config.json").write_text(json.dumps(settings))
    gain = GAIN.get(str(algorithm), 1.0) if gain is None else gain
    rows, last = [], None
    for generation in range(lines):
        steps = STEPS * (generation + 1)
        row = {"generation": generation, "environment_steps": steps, "fitness_mean": float(generation)}
        row["seconds"] = 30.0 if generation < 2 else SECONDS.get(str(algorithm), 1.0) * (1 + 0.01 * generation)
        if generation % 4 == 3:
            last = 5.0 + gain * (generation + 1) / lines + 0.1 * seed * (1 + seed)
            row |= {"return": last, "return_error": 0.25}
        rows.append(json.dumps(row))
    (path / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    if summary:
        end = {
            "finished": True,
            "generations": lines,
            "seconds": 9.0,
            "start_return": 5.0 + 0.01 * seed,
            "return": last,
        }
        (path / "summary.json").write_text(json.dumps({"job": job} | end | dict(told)))
    return path


def make_all(root, envs=("CartPole-v1", "Acrobot-v1"), algorithms=ALGORITHMS, seeds=(0, 1, 2), **options):
    return [
        make_run(root / f"{place}-{algorithm}-{seed}", env, algorithm, seed, **options)
        for place, env in enumerate(envs)
        for algorithm in algorithms
        for seed in seeds
    ]


def read(paths):
    return environments([read_run(path, bins=64) for path in paths])


def page_of(tmp_path, *paths, **options):
    out = tmp_path / "out" / "report.html"
    report(ReportConfig(tuple(paths), out, **options), extras_of)
    return Page(out)


def test_ppo_ends_at_one_exactly(tmp_path):
    found, labels = read(make_all(tmp_path, seeds=range(9)))
    assert labels == ALGORITHMS
    for environment in found:
        scale, why = scale_of(environment)
        curve = scale.of(learned(environment.first("ppo"), "steps"))
        assert why == "" and curve.mean.value[0] == 0.0 and curve.mean.value[-1] == 1.0
        assert len(curve.seeds) == 9
    overall, count = over_environments(found, labels.index("ppo"))
    assert count == 2 and overall.mean.at[-1] == 1.0 and overall.mean.value[-1] == 1.0


def test_the_overall_curve_is_the_mean_over_environments(tmp_path):
    gains = {"a": 6.0, "b": 14.0, "c": 11.0}
    paths = [make_run(tmp_path / f"{env}-p", env, "ppo") for env in gains]
    paths += [make_run(tmp_path / f"{env}-e", env, "eggroll", gain=gain) for env, gain in gains.items()]
    found, _ = read(paths)
    overall, count = over_environments(found, 0)
    ends = np.array(list(gains.values())) / GAIN["ppo"]
    assert count == 3 and overall.mean.value[-1] == pytest.approx(ends.mean())
    assert overall.error[-1] == pytest.approx(ends.std(ddof=1) / math.sqrt(3))


def test_a_shorter_run_has_its_share_of_the_budget(tmp_path):
    paths = [make_run(tmp_path / "p", algorithm="ppo"), make_run(tmp_path / "e", lines=12, summary=False)]
    found, _ = read(paths)
    assert over_environments(found, 0)[0].mean.at[-1] == pytest.approx(0.6)


def test_standard_error_over_seeds(tmp_path):
    (environment,), _ = read(make_all(tmp_path, envs=["CartPole-v1"]))
    curve = learned(environment.first("openes"), "steps")
    np.testing.assert_array_equal(curve.mean.at, [0, 400, 800, 1200, 1600, 2000])
    values = np.stack([one.value for one in curve.seeds])
    np.testing.assert_allclose(curve.mean.value, values.mean(0))
    np.testing.assert_allclose(curve.error, values.std(0, ddof=1) / math.sqrt(3))
    rises = np.array([one.final - one.start for one in environment.first("openes").trials])
    mean, error = improvement(environment.first("openes"))
    assert mean == pytest.approx(rises.mean()) and error == pytest.approx(rises.std(ddof=1) / math.sqrt(3))


def test_interpolation_is_exact_on_the_points_and_stays_where_all_have_values():
    first = Curve(np.array([0.0, 3.0, 10.0]), np.array([0.1, 0.7, 0.3]))
    second = Curve(np.array([1.0, 3.0, 7.0]), np.array([5.3, 1.1, 2.9]))
    both = over_seeds([first, second])
    np.testing.assert_array_equal(both.mean.at, [1, 3, 7])
    assert both.seeds[0].value[1] == 0.7 and list(both.seeds[1].value) == [5.3, 1.1, 2.9]
    np.testing.assert_allclose(both.seeds[0].value[[0, 2]], [0.3, 0.7 - 0.4 * 4 / 7])
    apart = Curve(np.array([20.0]), np.array([1.0]))
    assert over_seeds([first, apart]) is None and over_seeds([]) is None
    long = Curve(np.linspace(0, 1, 999), np.linspace(0, 1, 999) ** 2)
    thin = over_seeds([long])
    assert len(thin.mean.at) == MOST_POINTS and thin.mean.value[-1] == 1.0 and thin.error is None


def test_wall_clock_counts_every_generation(tmp_path):
    (environment,), _ = read([make_run(tmp_path / "run")])
    seconds = np.cumsum([30.0, 30.0, *(0.5 * (1 + 0.01 * generation) for generation in range(2, 20))])
    np.testing.assert_allclose(learned(environment.settings[0], "seconds").mean.at, [0, *seconds[3::4]])


def test_bars_are_ratios_of_medians(tmp_path):
    timed = {"generation_seconds": [4.0, 1.0, 3.0, float("nan"), -1, "9"]}
    paths = [make_run(tmp_path / "e"), make_run(tmp_path / "o", algorithm="openes", told=timed)]
    (environment,), _ = read(paths)
    (ratio,) = ratios(environment)
    ours = np.quantile(0.5 * (1 + 0.01 * np.arange(2, 20)), (0.25, 0.5, 0.75))
    assert ratio.median == pytest.approx(3.0 / ours[1])
    assert (ratio.low, ratio.high) == pytest.approx((2.0 / ours[2], 3.5 / ours[0]))


def test_a_page_of_all_of_it(tmp_path):
    png = tmp_path / "pictures" / "all.png"
    page = page_of(tmp_path, *make_all(tmp_path / "runs"), png=png)
    for title in ("relative to PPO", "Speed relative to OpenES", "environment steps", "wall-clock time"):
        assert title in page.text
    assert "CartPole-v1: normalised return over environment steps: eggroll from 0" in page.source
    assert "eggroll 4 × in the geometric mean of 2" in page.text and 'stroke-dasharray="' in page.source
    assert "n = 3" in page.text and "not normalised" not in page.text
    written = sorted(file.name for file in png.parent.iterdir())
    assert written == ["all-rl.png", "all.png"]
    assert all((png.parent / name).read_bytes().startswith(b"\x89PNG\r\n\x1a\n") for name in written)


def test_the_command_adds_it_to_its_own_jobs_alone(tmp_path, capsys):
    paths = make_all(tmp_path / "runs", envs=["MPE"], algorithms=("eggroll", "ippo"), seeds=[0], job="marl")
    other = make_run(tmp_path / "other", job="toy")
    out = tmp_path / "a.html"
    assert main(["report", *map(str, [*paths, other]), "--out", str(out), "--png", str(tmp_path / "a.png")]) == 0
    assert json.loads(capsys.readouterr().out)["rl_png"] == str(tmp_path / "a-rl.png")
    comparison = Page(out).text.split(" Runs ")[0]
    assert "Return relative to PPO" in comparison and "CartPole" not in comparison
    assert main(["report", str(other), "--out", str(out)]) == 0
    assert "relative to PPO" not in Page(out).text


def test_why_an_environment_is_not_normalised(tmp_path):
    paths = [
        make_run(tmp_path / "a", "a", "eggroll"),
        make_run(tmp_path / "b", "b", "ppo", gain=0.2),
        make_run(tmp_path / "c", "c", "ppo", told={"start_return": None}),
        make_run(tmp_path / "d", "d", "ppo", gain=0.5),
    ]
    found, _ = read(paths)
    why = [scale_of(environment) for environment in found]
    assert [scale is None for scale, _ in why] == [True, True, True, False]
    assert ["no run" in why[0][1], "did not improve" in why[1][1], "not known" in why[2][1]] == [True] * 3
    assert why[3][1] == "PPO improved by only 2.0 standard errors"
    assert "return, not normalised: no run of PPO" in page_of(tmp_path, *paths).text
    text = page_of(tmp_path, *paths[:2]).text
    assert "No environment can be normalised by PPO" in text and "a: no run of PPO" in text


def test_runs_that_are_not_finished(tmp_path):
    paths = make_all(tmp_path / "runs", envs=["CartPole-v1"])
    (paths[-1] / "summary.json").unlink()
    for torn in paths[:3]:
        (torn / "summary.json").unlink()
    (environment,), _ = read(paths)
    assert len(environment.first("ppo").counted) == 2 and len(environment.first("eggroll").counted) == 3
    assert scale_of(environment)[0].end == np.mean([15.0, 15.2])
    text = page_of(tmp_path, *paths).text
    assert "n = 2, 1 not finished" in text and "n = 3, 3 not finished" in text


def test_a_diverged_run_is_not_its_last_good_return(tmp_path):
    paths = [make_run(tmp_path / "run", told={"return": float("nan")}), make_run(tmp_path / "p", algorithm="ppo")]
    (environment,), _ = read(paths)
    assert environment.first("eggroll").trials[0].final is None
    assert "run: 1 returns are no finite number" in page_of(tmp_path, *paths).text


def test_settings_of_one_algorithm_are_told_apart(tmp_path):
    paths = [make_run(tmp_path / f"r{rank}-{seed}", seed=seed, rank=rank) for rank in (1, 4) for seed in (0, 1)]
    many = {"b": 2, "c": 3, "d": 4, "e": 5}
    paths += [make_run(tmp_path / "twice", algorithm="ppo"), make_run(tmp_path / "again", algorithm="ppo")]
    paths += [make_run(tmp_path / "o", algorithm="openes"), make_run(tmp_path / "p", algorithm="openes", **many)]
    _, labels = read(paths)
    assert labels == ("eggroll, rank 1", "eggroll, rank 4", "openes", "openes (2)", "ppo", "ppo (2)")
    assert "several settings of PPO; the first is the scale" in page_of(tmp_path, *paths).text


@pytest.mark.parametrize("metrics", ["", "x\n", '{"generation": 0}\n', '{"generation": 3, "return": NaN}\n'])
def test_runs_without_returns(tmp_path, metrics):
    path = make_run(tmp_path / "run", summary=False)
    (path / "metrics.jsonl").write_text(metrics)
    text = page_of(
        tmp_path, path, make_run(tmp_path / "ppo", algorithm="ppo"), png=tmp_path / "pictures" / "a.png"
    ).text
    assert "n = 0, 1 not finished" in text
    assert "There are no returns to draw yet" in page_of(tmp_path, path).text


@pytest.mark.parametrize("value", [EVIL, "<script>alert(1)</script>", "$x$", 7, None, ["a"], {"a": 1}])
def test_names_stay_text(tmp_path, value):
    paths = [
        make_run(tmp_path / "e", value, value),
        make_run(tmp_path / "o", value, "openes", setting=value),
        make_run(tmp_path / "f", value, "eggroll", told={"generation_seconds": value, "start_return": value}),
    ]
    row = {"generation": 5, "environment_steps": -3, "return": 1e60, "seconds": value, "return_error": value}
    with Path(paths[0] / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n" + json.dumps(row | {"environment_steps": 1e60, "seconds": -1}) + "\n")
    page = page_of(tmp_path, *paths, png=tmp_path / "pictures" / "a.png")
    assert "x-evil" not in page.tags and "script" not in page.tags


def test_many_environments_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("eggroll.rl.comparison.page.MOST_ENVIRONMENTS", 2)
    paths = make_all(tmp_path / "runs", envs="abc", algorithms=["ppo"], seeds=[0], lines=4)
    extra = compared([read_run(path, bins=16) for path in paths])
    assert "charts are of the first 2 of 3 environments" in extra.sections[2][1]


def test_in_a_browser(tmp_path, browser):
    paths = make_all(tmp_path / "runs", envs=("CartPole-v1", "craftax/Craftax-Classic-Symbolic-v1"), seeds=[0, 1])
    out = tmp_path / "report.html"
    report(ReportConfig(tuple(paths), out), extras_of)
    for width, dark in ((400, False), (400, True), (1600, False)):
        said, requests = browser.open(out.as_uri(), width=width, dark=dark)
        assert said == [] and requests == [out.as_uri()]
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        assert browser.evaluate("document.querySelector('section h2').textContent") == "Return relative to PPO"
        texts = "[...document.querySelectorAll('figure text')]"
        assert browser.evaluate(f"Math.min(...{texts}.map(t => t.getBoundingClientRect().height))") >= 10
        # No name beside the bars is cut off.
        inside = "t.getBoundingClientRect().left >= t.closest('svg').getBoundingClientRect().left"
        assert browser.evaluate(f"{texts}.every(t => {inside})")
        ink = browser.evaluate("getComputedStyle(document.querySelector('figure text')).fill")
        assert ink == browser.evaluate("getComputedStyle(document.body).color")
