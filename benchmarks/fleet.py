"""A fleet of real processes: what mishaps leave behind, and what a second worker is worth.

`python benchmarks/fleet.py faults` runs the integer job on three workers on two hosts (network namespaces that it makes
itself, as root), and at generations drawn at random kills workers with SIGKILL, kills the coordinator once and resumes
it, freezes a worker with SIGSTOP and takes the link between the hosts down for a while, all in one run. Then it
compares with a run of one process: journal to the byte, last snapshot to the bit, a line of metrics for every
generation. `--ray` has a Ray cluster of two nodes in the same two namespaces start and place the workers.

`python benchmarks/fleet.py speed` measures members per second of the demo job on one and on two workers with a core
each, started by Ray, in alternating runs.

Prints lines as it goes, then one line of JSON; exit status 1 where something came out otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import secrets
import signal
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HOSTS = ("eggfleet0", "eggfleet1")
ADDRESSES = ("10.77.1.1", "10.77.1.2")
PORT, RAY_PORT = 7070, 6380
LIMIT = 900
"""Seconds that a run may take."""


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# ── hosts ──


def ip(*arguments: str, host: str | None = None) -> None:
    inside = ("ip", "netns", "exec", host) if host else ()
    subprocess.run([*inside, "ip", *arguments], check=True, capture_output=True, timeout=20)


@contextlib.contextmanager
def two_hosts() -> Iterator[None]:
    """Two namespaces with a link between them, gone afterwards."""
    try:
        for host in HOSTS:
            ip("netns", "add", host)
        ip("link", "add", "eggf0", "netns", HOSTS[0], "type", "veth", "peer", "name", "eggf1", "netns", HOSTS[1])
        for host, address, link in zip(HOSTS, ADDRESSES, ("eggf0", "eggf1"), strict=True):
            ip("addr", "add", f"{address}/24", "dev", link, host=host)
            for device in ("lo", link):
                ip("link", "set", device, "up", host=host)
        yield
    finally:
        for host in HOSTS:
            subprocess.run(["ip", "netns", "delete", host], capture_output=True, timeout=20)


class Process:
    """A process on one of the hosts, its words in a file."""

    def __init__(self, host: int | None, log: Path, *command: str, cwd: Path) -> None:
        inside = () if host is None else ("ip", "netns", "exec", HOSTS[host])
        self.log = log
        with log.open("ab") as file:
            self.popen = subprocess.Popen(
                [*inside, *command], stdout=file, stderr=file, cwd=cwd, start_new_session=True
            )

    def kill(self, number: int = signal.SIGKILL) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, number)

    @property
    def is_alive(self) -> bool:
        return self.popen.poll() is None


def eggroll(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "eggroll", *arguments]


# ── fleets ──


class Workers:
    """Three workers, two of them on the other host; whoever ends is started again."""

    count = 3

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.slots = [self._start(number) for number in range(self.count)]

    def _start(self, number: int) -> Process:
        command = eggroll("worker", f"{ADDRESSES[0]}:{PORT}", "--patience", "300")
        return Process(min(number, 1), self.folder / f"worker-{number}.log", *command, cwd=self.folder)

    def flags(self) -> list[str]:
        return ["--listen", f"{ADDRESSES[0]}:{PORT}", "--workers", str(self.count)]

    def look_after(self) -> None:
        for number, process in enumerate(self.slots):
            if not process.is_alive:
                self.slots[number] = self._start(number)

    def processes(self) -> list[int]:
        return [process.popen.pid for process in self.slots if process.is_alive]

    def close(self) -> None:
        for process in self.slots:
            process.kill(signal.SIGCONT)
            process.kill()


class RayCluster(Workers):
    """A Ray of two nodes, one on each host; Ray itself starts whoever ends again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        ray = str(Path(sysconfig.get_path("scripts")) / "ray")
        shape = ["--num-cpus", "3", "--block", "--disable-usage-stats", "--object-store-memory", str(2**28)]
        head = ["--head", "--port", str(RAY_PORT), "--include-dashboard", "false", "--temp-dir", str(folder / "ray")]
        address = f"{ADDRESSES[0]}:{RAY_PORT}"
        self.nodes = [self._node(0, ray, "start", *head, "--node-ip-address", ADDRESSES[0], *shape)]
        time.sleep(8)
        self.nodes.append(self._node(1, ray, "start", "--address", address, "--node-ip-address", ADDRESSES[1], *shape))
        time.sleep(6)

    def _node(self, host: int, *command: str) -> Process:
        return Process(host, self.folder / f"node-{host}.log", *command, cwd=self.folder)

    def flags(self) -> list[str]:
        return [*super().flags(), "--ray", f"{ADDRESSES[0]}:{RAY_PORT}"]

    def look_after(self) -> None:
        assert all(node.is_alive for node in self.nodes), "a node of Ray has ended"

    def processes(self) -> list[int]:
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if path.read_bytes().startswith(b"ray::RayWorker"):
                    found.append(int(path.parent.name))
        return found

    def close(self) -> None:
        for node in self.nodes:
            node.kill(signal.SIGTERM)
        time.sleep(3)
        for node in self.nodes:
            node.kill()


