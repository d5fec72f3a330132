"""lanes.py against a Python loop over bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eggroll.pretrain.corpus import CorpusError
from eggroll.pretrain.lanes import Lanes


def oracle(stream: np.ndarray, lanes: int, seq_len: int, generation: int) -> list[list[int]]:
    length = len(stream) // lanes
    return [
        [int(stream[lane * length + (generation * seq_len + j) % length]) for j in range(seq_len + 1)]
        for lane in range(lanes)
    ]


@st.composite
def settings_of_lanes(draw: st.DrawFn) -> tuple[np.ndarray, int, int]:
    lanes, seq_len = draw(st.integers(1, 5)), draw(st.integers(1, 12))
    size = draw(st.integers(lanes * (seq_len + 1), lanes * (seq_len + 1) + 60))
    return np.random.default_rng(size).integers(0, 256, size).astype(np.uint8), lanes, seq_len


@given(settings_of_lanes(), st.integers(0, 40) | st.integers(0, 2**62))
def test_batch_equals_the_loop(case: tuple[np.ndarray, int, int], generation: int) -> None:
    batch = Lanes(*case).batch(generation)
    assert batch.dtype == np.uint8 and batch.shape == (case[1], case[2] + 1)
    assert batch.tolist() == oracle(*case, generation)


@given(settings_of_lanes())
def test_targets_of_a_round_cover_the_stream(case: tuple[np.ndarray, int, int]) -> None:
    stream, lanes, seq_len = case
    cut = Lanes(*case)
    rounds = -(-cut.lane_length // seq_len)
    inputs = np.concatenate([cut.batch(g)[:, :-1] for g in range(rounds)], axis=1)[:, : cut.lane_length]
    np.testing.assert_array_equal(inputs.ravel(), stream[: lanes * cut.lane_length])


@given(settings_of_lanes(), st.integers(0, 99))
def test_generations_join_and_come_round(case: tuple[np.ndarray, int, int], generation: int) -> None:
    cut = Lanes(*case)
    one, two = cut.batch(generation), cut.batch(generation + 1)
    np.testing.assert_array_equal(one[:, -1], two[:, 0])
    np.testing.assert_array_equal(one, cut.batch(generation + cut.lane_length))


def test_reads_a_memory_map_and_gives_a_fresh_array(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(200, dtype=np.uint8))
    stream = np.load(tmp_path / "x.npy", mmap_mode="r")
    batch = Lanes(stream, 4, 7).batch(3)
    assert type(batch) is np.ndarray and batch.flags.writeable
    assert batch.tolist() == oracle(stream, 4, 7, 3)


def test_complaints() -> None:
    stream = np.zeros(100, np.uint8)
    with pytest.raises(CorpusError) as caught:
        Lanes(stream, 11, 9)
    assert str(caught.value) == (
        "expected at least 110 training bytes (11 lanes of 10), "
        "got 100, a corpus shorter than one window a lane; "
        "give more data, a smaller population size, a larger group size or a shorter sequence length"
    )
    assert Lanes(stream, 10, 9).lane_length == 10
    with pytest.raises(CorpusError, match="expected lanes of at least 1, got 0"):
        Lanes(stream, 0, 9)
    with pytest.raises(CorpusError, match="expected seq_len of at least 1, got 0"):
        Lanes(stream, 1, 0)
    with pytest.raises(CorpusError, match="got int64 of shape"):
        Lanes(np.zeros(100, np.int64), 1, 9)
    with pytest.raises(ValueError, match="expected a generation of at least 0, got -1"):
        Lanes(stream, 10, 9).batch(-1)
