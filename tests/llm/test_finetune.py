"""`eggroll finetune` and `eggroll chat` from flags to run folder, with a model of a few thousand weights."""

import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eggroll import cli
from eggroll.core.errors import UsageError
from eggroll.llm.checkpoint import load, save
from eggroll.llm.config import FinetuneConfig
from eggroll.llm.job import prepared, worker_job
from eggroll.llm.population import range_work
from eggroll.llm.quantise import converted
from eggroll.llm.rwkv7 import Sizes, sizes_of
from eggroll.llm.source import find_model
from eggroll.runs import snapshots
from eggroll.runs.environment import environment
from eggroll.runs.folder import RunFolder
from eggroll.runs.trees import as_arrays
from eggroll.tasks.score import pass_at
from tests import compiled
from tests.heavy import heavy_but
from tests.llm.models import noisy
from tests.runs.killed import killed as as_killed
from tests.runs.test_loop import metrics, without_times

SMALL = [
    "--model=model.safetensors", "--task-options={\"numbers\": [2, 2], \"maximum\": 5, \"format_reward\": 0.25}",
    "--population-size=8", "--prompts=3", "--tokens=5", "--generations=4", "--validation-prompts=4",
    "--validate-every=2", "--snapshot-every=2", "--chunk-size=4", "--prompt-tokens=16", "--devices=1",
]  # fmt: skip
ALGORITHMS = {
    "eggroll": (),
    "groups": ("--group-size=4", "--samples=2", "--temperature=1", "--pass-k=2", "--noise-reuse=2"),
    "openes": ("--algorithm=openes",),
    "likelihood": ("--objective=likelihood", "--optimizer=sgd", "--rate-units=paper"),
    "grpo": ("--algorithm=grpo", "--samples=2", "--temperature=1", "--epochs=2", "--optimizer=radam"),
    "supervised": ("--algorithm=supervised",),
}


@pytest.fixture(scope="module", autouse=True)
def programs(tmp_path_factory):
    """Runs of the same settings share their compiled programs."""
    with compiled.kept_in(tmp_path_factory.mktemp("programs")):
        yield


@pytest.fixture(autouse=True)
def in_a_folder_with_a_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(noisy(Sizes(1, 16, 2, 256, (4, 4, 4, 4))), "model.safetensors")
    rows = [{"prompt": f"{number} and", "answer": f" {number + 1}\n"} for number in range(40)]
    Path("data.jsonl").write_text("\n".join(map(json.dumps, rows)))


def main(*flags):
    return cli.main(["finetune", *([] if "--resume" in flags else SMALL), *flags])


def killed(monkeypatch, *flags, at=2):
    """A run that ends before the metrics of generation `at` are on the disk."""
    as_killed(monkeypatch, lambda: main(*flags), at)


def parameters(name):
    return as_arrays(snapshots.load(RunFolder.open(Path(name)), only="parameters")[1]["parameters"])


def lines(name):
    return [line | {"tokens_per_second": 0} for line in metrics(RunFolder.open(Path(name)))]


def same(one, other):
    assert one.keys() == other.keys() and all(np.array_equal(one[path], other[path]) for path in one)


