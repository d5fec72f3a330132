"""eggroll.train and eggroll.replay: a float run that was cut ends in the same bits, and its journal rebuilds it."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eggroll
from eggroll.core.errors import UsageError, is_out_of_memory
from eggroll.runs.folder import RunFolder
from eggroll.runs.journal import Journal
from eggroll.runs.training import _check_arguments

WEIGHTS = np.random.default_rng(5).normal(size=(6, 3)).astype(np.float32)
START = {"a": np.random.default_rng(6).normal(size=(6, 8)).astype(np.float32) / 3, "b": np.zeros((8, 3), np.float32)}
GENERATIONS = 9


def error(params, x, y):
    return jnp.mean((jnp.tanh(x @ params["a"]) @ params["b"] - y) ** 2)


def plain(params, key, x, y):
    return -error(params, x, y)


def with_aux(params, key, x, y):
    return -error(params, x, y), {"first_output": (jnp.tanh(x @ params["a"]) @ params["b"])[0, 0]}


def with_carry(params, key, carry, x, y):
    return -error(params, x, y) + 0.1 * carry["last"], {"last": jnp.mean(x @ params["a"])}


def batches(generation):
    x = np.random.default_rng(generation).normal(size=(16, 6)).astype(np.float32)
    return x, x @ WEIGHTS


def strategy(**settings):
    return eggroll.EvolutionStrategy(
        optax.adam(0.05), **{"population_size": 32, "sigma": 0.1, "chunk_size": 32} | settings
    )


def train(path, es=None, fitness=plain, generations=GENERATIONS, **settings):
    shape = {"snapshot_every": 4, "validate_every": 3, "batches": batches, "run_dir": path, "seed": 3} | settings
    return eggroll.train(es or strategy(), START, fitness, generations=generations, **shape)


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def cut(path, generation, **settings):
    """A run whose data ends in the middle, as a kill would: no snapshot, no summary."""

    def ending(at):
        if at == generation:
            raise OSError("killed")
        return batches(at)

    with pytest.raises(OSError, match="killed"):
        train(path, batches=ending, **settings)


CASES = {
    "auto chunks, all defaults": (lambda: strategy(population_size=64, chunk_size="auto"), {}),
    "float16, aux": (strategy, {"frames": "float16", "fitness": with_aux, "has_aux": True}),
    "ternary, schedule, groups, reuse": (
        lambda: strategy(
            shaping="antithetic_sign", sigma=optax.linear_schedule(0.2, 0.05, 9), noise_reuse=2, group_size=8
        ),
        {},
    ),
    "carry": (strategy, {"fitness": with_carry, "carry": {"last": np.zeros(32, np.float32)}}),
    "two devices, leaf by leaf, carry": (
        lambda: strategy(mesh=eggroll.device_mesh(2), layerwise=True),
        {"fitness": with_carry, "carry": {"last": np.zeros(32, np.float32)}},
    ),
}


def test_a_run_may_go_on_on_other_devices(tmp_path):
    """Its header tells nothing of them; floats go on the same to rounding."""
    whole, _ = train(tmp_path / "one", generations=2)
    train(tmp_path / "two", strategy(mesh=eggroll.device_mesh(2), update="rows"), generations=2)
    journals = [RunFolder.open(tmp_path / run).journal for run in ("one", "two")]
    headers = []
    for journal in journals:
        with Journal.open(journal) as opened:
            headers.append({**opened.header, "environment": None})
    assert headers[0] == headers[1]
    replayed, found = eggroll.replay(tmp_path / "two", strategy(), START)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), replayed.params, whole.params)
    assert found["verified"] or found["largest_difference"] < 1e-4


@pytest.mark.parametrize("name", CASES)
def test_cut_and_resumed_or_replayed_it_is_the_same_run(tmp_path, name):
    make, case = CASES[name]
    es = make()
    whole, summary = train(tmp_path / "whole", es, **case)
    assert summary["finished"] and summary["generations"] == GENERATIONS
    cut(tmp_path / "run", 6, es=es, **case)
    resumed, again = train(tmp_path / "run", make() if "auto" in name else es, resume=True, **case)
    same(resumed, whole)
    assert again["resumed_at"] == 4
    journals = [(tmp_path / run / "journal.egg").read_bytes() for run in ("run", "whole")]
    assert journals[0] == journals[1]
    replayed, found = eggroll.replay(tmp_path / "run", es, START)
    same(replayed, whole)
    assert found["verified"] == [8, 9] and found["differing"] == [] and found["largest_difference"] == 0
    early, found = eggroll.replay(tmp_path / "run" / "journal.egg", es, START, to=4)
    assert found["generation"] == 4 == int(early.generation) and found["verified"] == []


def test_it_is_the_strategy_that_runs(tmp_path):
    """The same as a loop of es.step."""
    es = strategy(chunk_size=32)
    state = es.init(START, 3)
    for generation in range(GENERATIONS):
        state, _ = es.step(state, plain, *batches(generation))
    trained, _ = train(tmp_path / "run", strategy(chunk_size=32))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), trained.params, state.params)
    assert int(trained.generation) == GENERATIONS
    same(trained.seed, state.seed)


def test_metrics_and_header(tmp_path):
    validate = lambda params: {"mse": float(error(params, *batches(99)))}
    _, summary = train(tmp_path / "run", fitness=with_aux, has_aux=True, validate=validate)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    names = {"fitness_mean", "fitness_max", "fitness_min", "fitness_std", "sigma", "nan_count", "first_output"}
    assert all(names <= line.keys() for line in lines)
    assert summary["mse"] < summary["start_mse"] and lines[2]["mse"] != lines[5]["mse"]
    with Journal.open(tmp_path / "run" / "journal.egg") as journal:
        header = journal.header
    assert header["frames"] == "float32" and header["weights"] == 16
    expected = {
        "rank": 1,
        "sigma": 0.1,
        "noise": "1/popcount",
        "shaping": "z_score",
        "chunk_size": 32,
    }
    assert expected.items() <= header["strategy"].items()
    assert header["strategy"]["trainable"] == ["a rc popcount", "b rc popcount"]
    assert header["start_sha256"].keys() == {"a", "b"} and header["config"]["seed"] == 3


def refused(call, text):
    with pytest.raises(UsageError, match=text) as caught:
        call()
    assert re.fullmatch(r"expected [^\n]+, got [^\n]+; [^\n]+", str(caught.value))


def test_what_is_refused(tmp_path):
    run = tmp_path / "run"
    cut(run, 6)
    before = (run / "journal.egg").read_bytes()
    refused(lambda: train(run), "a run folder that does not exist yet")
    refused(lambda: train(run, strategy(sigma=0.2), resume=True), "sigma 0.1 → 0.2")
    refused(lambda: train(run, strategy(shaping="centred_rank"), resume=True), "shaping 'z_score' → 'centred_rank'")
    refused(lambda: train(run, strategy(chunk_size=8), resume=True), "chunk_size 32 → 8")
    refused(lambda: train(run, seed=4, resume=True), "seed 3 → 4")
    refused(lambda: train(run, generations=5, resume=True), "at least the 6 generations that the run has, got 5")
    refused(lambda: train(None, resume=True), "run_dir with resume=True")
    refused(lambda: _check_arguments(3, iter([]), None, False, (1,)), "batches as a function of the generation")
    refused(lambda: train(tmp_path / "new", snapshot_every=0), "intervals ≥ 1")
    refused(lambda: train(tmp_path / "new", track=("paper",)), "--track among tensorboard, wandb, got 'paper'")
    sgd = eggroll.EvolutionStrategy(optax.sgd(0.1), population_size=32, sigma=0.1)
    refused(lambda: train(run, sgd, resume=True), "optimizer")
    refused(lambda: eggroll.replay(run, sgd, START), "optimizer")
    refused(lambda: eggroll.replay(run, strategy(rank=2), START), "rank 1, as the journal says, got 2")
    refused(lambda: eggroll.replay(run, strategy(), START | {"b": START["b"] + 1}), "with leaf 'b' of SHA-256")
    refused(lambda: eggroll.replay(run, strategy(), START, to=7), "up to 6")
    assert (run / "journal.egg").read_bytes() == before
    assert not (tmp_path / "new").exists()


def test_a_finished_run_returns_at_once_and_can_be_longer(tmp_path):
    es, said = strategy(), []
    whole, _ = train(tmp_path / "whole", es, generations=12)
    first, _ = train(tmp_path / "run", es)
    again, summary = train(tmp_path / "run", es, resume=True, say=said.append)
    same(again, first)
    assert summary["finished"] and said == [f"the run in {tmp_path / 'run'} is finished; nothing to do"]
    longer, _ = train(tmp_path / "run", es, generations=12, resume=True)
    same(longer, whole)


def test_a_journal_of_another_machine(tmp_path):
    """There a float run is the same to rounding only: the largest difference is told. Here a difference is an error."""
    es = strategy()
    train(tmp_path / "run", es)
    path = tmp_path / "run" / "journal.egg"

    def forge(**environment):
        with Journal.open(path) as journal:
            header = journal.header | {"environment": journal.header["environment"] | environment}
            records = [journal.record(g) for g in range(journal.generations)]
        with Journal.create(path, header) as journal:
            for record in records[:-1]:
                journal.append(record.weights)
            journal.append(records[-1].weights * np.float32(1 + 1e-6))

    forge()
    refused(lambda: eggroll.replay(tmp_path / "run", es, START), "the bits of the snapshot of generation 9")
    forge(processor="another")
    _, found = eggroll.replay(tmp_path / "run", es, START)
    assert found["verified"] == [8] and found["differing"] == [9] and 0 < found["largest_difference"] < 1e-3
    said = []
    train(tmp_path / "run", es, resume=True, say=said.append)
    assert "another device or version than this run had: floats go on the same to rounding only" in said


def test_the_seed_words_are_kept(tmp_path):
    state, _ = train(tmp_path / "run", generations=0, seed=2**40 + 7)
    assert RunFolder.open(tmp_path / "run").read_json("config.json")["seed"] == 2**40 + 7
    same(state.seed, strategy().init(START, 2**40 + 7).seed)


def numbers_until(generation):
    """Data that holds no number from a generation on, as weights that have run away would come to."""

    def data(at):
        x, y = batches(at)
        return (x, y if at < generation else y * np.nan)

    return data


@pytest.mark.parametrize("generation", [0, 3])
def test_a_generation_without_any_fitness_ends_the_run(tmp_path, generation):
    """Before it is written down: with data that is whole again, it goes on to the bits of one that never saw it."""
    with pytest.raises(UsageError, match=f"got NaN or infinity of all in generation {generation}; ") as caught:
        train(tmp_path / "run", batches=numbers_until(generation))
    assert ("call fitness for one member" in str(caught.value)) == (generation == 0)
    with Journal.open(tmp_path / "run/journal.egg") as journal:
        assert journal.generations == generation
    state, _ = train(tmp_path / "run", resume=True)
    same(state.params, train(tmp_path / "whole")[0].params)


def test_a_few_members_without_fitness_do_not(tmp_path):
    def fitness(params, key, x, y):
        return jnp.where(params["b"][0, 0] < 0, jnp.nan, plain(params, key, x, y))

    _, summary = train(tmp_path / "run", fitness=fitness, generations=3)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert summary["finished"] and any(0 < line["nan_count"] < 32 for line in lines)


def test_memory_that_is_not_there_is_one_line(tmp_path):
    def large(params, key, x, y):
        return plain(params, key, x, y) + jnp.sort(jax.random.uniform(key, (2**42,))).sum()

    with pytest.raises(UsageError, match="expected memory for chunk_size 32 and population_size 32, got RESOURCE_EXH"):
        train(tmp_path / "run", fitness=large)


@pytest.mark.parametrize(
    ("error", "is_that"),
    [
        (MemoryError(), True),
        (np.exceptions.AxisError("RESOURCE"), False),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes"), True),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory"), True),
        (OSError("No space left on device"), False),
    ],
)
def test_what_is_taken_for_a_lack_of_memory(error, is_that):
    assert is_out_of_memory(error) is is_that
