"""How processes find each other, in one process with threads: who is taken, who is refused, who does not come."""

import contextlib
import json
import os
import socket
import threading
import time

import pytest

from eggroll import cli
from eggroll.distributed import hosts
from eggroll.distributed.channel import Channel, ClosedError, Kind, receive_message, send_message
from eggroll.distributed.switchboard import Greeting, Switchboard, listen, reach, tunnel
from eggroll.distributed.team import Team
from eggroll.pretrain.config import PretrainConfig
from eggroll.runs.folder import RunError
from eggroll.runs.settings import HostSettings
from tests.distributed.processes import free_port

VERSIONS = {"eggroll": "1", "jax": "2"}


def gathered(count, greetings, seconds=20.0):
    """What process 0 gets, and what each of these gets."""
    board = Switchboard(listen("127.0.0.1", 0), Greeting(0, count, VERSIONS))
    port, answers = board.listener.getsockname()[1], {}

    def come(index, greeting):
        try:
            answers[index] = reach("127.0.0.1", port, greeting, seconds)
        except RunError as error:
            answers[index] = str(error)

    threads = [threading.Thread(target=come, args=each) for each in enumerate(greetings)]
    for thread in threads:
        thread.start()
    try:
        found = board.gather(seconds)
    except RunError as error:
        found = str(error)
    for thread in threads:
        thread.join(seconds)
    return board, found, answers


def closed(board, found, answers):
    board.close()
    for connection in [*found, *(answer[0] for answer in answers.values())]:
        connection.close()


def test_all_come_in_any_order():
    board, found, answers = gathered(4, [Greeting(process, 4, VERSIONS) for process in (2, 3, 1)])
    for process, index in ((1, 2), (2, 0), (3, 1)):
        send_message(found[process - 1], Kind.DATA, b"%d" % process)
        assert receive_message(answers[index][0]) == (Kind.DATA, b"%d" % process)
        assert answers[index][1] == board.token
    closed(board, found, answers)


@pytest.mark.parametrize(
    ("greeting", "text"),
    [
        (
            Greeting(1, 3, VERSIONS),
            "got --processes 2 at process 0 and 3 at process 1",
        ),
        (Greeting(2, 2, VERSIONS), "expected each --process from 1 to 1 once, got 2 again or beyond"),
        (Greeting(0, 2, VERSIONS), "expected each --process from 1 to 1 once, got 0 again or beyond"),
        (
            Greeting(1, 2, {"eggroll": "1", "jax": "3"}),
            "at process 0 and 'eggroll 1 jax 3' at process 1",
        ),
    ],
)
def test_who_is_refused_and_who_refuses_say_the_same(greeting, text):
    _, found, answers = gathered(2, [greeting])
    assert found == answers[0] and text in found and "\n" not in found


def test_one_does_not_come():
    _, found, answers = gathered(3, [Greeting(2, 3, VERSIONS)], seconds=1.0)
    assert found == answers[0]
    assert found.startswith("expected 3 processes within 1 seconds, got none for --process 1; start these too")


def test_strangers_are_sent_away():
    """A port scan, a browser, a long line, a tunnel without the token: none of them keeps the run from beginning."""
    board = Switchboard(listen("127.0.0.1", 0), Greeting(0, 2, VERSIONS))
    address = board.listener.getsockname()
    for hello in (b"", b"GET / HTTP/1.1\r\n\r\n", b"x" * 10_000, b"[1]\n", b'{"eggroll": "jax", "token": "guess"}\n'):
        with socket.create_connection(address) as stranger:
            stranger.settimeout(5)
            stranger.sendall(hello)
            stranger.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                assert stranger.recv(1) == b""
    answer = []
    thread = threading.Thread(target=lambda: answer.append(reach(*address, Greeting(1, 2, VERSIONS), 20.0)))
    thread.start()
    found = board.gather(20.0)
    thread.join(20)
    closed(board, found, dict(enumerate(answer)))


def test_a_tunnel_carries_bytes_and_then_stays_silent():
    """JAX must not see that process 0 is gone."""
    with socket.create_server(("127.0.0.1", 0)) as service:
        board = Switchboard(listen("127.0.0.1", 0), Greeting(0, 1, VERSIONS), service.getsockname()[1])
        port = tunnel("127.0.0.1", board.listener.getsockname()[1], board.token)
        with socket.create_connection(("127.0.0.1", port)) as client:
            inside = service.accept()[0]
            client.sendall(b"question")
            assert inside.recv(100) == b"question"
            inside.sendall(b"answer")
            assert client.recv(100) == b"answer"
            inside.close()
            client.settimeout(0.5)
            with pytest.raises(TimeoutError):
                client.recv(100)
        board.close()


