"""snapshots.py: int8 trees come back as they were, without a warning; what cannot be read is one line."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eggroll.runs import snapshots
from eggroll.runs.folder import RunError, RunFolder


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(tmp_path / "run", "job", {})


def tree(shift=0):
    values = np.arange(-127, 128, dtype=np.int8)[:252].reshape(3, 4, 21)
    return {"parameters": {"blocks": {"W": jnp.asarray(values)}, "v": values[0, 0] + np.int8(shift)}}


def complaint(folder, generation=None):
    with pytest.raises(RunError) as caught:
        snapshots.load(folder, generation)
    assert re.fullmatch(r"expected [^\n]+, got [^\n]+; [^\n]+", str(caught.value))
    return str(caught.value)


def test_round_trip(folder, caplog, capfd):
    snapshots.save(folder, 3, tree(), keep=2)
    generation, loaded = snapshots.load(folder)
    assert generation == 3
    assert jax.tree.structure(loaded) == jax.tree.structure(tree())
    for got, expected in zip(jax.tree.leaves(loaded), jax.tree.leaves(tree()), strict=True):
        assert type(got) is np.ndarray and got.dtype == np.int8
        np.testing.assert_array_equal(got, expected)
    assert capfd.readouterr().err == "" and not [line for line in caplog.records if line.levelname == "WARNING"]


def test_the_newest_are_kept(folder):
    for generation in (1, 9, 10, 11):
        snapshots.save(folder, generation, tree(generation), keep=2)
    snapshots.save(folder, 11, tree(99), keep=2)  # it exists: left as it is
    assert snapshots.generations(folder) == [10, 11]
    assert sorted(path.name for path in folder.snapshots.iterdir()) == ["00000010", "00000011"]
    for wanted, expected in ((None, 11), (10, 10)):
        generation, loaded = snapshots.load(folder, wanted)
        assert generation == expected
        np.testing.assert_array_equal(loaded["parameters"]["v"], tree(expected)["parameters"]["v"])
    assert "generation 9 in" in complaint(folder, 9) and "got 10, 11" in complaint(folder, 9)


def test_none_at_all(folder):
    assert snapshots.generations(folder) == []
    assert "got none" in complaint(folder)
    (folder.snapshots / "00000004.orbax-checkpoint-tmp").mkdir(parents=True)
    assert snapshots.generations(folder) == []


@pytest.mark.parametrize("damage", ["empty", "metadata gone", "metadata cut"])
def test_a_damaged_one(folder, damage, capfd):
    if damage == "empty":
        (folder.snapshots / "00000005").mkdir(parents=True)
    else:
        snapshots.save(folder, 5, tree(), keep=2)
        metadata = folder.snapshots / "00000005" / "_METADATA"
        metadata.unlink() if damage == "metadata gone" else metadata.write_bytes(metadata.read_bytes()[:99])
    assert "00000005" in complaint(folder)
    assert capfd.readouterr().err == ""


def test_a_removal_that_was_cut_short_is_no_snapshot(folder, monkeypatch):
    """A kill while old snapshots are removed leaves nothing that looks finished."""
    snapshots.save(folder, 1, tree(), keep=2)

    def killed(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(snapshots.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        snapshots.save(folder, 2, tree(), keep=1)
    assert snapshots.generations(folder) == [2]
