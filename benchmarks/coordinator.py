"""The coordinator alone, fed by stand-ins for workers: results per second, memory, bytes, and what grows with workers.

`python benchmarks/coordinator.py` measures in processes of their own, one after another: the coordinator fed in the
same process (`fed`), the same over loopback sockets with the stand-ins in another process (`sockets`), the bytes of
every kind of message (`wire`) and those of joining (`joining`). Prints tables, writes one JSON, and prints one line.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import resource
import selectors
import socket
import statistics
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from stand_ins import Answers, Opened, StandIn, fleet_of, frames_of

from eggroll.distributed.server import Server
from eggroll.distributed.wire import MESSAGE_LIMIT, OVERHEAD, Inbox, Message, Received, unpack
from eggroll.runs.environment import environment

MIB = 2**20
GENERATIONS = 5
FEW_AND_MANY = (1, 16)
"""Ranges a worker, from whose difference the costs of a result and of a frame follow."""


def memory() -> dict[str, float]:
    """Resident memory of this process now and at its peak, MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = dict(line.split(":", 1) for line in lines if line.startswith(("VmRSS", "VmHWM")))
    return {name: int(found[key].split()[0]) / 1024 for name, key in (("now", "VmRSS"), ("peak", "VmHWM"))}


def alone(part: Callable[..., Any], **settings: Any) -> Any:
    """A part in a process of its own, so that no other part's memory counts."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_send_what, args=(theirs, part, settings))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    finally:
        process.join()


def _send_what(pipe: Connection, part: Callable[..., Any], settings: dict[str, Any]) -> None:
    pipe.send(part(**settings))


# ── fed in the same process ──


class Crowd:
    """Stand-ins around a coordinator, message by message; `spent` is what they cost themselves, seconds.

    A message to the coordinator passes through the connection's inbox, as bytes.
    """

    def __init__(self, opened: Opened) -> None:
        self.opened, self.coordinator = opened, opened.coordinator
        self.workers: list[StandIn] = []
        self.inboxes: list[Inbox] = []
        self.spent = 0.0
        self.bytes: Counter[Message] = Counter()
        self.messages: Counter[Message] = Counter()
        self._last: tuple[bytes, Received] = (b"", Received(Message.BYE, 0, 0, b""))

    def join(self) -> None:
        number = len(self.workers)
        self.workers.append(StandIn(self.opened.answers))
        self.inboxes.append(Inbox())
        self.coordinator.connected(number)

    def pump(self) -> None:
        """Until nothing moves."""
        out = self.coordinator.out
        while out:
            number, data = out.popleft()
            for part in [data] if isinstance(data, bytes) else data:
                start = time.perf_counter()
                replies = self._replies(number, part)
                self.spent += time.perf_counter() - start
                for reply in replies:
                    self._answer(number, reply)

    def _replies(self, number: int, data: bytes) -> list[bytes]:
        if data is not self._last[0]:  # a broadcast is the same bytes to everybody
            self._last = (data, unpack(data))
        message = self._last[1]
        self._note(message.kind, data)
        replies = self.workers[number].take(message)
        for reply in replies:
            self._note(Message(reply[4]), reply)
        return replies

    def _note(self, kind: Message, data: bytes) -> None:
        self.bytes[kind] += len(data)
        self.messages[kind] += 1

    def _answer(self, number: int, reply: bytes) -> None:
        inbox = self.inboxes[number]
        for message in inbox.feed(reply):
            self.coordinator.received(number, message, len(message.body) + OVERHEAD, time.monotonic())
            inbox.limit = self.coordinator.limit(number)

    def generation(self) -> dict[str, float]:
        """One generation to its end: seconds of its steps."""
        self.spent, start, processor = 0.0, time.perf_counter(), time.process_time()
        self.pump()
        answered, processor = time.perf_counter(), time.process_time() - processor
        assert self.coordinator.is_complete(), self.opened.said
        frames = frames_of(self.coordinator)
        combined = time.perf_counter()
        traffic = self.coordinator.finish(frames, time.monotonic(), more=True)
        finished = time.perf_counter()
        self.opened.expect(time.monotonic())
        seconds = {
            "processor": processor,
            "wall": answered - start,
            "own": answered - start - self.spent,
            "combine": combined - answered,
        }
        return (
            seconds
            | {"finish": finished - combined, "up": traffic["wire_up_bytes"]}
            | {"down": traffic["wire_down_bytes"]}
        )


def fed(*, workers: int, population: int, carries: bool, ranges_per_worker: int = 2) -> dict[str, Any]:
    """Results per second and memory of the coordinator, fed in this process."""
    fleet = fleet_of(workers=workers, population=population, ranges_per_worker=ranges_per_worker, carries=carries)
    before = memory()["now"]
    opened = Opened(fleet)
    crowd = Crowd(opened)
    start = time.perf_counter()
    for _ in range(workers):
        crowd.join()
    crowd.pump()
    joined = time.perf_counter() - start - crowd.spent
    assert opened.coordinator.ready == workers, opened.said
    opened.coordinator.begin(time.monotonic())
    rounds = [crowd.generation() for _ in range(GENERATIONS)]
    middle = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
    ranges, after = len(fleet.spans), memory()
    assert opened.coordinator.book.duplicates == opened.coordinator.traffic.resynchronised == 0
    return {
        "workers": workers,
        "population": population,
        "carries": carries,
        "ranges": ranges,
        "results_per_second": ranges / middle["wall"],
        "results_per_processor_second": ranges / middle["processor"],  # unlike the others, not of a busy machine
        "results_per_second_coordinator_alone": ranges / middle["own"],
        "join_microseconds": 1e6 * joined / workers,
        "finish_ms": 1e3 * middle["finish"],
        "combine_ms": 1e3 * middle["combine"],
        "memory_before_mib": before,
        "memory_peak_mib": after["peak"],
        "memory_grown_mib": after["peak"] - before,
    } | single_calls(opened)


def single_calls(opened: Opened) -> dict[str, float]:
    """Calls that the transport makes often, in the midst of a generation; each alone, microseconds."""
    coordinator = opened.coordinator
    found = {
        "tick_microseconds": _microseconds(lambda: coordinator.tick(time.monotonic())),
        "ready_microseconds": _microseconds(lambda: coordinator.ready),
    }
    numbers = list(coordinator.peers)[: min(20, len(coordinator.peers) // 2)]
    start = time.perf_counter()
    for number in numbers:
        coordinator.closed(number, "it is over", time.monotonic())
    return found | {"closed_microseconds": 1e6 * (time.perf_counter() - start) / len(numbers)}


def _microseconds(call: Callable[[], Any], times: int = 20) -> float:
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return 1e6 * statistics.median(seconds)


# ── bytes ──


def wire(*, workers: int, population: int, carries: bool = False) -> dict[str, Any]:
    """Bytes of a generation: by kind in all, and of the worker with the most, each way."""
    crowd = Crowd(Opened(fleet_of(workers=workers, population=population, carries=carries)))
    for _ in range(workers):
        crowd.join()
    crowd.pump()
    crowd.coordinator.begin(time.monotonic())
    crowd.generation()
    crowd.pump()
    crowd.bytes.clear()
    crowd.messages.clear()
    crowd.coordinator.finish(frames_of(crowd.coordinator), time.monotonic(), more=True)
    crowd.opened.expect(time.monotonic())
    crowd.pump()
    most = crowd.generation()  # complete already: whatever was counted since the last
    return {
        "workers": workers,
        "population": population,
        "ranges": len(crowd.coordinator.fleet.spans),
        "bytes_of_one": {kind.name: crowd.bytes[kind] / crowd.messages[kind] for kind in crowd.bytes},
        "messages": {kind.name: count for kind, count in crowd.messages.items()},
        "total_bytes": sum(crowd.bytes.values()),
        "most_up": most["up"],
        "most_down": most["down"],
        "law": population / 10 + 256,
    }


def joining(*, parameter_bytes: int, generations: int, population: int) -> dict[str, Any]:
    """Bytes, by kind, of a worker that joins so many generations after the last snapshot."""
    opened = Opened(fleet_of(workers=1, population=population), parameter_bytes=parameter_bytes)
    crowd = Crowd(opened)
    crowd.join()
    crowd.pump()
    opened.rebase()
    opened.coordinator.begin(time.monotonic())
    for _ in range(generations):
        crowd.generation()
    crowd.pump()
    crowd.bytes.clear()
    crowd.join()
    crowd.pump()
    kinds = {kind.name: count for kind, count in crowd.bytes.items()}
    settings = {"parameter_bytes": parameter_bytes, "generations": generations, "population": population}
    return settings | {"bytes": kinds, "total": sum(kinds.values())}


# ── over sockets ──


def crowd_of_sockets(address: tuple[str, int], workers: int, answers: Answers) -> None:
    """So many stand-ins on connections of their own, in one thread, until each is sent away."""
    raise_file_limit()
    selector = selectors.DefaultSelector()
    for _ in range(workers):
        connection = socket.create_connection(address)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        selector.register(connection, selectors.EVENT_READ, (StandIn(answers), Inbox(MESSAGE_LIMIT)))
    while selector.get_map():
        for key, _ in selector.select(60):
            if not _converse(key.fileobj, *key.data):  # type: ignore[arg-type]
                selector.unregister(key.fileobj)


def _converse(connection: socket.socket, stand_in: StandIn, inbox: Inbox) -> bool:
    """False where the connection has ended. A reply that the socket cannot take whole is waited for."""
    try:
        data = connection.recv(2**18)
        for message in inbox.feed(data):
            for reply in stand_in.take(message):
                connection.sendall(reply)
    except OSError:
        return False
    return bool(data)


def raise_file_limit() -> int:
    """The most files that this process may open, from now on."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


