"""The command with workers that a real Ray starts, one of which dies; and workers that people start."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="needs Ray: pip install 'eggroll-es[ray]'")

SETTINGS = (
    *("--preset", "tiny", "--population-size", "256", "--group-size", "16", "--seq-len", "16", "--generations", "60"),
    *("--validation-bytes", "400", "--snapshot-every", "20", "--validate-every", "30", "--sample-bytes", "0"),
    *("--data", "data.txt"),
)
LIMIT = 240


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with data, and the run of one process."""
    path = tmp_path_factory.mktemp("ray")
    (path / "data.txt").write_text("the hen lays an egg, the egg rolls on and on. " * 400)
    finished = start(path, "pretrain", *SETTINGS, "--run-dir", "alone")
    assert ended(finished)[0] == 0
    return path


def start(path, *command, **more):
    environment = os.environ | {"XLA_FLAGS": "", "EGGROLL_TOKEN": "egg"} | more
    return subprocess.Popen(
        [sys.executable, "-m", "eggroll", *command],
        cwd=path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process):
    out, err = process.communicate(timeout=LIMIT)
    return process.returncode, out, err


def lines(run):
    try:
        return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines() if line.endswith("}")]
    except OSError:
        return []


def ray_workers():
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(b"ray::RayWorker"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def same_journal(folder, name):
    return (folder / "alone" / "journal.egg").read_bytes() == (folder / name / "journal.egg").read_bytes()


def test_ray_s_workers_one_of_which_dies(folder):
    before = set(ray_workers())
    run = start(folder, "pretrain", *SETTINGS, "--run-dir", "fleet", "--ray", "--workers", "2")
    killed = False
    while run.poll() is None and not killed:
        mine = set(ray_workers()) - before
        if len(lines(folder / "fleet")) >= 5 and len(mine) == 2:
            os.kill(min(mine), signal.SIGKILL)
            killed = True
        time.sleep(0.02)
    status, out, err = ended(run)
    assert status == 0, err
    assert killed and same_journal(folder, "fleet")
    metrics = lines(folder / "fleet")
    assert [line["generation"] for line in metrics] == list(range(60))
    assert sum(line["lost_workers"] for line in metrics) == 1
    assert max(line["wire_up_bytes"] for line in metrics) <= 256 / 10 + 256 + 4 * 70  # one worker has all four ranges
    assert json.loads(out.splitlines()[-1])["finished"] is True
    assert re.search(r"worker ray-\d:\d+ left: (its connection is closed|.*reset)", err) and "Traceback" not in err
    assert not set(ray_workers()) - before


def test_workers_that_people_start_and_flags_that_change_nothing(folder):
    address = "127.0.0.1:17171"
    workers = [start(folder, "worker", address) for _ in range(2)]
    flags = ("--run-dir", "listening", "--listen", address, "--workers", "2")
    status, _, err = ended(start(folder, "pretrain", *SETTINGS, *flags))
    assert status == 0, err
    assert same_journal(folder, "listening")
    for worker in workers:
        status, _, err = ended(worker)
        assert status == 0 and err.count("\n") == 1 and "the run has ended" in err
    assert "listen" not in json.loads((folder / "listening" / "config.json").read_text())
    resumed = start(folder, "pretrain", "--resume", "--run-dir", "listening", "--generations", "60")
    status, _, err = ended(resumed)
    assert status == 0 and "is finished" in err


def test_a_worker_with_other_data_says_so_in_one_line(folder, tmp_path):
    (tmp_path / "data.txt").write_text("another hen. " * 900)
    address = "127.0.0.1:17172"
    other = start(tmp_path, "worker", address)
    run = start(folder, "pretrain", *SETTINGS, "--run-dir", "other", "--listen", address, "--workers", "1")
    status, _, err = ended(other)
    assert status == 2 and err.count("\n") == 1 and "give it the same data" in err
    for _ in range(2):  # the first waits for the end of the generation, which never comes
        run.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            run.wait(timeout=15)
            break
    assert ended(run)[0] == 130


def refused(folder, *flags, **environment):
    """The one line, and nothing written."""
    status, out, err = ended(start(folder, "pretrain", *SETTINGS, "--run-dir", "nowhere", *flags, **environment))
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert not (folder / "nowhere").exists()
    return err


def test_what_cannot_be_a_fleet_is_refused_before_anything_is_written(folder):
    found = refused(folder, "--ray", "127.0.0.1:1", "--workers", "1")
    assert "expected a Ray cluster at 127.0.0.1:1, got" in found and "start one (ray start --head)" in found
    assert "expected a secret in the environment variable EGGROLL_TOKEN" in refused(
        folder, "--listen", "127.0.0.1:0", "--workers", "1", EGGROLL_TOKEN=""
    )
