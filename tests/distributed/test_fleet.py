"""The loop, its run folder and real sockets: what a fleet leaves behind is what one process leaves behind."""

import contextlib
import json
import socket
import threading
import time

import numpy as np
import pytest

from eggroll.core.errors import UsageError
from eggroll.distributed import fleet as fleet_module
from eggroll.distributed.connection import serve
from eggroll.distributed.fleet import FleetOptions, on_fleet
from eggroll.distributed.launch import place_of
from eggroll.distributed.wire import (
    MESSAGE_LIMIT,
    Inbox,
    Message,
    Result,
    Span,
    WireError,
    pack,
    pack_result,
    pack_span,
)
from eggroll.distributed.worker import Worker
from eggroll.runs import loop, snapshots
from eggroll.runs.folder import RunError, RunFolder
from tests.distributed import fake
from tests.distributed.fake import TOKEN, build, job, range_work


@pytest.fixture(autouse=True)
def nobody_waits_for_long(monkeypatch):
    monkeypatch.setattr(fleet_module, "EMPTY_SECONDS", 30.0)


class Fleet:
    """A run in this thread, workers in others."""

    def __init__(self, path, *, carries=True, workers=2, generations=6, **options):
        self.path, self.carries, self.workers = path, carries, workers
        self.job = job(carries, generations)
        self.options = FleetOptions(workers, TOKEN, lease_seconds=0.5)._replace(**options)
        self.said, self.threads, self.errors = [], [], []

    @contextlib.contextmanager
    def open(self):
        exists = self.path.exists()
        folder = RunFolder.open(self.path) if exists else RunFolder.create(self.path, "fake", {"job": "fake"})
        work, checks = range_work(self.carries), {"carries": self.carries}
        with on_fleet(self.job, work, folder, self.options, checks=checks, say=self.said.append) as (own, server):
            self.server, self.folder, self.own = server, folder, own
            yield self
        for thread in self.threads:
            thread.join(timeout=10)
            assert not thread.is_alive()

    def join(self, kind=Worker, token=TOKEN, make=build, address=None, patience=2.0):
        def work():
            try:
                serve(kind(make, token, f"w{len(self.threads)}"), address or self.server.address, patience=patience)
            except Exception as error:  # whatever it is, the test must see it
                self.errors.append(str(error))

        thread = threading.Thread(target=work, daemon=True)
        self.threads.append(thread)
        thread.start()

    def run(self):
        return loop.run(self.own, self.folder, extra={}, say=self.said.append)


def alone(path, carries=True, generations=6):
    folder = RunFolder.create(path, "fake", {"job": "fake"})
    return loop.run(job(carries, generations), folder, extra={})