class Run:
    """What waits for the coordinator in a run's main thread; as `distributed.fleet` does."""

    def __init__(self, opened: Opened, server: Server) -> None:
        self.opened, self.server, self.coordinator = opened, server, opened.coordinator

    def wait(self, done: Callable[[], bool], seconds: float = 300.0) -> None:
        """Until `done`, asked with the lock held."""
        until = time.monotonic() + seconds
        while not done():
            if time.monotonic() > until or self.coordinator.fault:
                raise SystemExit(
                    f"expected {seconds:g} s to be enough, got {self.coordinator.fault}; {self.opened.said}"
                )
            self.server.lock.wait(0.5)

    def generation(self) -> tuple[float, float]:
        """Seconds of wall and of this process's processor, from the broadcast of a frame to the last result."""
        with self.server.lock:
            self.wait(self.coordinator.is_complete)
            frames = frames_of(self.coordinator)
            start, processor = time.perf_counter(), time.process_time()
            self.coordinator.finish(frames, time.monotonic(), more=True)
            self.opened.expect(time.monotonic())
            self.server.wake()
            self.wait(self.coordinator.is_complete)
        return time.perf_counter() - start, time.process_time() - processor


def sockets(*, workers: int, population: int, ranges_per_worker: int) -> dict[str, Any]:
    """Results per second over loopback, and memory of the coordinator's process with its sockets."""
    workers = min(workers, raise_file_limit() - 200)
    fleet = fleet_of(workers=workers, population=population, ranges_per_worker=ranges_per_worker)
    before, opened = memory()["now"], Opened(fleet)
    context = multiprocessing.get_context("spawn")
    with Server(opened.coordinator, ("127.0.0.1", 0)) as server:
        crowd = context.Process(target=crowd_of_sockets, args=(server.address, workers, opened.answers))
        crowd.start()
        run = Run(opened, server)
        start = time.perf_counter()
        with server.lock:
            run.wait(lambda: opened.coordinator.ready == workers)
            joined = time.perf_counter() - start
            opened.coordinator.begin(time.monotonic())
        server.wake()
        rounds = [run.generation() for _ in range(GENERATIONS)]
        after = memory()
    crowd.join()
    walls, processors = zip(*rounds, strict=True)
    wall, processor = statistics.median(walls), min(processors)  # whatever disturbs adds to the processor's time
    return {
        "workers": workers,
        "population": population,
        "ranges": len(fleet.spans),
        "join_seconds": joined,  # of which the other process's start is about a second
        "generation_seconds": wall,
        "results_per_second": len(fleet.spans) / wall,
        "processor_seconds": processor,
        "memory_before_mib": before,
        "memory_peak_mib": after["peak"],
        "memory_grown_mib": after["peak"] - before,
        "lost_workers": opened.coordinator.traffic.lost_workers,
        "resent_ranges": opened.coordinator.book.resent,
    }


