"""Arithmetic intensity: the paper's formulas and numbers, and the command that counts."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eggroll.bench.layers import batch_for
from eggroll.cli import main
from eggroll.theory import roofline
from eggroll.theory.chips import CHIPS, ITEMSIZE
from eggroll.theory.intensity import Layer, eggroll, gaussian, inference


def test_the_papers_batches():
    layer = Layer(8192, 8192)
    assert inference(layer).batch_for(300.0) == 324
    assert eggroll(layer, 1).batch_for(300.0) == 352
    assert gaussian(layer).batch_for(300.0) is None
    assert gaussian(Layer(8192, 8192, tokens=324)).limit > 300 > gaussian(Layer(8192, 8192, tokens=323)).limit
    assert all(check.holds for check in roofline.papers_checks())


@given(m=st.integers(1, 20000), batch=st.integers(1, 10**6), rank=st.integers(1, 64))
def test_the_papers_formulas(m, batch, rank):
    layer = Layer(m, m)
    assert inference(layer).intensity(batch) == pytest.approx(batch * m / (2 * batch + m))
    assert gaussian(layer).intensity(batch) == pytest.approx(m / (2 + m)) and gaussian(layer).limit < 1
    wanted = (m + 2 * rank + 0.5) / (2 + rank * (2 + 2 / m) + m / batch)
    assert eggroll(layer, rank).intensity(batch) == pytest.approx(wanted)


@given(
    m=st.integers(1, 9000),
    n=st.integers(1, 9000),
    tokens=st.integers(1, 64),
    rank=st.integers(1, 32),
    target=st.floats(0.5, 2000),
    dtype=st.sampled_from(sorted(ITEMSIZE)),
)
def test_the_batch_is_the_least_that_reaches_the_intensity(m, n, tokens, rank, target, dtype):
    layer = Layer(n, m, tokens, dtype)
    for count in (inference(layer), eggroll(layer, rank), eggroll(layer, rank, redrawn=True)):
        batch = count.batch_for(target)
        if batch is None:
            assert count.limit <= target * (1 + 1e-9)
        else:
            assert count.intensity(batch) >= target * (1 - 1e-9)
            assert batch == 1 or count.intensity(batch - 1) < target * (1 + 1e-9)


def test_the_benchmarks_table_agrees():
    for width in (2048, 4096, 8192):
        layer = Layer(width, width)
        assert batch_for(300.0, width, 2, None) == inference(layer).batch_for(300.0)
        # which leaves the operations of the low-rank products out
        assert batch_for(300.0, width, 2, 1) == pytest.approx(eggroll(layer, 1).batch_for(300.0), rel=0.005)


@pytest.mark.parametrize("name", CHIPS)
def test_chips_are_of_this_world(name):
    chip = CHIPS[name]
    assert set(chip.tera) <= set(ITEMSIZE) and 1e11 < chip.bandwidth < 2e13 and chip.source
    assert 100 < chip.ridge("bfloat16") < 700
    assert chip.peak("int8") == pytest.approx(2 * chip.peak("bfloat16"), rel=0.01)


def test_the_command_prints_a_table_and_json(tmp_path, capsys):
    flags = ["--width", "8192", "--rank", "1", "--batch", "512", "--chip", "h200", "--out", str(tmp_path / "a")]
    assert main(["theory", "intensity", *flags]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    ridge = 989.4 / 4.8
    assert found["operations_per_byte_to_saturate"] == pytest.approx(ridge) and found["chip"] == "H200 SXM"
    row = found["table"]["rank 1"]
    assert row["batch_to_saturate"] == eggroll(Layer(8192, 8192), 1).batch_for(ridge)
    assert f"B = {row['batch_to_saturate']}" in err and "Gaussian ES" in err and "never" in err
    whole = json.loads((tmp_path / "a" / "intensity.json").read_text())
    assert whole["numbers"]["table"] == found["table"] and len(whole["checks"]) == 3
    assert (tmp_path / "a" / "intensity.png").read_bytes().startswith(b"\x89PNG")


def test_the_papers_setting_by_the_command(tmp_path, capsys):
    assert main(["theory", "intensity", "--intensity", "300", "--rank", "1", "--out", str(tmp_path)]) == 0
    table = json.loads(capsys.readouterr().out)["table"]
    assert (table["inference"]["batch_to_saturate"], table["rank 1"]["batch_to_saturate"]) == (324, 352)


def test_a_wide_and_a_narrow_layer(tmp_path, capsys):
    flags = ["--width", "64", "--outputs", "128", "--tokens", "8", "--dtype", "int8", "--chip", "v5e"]
    assert main(["theory", "intensity", *flags, "--out", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["inputs"], found["outputs"], found["table"]["rank 1"]["batch_to_saturate"]) == (64, 128, None)
    assert math.isfinite(found["table"]["rank 1"]["share_of_peak"])
