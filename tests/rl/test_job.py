"""`eggroll rl` and `eggroll marl` from flags to run folder, with environments of a few lines."""

import itertools
import json
import os
import re
import signal
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from eggroll import cli
from eggroll.rl import parts
from eggroll.rl.baselines.settings import PpoSettings
from eggroll.rl.config import RlConfig
from eggroll.rl.job import worker_job
from eggroll.rl.parts import make_algorithm, make_job, with_chunk
from eggroll.rl.population import range_work
from eggroll.runs import snapshots
from eggroll.runs.environment import environment
from eggroll.runs.folder import RunFolder
from eggroll.runs.journal import Journal
from eggroll.runs.metrics import MetricsFile
from eggroll.runs.trees import as_arrays
from tests import compiled
from tests.heavy import heavy_but
from tests.rl import tiny
from tests.runs.killed import killed as as_killed
from tests.runs.test_loop import metrics, without_times

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of rejax and JaxMARL, while they are imported
    import eggroll.rl.baselines.ppo  # noqa: F401

SMALL = [
    "--hidden=8", "--population-size=8", "--generations=4", "--validation-episodes=4", "--episode-length=10",
    "--validate-every=2", "--target=1e9", "--snapshot-every=2", "--chunk-size=8", "--sigma=0.3",
]  # fmt: skip
TINY_PPO = PpoSettings(num_envs=4, num_steps=8, num_epochs=2, num_minibatches=2, hidden=(8,))


@pytest.fixture(scope="module", autouse=True)
def programs(tmp_path_factory):
    """Runs of the same settings share their compiled programs."""
    with compiled.kept_in(tmp_path_factory.mktemp("programs")):
        yield


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("eggroll.rl.strategy.make", tiny.make)
    monkeypatch.setattr(parts, "baseline_settings", lambda config: TINY_PPO)


def main(*flags, command="rl"):
    return cli.main([command, *([] if "--resume" in flags else SMALL), *flags])


def killed(monkeypatch, *flags, at=2, count=1, command="rl"):
    """A run that ends before the metrics of generation `at` are on the disk, when `count` runs are there."""
    as_killed(monkeypatch, lambda: main(*flags, command=command), at, count)


def end_of(path):
    """Journal and last snapshot, to the bit."""
    folder = RunFolder.open(Path(path))
    generation, tree = snapshots.load(folder)
    arrays = {name: leaf.tobytes() for name, leaf in sorted(as_arrays(tree).items())}
    with Journal.open(folder.journal) as journal:
        records = [journal.record(g) for g in range(journal.generations)]
    return generation, arrays, [(r.weights.tobytes(), r.lost, r.shared) for r in records]


def lines_of(path):
    return [
        {name: value for name, value in line.items() if not name.endswith("_per_second")}
        for line in without_times(metrics(RunFolder.open(Path(path))))
    ]


def closing(capsys):
    out, err = capsys.readouterr()
    return json.loads(out.splitlines()[-1]), err


# ── a run ──

KINDS = {
    "plain": (),
    "normalised": ("--normalize-observations",),
    "continuous": ("--env=Pendulum-v1", "--optimizer=sgd", "--episodes=2", "--common-random-numbers=pair"),
    "openes": ("--algorithm=openes",),
    "ppo": ("--algorithm=ppo",),
    "shared": ("--env=MPE_simple_spread_v3",),
    "own": ("--env=MPE_simple_spread_v3", "--parameters=own"),
}


@pytest.mark.parametrize("kind", heavy_but(("plain", "ppo"), KINDS))
def test_a_run_leaves_its_folder_and_goes_on_to_the_same_bits(kind, capsys, monkeypatch):
    flags, command = KINDS[kind], "marl" if kind in ("shared", "own") else "rl"
    assert main(*flags, "--run-dir=whole", command=command) == 0
    summary, err = closing(capsys)
    whole = RunFolder.open(Path("whole"))
    assert summary == whole.read_json("summary.json")
    generations = summary["generations"]
    assert summary["finished"] and summary["job"] == command and generations == 4
    assert {"return", "return_error", "start_return", "parameters", "algorithm", "environment"} <= summary.keys()
    lines = metrics(whole)
    assert [line["generation"] for line in lines] == list(range(generations))
    assert ["return" in line for line in lines] == [False, True, False, True]
    assert np.cumsum([line["generation_steps"] for line in lines]).tolist() == [
        line["environment_steps"] for line in lines
    ]
    assert {"config.json", "metrics.jsonl", "journal.egg", "snapshots", "summary.json"} <= {
        path.name for path in Path("whole").iterdir()
    }
    assert len(err.splitlines()) == 1 and f"{summary['environment']}: " in err
    killed(monkeypatch, *flags, "--run-dir=run", at=1, command=command)
    assert not Path("run/summary.json").exists()
    killed(monkeypatch, "--resume", "--run-dir=run", at=3, command=command)
    assert main("--resume", "--run-dir=run", command=command) == 0
    again, _ = closing(capsys)
    assert again["return"] == summary["return"] and again["resumed_at"] == 2
    assert end_of("run") == end_of("whole")
    for one, other in zip(lines_of("run"), lines_of("whole"), strict=True):
        told = {name: value for name, value in one.items() if name != "replayed"}
        assert told.items() <= other.items() and ("replayed" in one or told.keys() == other.keys())