def costs(found: list[dict[str, Any]], workers: int) -> dict[str, float]:
    """Processor time of a result and of a broadcast frame: a generation takes workers × frame + ranges × result."""
    mine = sorted((each for each in found if each["workers"] == workers), key=lambda each: each["ranges"])
    few, many = mine[0], mine[-1]
    result = (many["processor_seconds"] - few["processor_seconds"]) / (many["ranges"] - few["ranges"])
    frame = (few["processor_seconds"] - few["ranges"] * result) / workers
    return {"result_microseconds": 1e6 * result, "frame_microseconds": 1e6 * frame}


# ── the whole ──


def table(rows: list[dict[str, Any]], columns: list[str]) -> None:
    """Print columns of the rows."""
    cells = [columns, *([_shown(row[column]) for column in columns] for row in rows)]
    widths = [max(len(row[k]) for row in cells) for k in range(len(columns))]
    for row in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    print(flush=True)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def measure_fed(options: argparse.Namespace) -> list[dict[str, Any]]:
    found = [
        alone(fed, workers=workers, population=options.population, carries=carries)
        for workers in options.workers
        for carries in (False, True)
    ]
    print("fed in the same process")
    rates = [
        "results_per_second",
        "results_per_processor_second",
        "results_per_second_coordinator_alone",
        "join_microseconds",
        "finish_ms",
    ]
    table(found, ["workers", "carries", "ranges", *rates])
    calls = ["combine_ms", "tick_microseconds", "ready_microseconds", "closed_microseconds"]
    table(found, ["workers", "carries", *calls, "memory_peak_mib", "memory_grown_mib"])
    return found


