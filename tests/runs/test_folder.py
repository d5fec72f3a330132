"""folder.py: nothing is overwritten, a JSON file is whole or absent, and every complaint is one line."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from eggroll.runs import folder as folder_module
from eggroll.runs.folder import RunError, RunFolder, fresh_name


def complaint(call, *arguments):
    with pytest.raises(RunError) as caught:
        call(*arguments)
    assert re.fullmatch(r"expected [^\n]+, got [^\n]+; [^\n]+", str(caught.value))
    return str(caught.value)


def test_create_then_open(tmp_path):
    path = tmp_path / "deep" / "er"
    RunFolder.create(path, "job", {"width": 16, "name": "ü"})
    assert [file.name for file in path.iterdir()] == ["config.json"]
    assert RunFolder.open(path).read_json("config.json") == {"width": 16, "name": "ü"}


def test_a_run_without_a_path_gets_a_fresh_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = RunFolder.create(None, "pretrain", {})
    assert folder.path.parent == Path("runs") and folder.path.is_dir()
    assert re.fullmatch(r"pretrain-\d{4}-\d\d-\d\d-[a-z]+-\d\d", folder.path.name)
    assert len({fresh_name("x") for _ in range(20)}) > 1


@pytest.mark.parametrize("content", [None, "mine"])
def test_what_exists_is_left_alone(tmp_path, content):
    target = tmp_path / "there"
    target.mkdir() if content is None else target.write_text(content)
    assert "does not exist yet" in complaint(RunFolder.create, target, "job", {})
    assert list(target.iterdir()) == [] if content is None else target.read_text() == content


def test_a_folder_that_cannot_be_made(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    assert "can be made" in complaint(RunFolder.create, tmp_path / "file" / "below", "job", {})

    def refuse(self, **_):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert "Permission denied" in complaint(RunFolder.create, tmp_path / "new", "job", {})
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("path", ["none", "", "file"])
def test_open_wants_a_run(tmp_path, path):
    (tmp_path / "file").write_text("")
    assert "config.json" in complaint(RunFolder.open, tmp_path / path)


@pytest.mark.parametrize("content", [None, b"", b'{"a": ', b"[1]", b"\xff"])
def test_unreadable_json(tmp_path, content):
    folder = RunFolder.create(tmp_path / "run", "job", {})
    if content is not None:
        (folder.path / "summary.json").write_bytes(content)
    assert "summary.json" in complaint(folder.read_json, "summary.json")


def test_json_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    folder = RunFolder.create(tmp_path / "run", "job", {})
    folder.write_json("summary.json", {"a": 1})

    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fail)
        assert "No space left" in complaint(folder.write_json, "summary.json", {"a": 2})
    assert folder.read_json("summary.json") == {"a": 1}
    folder.write_json("summary.json", {"a": 3})
    assert folder.read_json("summary.json") == {"a": 3}
    assert sorted(file.name for file in folder.path.iterdir()) == ["config.json", "summary.json"]


def test_a_folder_that_is_in_use(tmp_path):
    """A second process is told by whom; the lock goes with the process that had it."""
    folder = RunFolder.create(tmp_path / "run", "job", {})

    def take():
        with folder.locked():
            pass

    code = (
        "import pathlib, sys, time; from eggroll.runs.folder import RunFolder\n"
        "with RunFolder.open(pathlib.Path(sys.argv[1])).locked():\n    print('locked', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(folder.path)], stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None and other.stdout.readline() == "locked\n"
            assert f"in use by process {other.pid} on " in complaint(take)
        finally:
            other.kill()
    take()


def test_a_folder_that_cannot_be_written(tmp_path):
    """In a mount that is really read-only, as root too."""
    folder = RunFolder.create(tmp_path / "run", "job", {})
    code = (
        "import pathlib, sys; from eggroll.runs.folder import RunFolder, RunError\n"
        "folder = RunFolder.open(pathlib.Path(sys.argv[1]))\n"
        "try:\n    folder.locked().__enter__()\nexcept RunError as error:\n    print(error)"
    )
    mount = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
    command = ["unshare", "-rm", "sh", "-c", mount, str(folder.path), sys.executable, "-c", code, str(folder.path)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and "Operation not permitted" in done.stderr:
        pytest.skip("needs mount namespaces, which this system does not allow")
    assert re.fullmatch(r"expected a run folder that can be written, got .*: Read-only file system; .*\n", done.stdout)
    assert [file.name for file in folder.path.iterdir()] == ["config.json"]


def test_a_fresh_name_that_is_taken_is_drawn_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = iter(["heron", "heron", "otter"])
    monkeypatch.setattr(folder_module, "fresh_name", lambda job: next(names))
    assert [RunFolder.create(None, "pretrain", {}).path.name for _ in range(2)] == ["heron", "otter"]