# ── faults ──


def settings(folder: Path, generations: int) -> list[str]:
    shape = ["--preset", "tiny", "--population-size", "2048", "--group-size", "16", "--seq-len", "32"]
    often = ["--snapshot-every", "25", "--validate-every", "200", "--validation-bytes", "4000"]
    return [*shape, *often, "--generations", str(generations), "--data", str(folder / "data.txt")]


def write_data(folder: Path) -> None:
    """Sources of the standard library, small enough to be read at every start."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    (folder / "data.txt").write_bytes(b"\n".join(file.read_bytes() for file in files)[: 2**21])


def generation_of(run: Path) -> int:
    try:
        return (run / "metrics.jsonl").read_bytes().count(b"\n")
    except OSError:
        return 0


class Faults:
    """What happens, at which generation."""

    def __init__(self, folder: Path, workers: Workers, kills: int, generations: int, seed: int) -> None:
        self.folder, self.run, self.workers = folder, folder / "fleet", workers
        self.random = random.Random(seed)
        self.generations = generations
        events = ["kill"] * kills + ["coordinator", "freeze", "partition"]
        self.random.shuffle(events)
        at = sorted(self.random.sample(range(10, generations - 30), len(events)))
        self.events = list(zip(at, events, strict=True))
        self.done: list[tuple[int, str]] = []
        self.later: list[tuple[float, Any]] = []
        self.coordinator = self._start()

    def _start(self, *more: str) -> Process:
        flags = ["--run-dir", str(self.run), *self.workers.flags(), "--lease-seconds", "2", *more]
        command = eggroll("pretrain", *settings(self.folder, self.generations), *flags)
        return Process(0, self.folder / "coordinator.log", *command, cwd=self.folder)

    def go(self) -> int:
        """Until the run ends; returns its exit status."""
        begun = time.monotonic()
        while self.coordinator.is_alive or self.later:
            assert time.monotonic() - begun < LIMIT, "the run takes too long"
            now, generation = time.monotonic(), generation_of(self.run)
            for due in [entry for entry in self.later if entry[0] <= now]:
                self.later.remove(due)
                due[1]()
            if self.events and generation >= self.events[0][0] and self.coordinator.is_alive:
                at, event = self.events.pop(0)
                if getattr(self, f"_{event}")():
                    self.done.append((generation, event))
                    say(f"generation {generation} (drawn: {at}): {event}")
                else:
                    self.events.insert(0, (at, event))
            self.workers.look_after()
            time.sleep(0.02)
        return self.coordinator.popen.returncode

    def _victim(self) -> int | None:
        found = self.workers.processes()
        return self.random.choice(found) if found else None

    def _kill(self) -> bool:
        victim = self._victim()
        if victim is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        return victim is not None

    def _freeze(self) -> bool:
        victim = self._victim()
        if victim is not None:
            os.kill(victim, signal.SIGSTOP)
            self.later.append((time.monotonic() + 12, lambda: self._thaw(victim)))
        return victim is not None

    def _thaw(self, victim: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGCONT)

    def _partition(self) -> bool:
        ip("link", "set", "eggf1", "down", host=HOSTS[1])
        self.later.append((time.monotonic() + 8, lambda: ip("link", "set", "eggf1", "up", host=HOSTS[1])))
        return True

    def _coordinator(self) -> bool:
        self.coordinator.kill()
        self.coordinator.popen.wait(timeout=20)
        self.coordinator = self._start("--resume")
        return True


def compare(folder: Path) -> dict[str, Any]:
    """The fleet's folder beside that of one process."""
    from eggroll.runs import snapshots
    from eggroll.runs.folder import RunFolder
    from eggroll.runs.trees import digest

    one, other = (folder / name for name in ("alone", "fleet"))
    lines = [json.loads(line) for line in (other / "metrics.jsonl").read_text().splitlines()]
    trees = [snapshots.load(RunFolder.open(path))[1] for path in (one, other)]
    return {
        "same_journal": (one / "journal.egg").read_bytes() == (other / "journal.egg").read_bytes(),
        "same_parameters": digest(trees[0]["parameters"]) == digest(trees[1]["parameters"]),
        "same_carry": digest(trees[0]["carry"]) == digest(trees[1]["carry"]),
        "all_lines": [line["generation"] for line in lines] == list(range(len(lines))),
        **{name: sum(line.get(name, 0) for line in lines) for name in EVENTS},
    }


