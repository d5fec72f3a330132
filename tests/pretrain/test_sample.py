"""sample.py: greedy text against the oracle, draws against exact integers, complaints in one line."""

import json
import math
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eggroll.core.errors import UsageError
from eggroll.integer import model
from eggroll.pretrain.config import PretrainConfig
from eggroll.pretrain.sample import SampleConfig, choose, generate, load_model, prompt_bytes, sample
from eggroll.runs import snapshots
from eggroll.runs.folder import RunFolder
from tests.integer import oracle
from tests.integer.test_model import random_parameters
from tests.pretrain.test_validation import CONFIG, without_noise

SETTINGS = PretrainConfig(width=16, layers=2, sigma_shift=4, population_size=64)
LEAVES = random_parameters(CONFIG, 5)
CHOOSE = jax.jit(jax.vmap(choose, (None, 0, None)), static_argnums=2)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    folder = RunFolder.create(path, "pretrain", SETTINGS.as_json() | {"job": "pretrain"})
    snapshots.save(folder, 7, {"parameters": model.nested(LEAVES)}, keep=2)
    return path


@pytest.fixture
def copy(run_dir, tmp_path):
    return shutil.copytree(run_dir, tmp_path / "copy")


def complaint(call, *arguments, **options):
    with pytest.raises(UsageError) as caught:
        call(*arguments, **options)
    assert re.fullmatch(r"expected [^\n]+, got [^\n]+; [^\n]+", str(caught.value))
    return str(caught.value)


def test_greedy_takes_the_likeliest_byte_of_every_step():
    prompt = np.frombuffer(b"\0ab\0cd", np.uint8)
    seed = jnp.zeros(2, jnp.int32)
    written = np.asarray(generate(model.nested(LEAVES), jnp.asarray(prompt), seed, CONFIG, 20, 0))
    text = np.concatenate([prompt, written, [0]])
    logits = oracle.forward(LEAVES, without_noise(), text, np.zeros((2, 16)))[0]
    np.testing.assert_array_equal(written, logits[len(prompt) - 1 : -1].argmax(axis=1))
    assert len(set(written.tolist())) > 1


def shares(logits, temperature):
    """`EXP2` of every byte, Python integers; 0 below the table."""
    levels = [255 - (max(logits) - v) * 16 // temperature for v in logits]
    return [int(16 * 2 ** (z / 16)) if z >= 0 else 0 for z in levels]


def test_a_byte_far_below_the_likeliest_is_never_drawn():
    logits = jnp.full(256, -100, jnp.int32).at[65].set(127)
    bits = jnp.asarray([0, 1, -1, 2**31 - 1, -(2**31)], jnp.int32)
    assert CHOOSE(logits, bits, 4).tolist() == [65] * 5


@pytest.mark.parametrize("temperature", [1, 12, 16, 256])
@pytest.mark.parametrize("spread", [0, 20, 127])
def test_choose_is_exact_at_every_border(temperature, spread):
    """The byte where the running sum passes ⌊bits·S/2³²⌋, at the draws around each byte's border and at both ends."""
    logits = np.random.default_rng(spread).integers(-spread, spread + 1, 256).tolist()
    running = np.cumsum(shares(logits, temperature)).tolist()
    total = running[-1]
    borders = [-(-value * 2**32 // total) for value in running[:-1]]
    near = [*borders, *(border - 1 for border in borders)]
    draws = [0, 2**32 - 1, *(draw for draw in near if 0 <= draw < 2**32)]
    expected = [sum(value <= draw * total >> 32 for value in running) for draw in draws]
    bits = jnp.asarray(np.array(draws, np.uint32).view(np.int32))
    np.testing.assert_array_equal(CHOOSE(jnp.asarray(logits, jnp.int32), bits, temperature), expected)


def test_draws_are_in_proportion():
    logits = np.random.default_rng(1).integers(-40, 41, 256).tolist()
    count = 2**16
    bits = (np.arange(count, dtype=np.uint64) * (2**32 // count)).astype(np.uint32).view(np.int32)
    chosen = np.bincount(CHOOSE(jnp.asarray(logits, jnp.int32), jnp.asarray(bits), 16), minlength=256)
    share = np.array(shares(logits, 16))
    assert np.abs(chosen - count * share / share.sum()).max() < 1.01


def test_a_seed_is_a_text(run_dir):
    texts = [sample(SampleConfig(run_dir, prompt="ab", bytes=24, seed=seed)) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2] and len(texts[0]) == 24


def test_a_snapshot_comes_back_as_the_model(run_dir):
    config, parameters = load_model(run_dir, 7)
    assert config == CONFIG
    for path, leaf in model.flat(parameters).items():
        np.testing.assert_array_equal(leaf, LEAVES[path])


def test_a_prompt_may_be_any_bytes(run_dir):
    assert prompt_bytes(SampleConfig(run_dir, prompt="ü\udcff")) == b"\xc3\xbc\xff"


def test_folders_that_are_no_run(tmp_path, copy):
    assert "config.json" in complaint(load_model, tmp_path / "none")
    shutil.rmtree(copy / "snapshots")
    assert "got none" in complaint(load_model, copy)
    (copy / "config.json").write_text('{"job": "rl"}')
    assert "another job" in complaint(load_model, copy)


def test_a_snapshot_that_is_not_there(run_dir):
    assert "a snapshot of generation 3 in" in complaint(load_model, run_dir, 3)


@pytest.mark.parametrize(("name", "value"), [("width", 64), ("layers", 1), ("width", 17), ("rank", 3)])
def test_a_snapshot_of_another_model(copy, name, value):
    settings = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(settings | {name: value}))
    complaint(load_model, copy)


@pytest.mark.parametrize("tree", [{"parameters": {"blocks": np.zeros(3, np.int8)}}, {"others": np.zeros(3, np.int8)}])
def test_a_snapshot_of_something_else(copy, tree):
    snapshots.save(RunFolder.open(copy), 8, tree, keep=2)
    said = complaint(load_model, copy)
    assert ("got nothing" if "parameters" in tree else "got one without parameters") in said


@pytest.mark.parametrize(
    "flags",
    [
        {"bytes": 0},
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": 17.0},
        {"seed": -1},
        {"seed": 2**64},
    ],
)
def test_bad_flags(run_dir, flags):
    assert f"--{next(iter(flags))}" in complaint(SampleConfig, run_dir, **flags)
