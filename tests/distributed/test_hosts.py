"""Two real processes as one run: the same bits as one process has, a clear end when one is lost, and going on."""

import json
import os
import re
import shutil
import signal
import time

import numpy as np
import pytest

from eggroll.integer import model
from eggroll.runs import snapshots
from eggroll.runs.folder import RunFolder
from tests.distributed.processes import (
    SETTINGS,
    Processes,
    ended,
    free_port,
    frozen,
    stopped,
    two_hosts,
    wait_for_generation,
)
from tests.heavy import heavy_but

LINE = r"eggroll pretrain: expected [^\n]+; [^\n]+\n"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, compiled):
    """What one process with as many devices leaves."""
    folder = tmp_path_factory.mktemp("whole")
    write_data(folder)
    processes = Processes(folder, compiled)
    try:
        status, _, err = ended(processes.pretrain(*SETTINGS, "--run-dir", "run", devices=2))
        assert status == 0, err
    finally:
        processes.close()
    return folder / "run"


@pytest.fixture
def processes(tmp_path, compiled):
    write_data(tmp_path)
    started = Processes(tmp_path, compiled)
    yield started
    started.close()


def write_data(folder):
    (folder / "data.txt").write_text("the hen lays an egg, the egg rolls. " * 80)


def left_by(run):
    """Everything of a run that does not depend on when and where it ran."""
    generation, tree = snapshots.load(RunFolder.open(run))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    own = ("seconds", "per_second", "bits_per_byte")  # a run that is stopped validates then
    lines = [{k: v for k, v in line.items() if not k.endswith(own)} for line in lines]
    leaves = {path: leaf.tobytes() for path, leaf in model.flat(tree["parameters"]).items()}
    return generation, leaves, lines, (run / "journal.egg").read_bytes()


def is_told_once(err):
    """One line of complaint, after what the run says of its data, and nothing of JAX's own."""
    return re.fullmatch(rf"(data\.txt: [^\n]+\n)?{LINE}", err) is not None


def test_two_processes_leave_what_one_does(processes, whole):
    first, second = map(ended, processes.pair("run", *SETTINGS))
    assert first[0] == second[0] == 0, (first, second)
    run = processes.folder / "run"
    assert left_by(run) == left_by(whole)
    summary = json.loads(first[1])
    assert summary == RunFolder.open(run).read_json("summary.json") and summary["processes"] == summary["devices"] == 2
    assert summary["bits_per_byte"] == RunFolder.open(whole).read_json("summary.json")["bits_per_byte"]
    assert second[1:] == ("", "") and re.fullmatch(r"data\.txt: [^\n]+\n", first[2])
    assert sorted(path.name for path in (processes.folder / "elsewhere").iterdir()) == ["data.txt"]
    assert "coordinator" not in RunFolder.open(run).read_json("config.json")


STRIKES = {
    "killed, first": (lambda process: stopped(process, signal.SIGKILL), 0, 5, "connection closed"),
    "killed, second": (lambda process: stopped(process, signal.SIGKILL), 1, 5, "connection closed"),
    "frozen": (frozen, 1, 8, "3 seconds of silence"),
}


@pytest.mark.parametrize("strikes", heavy_but([("killed, first",)], [("killed, first",), tuple(STRIKES)]), ids=len)
def test_lost_processes_and_going_on(processes, whole, strikes):
    """One after the other: killed, frozen, asked to stop; then one process goes on alone."""
    run, flags = processes.folder / "run", SETTINGS
    for end, (strike, who, within, why) in enumerate(STRIKES[name] for name in strikes):
        pair = processes.pair("run", *flags)
        wait_for_generation(run, 50 * end + 30, pair)
        since = strike(pair[who])
        status, out, err = ended(pair[1 - who], 30)
        assert time.monotonic() - since < within
        assert (status, out) == (2, "") and is_told_once(err), err
        assert f"expected 2 processes, lost process {who} at 127.0.0.1 ({why}); start all of them again" in err
        pair[who].kill()
        flags = ("--resume",)
    pair = processes.pair("run", *flags)
    wait_for_generation(run, 50 * len(strikes) + 30, pair)
    pair[1].send_signal(signal.SIGTERM)
    first, second = map(ended, pair)
    assert first[0] == second[0] == 130 and second[1:] == ("", "")
    summary = json.loads(first[1])
    assert not summary["finished"] and snapshots.load(RunFolder.open(run))[0] == summary["generations"]
    status, _, err = ended(processes.pretrain("--run-dir", "run", "--resume"))
    assert status == 0, err
    assert left_by(run) == left_by(whole)


