"""`eggroll distill` from flags to run folder, and what reads an int8 student."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eggroll import cli
from eggroll.llm.checkpoint import load, save
from eggroll.llm.distill import gap_closed, learner_of, prepared, worker_job
from eggroll.llm.distill_config import DistillConfig
from eggroll.llm.population import arguments_of, range_work
from eggroll.llm.quantise import dequantised, has_int8, is_int8, quantised
from eggroll.llm.rwkv7 import Sizes, linear, read
from eggroll.llm.source import find_model
from eggroll.llm.student import answer_log_probabilities
from eggroll.runs import snapshots
from eggroll.runs.environment import environment
from eggroll.runs.folder import RunFolder
from eggroll.runs.trees import as_arrays
from tests import compiled
from tests.llm.models import noisy
from tests.runs.killed import killed
from tests.runs.test_loop import metrics, without_times

SMALL = [
    "--teacher=teacher.safetensors", "--task-options={\"numbers\": [2, 2], \"maximum\": 5}", "--levels=7",
    "--population-size=8", "--prompts=3", "--tokens=5", "--generations=8", "--validation-prompts=4",
    "--validate-every=4", "--snapshot-every=4", "--chunk-size=4", "--prompt-tokens=8", "--devices=1", "--alpha=0.5",
]  # fmt: skip
SIZES = Sizes(1, 16, 2, 256, (4, 4, 4, 4))


@pytest.fixture(scope="module", autouse=True)
def programs(tmp_path_factory):
    """Runs of the same settings share their compiled programs."""
    with compiled.kept_in(tmp_path_factory.mktemp("programs")):
        yield


@pytest.fixture(autouse=True)
def in_a_folder_with_a_teacher(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(noisy(SIZES), "teacher.safetensors")


def main(*flags):
    return cli.main(["distill", *([] if "--resume" in flags else SMALL), *flags])


def made(*flags):
    return prepared(cli.parse(DistillConfig, "distill", [*SMALL, *flags]))


def lattice_at_end(name):
    return as_arrays(snapshots.load(RunFolder.open(Path(name)), only="parameters")[1]["parameters"])


def same(one, other):
    assert one.keys() == other.keys() and all(np.array_equal(one[path], other[path]) for path in one)


def test_a_run_is_killed_and_goes_on_and_replays_to_the_same_bits(monkeypatch, capsys):
    assert main("--run-dir=whole") == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["job"] == "distill" and summary["finished"] and summary["generations"] == 8
    models = ("teacher_perplexity", "start_perplexity", "perplexity", "teacher_accuracy", "start_accuracy", "accuracy")
    assert all(name in summary for name in models) and summary["start_kl"] > 0
    killed(monkeypatch, lambda: main("--run-dir=cut"), at=5)
    assert cli.main(["distill", "--run-dir=cut", "--resume"]) == 0
    same(lattice_at_end("whole"), lattice_at_end("cut"))
    folders = [RunFolder.open(Path(name)) for name in ("whole", "cut")]
    lines = [[line | {"tokens_per_second": 0} for line in metrics(folder)] for folder in folders]
    both = zip(*map(without_times, lines), strict=True)
    assert all(one == other for one, other in both if "replayed" not in other)
    assert any(line["moved_share"] > 0 for line in lines[0]) and lines[0][0]["kl_mean"] > 0
    capsys.readouterr()
    assert cli.main(["replay", "whole"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["differing"] == [] and told["generation"] == 8, told
    end, start = load("whole/model.safetensors"), quantised(load("teacher.safetensors"), 7)
    moved, before, after = lattice_at_end("whole"), as_arrays(start), as_arrays(end)
    assert len(moved) == 8 and all(leaf.dtype == np.int8 and np.abs(leaf).max() <= 7 for leaf in moved.values())
    assert any(not np.array_equal(moved[path], before[path]) for path in moved)
    same(after, before | moved)


def test_a_students_folder_and_its_weights_are_models(capsys):
    assert main("--run-dir=whole", "--generations=2") == 0
    for name in ("whole", "whole/model.safetensors"):
        assert cli.main(["chat", name, "--prompt=1 2=3:", "--tokens=3", "--temperature=0"]) == 0
        params, _ = find_model(name, "")
        assert has_int8(params)
    once, again = capsys.readouterr().out.splitlines()[-2:]
    assert once == again
    Path("whole/model.safetensors").unlink()
    same(as_arrays(find_model("whole", "")[0]), as_arrays(params))  # of the newest snapshot
    flags = ("--objective=likelihood", "--generations=1", "--population-size=4", "--tokens=5", "--prompt-tokens=8")
    assert cli.main(["finetune", "--model=whole", "--run-dir=then", "--validation-prompts=2", SMALL[1], *flags]) == 0
    assert not has_int8(load("then/model.safetensors"))
    assert cli.main(["distill", "--teacher=whole", "--run-dir=never"]) == 2
    assert "expected float weights of a teacher in whole, got int8" in capsys.readouterr().err


def test_members_are_worth_what_a_student_written_out_is():
    _, own = made()
    population, state = own.population, own.job.start()
    batch, at = population.prompts.of_generation(3), population.state(state.parameters, 3)
    arguments = arguments_of(population, batch)
    found = population.es.evaluate(at, population.fitness, *arguments, has_aux=True)[2]
    tokens, mask, answers, known, teacher = (part.value[0] for part in arguments)
    wanted = answer_log_probabilities(load("teacher.safetensors"), tokens, mask, answers, known)
    np.testing.assert_allclose(teacher, wanted, atol=1e-5)
    whole, there = jnp.concatenate([tokens, answers], 1)[:, :-1], jnp.concatenate([mask, known | True], 1)[:, :-1]
    for member in (0, 5):
        dense = population.es.perturbed(at, member)
        floats = jax.tree.map(lambda node: dequantised(node) if is_int8(node) else node, dense, is_leaf=is_int8)
        logits, _ = read(floats, whole, mask=there, all_logits=True)
        own = jax.nn.log_softmax(logits)[:, tokens.shape[1] - 1 :]
        each = (jnp.exp(teacher) * (teacher - own)).sum(-1)
        np.testing.assert_allclose(-found.aux[member], (each * known).sum(-1) / known.sum(-1), rtol=1e-4, atol=1e-6)


def test_ranges_and_devices_make_the_same_update():
    _, one = made()
    _, two = made("--devices=2")
    state = one.job.start()
    whole, sharded = one.job.evaluate(state, 3), two.job.evaluate(two.job.start(), 3)
    np.testing.assert_array_equal(whole.weights, sharded.weights)
    assert np.array_equal(whole.weights, np.rint(whole.weights)) and np.abs(whole.weights).max() <= 127
    built = worker_job({"header": one.job.header(environment())})
    parts = [built.work.evaluate(state, 3, first, pairs) for first, pairs in ((0, 1), (1, 3))]
    work = range_work(one.population)
    joined = work.combine(np.concatenate([part.values for part in parts]), [p.tally for p in parts], state, 3)
    np.testing.assert_array_equal(whole.weights, joined.weights)
    assert whole.metrics["kl_mean"] == pytest.approx(joined.metrics["kl_mean"])
    states = [state, two.job.start()]
    for generation in range(8):  # each with its own devices' sums
        for k, job in enumerate((one.job, two.job)):
            own = states[k]
            parameters, optimizer, _ = job.learner.update(own.parameters, own.optimizer, whole.weights, generation)
            states[k] = own._replace(parameters=parameters, optimizer=optimizer)
    for path, leaf in states[0].parameters.items():
        np.testing.assert_array_equal(leaf, states[1].parameters[path])


def test_found_chunk_sizes_are_those_of_resume_and_replay(monkeypatch, capsys):
    flags = ("--population-size=256", "--chunk-size=auto", "--generations=2", "--validation-prompts=2")
    killed(monkeypatch, lambda: main("--run-dir=cut", *flags), at=1)
    assert cli.main(["distill", "--run-dir=cut", "--resume"]) == 0
    assert cli.main(["replay", "cut"]) == 0
    recorded = json.loads(Path("cut/config.json").read_text())
    assert recorded["chunk_size"] > 128 and json.loads(capsys.readouterr().out.splitlines()[-1])["differing"] == []


def test_another_teacher_is_another_run(capsys):
    assert main("--run-dir=run", "--generations=1") == 0
    teacher = load("teacher.safetensors")
    teacher["ln_out"]["bias"] = teacher["ln_out"]["bias"] + 1  # of nothing that learns
    save(teacher, "teacher.safetensors")
    capsys.readouterr()
    assert cli.main(["replay", "run"]) == 2
    assert "teacher" in capsys.readouterr().err


def test_a_journal_makes_its_learner():
    _, own = made()
    learner = learner_of(own.job.header(environment()))
    same(as_arrays(learner.parameters), as_arrays(own.job.learner.parameters))
    assert learner.is_integer and learner.settings == own.job.learner.settings


def test_distillation_comes_nearer_to_the_teacher(capsys):
    rows = [{"prompt": f"{number % 3} and", "answer": f" {number % 3 + 1}\n"} for number in range(60)]
    Path("data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = ("--task=tests.llm.rewards:low", "--data=data.jsonl", "--task-options={}", "--prompts=2", "--levels=2")
    flags = ("--generations=60", "--population-size=64", "--alpha=0.005", "--validate-every=60", "--chunk-size=64")
    assert main("--run-dir=run", *task, *flags) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["kl"] < 0.8 * told["start_kl"], told


def test_the_gap_that_was_closed():
    told = {"start_perplexity": 3.0, "teacher_perplexity": 2.0, "perplexity": 2.25}
    assert gap_closed(told) == {"gap_closed": 0.75}
    assert gap_closed(told | {"start_perplexity": 1.9}) == {} == gap_closed({})


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--teacher="], "expected --teacher, got none"),
        (["--teacher=none"], "expected weights at none"),
        (["--levels=128"], "expected --levels in [1, 127], got 128"),
        (["--alpha=0"], "expected --alpha in (0, 1), got 0"),
        (["--beta2-shift=9"], "expected --beta2-shift of at most 8"),
        (["--quantised=nothing/*"], "expected --quantised patterns of emb/weight, "),
        (["--quantised=blocks/att/*"], "got blocks/att/"),
        (
            ["--beta1-shift=1", "--beta2-shift=1", "--alpha=0.003"],
            "expected --beta1-shift and --beta2-shift with which",
        ),
        (["--rank=517"], "expected --rank of at most 516"),
        (["--trainable=nothing"], "expected trainable patterns that match a leaf, got 'nothing/int8'"),
        (["--rank=64"], "lower the rank"),
        (["--update=rows"], "expected --update auto, redraw or reduce"),
        (["--coordinator=a:1", "--processes=1", "--process=0"], "expected eggroll distill in one process"),
        (["--task-options={}", "--task=gsm8k", "--data=none.jsonl"], "none.jsonl"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(flags, complaint, capsys):
    assert main("--run-dir=run", *flags) == 2
    said = capsys.readouterr().err.strip()
    assert complaint in said and len(said.splitlines()) == 1, said
    assert not Path("run").exists()


def test_rounded_inputs_are_products_of_integers():
    params = quantised(noisy(SIZES), 7, inputs=15)
    weight = params["head"]["weight"]
    assert weight["inputs"] == 15 and "inputs" not in params["emb"]["weight"]
    x = np.random.default_rng(0).normal(size=(3, 16)).astype(np.float32)
    step = np.abs(x).max(-1, keepdims=True) / np.float32(15)
    whole = np.rint(x / step).astype(np.int64)
    wanted = (whole @ weight["int8"].astype(np.int64).T) * step * weight["scale"]
    found = linear(jnp.asarray(x), jax.tree.map(jnp.asarray, weight))
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    save(params, "rounded.safetensors")
    same(as_arrays(load("rounded.safetensors")), as_arrays(params))
    _, own = made("--inputs=127")
    evaluated = own.job.evaluate(own.job.start(), 0)
    assert np.isfinite(evaluated.metrics["kl_mean"]) and len(own.job.learner.parameters) == 8


def test_any_tree_is_quantised_by_pattern():
    tree = {"dense": {"kernel": np.array([[1.1, -2.0], [0.0, 0.0]], np.float32), "bias": np.ones(2, np.float32)}}
    held = quantised(tree, 7, ("*/kernel",))
    assert is_int8(held["dense"]["kernel"]) and held["dense"]["bias"] is tree["dense"]["bias"]
    np.testing.assert_array_equal(held["dense"]["kernel"]["int8"], [[4, -7], [0, 0]])
    np.testing.assert_allclose(dequantised(held["dense"]["kernel"]), [[8 / 7, -2], [0, 0]], rtol=1e-6)
    x = jnp.array([[1.0, 0.5]], jnp.float32)
    np.testing.assert_allclose(linear(x, held["dense"]["kernel"]), [[8 / 7 - 1, 0]], rtol=1e-5)
    assert quantised(held, 127, ("*/kernel",))["dense"]["kernel"] is held["dense"]["kernel"]
    with pytest.raises(ValueError, match=r"expected a matrix to quantise, got dense/bias of shape \(2,\)"):
        quantised(tree, 7, ("*/bias",))
