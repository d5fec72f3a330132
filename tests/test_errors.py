"""`errors.md`, the list of what one sees after a mistake: each mistake is made, and its line is seen."""

import contextlib
import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from eggroll import cli
from eggroll.runs.folder import RunFolder
from tests import wrong
from tests.wrong import Case

ROOT = Path(__file__).resolve().parents[1]
HERE = ("Words and flags", "Files and folders", "Settings", "Runs", "This machine")
BARE, ELSEWHERE, PYTHON, MEANWHILE = (
    "Without the packages of the extras",
    "In another environment",
    "In Python",
    "While something happens",
)
EGGROLL = [sys.executable, "-m", "eggroll"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Made once: no mistake may change it."""
    place = tmp_path_factory.mktemp("world")
    wrong.lay_out(place)
    return place


@pytest.fixture(autouse=True)
def in_the_world(world, monkeypatch):
    monkeypatch.chdir(world)
    monkeypatch.setenv("EGGROLL_TOKEN", "egg")
    with jax.numpy_rank_promotion("allow"):  # a language model broadcasts
        yield


def differing(kind, section):
    """What was done → what is seen, of a section that is run in one process of its own, where it is not the list's."""
    cases, path = wrong.cases(section), os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-m", "tests.wrong", kind],
        input=json.dumps([case.typed for case in cases]),
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    return {case.done: text for case, text in zip(cases, seen, strict=True) if not case.fits(text)}


def entry(done):
    """An entry of the list that a test of its own makes."""
    return next(case for case in wrong.cases(MEANWHILE) if case.done == done)


def test_the_list_is_read_whole():
    text = wrong.LIST.read_text()
    assert len(wrong.cases()) == len(re.findall("^```(?:console|pycon)$", text, re.MULTILINE)) > 150
    assert {case.section for case in wrong.cases()} == {*HERE, BARE, ELSEWHERE, PYTHON, MEANWHILE}
    names = [(case.section, case.done) for case in wrong.cases()]
    assert len(names) == len(set(names))


def test_every_line_says_what_to_do():
    usual, others = (
        r"(eggroll( \w+)?|\w*Error): expected .+, got .+; .+",
        ("eggroll needs ", "eggroll pretrain: stopped "),
    )
    lines = [case.seen for case in wrong.cases()]
    assert not [
        line for line in lines if not re.fullmatch(usual, line) and not (line.startswith(others) and ";" in line)
    ]


@pytest.mark.parametrize("case", wrong.cases(*HERE), ids=lambda case: case.done)
def test_mistakes_are_one_line(case, world):
    before = sorted(world.rglob("*"))
    seen = wrong.command(case.typed)
    assert case.fits(seen), seen
    assert sorted(world.rglob("*")) == before


def test_packages_that_are_missing():
    assert not differing("bare", BARE)


def test_mistakes_in_python():
    assert not differing("python", PYTHON)


@pytest.mark.parametrize("case", wrong.cases(ELSEWHERE), ids=lambda case: case.done)
def test_another_environment(case, tmp_path):
    words = shlex.split(case.typed)
    changed = dict(word.split("=", 1) for word in words if re.match("[A-Z_]+=", word))
    command = [*EGGROLL, *words[len(changed) + 1 :]]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | changed, cwd=tmp_path, timeout=60)
    assert done.returncode == 2 and case.fits(done.stderr.splitlines()[-1]), done.stderr
    assert "Traceback" not in done.stderr


