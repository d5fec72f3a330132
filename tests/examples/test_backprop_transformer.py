"""The float baseline runs, improves, and leaves what it says."""

from __future__ import annotations

import json
import types
from pathlib import Path

import numpy as np
import pytest

from tests.scripts import load


@pytest.fixture(scope="module")
def example() -> types.ModuleType:
    return load("examples/backprop_transformer.py")


@pytest.mark.heavy
def test_both_optimisers_improve(example: types.ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data.txt").write_text("the quick brown fox jumps over the lazy dog. " * 200)
    sizes = {"width": 32, "layers": 1, "context": 16, "batch": 8, "seconds": 0.7, "validate-every": 0.5}
    flags = [f"--{name}={value}" for name, value in sizes.items()]
    assert example.main([*flags, "--data", str(tmp_path / "data.txt"), "--out", str(tmp_path / "out")]) == 0
    closing = json.loads(capsys.readouterr().out)
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    for name in ("sgd", "adam"):
        first, last = result["curves"][name][0], result["curves"][name][-1]
        assert first["bits_per_byte"] == pytest.approx(8, abs=0.5)
        assert last["bits_per_byte"] < first["bits_per_byte"] - 1
        assert last == closing[name] and last["seconds"] >= 0.7
    assert closing["adam"]["bits_per_byte"] < closing["unigram"]
    assert result["corpus"]["held_out"] == "tail"
    assert (tmp_path / "out" / "curve.png").stat().st_size > 1000


def test_each_held_out_byte_is_predicted_once(example: types.ModuleType) -> None:
    stream = np.arange(1, 38, dtype=np.uint8)
    batches = example.held_out_windows(stream, context=5, batch=3)
    targets = np.concatenate([windows[:, 1:][counts] for windows, counts in batches])
    np.testing.assert_array_equal(targets, stream[1:])
    assert {windows.shape for windows, _ in batches} == {(3, 6)}


def test_no_place_sees_what_comes_after_it(example: types.ModuleType) -> None:
    key = example.jax.random.key(0)
    params = example.initial_params(key, width=32, layers=1, context=8)
    for block in params["blocks"]:
        block["attended"] = example.jnp.eye(32)
        block["narrow"] = example.jax.random.normal(key, block["narrow"].shape)
    text = example.jnp.arange(8)
    logits = example.jax.jit(example.logits)
    one, two = logits(params, text), logits(params, text.at[5].set(99))
    np.testing.assert_allclose(one[:5], two[:5], rtol=1e-5, atol=1e-5)
    assert (np.abs(one[5:] - two[5:]).max(axis=1) > 1e-3).all()


def test_bad_data_exits_2_with_one_line(example: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert example.main(["--data", "/no/such"]) == 2
    assert capsys.readouterr().err == (
        "expected an existing file or folder, got '/no/such'; check the path given to --data\n"
    )
