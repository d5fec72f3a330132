"""`eggroll bench speed`: what it times is the model itself, its tables are the paper's, and it leaves a run folder."""

import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eggroll.bench import layers
from eggroll.bench.policy import policy_calls
from eggroll.cli import main
from eggroll.runs.timing import interleaved

TINY = ["--widths", "8", "--batch", "8", "--tokens", "1", "2", "--repeats", "1"]
TINY += ["--policy-population", "4", "--policy-steps", "2"]


@pytest.mark.parametrize("name", ["EGGROLL rank 1", "EGGROLL rank 4", "OpenES"])
def test_the_timed_products_are_those_of_dense_members(name):
    layer = layers.Layer(8, 8, 2, "float32", "popcount", chunk_pairs=2)
    distribution = layers.distributions("popcount", (1, 4))[name]
    redrawn, members = layers.population(layer, distribution, redraw=True)
    at_hand, _ = layers.population(layer, distribution, redraw=False)
    assert members == 8
    np.testing.assert_allclose(redrawn(), at_hand(), rtol=1e-6)
    plan = layers.make_plan(distribution, layer.params)
    (own,) = layers.draw_noise(
        plan, seed=jnp.zeros(2, jnp.int32), generation=jnp.int32(0), pairs=jnp.arange(4, dtype=jnp.int32)
    )
    rank = max(distribution.rank, 1)
    dense = own if not distribution.rank else jnp.einsum("pik,pjk->pij", own.a, own.b) / np.sqrt(rank)
    for pair in range(4):
        for place, sign in enumerate((1, -1)):
            weight = layer.params["w"] + sign * layers.SIGMA * dense[pair]
            np.testing.assert_allclose(redrawn()[pair, place], layer.inputs(8)[pair, place] @ weight, rtol=1e-5)


@pytest.mark.parametrize("redraw", [False, True])
def test_the_kernel_gives_the_products_of_the_others(redraw):
    layer = layers.Layer(128, 64, 2, "float32", "popcount", chunk_pairs=32)
    call, _ = layers.population(layer, layers.LowRank(rank=2), redraw=redraw)
    kernel = layers.fused(layer, 2, redraw=redraw, interpret=True)
    np.testing.assert_allclose(kernel(), call().reshape(128, 128), rtol=1e-5, atol=1e-6)
    assert layers.fused(layers.Layer(96, 64, 2, "float32", "popcount", 32), 2, redraw=redraw) is None


def test_dense_noise_beyond_the_memory_is_measured_in_part(monkeypatch):
    monkeypatch.setattr(layers, "DENSE_BYTES", 3 * 4 * 64)
    layer = layers.Layer(8, 8, 1, "float32", "popcount", chunk_pairs=4)
    distributions = layers.distributions("popcount", (1,))
    assert layers.population(layer, distributions["OpenES"], redraw=True)[1] == 2
    assert layers.population(layer, distributions["EGGROLL rank 1"], redraw=True)[1] == 8


def test_the_batches_for_300_operations_a_byte_are_the_papers():
    assert layers.batch_for(300.0, 8192, 2, None) == 324
    assert layers.batch_for(300.0, 8192, 2, 1) == 352
    assert layers.batch_for(300.0, 512, 2, None) is None


@pytest.mark.parametrize("rank", [None, 1, 4])
def test_the_batch_is_the_least_that_reaches_the_intensity(rank):
    def intensity(batch, width=4096, size=4):
        moved = width**2 + 2 * batch * width + (0 if rank is None else 2 * batch * width * rank)
        return 2 * batch * width**2 / (size * moved)

    batch = layers.batch_for(50.0, 4096, 4, rank)
    assert intensity(batch) >= 50 > intensity(batch - 1)


def test_policy_calls_evaluate_and_update_every_member():
    calls = policy_calls(6, 3, "popcount", chunk_size=4)
    assert calls["evaluate"]().fitness.shape == (6,)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(calls["update"]()))


def test_interleaved_takes_turns():
    order = []
    names = {name: (lambda name=name: order.append(name)) for name in "ab"}
    times = interleaved(names, 2, warm=True)
    assert "".join(order) == "ab" + 2 * "aabb" and set(times) == {"a", "b"} and min(times.values()) >= 0


def test_short_calls_are_timed_in_a_row_and_long_ones_alone():
    order = []
    calls = {"short": lambda: order.append("s"), "long": lambda: order.append("l") or time.sleep(0.02)}
    times = interleaved(calls, 2, queued=3)
    assert "".join(order) == "ssll" + 2 * "sssl" and times["short"] < 0.02 <= times["long"]


def test_the_command_leaves_numbers_and_a_figure(tmp_path, capsys):
    assert main(["bench", "speed", *TINY, "--run-dir", str(tmp_path / "run")]) == 0
    out, err = capsys.readouterr()
    summary = json.loads(out)
    assert summary == json.loads((tmp_path / "run" / "summary.json").read_text())
    result = json.loads((tmp_path / "run" / "speed.json").read_text())
    assert [row["tokens"] for row in result["layers"]] == [1, 2]
    ways = [f"{name}, {how}" for name in ("EGGROLL rank 1", "EGGROLL rank 4", "OpenES") for how in
            ("at hand", "redrawn", "update")]  # fmt: skip
    assert list(result["layers"][0]["relative_speed"]) == ["inference", "forward + backward", *ways]
    assert result["layers"][0]["relative_speed"]["inference"] == 100
    assert result["arithmetic_intensity"]["8192"].keys() == {"inference", "rank 1", "rank 4"}
    assert (tmp_path / "run" / "speed.png").read_bytes()[:4] == b"\x89PNG"
    assert "inference = 100" in err and err.count("\n") == 4


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["speed", "--dtype", "int8"], "expected --dtype float32, bfloat16 or float16, got 'int8'"),
        (["speed", "--batch", "7"], "expected an even --batch"),
        (["speed", "--batch", "8", "--chunk-size", "6"], "expected --chunk-size 0 or an even divisor of --batch"),
        (["speed", "--widths", "2"], "expected --ranks up to the width 2"),
        (["speed", "--widths", "0"], "expected --widths of at least 1"),
        (["speed", "--law", "cauchy"], "expected a --law among signs"),
        (["speed", "--repeats", "0"], "expected --repeats, --policy-steps and --intensity above 0"),
        (["flops"], "expected a benchmark among speed, got flops"),
        ([], "expected a benchmark among speed, got nothing"),
    ],
)
def test_bad_input_is_one_line_and_status_2(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", *flags]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1 and not list(tmp_path.iterdir())