def test_a_full_disk(tmp_path, monkeypatch):
    """As far as a process can see one: no file may grow beyond some bytes."""
    case, limits = entry("a disk that is full"), resource.getrlimit(resource.RLIMIT_FSIZE)
    (tmp_path / "text.txt").write_bytes(Path("text.txt").read_bytes())
    monkeypatch.chdir(tmp_path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        seen = wrong.command(case.typed)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert case.fits(seen.splitlines()[-1]), seen


def test_a_model_beyond_the_memory(tmp_path, monkeypatch):
    case = entry("a model beyond the memory")
    monkeypatch.chdir(tmp_path)
    seen = wrong.command(case.typed)
    assert case.fits(seen), seen


def test_a_run_in_use():
    case = entry("another process that writes to the run")
    with RunFolder.open(Path("begun")).locked():
        seen = wrong.command(case.typed)
    Path("begun/.lock").unlink()
    assert case.fits(seen.splitlines()[-1]), seen


def test_output_that_cannot_be_written():
    case = entry("output that cannot be written")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*EGGROLL, "--help"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2 and case.fits(done.stderr), done.stderr


@pytest.mark.parametrize("words", [["--help"], ["pretrain", "--help"], ["trade"]])
def test_nobody_reads(words):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*EGGROLL, *words], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    if words == ["trade"]:  # a complaint goes elsewhere, and comes
        assert done.returncode == 2 and done.stderr.startswith("eggroll trade: expected")
    else:
        assert (done.returncode, done.stderr) == (141, "")


def test_ctrl_c_at_the_start():
    """While an engine is imported, which takes a second or more."""
    case = entry("Ctrl-C while a command starts")
    # a shell's background jobs ignore the signal, and so would their children
    heed = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    command = [sys.executable, "-c", heed, *EGGROLL, *case.typed.split()[1:]]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with process, contextlib.ExitStack() as stack:
        stack.callback(process.kill)
        maps = Path(f"/proc/{process.pid}/maps")
        deadline = time.monotonic() + 30
        while "numpy" not in maps.read_text() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "") and case.fits(err), err


def test_a_python_that_is_too_old():
    """The check of the Makefile, and what pip goes by."""
    case = entry("a Python that is too old")
    code = re.search(r"\$\(PYTHON\) -c '(import sys; .*)'", (ROOT / "Makefile").read_text())[1]
    assert code.startswith("import sys; sys.exit(")
    check = code.removeprefix("import sys; sys.exit(").removesuffix(")")
    old = SimpleNamespace(version_info=(3, 10, 12), version="3.10.12 (main)")
    assert case.fits(eval(check, {"sys": old}))
    assert eval(check, {"sys": sys}) == 0
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"] == ">=3.11"


def test_a_package_that_every_command_needs(monkeypatch):
    case = entry("a package that every command needs, gone")
    monkeypatch.setitem(sys.modules, "tyro", None)
    assert case.fits(wrong.command(case.typed))


@pytest.mark.parametrize(
    "settings", [{"NO_COLOR": "1"}, {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}]
)
def test_plain_terminals(settings):
    """No colours and no boxes, in an encoding that has but ASCII."""
    for words, status in ((["rl", "--rank", "0"], 2), (["theory", "--help"], 0)):
        done = subprocess.run([*EGGROLL, *words], capture_output=True, env=os.environ | settings)
        assert done.returncode == status and b"Traceback" not in done.stderr
        assert (done.stdout + done.stderr).isascii() and b"\x1b" not in done.stdout + done.stderr


def test_letters_that_the_terminal_lacks():
    code = "import sys; from eggroll import cli; cli._print_whatever_comes(); print('3×256')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env=os.environ | {"PYTHONIOENCODING": "ascii"}
    )
    assert done.stdout == b"3?256\n"


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch):
    def broken(arguments):
        raise ZeroDivisionError("of ours")

    monkeypatch.setitem(cli.COMMANDS, "doctor", broken)
    with pytest.raises(ZeroDivisionError):
        cli.main(["doctor"])


@pytest.mark.parametrize("text", ["expected a hen, got an egg; sit on it", "an egg"])
def test_only_our_own_words_are_shown_without_one(text, monkeypatch):
    """A ValueError of somebody else is a fault, whatever it says."""

    def broken(arguments):
        raise ValueError(text)

    monkeypatch.setitem(cli.COMMANDS, "doctor", broken)
    with pytest.raises(ValueError, match="egg"):
        cli.main(["doctor"])


def test_a_case_fits_what_is_the_same():
    case = Case("", "", "", "expected 1…, got (2); …")
    assert case.fits("expected 10, got (2); mend it\n")
    assert not case.fits("expected 10, got (2)") and not case.fits("first\nexpected 10, got (2); x")