def lines(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def same(one, other):
    assert (one / "journal.egg").read_bytes() == (other / "journal.egg").read_bytes()
    folders = [RunFolder.open(path) for path in (one, other)]
    assert snapshots.generations(folders[0]) == snapshots.generations(folders[1])
    for generation in snapshots.generations(folders[0]):
        trees = [snapshots.load(folder, generation)[1] for folder in folders]
        for name in ("parameters", "optimizer", "carry"):
            assert (name in trees[0]) == (name in trees[1])
            for leaf, value in trees[0].get(name, {}).items():
                np.testing.assert_array_equal(value, trees[1][name][leaf])
    for a, b in zip(lines(one), lines(other), strict=True):
        assert a["fitness_mean"] == b["fitness_mean"] and a.get("loss") == b.get("loss")


@pytest.mark.parametrize("carries", [True, False])
def test_a_fleet_leaves_the_folder_that_one_process_leaves(tmp_path, carries):
    alone(tmp_path / "alone", carries)
    with Fleet(tmp_path / "fleet", carries=carries).open() as fleet:
        fleet.join()
        fleet.join()
        assert fleet.run().exit_status == 0
    same(tmp_path / "alone", tmp_path / "fleet")
    assert fleet.errors == [] and not any("left" in line for line in fleet.said)
    last = lines(tmp_path / "fleet")[-1]
    assert last["workers"] == 2 and last["wire_up_bytes"] <= 2 * fake.PAIRS / 10 + 256


class Proxy:
    """Between workers and coordinator; counts the bytes of every connection, each way."""

    def __init__(self, target):
        self.target, self.counts, self.closing = target, [], False
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = self.listener.getsockname()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                far = socket.create_connection(self.target)
                count = {"up": 0, "down": 0}
                self.counts.append(count)
                for source, sink, way in ((near, far, "up"), (far, near, "down")):
                    threading.Thread(target=self._copy, args=(source, sink, count, way), daemon=True).start()

    def _copy(self, source, sink, count, way):
        with contextlib.suppress(OSError):
            while data := source.recv(2**16):
                count[way] += len(data)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def close(self):
        self.listener.close()


def test_the_bytes_in_the_metrics_are_those_on_the_wire(tmp_path):
    """Without carry and snapshots, joining apart, all bytes are those of generations."""
    with Fleet(tmp_path / "fleet", carries=False, workers=1, generations=9).open() as fleet:
        proxy, seen = Proxy(fleet.server.address), []
        inner = fleet.own.learner.update

        def update(*args):
            time.sleep(0.2)  # whatever is on its way has come
            seen.append(dict(proxy.counts[0]))
            return inner(*args)

        fleet.own.learner.update = update
        fleet.join(address=proxy.address)
        fleet.run()
        proxy.close()
    for k in range(1, 8):
        line = lines(tmp_path / "fleet")[k]
        # between two updates: RESULTs of k and of k + 1's predecessors; the frame and hand-outs of one generation
        assert seen[k]["down"] - seen[k - 1]["down"] == line["wire_down_bytes"]
        assert seen[k]["up"] - seen[k - 1]["up"] == line["wire_up_bytes"]
        assert line["wire_down_bytes"] <= 2 * fake.PAIRS / 10 + 256


def test_a_coordinator_that_ends_in_the_middle_is_gone_on_with(tmp_path, monkeypatch):
    """Its workers wait for it and come back; the run has the bits of one that never stopped."""
    alone(tmp_path / "alone", generations=8)
    port = socket.create_server(("127.0.0.1", 0))
    address = port.getsockname()
    port.close()
    first = Fleet(tmp_path / "fleet", generations=8, listen=address)
    with pytest.raises(OSError, match="power"), first.open():
        for _ in range(2):
            first.join(patience=20.0)
        inner = first.own.learner.update

        def fails(parameters, optimizer, weights, generation):
            if generation == 5:
                first.server._closing, first.server._deadline = True, 0.0  # as a kill: nobody is told
                first.server.wake()
                first.server._thread.join()
                raise OSError("power")
            return inner(parameters, optimizer, weights, generation)

        first.own.learner.update = fails
        first.run()
    second = Fleet(tmp_path / "fleet", generations=8, listen=address)
    second.threads = first.threads
    with second.open():
        assert second.run().exit_status == 0
    same(tmp_path / "alone", tmp_path / "fleet")
    assert first.errors == []


def test_a_wrong_token_is_refused_and_told(tmp_path):
    with Fleet(tmp_path / "fleet", workers=1).open() as fleet:
        fleet.join(token=b"guess")
        fleet.join()
        fleet.run()
    assert len(fleet.errors) <= 1 and all("expected a coordinator" in error for error in fleet.errors)
    assert lines(tmp_path / "fleet")[-1]["workers"] == 1


def test_a_coordinator_without_the_token_is_refused():
    worker = Worker(build, TOKEN)
    with pytest.raises(WireError, match="expected a coordinator with this fleet's token"):
        list(worker.take(one(pack(Message.WELCOME, 5, 0, b'{"proof": "00", "header": {}, "checks": {}}'))))


def one(data):
    (message,) = Inbox(MESSAGE_LIMIT).feed(data)
    return message


def test_other_data_is_refused_by_the_worker(tmp_path):
    def other(welcome):
        return build(welcome)._replace(checks={"carries": "elsewhere"})

    with Fleet(tmp_path / "fleet", workers=1).open() as fleet:
        fleet.join(make=other)
        fleet.join()
        fleet.run()
    assert fleet.errors == [
        "expected carries True as the run has it, got 'elsewhere' on this machine; give it the same data"
    ]


def test_messages_of_another_run_or_generation_are_refused(tmp_path):
    with Fleet(tmp_path / "fleet", workers=1).open() as fleet:
        coordinator = fleet.server.coordinator
        coordinator.connected(99)
        coordinator.peers[99].stage = "ready"
        run = coordinator.fleet.run
        with pytest.raises(WireError, match="expected messages of run"):
            coordinator.received(99, one(pack(Message.NEED, run + 1, 0, pack_span(Span(0, 0)))), 30, 0.0)
        span = coordinator.fleet.spans[0]
        body = pack_result(Result(span, 1, np.zeros(span.pairs, np.int8), np.zeros(2, np.int64)))
        with pytest.raises(WireError, match="expected results of generation 0, got 7"):
            coordinator.received(99, one(pack(Message.RESULT, run, 7, body)), 30, 0.0)


def test_a_worker_refuses_another_run_and_another_generation(tmp_path):
    box = fake.Box()
    number = box.join()
    box.open()
    box.pump()
    worker, run = box.workers[number], box.coordinator.fleet.run
    with pytest.raises(WireError, match="expected messages of run"):
        list(worker.take(one(pack(Message.FRAME, run + 1, 0))))
    with pytest.raises(WireError, match="expected generation 0, got 3"):
        list(worker.take(one(pack(Message.FRAME, run, 3))))
    with pytest.raises(RunError, match="expected whole frames"):
        list(worker.take(one(pack(Message.FRAME, run, 0, bytes(40)))))


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\n\r\n", bytes(5000), b"\xff" * 64, b"\x19\x00\x00\x00" + bytes(25)]
)
def test_strangers_are_cut_off_and_disturb_nobody(tmp_path, data):
    with Fleet(tmp_path / "fleet", workers=1).open() as fleet:
        with socket.create_connection(fleet.server.address) as stranger:
            stranger.sendall(data)
            stranger.settimeout(5)
            with contextlib.suppress(ConnectionError):
                while stranger.recv(4096):
                    pass
        fleet.join()
        assert fleet.run().exit_status == 0


