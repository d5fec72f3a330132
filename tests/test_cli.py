"""The command as a person meets it: exit statuses, one line for every mistake, help, and Ctrl-C."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from eggroll import cli
from eggroll.runs import snapshots
from eggroll.runs.folder import RunFolder

COMMAND = [sys.executable, "-m", "eggroll"]
SMALL = ["--preset=tiny", "--population-size=64", "--group-size=8", "--seq-len=8", "--validation-bytes=200"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    """With some data beside it, so that a test sees what a command leaves behind."""
    data, empty = tmp_path / "data", tmp_path / "empty"
    data.mkdir()
    empty.mkdir()
    (data / "fine.txt").write_text("the hen lays an egg, the egg rolls. " * 80)
    (data / "empty.txt").write_text("")
    (data / "short.txt").write_text("a few words")
    (data / "binary.txt").write_bytes(b"abc\0def\xff")
    (data / "no text").mkdir()
    (data / "there").mkdir()
    monkeypatch.chdir(empty)
    monkeypatch.setenv("EGGROLL_TOKEN", "egg")


BAD = {
    "no data after --data": "pretrain --data",
    "empty file": "pretrain --data ../data/empty.txt",
    "missing file": "pretrain --data ../data/none.txt",
    "folder without text": "pretrain --data ../data/there",
    "no text": "pretrain --data ../data/binary.txt",
    "shorter than a lane": "pretrain --data ../data/short.txt",
    "lanes longer than the corpus": "pretrain --data ../data/fine.txt --seq-len 4000",
    "width": "pretrain --width 32",
    "width of 4": "pretrain --width 4",
    "a model beyond any memory": "pretrain --width 1048576 --layers 1000",
    "group size that does not divide": "pretrain --group-size 48",
    "odd group size": "pretrain --group-size 3",
    "group size of 0": "pretrain --group-size 0",
    "odd population": "pretrain --population-size 65",
    "alpha of 0": "pretrain --alpha 0",
    "negative alpha": "pretrain --alpha -1",
    "alpha that is no number": "pretrain --alpha nan",
    "infinite alpha": "pretrain --alpha inf",
    "decay of 0": "pretrain --decay 0",
    "rank": "pretrain --rank 2",
    "generations": "pretrain --generations -3",
    "chunk size": "pretrain --chunk-size 5",
    "seed": "pretrain --seed -1",
    "validation bytes": "pretrain --data ../data/fine.txt --validation-bytes 1",
    "unknown preset": "pretrain --preset huge",
    "preset without a name": "pretrain --preset",
    "run folder that exists": "pretrain --data ../data/fine.txt --run-dir ../data/there",
    "run folder below a file": "pretrain --data ../data/fine.txt --run-dir ../data/fine.txt/x",
    "word for an integer": "pretrain --width wide",
    "word after =": "pretrain --width=wide",
    "fraction for an integer": "pretrain --generations 1.5",
    "word for a number": "pretrain --alpha much",
    "word for auto or an integer": "pretrain --chunk-size some",
    "flag without its value": "pretrain --width",
    "unknown flag": "pretrain --wdith 16",
    "word too many": "pretrain demo",
    "unknown command": "train --width 16",
    "sample without a run": "sample",
    "sample from no run": "sample ../data/there",
    "sample with a bad flag": "sample ../data/there --bytes many",
    "sample with a bad temperature": "sample ../data/there --temperature -1",
    "doctor with a word": "doctor now",
    "theory of nothing": "theory",
    "theory of something else": "theory gravity",
    "theory with a bad chip": "theory intensity --chip abacus",
    "theory in a place that is a file": "theory score --out ../data/fine.txt",
    "replay without a run": "replay",
    "report without a run": "report",
    "report of no run": "report ../data/there",
    "resume without a run": "pretrain --resume",
    "snapshots of 0": "pretrain --snapshots-kept 0",
    "unknown tracker": "pretrain --track paper",
    "start from nothing": "pretrain --start-from ../data/there",
    "a fleet of several processes": "pretrain --ray --workers 2 --coordinator 127.0.0.1:1 --processes 1 --process 0",
    "ray without workers": "pretrain --ray",
    "workers without a place": "pretrain --workers 2",
    "negative workers": "pretrain --ray --workers -1",
    "no address to listen at": "pretrain --listen here --workers 2",
    "lease of 0": "pretrain --ray --workers 1 --lease-seconds 0",
    "negative GPUs": "pretrain --ray --workers 1 --worker-gpus -1",
    "Ray where there is none": "pretrain --ray 127.0.0.1:1 --workers 1",
    "worker for nobody": "worker",
    "worker at no address": "worker there",
    "worker with bad patience": "worker 127.0.0.1:1 --patience -1",
    "worker where nobody listens": "worker 127.0.0.1:1 --patience 0",
}


def is_one_line(text):
    return re.fullmatch(r"eggroll( \w+)?: expected [^\n]+, got [^\n]+; [^\n]+\n", text) is not None


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_leaves_nothing_behind(name, capsys):
    command, *flags = BAD[name].split()
    before = sorted(Path("..").rglob("*"))
    status = cli.main([command, *(SMALL if command == "pretrain" else []), *flags])
    out, err = capsys.readouterr()
    assert (status, out) == (2, "") and is_one_line(err), err
    assert sorted(Path("..").rglob("*")) == before


def test_what_was_got_is_named(capsys):
    for flags, text in (
        ("pretrain --width=wide", "expected --width INT, got 'wide'; eggroll pretrain --help tells its flags"),
        ("pretrain --wdith 16", "a flag of eggroll pretrain, got --wdith; did you mean --width? eggroll"),
        ("pretrain --rank 2", "got 2; "),
        ("pretrain --width 4 --preset", "among demo, paper, tiny, got ''; "),
        ("sample", "expected RUN_DIR (Folder of a pretraining run), got none; "),
        (
            "train",
            "among pretrain, sample, rl, marl, finetune, distill, vllm, trade, chat, "
            "worker, replay, report, bench, theory, doctor, got 'train'; did you mean pretrain or trade? ",
        ),
    ):
        assert cli.main(flags.split()) == 2
        assert text in capsys.readouterr().err


@pytest.mark.parametrize("flags", ["pretrain --listen 127.0.0.1:0 --workers 2", "worker 127.0.0.1:1"])
def test_a_fleet_needs_a_secret(flags, capsys, monkeypatch):
    monkeypatch.delenv("EGGROLL_TOKEN")
    assert cli.main(flags.split()) == 2
    out, err = capsys.readouterr()
    assert out == "" and is_one_line(err) and "make one: export EGGROLL_TOKEN=$(openssl rand -hex 16)" in err
    assert not list(Path().iterdir())


def test_ray_alone_is_one_of_our_own():
    assert cli.ray_named(["--ray", "--workers", "2"]) == ["--ray", "local", "--workers", "2"]
    assert cli.ray_named(["--workers", "2", "--ray"]) == ["--workers", "2", "--ray", "local"]
    assert cli.ray_named(["--ray", "10.0.0.1:6379"]) == ["--ray", "10.0.0.1:6379"]


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_bad_input_to_the_real_command(encoding):
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run([*COMMAND, "pretrain", "--width", "wide"], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (2, "") and is_one_line(done.stderr)
    assert "expected --width INT, got 'wide'; " in done.stderr


def test_the_last_preset_counts(monkeypatch):
    """As the last of any flag does: defaults and name are of one preset."""
    parsed = []
    monkeypatch.setattr(
        "eggroll.pretrain.job.pretrain", lambda config, **_: parsed.append(config) or pytest.fail("ran")
    )
    with pytest.raises(pytest.fail.Exception):
        cli.main(["pretrain", "--preset=demo", "--preset", "tiny"])
    assert (parsed[0].preset, parsed[0].width) == ("tiny", 16)


@pytest.mark.parametrize("flags", [["--help"], ["-h"], []])
def test_help_lists_the_commands(flags, capsys):
    assert cli.main(flags) == (0 if flags else 2)
    out = capsys.readouterr().out
    assert all(re.search(rf"^  {name} +\w", out, re.MULTILINE) for name in ("pretrain", "sample", "doctor"))


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert re.fullmatch(r"\d+\.\d+\S*\n", capsys.readouterr().out)


@pytest.mark.parametrize("code", ["import eggroll", "import eggroll.cli; eggroll.cli.main(['--help'])"])
def test_no_engine_is_imported_for_nothing(code):
    check = "import sys; print(sorted({'jax', 'torch', 'optax', 'orbax', 'matplotlib', 'tyro'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{check}"], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done


def test_pretrain_then_sample(capsysbinary):
    status = cli.main(["pretrain", *SMALL, "--data", "../data/fine.txt", "--generations", "1", "--run-dir", "run"])
    out, err = capsysbinary.readouterr()
    assert status == 0
    assert json.loads(out.splitlines()[-1]) == RunFolder.open(Path("run")).read_json("summary.json")
    assert b"11,344 int8 parameters" in err
    assert cli.main(["sample", "run", "--prompt", "the \udcff", "--bytes", "12", "--temperature", "0"]) == 0
    out, err = capsysbinary.readouterr()
    assert out.startswith(b"the \xff") and out.endswith(b"\n") and len(out) == 5 + 12 + 1 and err == b""


def wait_for(path, process):
    deadline = time.monotonic() + 120
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert path.exists(), process.communicate()


def test_interrupt_saves_what_there_is():
    flags = [*SMALL, "--data", "../data/fine.txt", "--generations", "1000000", "--snapshot-every", "1000000"]
    process = subprocess.Popen(
        [*COMMAND, "pretrain", *flags, "--run-dir", "run"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        try:
            wait_for(Path("run/metrics.jsonl"), process)
            os.kill(process.pid, signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130, err
    folder = RunFolder.open(Path("run"))
    summary = folder.read_json("summary.json")
    assert json.loads(out.splitlines()[-1]) == summary and not summary["finished"]
    generation, tree = snapshots.load(folder)
    assert generation == summary["generations"] == len(Path("run/metrics.jsonl").read_text().splitlines())
    assert tree["parameters"]["head"].dtype == np.int8
