"""A child process that scores hostile text: what takes too long or too much memory ends there, not here.

Libraries for mathematics call Python's `eval`, and can take hours over a line of text; their own limits are signals,
which only a main thread gets. The child therefore loads the library once and forks a server for the requests. The
kernel ends a server that passes a limit, and the child forks the next one, which takes milliseconds. A server also
refuses to write files, open sockets and start processes. That stops accidents; it is no sandbox for malice.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

_MEMORY = 4 << 30
"""Bytes of address space of a server."""

_PATIENCE = 10
"""Seconds by the clock for each second of computing: the machine may be busy."""

_REFUSED = ("os.", "subprocess.", "socket.", "shutil.", "ctypes.", "pty.", "urllib.", "webbrowser.")
_HARMLESS = ("os.listdir", "os.scandir", "os.walk", "os.getxattr")  # what an import does


class Worker:
    """Calls a function of JSON → JSON in a child, which starts at the first call; safe from several threads."""

    def __init__(self, target: str, *, seconds: float = 2.0) -> None:
        """Names the function.

        Args:
          target: "module:function"; the module's `prepare()` is called once, before the first server is forked, and
            has to import all that the function needs.
          seconds: computing time of a call, > 0.
        """
        self._command = [sys.executable, "-m", "eggroll.tasks._worker", target, str(seconds)]
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def __call__(self, request: Any) -> Any:
        """The function's answer to `request`, or None where it raised or passed a limit.

        Raises:
          RuntimeError: the child does not start.
        """
        with self._lock:
            process = self._running()
            assert process.stdin is not None and process.stdout is not None
            try:
                process.stdin.write(json.dumps(request).encode() + b"\n")
                process.stdin.flush()
                line = process.stdout.readline()
            except BrokenPipeError:
                line = b""
            except BaseException:  # Ctrl-C between a request and its answer: the next would get this one's
                self._stop()
                raise
            if not line:
                self._stop()
                raise RuntimeError(f"the scoring process stopped: {' '.join(self._command)}")
            return json.loads(line)

    def close(self) -> None:
        """Ends the child; a later call starts another."""
        with self._lock:
            self._stop()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._owner != os.getpid():  # a fork of this process has to have its own
            paths = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=paths,
                start_new_session=True,
            )
            self._owner = os.getpid()
            atexit.register(self.close)
        return self._process

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        atexit.unregister(self.close)


def main(target: str, seconds: float) -> None:
    """What the child does: forks a server, and the next one when the kernel has ended it, until its input ends."""
    answers = os.dup(1)
    os.dup2(2, 1)  # what a library prints is no answer
    name, _, attribute = target.partition(":")
    module = importlib.import_module(name)
    module.prepare()
    function = getattr(module, attribute)
    while True:
        server = os.fork()
        if server == 0:
            _serve(function, answers, seconds)
            os._exit(0)
        if os.waitpid(server, 0)[1] == 0:
            return
        os.write(answers, b"null\n")


def _serve(function: Callable[[Any], Any], answers: int, seconds: float) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    sys.addaudithook(_refuse)
    while request := _line():
        signal.setitimer(signal.ITIMER_PROF, seconds)  # both kill where nothing handles them
        signal.setitimer(signal.ITIMER_REAL, seconds * _PATIENCE)
        try:
            answer = json.dumps(function(json.loads(request)))
        except Exception:
            answer = "null"
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        os.write(answers, answer.encode() + b"\n")


def _line() -> bytes:
    """One line of the input, and nothing after it: the next server has to find that there."""
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(0, 1 << 16)
        if not part:
            return b""
        line += part
    return line


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    writes = event == "open" and (
        (isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"))
        or (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR))
    )
    if writes or (event.startswith(_REFUSED) and event not in _HARMLESS):
        raise PermissionError(f"a verifier may not: {event}")


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
