"""snapshots.py: int8 trees come back as they were, without a warning; what cannot be read is one line."""

import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eggroll.runs import snapshots, trees
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
    (folder.snapshots / ".00000004.partial").mkdir(parents=True)
    (folder.snapshots / ".00000003.removed").mkdir()
    assert snapshots.generations(folder) == []
    snapshots.tidy(folder)
    assert list(folder.snapshots.iterdir()) == []


def change(path, damage):
    """Some damage to a snapshot."""
    file = path / "_METADATA"
    if damage == "metadata gone":
        file.unlink()
    elif damage == "metadata cut":
        file.write_bytes(file.read_bytes()[:99])
    elif damage == "a bit turned":
        file = next(file for file in (path / "d").iterdir() if file.stat().st_size)
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 4
        file.write_bytes(data)
    elif damage == "a file more":
        (path / "d" / "more").write_bytes(b"x")
    elif damage == "manifest gone":
        (path / "MANIFEST.json").unlink()
    elif damage == "manifest of nonsense":
        (path / "MANIFEST.json").write_text("[[1]]")


DAMAGES = ["metadata gone", "metadata cut", "a bit turned", "a file more", "manifest gone", "manifest of nonsense"]


@pytest.mark.parametrize("damage", ["empty", *DAMAGES])
def test_a_damaged_one(folder, damage, capfd):
    if damage == "empty":
        (folder.snapshots / "00000005").mkdir(parents=True)
    else:
        snapshots.save(folder, 5, tree(), keep=2)
        change(folder.snapshots / "00000005", damage)
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


def test_one_tree_of_several(folder):
    snapshots.save(folder, 2, tree() | {"optimizer": (), "carry": jnp.zeros((3, 2)), "shared": None}, keep=2)
    assert snapshots.load(folder)[1].keys() == {"parameters", "carry"}
    loaded = snapshots.load(folder, only="parameters")[1]
    assert loaded.keys() == {"parameters"}
    np.testing.assert_array_equal(loaded["parameters"]["v"], tree()["parameters"]["v"])


def test_later_snapshots_are_not_counted(folder):
    """Of a run that went back behind them, as its journal was damaged."""
    for generation in (10, 20, 4, 5, 6):
        snapshots.save(folder, generation, tree(), keep=2)
    assert snapshots.generations(folder) == [5, 6, 10, 20]


def test_a_full_disk(tmp_path):
    """In a small memory disk of its own: one line, and the snapshots as they were."""
    code = (
        "import pathlib, sys, numpy as np; from eggroll.runs import snapshots; from eggroll.runs.folder import *\n"
        "folder = RunFolder.create(pathlib.Path(sys.argv[1]) / 'run', 'job', {})\n"
        "snapshots.save(folder, 1, {'a': np.zeros(4)}, keep=2)\n"
        "noise = np.random.default_rng(0).integers(0, 256, 2**21, np.uint8)\n"
        "try:\n    snapshots.save(folder, 2, {'a': noise}, keep=2)\nexcept RunError as error:\n    print(error)\n"
        "print([path.name for path in folder.snapshots.iterdir()], snapshots.load(folder)[0])"
    )
    mount = 'mount -t tmpfs -o size=1m none "$0" && exec "$@"'
    command = ["unshare", "-rm", "sh", "-c", mount, str(tmp_path), sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and "Operation not permitted" in done.stderr:
        pytest.skip("needs mount namespaces, which this system does not allow")
    complaint, left = done.stdout.splitlines()
    assert re.fullmatch(r"expected to write a snapshot in .*, got .*; mend that, then go on with --resume", complaint)
    assert left == "['00000001'] 1"


def test_empty_arrays_come_back(folder):
    """Orbax takes none: they are in no snapshot, and filled in from the tree that is expected."""
    held = {"parameters": {"none": jnp.zeros((0, 3)), "one": jnp.ones(2)}}
    snapshots.save(folder, 1, held, keep=2)
    back = trees.filled(held, trees.as_arrays(snapshots.load(folder)[1]), "it")
    assert back["parameters"]["none"].shape == (0, 3) and back["parameters"]["one"].tolist() == [1, 1]