def test_an_interrupt_saves_what_there_is(capsys, monkeypatch):
    append = MetricsFile.append

    def stop(self, line):
        append(self, line)
        if line["generation"] == 0:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(MetricsFile, "append", stop)
        assert main("--run-dir=run", "--normalize-observations") == 130
    summary, _ = closing(capsys)
    assert not summary["finished"] and summary["generations"] == 2
    assert main("--resume", "--run-dir=run") == 0
    assert main("--run-dir=whole", "--normalize-observations") == 0
    assert end_of("run") == end_of("whole")


def test_a_finished_run_is_told_again(capsys):
    assert main("--run-dir=run") == 0
    first, _ = closing(capsys)
    assert main("--resume", "--run-dir=run") == 0
    again, err = closing(capsys)
    assert again == first and "is finished, after 4 generations" in err


@pytest.mark.parametrize("kind", ["normalised", "own"])
def test_replay_verifies_the_snapshots(kind, capsys):
    assert main(*KINDS[kind], "--run-dir=run", command="marl" if kind == "own" else "rl") == 0
    capsys.readouterr()
    assert cli.main(["replay", "run"]) == 0
    told, _ = closing(capsys)
    assert told["generation"] == 4 and told["verified"] and not told["differing"], told


def test_a_rendered_episode_can_be_read(capsys):
    assert main("--render=episode.gif", "--run-dir=run") == 0
    summary, _ = closing(capsys)
    assert summary["rendered"] == "episode.gif"
    with Image.open("episode.gif") as picture:
        assert picture.n_frames > 1 and picture.size == (6, 4)
    first = Path("episode.gif").read_bytes()
    assert main("--resume", "--run-dir=run", "--render=again.gif") == 0  # of a finished run, from its journal
    assert Path("again.gif").read_bytes() == first


def test_a_target_ends_it_early(capsys):
    assert main("--target=-1000", "--run-dir=run") == 0
    summary, _ = closing(capsys)
    assert summary["finished"] and summary["generations"] == 2 and summary["target"] == -1000
    assert main("--resume", "--run-dir=run") == 0
    again, err = closing(capsys)
    assert again == summary and "is finished" in err
    assert main("--resume", "--run-dir=run", "--target=1000") == 0
    assert closing(capsys)[0]["generations"] == 4


# ── several seeds ──


def close(one, other):
    (g, a, w), (h, b, v) = end_of(one), end_of(other)
    assert g == h and len(w) == len(v)
    for (x, *_), (y, *_) in zip(w, v, strict=True):
        np.testing.assert_allclose(np.frombuffer(x, np.float32), np.frombuffer(y, np.float32), rtol=1e-3, atol=1e-4)
    for name in a:
        if name.startswith("parameters"):
            ours, theirs = (np.frombuffer(each[name], np.float32) for each in (a, b))
            np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", heavy_but(("normalised",), ("normalised", "ppo")))
def test_seeds_by_one_program_are_single_runs(kind, capsys, monkeypatch):
    flags = KINDS[kind]
    assert main(*flags, "--seeds=3", "--seed=5", "--run-dir=whole") == 0
    summary, err = closing(capsys)
    assert summary["seeds"] == 3 and summary["finished"] and summary["generations"] == [4, 4, 4]
    assert summary["return"] == pytest.approx(np.mean(summary["returns"]))
    assert "seeds 5 to 7 in whole" in err
    for seed in (5, 7) if kind != "ppo" else ():  # a baseline's minibatches make much of a rounding
        assert main(*flags, f"--seed={seed}", f"--run-dir=alone-{seed}", "--devices=1") == 0
        close(f"whole/seed-{seed}", f"alone-{seed}")
        assert closing(capsys)[0]["return"] == pytest.approx(summary["returns"][seed - 5], rel=1e-3)
    killed(monkeypatch, *flags, "--seeds=3", "--seed=5", "--run-dir=run", at=2, count=2)
    assert main("--resume", "--run-dir=run") == 0
    again, err = closing(capsys)
    assert again["returns"] == summary["returns"] and "going on with 3 seeds" in err
    for seed in (5, 6, 7):
        assert end_of(f"run/seed-{seed}") == end_of(f"whole/seed-{seed}")
    assert main("--resume", "--run-dir=run", "--seeds=3") == 0
    assert closing(capsys)[0]["returns"] == summary["returns"]