def test_no_worker_for_long_ends_the_run_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(fleet_module, "EMPTY_SECONDS", 0.6)
    with (
        Fleet(tmp_path / "fleet").open() as fleet,
        pytest.raises(RunError, match="expected workers to begin, got none"),
    ):
        fleet.run()


def test_a_worker_gives_up_where_nobody_answers():
    port = socket.create_server(("127.0.0.1", 0))
    address = port.getsockname()
    port.close()
    with pytest.raises(WireError, match=r"expected a coordinator at 127\.0\.0\.1:\d+, got none for 1 s"):
        serve(Worker(build, TOKEN), address, patience=1.0)


def test_an_address_that_is_taken(tmp_path):
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(UsageError, match="expected an address of this machine that is free"),
        Fleet(tmp_path / "fleet", listen=taken.getsockname()).open(),
    ):
        pass


@pytest.mark.parametrize("address", ["", "host", "host:", ":80", "host:x", "host:99999", "host:-1", "1:2:3x"])
def test_addresses_that_are_none(address):
    with pytest.raises(UsageError, match="expected --listen as HOST:PORT"):
        place_of(address, "--listen")


def test_addresses():
    assert place_of("example:80", "x") == ("example", 80)
    assert place_of("[::1]:7000", "x") == ("::1", 7000)