def measure_sockets(options: argparse.Namespace) -> list[dict[str, Any]]:
    most = max(options.workers)
    cases = [(workers, 2) for workers in options.workers] + [(min(1000, most), ranges) for ranges in FEW_AND_MANY]
    found = [
        alone(sockets, workers=workers, population=options.population, ranges_per_worker=ranges)
        for workers, ranges in cases
    ]
    print("over loopback sockets")
    columns = ["workers", "ranges", "join_seconds", "generation_seconds", "results_per_second", "processor_seconds"]
    table(found, [*columns, "memory_peak_mib", "memory_grown_mib", "lost_workers"])
    return found


def measure_wire(options: argparse.Namespace) -> list[dict[str, Any]]:
    found = []
    for exponent in range(12, 21, 2):
        for workers in (2, *options.workers):
            found.append(alone(wire, workers=workers, population=2**exponent))
    for each in found:
        each |= {"holds": max(each["most_up"], each["most_down"]) <= each["law"]}
        each |= {name: math.ceil(each["bytes_of_one"][name]) for name in ("FRAME", "WORK", "RESULT")}
    print("bytes of a generation")
    columns = ["population", "workers", "ranges", "FRAME", "WORK", "RESULT", "most_up", "most_down", "law", "holds"]
    table(found, [*columns, "total_bytes"])
    return found