# ── a fleet ──


@pytest.mark.parametrize("settings", [{"normalize_observations": True}, {"algorithm": "openes", "episodes": 2}])
def test_parts_of_a_fleet_come_to_the_whole(settings):
    cuts = (0, 3, 6, 8)
    config = RlConfig(hidden=(8,), population_size=16, chunk_size=16, devices=1, episode_length=8, **settings)
    config, algorithm = with_chunk(config, make_algorithm(config))
    job = make_job(config, algorithm)
    built = worker_job({"header": json.loads(json.dumps(job.header(environment())))})
    own = range_work(algorithm.es, config, algorithm.fitness)
    state = job.start()
    jax.tree.map(np.testing.assert_array_equal, built.learner.parameters, state.parameters)
    for generation in range(2):
        spans = [(a, b - a) for a, b in itertools.pairwise(cuts)]
        found = [built.work.evaluate(state, generation, *span) for span in spans]
        values, tallies = np.concatenate([part.values for part in found]), [part.tally for part in found]
        combined = own.combine(values, tallies, state, generation)
        whole = job.evaluate(state, generation)
        np.testing.assert_allclose(combined.weights, whole.weights, rtol=1e-3, atol=1e-4)
        assert combined.metrics == pytest.approx(whole.metrics, rel=1e-4, abs=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), combined.shared, whole.shared)
        parameters, optimizer, _ = job.learner.update(state.parameters, state.optimizer, whole.weights, generation)
        state = state._replace(parameters=parameters, optimizer=optimizer, shared=whole.shared)


# ── mistakes ──

BAD = {
    "unknown environment": "rl --env CartPool-v1",
    "unknown game": "marl --env chess",
    "a game of several for one": "rl --env Nowhere/x",
    "odd population": "rl --population-size 7",
    "policy that is not there": "rl --policy nowhere:net",
    "policy that is none": "rl --policy tests.rl.networks:number",
    "suffix of a picture": "rl --render episode.png",
    "ray with seeds": "rl --ray --workers 2 --seeds 2",
    "ray with a baseline": "rl --ray --workers 2 --algorithm ppo",
    "tune with seeds": "rl --tune 3 --seeds 2",
    "seeds of 0": "rl --seeds 0",
    "sigma of 0": "rl --sigma 0",
    "decay above 1": "rl --sigma-decay 1.5",
    "rank of 0": "rl --rank 0",
    "odd chunk": "rl --chunk-size 3",
    "devices that do not divide": "rl --population-size 8 --devices 3",
    "negative seconds": "rl --max-seconds -1",
    "target that is no number": "rl --target nan",
    "hidden of 0": "rl --hidden 0",
    "episode length": "rl --episode-length -1",
    "unknown algorithm": "rl --algorithm ippo",
    "unknown preset": "rl --preset huge",
    "ppo for a team": "marl --algorithm ppo",
    "seed": "rl --seed -1",
    "resume of nothing": "rl --resume --run-dir nowhere",
    "resume without a folder": "rl --resume",
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_leaves_nothing_behind(name, capsys):
    status = cli.main(BAD[name].split())
    out, err = capsys.readouterr()
    assert (status, out) == (2, ""), err
    assert re.fullmatch(r"eggroll( \w+)?: expected [^\n]+, got [^\n]+; [^\n]+\n", err), err
    assert not list(Path().iterdir())


def test_the_folder_of_another_job_is_refused(capsys):
    assert main("--run-dir=run") == 0
    capsys.readouterr()
    assert cli.main(["marl", "--resume", "--run-dir=run"]) == 2
    assert "expected the folder of eggroll marl, got run of another job" in capsys.readouterr().err
    assert cli.main(["rl", "--resume", "--run-dir=run", "--sigma=0.5"]) == 2
    assert "sigma 0.3 → 0.5" in capsys.readouterr().err