def test_bytes_for_all():
    """Three processes as threads: what is broadcast and exchanged arrives everywhere, in order, whatever its size."""
    pairs = []
    for _ in range(2):
        with socket.create_server(("127.0.0.1", 0)) as server:
            near = socket.create_connection(server.getsockname())
            pairs.append((near, server.accept()[0]))
    teams = [Team(process, 3, silence=60.0, name="eggroll") for process in range(3)]
    teams[0].watch([Channel(near, process, teams[0].ended) for process, (near, _) in enumerate(pairs, 1)])
    for process, (_, far) in enumerate(pairs, 1):
        teams[process].watch([Channel(far, 0, teams[process].ended)])
    big, results = os.urandom(3 * 2**20), {}

    def work(process):
        with teams[process] as team:
            first = team.broadcast(big if process == 0 else b"passed over")
            second = team.exchange(b"%d" % process)
            results[process] = (first == big, list(second), team.broadcast(b"") == b"")

    threads = [threading.Thread(target=work, args=(process,)) for process in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert results == dict.fromkeys(range(3), (True, [b"0", b"1", b"2"], True))


def test_what_is_no_message():
    one, other = socket.socketpair()
    with one, other:
        one.sendall(b"\xff" * 9)
        with pytest.raises(ClosedError, match="no message"):
            receive_message(other)


BAD = {
    "--processes 2 --process 0": "expected --coordinator with --processes and --process, got none",
    "--coordinator 127.0.0.1:5000": "together, got no --processes and no --process; give all three",
    "--coordinator 127.0.0.1:5000 --processes 2": "together, got no --process; give all three",
    "--coordinator 127.0.0.1:0 --processes 2 --process 0": "HOST:PORT with a port in 1…65535, got '127.0.0.1:0'",
    "--coordinator 127.0.0.1:70000 --processes 2 --process 0": "a port in 1…65535, got '127.0.0.1:70000'",
    "--coordinator 127.0.0.1 --processes 2 --process 0": "HOST:PORT with a port in 1…65535, got '127.0.0.1'",
    "--coordinator :5000 --processes 2 --process 0": "HOST:PORT with a port in 1…65535, got ':5000'",
    "--coordinator 127.0.0.1:5000 --processes 2 --process 2": "[0, 2), below --processes, got 2",
    "--coordinator 127.0.0.1:5000 --processes 2 --process -1": "[0, 2), below --processes, got -1",
    "--coordinator 127.0.0.1:5000 --processes 0 --process 0": "expected --processes of at least 1, got 0",
    "--coordinator 127.0.0.1:5000 --processes two --process 0": "expected --processes INT or none, got 'two'",
    "--coordinator 127.0.0.1:5000 --processes 2 --process 0 --peer-timeout 0": "in [1, 86400] seconds, got 0.0",
    "--coordinator 127.0.0.1:5000 --processes 2 --process 0 --start-timeout 0": "--start-timeout of at least 1, got 0",
    "--coordinator auto": "expected Slurm, Open MPI or Kubernetes with --coordinator auto, got none",
}


@pytest.mark.parametrize("flags", BAD)
def test_settings_that_do_not_fit(flags, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["pretrain", *flags.split()]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("eggroll pretrain: expected") and err.count("\n") == 1
    assert BAD[flags] in err and "; " in err
    assert list(tmp_path.iterdir()) == []


def test_nobody_answers(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    began, flags = time.monotonic(), ["--processes", "2", "--process", "1", "--start-timeout", "1"]
    assert cli.main(["pretrain", "--coordinator", f"127.0.0.1:{free_port()}", *flags]) == 2
    assert time.monotonic() - began < 10
    err = capsys.readouterr()[1]
    assert "within 1 seconds, got Connection refused; start it too" in err and err.count("\n") == 1


def test_a_port_that_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(RunError, match="expected to listen at port"):
        listen("127.0.0.1", taken.getsockname()[1])


def test_what_slurm_says(monkeypatch):
    """The variables that srun sets, here for the second of three tasks on node[07-09]."""
    says = {"JOB_ID": "4711", "STEP_NODELIST": "node[07-09]", "NTASKS": "3", "PROCID": "1", "LOCALID": "0"}
    for name, value in says.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("SLURM_STEP_NUM_NODES", "3")
    (host, port), count, process, devices = hosts._placed(HostSettings(coordinator="auto"))
    assert (host, count, process, list(devices or [])) == ("node07", 3, 1, [0]) and 61_440 <= port < 65_536


def test_where_a_coordinator_listens():
    """At its own address where that is written in numbers, so that no other network reaches it; else everywhere."""
    with listen("127.0.0.1", 0) as here, listen("localhost", 0) as named, listen("some-node", 0) as everywhere:
        found = [each.getsockname()[0] for each in (here, named, everywhere)]
    assert found == ["127.0.0.1", "127.0.0.1", "0.0.0.0"]
    assert HostSettings(coordinator="[::1]:5000", processes=1, process=0).address() == ("::1", 5000)


def test_settings_are_not_recorded():
    config = PretrainConfig(coordinator="127.0.0.1:5000", processes=2, process=1)
    assert config.as_json() == PretrainConfig().as_json() and json.dumps(config.as_json())