@pytest.mark.heavy
def test_two_hosts_and_a_cut_cable(processes, whole):
    """Hosts that share nothing but a cable; each tells that the other is lost, and together they go on."""
    if os.geteuid() or shutil.which("ip") is None:
        pytest.skip("needs root and the command ip, of the package iproute2, to make network namespaces")
    run = processes.folder / "run"
    with two_hosts() as (inside, cut):
        pair = processes.pair("run", *SETTINGS, address="10.77.0.1", inside=inside)
        wait_for_generation(run, 30, pair)
        cut()
        for process, (status, out, err) in enumerate(map(ended, pair)):
            assert (status, out) == (2, "") and is_told_once(err), err
            assert f"lost process {1 - process} at 10.77.0.{2 - process} (3 seconds of silence)" in err
    with two_hosts() as (inside, _):
        first, second = map(ended, processes.pair("run", "--resume", address="10.77.0.1", inside=inside))
    assert first[0] == second[0] == 0, (first, second)
    assert json.loads(first[1])["resumed_at"] >= 25 and left_by(run) == left_by(whole)


@pytest.mark.parametrize("differs", ["settings", "data"])
def test_processes_that_differ(processes, differs):
    """Each says the same, and nothing is written."""
    second = {"settings": ("--alpha", "0.5"), "data": ("--data", "../other/data.txt")}
    (processes.folder / "other").mkdir()
    (processes.folder / "other" / "data.txt").write_text("an egg rolls on and on, said the hen. " * 80)
    first, second = map(ended, processes.pair("run", *SETTINGS, second=second[differs]))
    for status, out, err in (first, second):
        assert (status, out) == (2, "") and is_told_once(err), err
        assert "at every process, got" in err and "at process 0 and" in err
    assert not (processes.folder / "run").exists()


def test_what_process_0_cannot_do_is_told_to_all(processes):
    (processes.folder / "run").mkdir()
    first, second = map(ended, processes.pair("run", *SETTINGS))
    assert (first[0], second[0]) == (2, 2) and is_told_once(first[2]) and is_told_once(second[2])
    assert "got run; choose another --run-dir" in first[2]
    assert "all 2 processes to go on, process 0 ended: expected a run folder that does not exist yet" in second[2]


LIBRARY = """
import json, sys
import jax, jax.numpy as jnp, numpy as np, optax
address = f"127.0.0.1:{sys.argv[1]}"
jax.distributed.initialize(address, 2, int(sys.argv[2]), coordinator_bind_address=address)
import eggroll
es = eggroll.EvolutionStrategy(optax.sgd(0.1), population_size=32, sigma=0.1, mesh=eggroll.device_mesh())
start, carry = {"w": np.ones((4, 3), np.float32)}, np.arange(32, dtype=np.float32)
def fitness(params, key, carry):
    y = jnp.sum(jnp.ones(4) @ params["w"])
    return y + 0.1 * carry, (carry + 1) % 5, {"size": y}
for generations in (3, 6):
    state, summary = eggroll.train(
        es, start, fitness, generations=generations, run_dir=f"library-{sys.argv[2]}", resume=generations > 3,
        carry=carry, has_aux=True,
    )
print(json.dumps([summary["generations"], summary["resumed_at"], np.asarray(state.params["w"]).tolist()]))
jax.distributed.shutdown()
"""


def test_a_users_own_processes(processes):
    """`eggroll.train` where the user has started JAX over them: process 0 alone has the folder."""
    (processes.folder / "library.py").write_text(LIBRARY)
    port = free_port()
    pair = [processes.start("library.py", str(port), str(process)) for process in range(2)]
    first, second = map(ended, pair)
    assert first[0] == second[0] == 0, (first[2], second[2])
    own, other = (out.splitlines()[-1] for _, out, _ in (first, second))  # gloo talks before it
    assert own == other and json.loads(own)[:2] == [6, 3]
    lines = (processes.folder / "library-0" / "metrics.jsonl").read_text().splitlines()
    assert [np.isfinite(json.loads(line)["size"]) for line in lines] == [True] * 6
    assert (processes.folder / "library-0").is_dir() and not (processes.folder / "library-1").exists()
