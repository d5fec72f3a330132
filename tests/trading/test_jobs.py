"""`eggroll trade` from flags to run folder: pretraining, execution, generated days, the report."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from eggroll import cli
from eggroll.core.adapters import merge_lora
from eggroll.runs import snapshots
from eggroll.runs.environment import environment
from eggroll.runs.folder import RunFolder
from eggroll.runs.trees import as_arrays
from eggroll.trading import distributions, execute, pretrain
from eggroll.trading.config import ExecuteConfig, PretrainConfig
from eggroll.trading.lobster import read_book, read_messages
from tests import compiled
from tests.runs.killed import killed
from tests.runs.test_loop import metrics, without_times

MODEL = [
    "--width=8", "--layers=1", "--state=4", "--markets=2", "--held-out=1", "--market-messages=160", "--length=16",
    "--batch=4", "--generations=6", "--validate-every=3", "--snapshot-every=3", "--learning-rate=0.01",
]  # fmt: skip
EXECUTE = [
    "--model=model", "--quantity=60", "--decisions=2", "--interval=3", "--episodes=2", "--markets=3",
    "--population-size=8", "--generations=5", "--validate-every=3", "--snapshot-every=2", "--validation-episodes=4",
    "--lora-rank=2", "--chunk-size=4", "--devices=1", "--sigma=1", "--temperature=1",
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    """A folder with a pretrained model; runs of the same settings share their compiled programs."""
    place = tmp_path_factory.mktemp("trade")
    with compiled.kept_in(tmp_path_factory.mktemp("programs")), pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(distributions, "_BOOKS", 8)
        patch.setattr(distributions, "_MESSAGES", 250)
        assert cli.main(["trade", "pretrain", "--run-dir=model", *MODEL]) == 0
        yield place


@pytest.fixture(autouse=True)
def in_it(folder, monkeypatch):
    monkeypatch.chdir(folder)


def at_end(name):
    return as_arrays(snapshots.load(RunFolder.open(Path(name)), only="parameters")[1]["parameters"])


def same(one, other):
    assert one.keys() == other.keys() and all(np.array_equal(one[path], other[path]) for path in one)


def test_pretraining_lowers_perplexity_and_goes_on_and_replays_to_the_same_bits(monkeypatch, capsys):
    told = json.loads(Path("model/summary.json").read_text())
    assert told["nats_per_message"] < told["start_nats_per_message"]
    assert all(told[f"perplexity_{name}"] >= 1 for name in pretrain.TOLD)
    flows = json.loads(Path("model/distributions.json").read_text())
    assert set(flows["quantiles"]) == {"market", "model"} and Path("model/distributions.png").stat().st_size > 5000
    killed(monkeypatch, lambda: cli.main(["trade", "pretrain", "--run-dir=cut", *MODEL]), at=4)
    assert cli.main(["trade", "pretrain", "--run-dir=cut", "--resume"]) == 0
    same(at_end("model"), at_end("cut"))
    capsys.readouterr()
    assert cli.main(["replay", "model"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["differing"] == []


def test_execution_is_killed_and_goes_on_and_replays_to_the_same_bits(monkeypatch, capsys):
    assert cli.main(["trade", "execute", "--run-dir=whole", *EXECUTE]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    names = ("pnl", "pnl_variance", "start_pnl", "twap_pnl", "immediate_pnl", "over_twap", "over_twap_error")
    assert told["job"] == "trade-execute" and all(np.isfinite(told[name]) for name in names)
    killed(monkeypatch, lambda: cli.main(["trade", "execute", "--run-dir=half", *EXECUTE]), at=3)
    assert cli.main(["trade", "execute", "--run-dir=half", "--resume"]) == 0
    same(at_end("whole"), at_end("half"))
    lines = [
        [line | {"messages_per_second": 0} for line in metrics(RunFolder.open(Path(n)))] for n in ("whole", "half")
    ]
    both = zip(*map(without_times, lines), strict=True)
    assert all(one == other for one, other in both if "replayed" not in other)
    assert all(line["population_pnl_variance"] >= 0 for line in lines[0])
    capsys.readouterr()
    assert cli.main(["replay", "whole"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["differing"] == []
    merged, start = pretrain.load_model(Path("whole/model.safetensors"))[0], at_end("model")
    moved = [path for path, leaf in as_arrays(merged).items() if not np.array_equal(leaf, start[path])]
    assert moved and all(path.endswith("/kernel") for path in moved)  # state space, norms, embeddings stay
    page_of("whole", "model")
    episode = json.loads(Path("whole/episode.json").read_text())
    assert len(episode["model"]["bid"]) == 2 * 3 and episode["twap"]["left"][0] == 30


def page_of(*runs):
    assert cli.main(["report", *runs, "--out=page.html"]) == 0
    page = Path("page.html").read_text()
    assert all(title in page for title in ("Order execution", "An episode", "A model of messages", "over TWAP"))


@pytest.mark.heavy
def test_ranges_of_the_population_are_the_population():
    _, made = execute.prepared(cli.parse(ExecuteConfig, "trade execute", EXECUTE))
    state = made.job.start()
    whole = made.job.evaluate(state, 2)
    built = execute.worker_job({"header": made.job.header(environment())})
    parts = [built.work.evaluate(state, 2, first, pairs) for first, pairs in ((0, 2), (2, 2))]
    tallies = [part.tally for part in parts]
    joined = built.work.combine(np.concatenate([part.values for part in parts]), tallies, state, 2)
    np.testing.assert_allclose(whole.weights, joined.weights)
    assert whole.metrics["population_pnl_variance"] == pytest.approx(
        joined.metrics["population_pnl_variance"], rel=1e-3
    )
    assert len({leaf.shape for leaf in jax.tree.leaves(merge_lora(state.parameters)["embed"])}) > 1


def test_a_journal_makes_its_learner():
    _, made = execute.prepared(cli.parse(ExecuteConfig, "trade execute", EXECUTE))
    learner = execute.learner_of(made.job.header(environment()))
    same(as_arrays(learner.parameters), as_arrays(made.job.learner.parameters))
    assert learner.settings == made.job.learner.settings


def test_generated_days_are_lobsters(capsys):
    assert cli.main(["trade", "generate", "--out=days", "--days=2", "--messages=400"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["messages"] == 800 and told["mean_spread"] > 1
    names = sorted(path.name for path in Path("days").iterdir())
    assert names == [f"generated_{n}_{kind}_10.csv" for n in (0, 1) for kind in ("message", "orderbook")]
    assert len(read_messages(Path("days") / names[0]).time) == len(read_book(Path("days") / names[1])) == 400
    assert cli.main(["trade", "generate", "--out=days"]) == 2
    assert "expected --out as a folder without days, got days" in capsys.readouterr().err


@pytest.mark.heavy
def test_generated_days_are_data_to_learn_and_trade_from(capsys):
    assert cli.main(["trade", "generate", "--out=more-days", "--days=2", "--messages=400"]) == 0
    sample = "--sample=more-days/generated_0_message_10.csv"
    assert (
        cli.main(["trade", "pretrain", "--data=more-days", "--run-dir=of-days", sample, *MODEL, "--generations=1"]) == 0
    )
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["sample_nats_per_message"] > 0
    flags = [*EXECUTE, "--data=more-days", "--generations=1"]
    assert cli.main(["trade", "execute", "--run-dir=on-days", *flags]) == 0
    assert np.isfinite(json.loads(capsys.readouterr().out.splitlines()[-1])["pnl"])


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ([], "expected what to do among pretrain, execute, generate, calibrate, got nothing"),
        (["sell"], "got sell"),
        (["execute"], "expected --model as the run folder of eggroll trade pretrain, got none"),
        (["execute", "--model=nothing"], "expected the folder of a run or of a snapshot"),
        (["execute", "--model=model", "--lora-rank=0"], "expected --lora-rank of at least 1, got 0"),
        (
            ["execute", "--model=model", "--episodes=9", "--markets=3"],
            "expected --episodes of at most 3 markets, got 9",
        ),
        (["execute", *EXECUTE, "--data=empty"], "expected *message*.csv files of LOBSTER in empty, got none"),
        (["execute", *EXECUTE, "--lora-rank=1", "--rank=2"], "rank"),
        (["pretrain", "--state=5"], "expected --state even, got 5"),
        (["pretrain", "--calibration=none.json"], "expected a calibration in none.json"),
        (["pretrain", "--market-messages=100"], "expected --market-messages of at least 257, got 100"),
        (["generate", "--out=x", "--levels=99"], "expected --levels of at most 50, got 99"),
        (["calibrate", "--messages=no.csv", "--out=x.json"], "expected the order-book file of no.csv"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(flags, complaint, capsys):
    assert cli.main(["trade", *flags]) == 2
    said = capsys.readouterr().err.strip()
    assert complaint in said and "\n" not in said


def test_settings_of_another_job_are_refused():
    for module, name in ((pretrain, "trade pretrain"), (execute, "trade execute")):
        with pytest.raises(Exception, match=f"expected settings of eggroll {name}"):
            module.learner_of({"job": "rl", "config": {}})
    assert PretrainConfig().job == "trade-pretrain"