EVENTS = (
    "lost_workers", "resynchronised", "rebuilt_ranges", "resent_ranges", "duplicate_answers", "carry_bytes",
    "state_bytes",
)  # fmt: skip


def faults(arguments: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name, two_hosts():
        folder = Path(name)
        write_data(folder)
        command = eggroll("pretrain", *settings(folder, arguments.generations), "--run-dir", str(folder / "alone"))
        subprocess.run(command, check=True, capture_output=True, timeout=LIMIT)
        workers = RayCluster(folder) if arguments.ray else Workers(folder)
        begun, status, events = time.monotonic(), None, None
        try:
            events = Faults(folder, workers, arguments.kills, arguments.generations, arguments.seed)
            status = events.go()
            found = compare(folder)
        except BaseException:
            for log in folder.glob("*.log"):
                say(f"── {log.name}\n{log.read_text(errors='replace')[-3000:]}")
            raise
        finally:
            if events is not None:
                events.coordinator.kill()
            workers.close()
        happened = [event for _, event in events.done]
        good = status == 0 and all(value for name, value in found.items() if name.startswith(("same", "all")))
        return {
            "good": good and not events.events,
            "status": status,
            "seconds": round(time.monotonic() - begun, 1),
            "generations": arguments.generations,
            **{event: happened.count(event) for event in ("kill", "coordinator", "freeze", "partition")},
            **found,
        }


# ── speed ──


def speed(arguments: argparse.Namespace) -> dict[str, Any]:
    """Members per second, the first generations apart."""
    found: dict[int, list[float]] = {1: [], 2: []}
    wire: dict[int, list[int]] = {1: [0, 0], 2: [0, 0]}
    population = 0
    with tempfile.TemporaryDirectory() as name:
        for repeat in range(arguments.repeats):
            for workers in (1, 2):
                run = Path(name) / f"{workers}-{repeat}"
                flags = ["--generations", str(arguments.generations), "--ray", "--workers", str(workers)]
                command = eggroll("pretrain", "--preset", "demo", "--run-dir", str(run), *flags)
                subprocess.run(command, check=True, capture_output=True, timeout=LIMIT)
                lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
                later = [line for line in lines[arguments.generations // 4 :] if "bits_per_byte" not in line]
                population = json.loads((run / "config.json").read_text())["population_size"]
                found[workers].append(population * len(later) / sum(line["seconds"] for line in later))
                for k, way in enumerate(("wire_up_bytes", "wire_down_bytes")):
                    wire[workers][k] = max(wire[workers][k], *(line[way] for line in lines[1:]))
                say(f"{workers} workers: {found[workers][-1]:,.0f} members/s, bytes {wire[workers]}")
    ratios = [two / one for one, two in zip(found[1], found[2], strict=True)]
    return {
        "good": True,
        "members_per_second": {workers: [round(value) for value in values] for workers, values in found.items()},
        "ratio": round(statistics.mean(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "bytes_up_down": wire,
        "bound_bytes": population // 10 + 256,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("faults", "speed"))
    parser.add_argument("--kills", type=int, default=20, help="SIGKILLs of workers")
    parser.add_argument("--generations", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ray", action="store_true", help="let a Ray cluster on both hosts start the workers")
    arguments = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("EGGROLL_TOKEN", secrets.token_hex(16))
    found = {"faults": faults, "speed": speed}[arguments.what](arguments)
    print(json.dumps({"what": arguments.what, "ray": arguments.ray, **found}))
    return 0 if found["good"] else 1


if __name__ == "__main__":
    sys.exit(main())
