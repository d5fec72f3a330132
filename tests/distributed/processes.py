"""Real processes of one run, on this host or on two hosts that are network namespaces."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 90
"""Seconds after which a process that hangs is killed."""
SETTINGS = (
    *("--preset", "tiny", "--population-size", "64", "--group-size", "8", "--seq-len", "8", "--generations", "300"),
    *("--validation-bytes", "200", "--snapshot-every", "25", "--validate-every", "150", "--sample-bytes", "0"),
    *("--data", "data.txt"),
)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


class Processes:
    """Starts processes in a folder, and ends whatever is left of them."""

    def __init__(self, folder, compiled):
        self.folder, self.started = folder, []
        self.environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_backend_optimization_level=0",
            "JAX_COMPILATION_CACHE_DIR": str(compiled),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "PYTHONPATH": str(ROOT / "src"),
        }

    def start(self, *command, devices=1, inside=(), folder=None):
        flags = f"{self.environment['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
        process = subprocess.Popen(
            [*inside, sys.executable, *command],
            cwd=folder or self.folder,
            env=self.environment | {"XLA_FLAGS": flags},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def pretrain(self, *flags, **options):
        return self.start("-m", "eggroll", "pretrain", *flags, **options)

    def pair(self, run, *flags, second=(), address="127.0.0.1", inside=((), ())):
        """Two processes of one run; the second runs elsewhere, has no run folder, and `second` flags of its own."""
        elsewhere = self.folder / "elsewhere"
        elsewhere.mkdir(exist_ok=True)
        shutil.copy(self.folder / "data.txt", elsewhere)
        both = (*flags, "--run-dir", run, "--coordinator", f"{address}:{free_port()}", "--processes", "2")
        both = (*both, "--peer-timeout", "3")
        return [
            self.pretrain(*both, "--process", "0", inside=inside[0]),
            self.pretrain(*both, "--process", "1", *second, inside=inside[1], folder=elsewhere),
        ]

    def close(self):
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.communicate()


def ended(process, seconds=LIMIT):
    """Exit status, standard output and standard error; a process that hangs is killed, and fails the test."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"still running after {seconds} seconds: {err}") from None
    return process.returncode, out, err


def wait_for_generation(folder, generation, processes):
    """Until the run has that many lines of metrics."""
    path, end = folder / "metrics.jsonl", time.monotonic() + LIMIT
    while time.monotonic() < end and all(process.poll() is None for process in processes):
        if path.exists() and path.read_bytes().count(b"\n") >= generation:
            return
        time.sleep(0.02)
    raise AssertionError([process.communicate() for process in processes if process.poll() is not None] or "too slow")


def stopped(process, number):
    """Send a signal; returns when it was sent."""
    process.send_signal(number)
    return time.monotonic()


def frozen(process):
    return stopped(process, signal.SIGSTOP)


@contextlib.contextmanager
def two_hosts():
    """Two network namespaces, 10.77.0.1 and 10.77.0.2, joined by a cable; prefixes of commands that run there."""
    names = [f"eggroll-{os.getpid()}-{i}" for i in range(2)]

    def ip(*arguments):
        subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=20)

    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", "egg0", "netns", names[0], "type", "veth", "peer", "name", "egg1", "netns", names[1])
        for i, name in enumerate(names):
            ip("-n", name, "address", "add", f"10.77.0.{i + 1}/24", "dev", f"egg{i}")
            ip("-n", name, "link", "set", f"egg{i}", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield (
            [("ip", "netns", "exec", name) for name in names],
            lambda: ip("-n", names[0], "link", "set", "egg0", "down"),
        )
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, timeout=20)