def measure_joining(options: argparse.Namespace) -> list[dict[str, Any]]:
    found = [
        joining(parameter_bytes=size, generations=generations, population=options.population)
        for size in (11_344, 10 * MIB)
        for generations in (0, 100)
    ]
    print("bytes of joining")
    for each in found:
        print(f"{each['parameter_bytes']:,} bytes of state, {each['generations']} generations later: {each['bytes']}")
    return found


ROWS: list[tuple[str, str, Callable[[dict[str, Any]], str]]] = [
    ("results per second, fed in the same process", "stateless", lambda row: f"{row['results_per_second']:,.0f}"),
    (
        "the same, a second of processor",
        "stateless",
        lambda row: f"{row['results_per_processor_second']:,.0f}",
    ),
    ("results per second, members carry state", "stateful", lambda row: f"{row['results_per_second']:,.0f}"),
    ("results per second over loopback sockets", "sockets", lambda row: f"{row['results_per_second']:,.0f}"),
    ("processor seconds of a generation", "sockets", lambda row: f"{row['processor_seconds']:.4f}"),
    (
        "memory of the process with its sockets, MiB; above its start",
        "sockets",
        lambda row: f"{row['memory_peak_mib']:.0f}; {row['memory_grown_mib']:.1f}",
    ),
    ("`finish`, ms", "stateless", lambda row: f"{row['finish_ms']:.2f}"),
    ("`tick`, ms", "stateless", lambda row: f"{row['tick_microseconds'] / 1e3:.3f}"),
    ("`closed`, ms", "stateless", lambda row: f"{row['closed_microseconds'] / 1e3:.3f}"),
]
"""The table of docs/scaling.md: what, of which measurement, how it is shown."""


def document(result: dict[str, Any], workers: list[int]) -> None:
    """Print that table in Markdown, and the processor's share as the page derives it."""
    fed_rows = {
        flag: {row["workers"]: row for row in result["fed"] if row["carries"] == flag} for flag in (False, True)
    }
    socket_rows = {row["workers"]: row for row in result["sockets"] if row["ranges"] == 2 * row["workers"]}
    rows = {"stateless": fed_rows[False], "stateful": fed_rows[True], "sockets": socket_rows}
    print(f"| | {' | '.join(f'{count:,}' for count in workers)} |\n|---|{'---|' * len(workers)}")
    for what, of, shown in ROWS:
        cells = [shown(rows[of][count]) if count in rows[of] else "" for count in workers]
        print(f"| {what} | {' | '.join(cells)} |")
    result_cost, frame_cost = (result["costs"][f"{name}_microseconds"] for name in ("result", "frame"))
    print(f"c_result = {result_cost:.0f} µs, c_frame = {frame_cost:.0f} µs")
    for count in workers:
        print(f"{count:,} workers: {count * (frame_cost + 2 * result_cost) / 1e6:.3g} s of processor a generation")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"fed": measure_fed, "sockets": measure_sockets, "wire": measure_wire, "joining": measure_joining}
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(parts)}; all where none is named")
    parser.add_argument("--workers", type=int, nargs="+", default=[10, 1000, 10_000])
    parser.add_argument("--population", type=int, default=160_000, help="members; ranges divide it evenly")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/coordinator.json"))
    options = parser.parse_args()
    wanted = options.parts or list(parts)
    if unknown := set(wanted) - set(parts):
        parser.error(f"expected parts among {', '.join(parts)}, got {', '.join(sorted(unknown))}")
    result: dict[str, Any] = {name: parts[name](options) for name in wanted}
    if "sockets" in result:
        result["costs"] = costs(result["sockets"], min(1000, max(options.workers)))
    if {"fed", "sockets"} <= set(result):
        document(result, options.workers)
    result["environment"] = environment()
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({"costs": result.get("costs"), "out": str(options.out)}))


if __name__ == "__main__":
    main()