@pytest.mark.parametrize("name", heavy_but(("eggroll", "grpo"), ALGORITHMS))
def test_a_run_is_killed_and_goes_on_and_replays(name, monkeypatch, capsys):
    flags = (*ALGORITHMS[name], "--task=tests.llm.rewards:low", "--task-data=data.jsonl", "--task-options={}")
    assert main("--run-dir=whole", *flags) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["finished"] and summary["generations"] == 4 and summary["job"] == "finetune"
    assert summary["peak_memory_bytes"] > 0 and 0 <= summary["accuracy"] <= 1
    killed(monkeypatch, "--run-dir=cut", *flags)
    assert cli.main(["finetune", "--run-dir=cut", "--resume"]) == 0
    same(parameters("whole"), parameters("cut"))
    both = zip(without_times(lines("whole")), without_times(lines("cut")), strict=True)
    assert all(one == other for one, other in both if "replayed" not in other)
    assert {"likelihood": "fitness_std", "supervised": "loss"}.get(name, "reward_mean") in lines("whole")[0]
    assert cli.main(["replay", "whole"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["differing"] == [] and told["generation"] == 4, told
    start, end = as_arrays(load("model.safetensors")), as_arrays(load("whole/model.safetensors"))
    moved = {path for path in start if not np.array_equal(start[path], end[path])}
    assert moved and ("emb/weight" in moved) == (name == "supervised")
    same(end, {path: np.asarray(leaf) for path, leaf in parameters("whole").items()})
    main("--run-dir=whole", "--resume")  # is finished


def test_supervised_training_learns_and_its_run_is_a_model(capsys):
    flags = [
        "--algorithm=supervised",
        "--generations=60",
        "--prompts=16",
        "--learning-rate=0.01",
        "--validate-every=60",
    ]
    assert main("--run-dir=taught", *flags) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["log_likelihood"] > told["start_log_likelihood"] + 1
    assert main("--model=taught", "--run-dir=then", "--objective=likelihood", "--learning-rate=0.003") == 0
    then = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert then["start_log_likelihood"] == pytest.approx(told["log_likelihood"], abs=1e-4)
    assert cli.main(["chat", "then", "--prompt", "1 2=3:", "--tokens", "4"]) == 0
    assert len(capsys.readouterr().out.rstrip("\n")) <= 4


def test_chat_answers_each_line(capsys, monkeypatch, tmp_path):
    (tmp_path / "lines").write_text("one\n\ntwo\n")
    with (tmp_path / "lines").open() as lines:
        monkeypatch.setattr("sys.stdin", lines)
        for dtype in ("float32", "int8"):
            assert cli.main(["chat", "model.safetensors", "--tokens=3", "--dtype", dtype, "--temperature=0"]) == 0
            lines.seek(0)
    assert cli.main(["chat", "nothing"]) == 2
    assert "expected weights at nothing" in capsys.readouterr().err


def test_ranges_of_the_population_are_the_population():
    _, made = prepared(cli.parse(FinetuneConfig, "finetune", [*SMALL, *ALGORITHMS["groups"]]))
    state = made.job.start()
    whole = made.job.evaluate(state, 3)
    work = range_work(made.population)
    parts = [work.evaluate(state, 3, first, pairs) for first, pairs in ((0, 1), (1, 3))]
    joined = work.combine(np.concatenate([part.values for part in parts]), [p.tally for p in parts], state, 3)
    np.testing.assert_array_equal(whole.weights, joined.weights)
    assert whole.metrics == joined.metrics
    built = worker_job({"header": made.job.header(environment())})
    again = built.work.evaluate(state, 3, 1, 3)
    np.testing.assert_array_equal(again.values, parts[1].values)


def test_groups_meet_prompts_of_their_own():
    _, made = prepared(cli.parse(FinetuneConfig, "finetune", [*SMALL, "--group-size=2", "--prompts=8"]))
    first, second = made.population.prompts.of_generation(0), made.population.prompts.of_generation(1)
    assert first.tokens.shape == (4, 8, 16)
    assert len({batch.tokens[g].tobytes() for batch in (first, second) for g in range(4)}) == 8
    np.testing.assert_array_equal(first.tokens, made.population.prompts.of_generation(0).tokens)
    tests = {example.prompt for example in made.population.prompts.validation.examples[0]}
    assert not tests & {example.prompt for group in first.examples for example in group}


@given(st.integers(1, 8), st.lists(st.booleans(), min_size=8, max_size=10))
def test_pass_at_k_is_the_share_of_choices_with_a_right_one(k, right):
    values = np.array(right, np.float32)
    choices = list(itertools.combinations(right, k))
    share = sum(any(choice) for choice in choices) / len(choices)
    assert pass_at(k, values[None])[0] == pytest.approx(share, abs=1e-6)


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--pass-k=4"], "expected --pass-k at most --samples, 1, got 4"),
        (["--pass-k=2", "--samples=4"], "expected --temperature above 0"),
        (["--algorithm=grpo"], "expected --temperature above 0 and --samples of at least 2 with grpo"),
        (["--population-size=7"], "expected --population-size even"),
        (["--group-size=3"], "expected --group-size even and a divisor"),
        (["--task=countdwn"], "countdown"),
        (["--task-options=[1]"], "expected --task-options as a JSON object"),
        (["--model=none.pth"], "expected weights at none.pth"),
        (["--tokenizer=none.json"], "expected --tokenizer as a file or bytes"),
        (["--prompt-tokens=2"], "expected prompts of at most 2 tokens"),
        (["--sigma=0"], "expected --sigma > 0"),
        (["--top-p=0"], "expected --top-p in"),
        (["--coordinator=a:1", "--processes=1", "--process=0"], "expected eggroll finetune in one process"),
        (["--trainable=nothing/*"], "nothing/*"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(flags, complaint, capsys):
    assert main("--run-dir=run", *flags) == 2
    said = capsys.readouterr().err.strip()
    assert complaint in said and len(said.splitlines()) == 1, said
    assert not Path("run").exists()


def test_int8_weights_go_on_as_floats(capsys):
    save(converted(load("model.safetensors"), "int8"), "int8.safetensors")
    assert main("--model=int8.safetensors", "--run-dir=wide", "--generations=1") == 0
    start, end = as_arrays(converted(load("int8.safetensors"), "float32")), as_arrays(load("wide/model.safetensors"))
    assert start.keys() == end.keys() and end["blocks/ffn/key/weight"].dtype == np.float32
    np.testing.assert_allclose(end["blocks/ffn/key/weight"], start["blocks/ffn/key/weight"], atol=0.05)
    same({"emb": start["emb/weight"]}, {"emb": end["emb/weight"]})


def test_bfloat16_weights_move():
    assert main("--run-dir=half", "--dtype=bfloat16", "--learning-rate=0.1", "--objective=likelihood") == 0
    end = load("half/model.safetensors")
    start = jnp.asarray(load("model.safetensors")["blocks"]["ffn"]["key"]["weight"])
    moved = end["blocks"]["ffn"]["key"]["weight"]
    assert moved.dtype == jnp.bfloat16
    assert float(jnp.abs(jnp.asarray(moved, jnp.float32) - start).max()) > 0.01


def test_sharded_members_are_worth_the_same():
    if jax.device_count() < 2:
        pytest.skip("needs two devices")
    runs = {}
    for devices in (1, 2):
        flags = [*SMALL, *ALGORITHMS["groups"], f"--devices={devices}"]
        _, made = prepared(cli.parse(FinetuneConfig, "finetune", flags))
        runs[devices] = made.job.evaluate(made.job.start(), 0)
    np.testing.assert_array_equal(runs[1].weights, runs[2].weights)


@pytest.mark.parametrize("model", ["tiny:", "tiny:3", "tiny:0x64", "tiny:3x60", "tiny:ax64", "tiny:65x64"])
def test_sizes_that_no_random_model_has(model: str) -> None:
    with pytest.raises(UsageError, match="tiny:LAYERSxWIDTH"):
        FinetuneConfig(model=model)


def test_a_random_model_of_another_size() -> None:
    params, tokenizer = find_model("tiny:2x32", "", 1)
    assert sizes_of(params)[:3] == (2, 32, 1) and tokenizer.encode("a") == [97]
    assert FinetuneConfig(model="tiny:2x32").learner == "supervised"
