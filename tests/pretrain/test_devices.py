"""Pretraining on several devices: the bits of one, and a run that goes on on another number of them."""

import dataclasses

import jax
import numpy as np
import pytest

from eggroll.core.errors import UsageError
from eggroll.pretrain.config import PretrainConfig
from eggroll.pretrain.devices import mesh_of, start_carry
from eggroll.pretrain.job import learner_of, make_job
from eggroll.pretrain.lanes import Lanes
from eggroll.runs.folder import RunFolder
from eggroll.runs.going_on import recorded_settings
from eggroll.runs.journal import Journal
from eggroll.runs.loop import run
from eggroll.runs.resume import differences

CONFIG = PretrainConfig(
    width=16, population_size=64, group_size=8, seq_len=8, generations=4, decay=12.0, validation_bytes=400,
    validate_every=4, snapshot_every=2, sample_bytes=0, chunk_size=8,
)  # fmt: skip
STREAM = np.frombuffer(b"the hen lays an egg, the egg rolls. " * 60, np.uint8)


def trained(folder, *, generations=4, **changes):
    config = dataclasses.replace(CONFIG, generations=generations, **changes)
    outcome = run(make_job(config, Lanes(STREAM, 8, 8), STREAM[:400]), folder, extra={})
    return jax.tree.map(np.asarray, outcome.state)


def folder(path):
    return RunFolder.create(path, "pretrain", CONFIG.as_json())


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    home = folder(tmp_path_factory.mktemp("runs") / "alone")
    return trained(home, devices=1), home


def test_two_devices_give_the_bits_of_one(alone, tmp_path):
    home = folder(tmp_path / "two")
    jax.tree.map(np.testing.assert_array_equal, trained(home, devices=2, update="rows"), alone[0])
    with Journal.open(home.journal) as one, Journal.open(alone[1].journal) as other:
        assert one.header["strategy"] == other.header["strategy"]
        for generation in range(4):
            np.testing.assert_array_equal(one.record(generation).weights, other.record(generation).weights)


def test_a_run_goes_on_on_another_number_of_devices(alone, tmp_path):
    home = folder(tmp_path / "moved")
    trained(home, generations=2, devices=2)
    jax.tree.map(np.testing.assert_array_equal, trained(home, devices=1), alone[0])
    given = dataclasses.replace(CONFIG, devices=2, update="redraw", generations=2)
    assert differences(recorded_settings(home, PretrainConfig, "pretrain").as_json(), given.as_json()) == {}
    learner_of({"config": CONFIG.as_json() | {"devices": 16}})  # a journal from a larger machine is replayed on this


def test_what_is_sharded():
    mesh = mesh_of(CONFIG)
    assert mesh.size == 2 and mesh_of(dataclasses.replace(CONFIG, devices=1)) is None
    assert mesh_of(dataclasses.replace(CONFIG, population_size=6, group_size=2, chunk_size="auto")) is None
    assert start_carry(CONFIG, mesh).addressable_shards[0].data.shape == (1, 2, 16, 16)


@pytest.mark.parametrize(
    ("devices", "match"),
    [
        (32, "expected --devices of at most 2, got 32; --devices auto takes what there is"),
        (3, "expected --devices auto or a divisor of the 32 pairs of the population, got 3; choose auto"),
        (0, "expected --devices auto or a divisor of the 32 pairs"),
    ],
)
def test_refusals(devices, match):
    with pytest.raises(UsageError, match=match):
        mesh_of(dataclasses.replace(CONFIG, devices=devices))
