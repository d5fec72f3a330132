"""How the processes of a run find each other: one port at process 0, for their messages and for JAX's own.

JAX's coordination service ends every process, with a backtrace, as soon as its connection to process 0 closes. So it
listens at process 0 for this host only, and the others reach it through tunnels that stay silent where the other end is
gone: what that means is for `team` to say.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from eggroll.distributed.channel import ClosedError, Kind, receive_line, receive_message, send_line, send_message
from eggroll.runs.folder import RunError, shown

_GREETING_SECONDS = 10.0
_BACKLOG = 512


@dataclass
class Greeting:
    """What a process says of itself. `versions` must be the same for all; `token`: of whoever may come, if any."""

    process: int
    count: int
    versions: dict[str, str]
    token: str = ""


def listen(host: str, port: int) -> socket.socket:
    """Listen at an address of this machine if `host` is one written in numbers, else at all of them.

    Raises:
      RunError: the port is taken.
    """
    loopback = host == "localhost" or _is_numeric(host)
    try:
        if loopback:
            with contextlib.suppress(OSError):
                return _bound(host, port)
        return _bound("", port)
    except OSError as error:
        raise RunError(
            f"expected to listen at port {port} as process 0, got {error.strerror}; choose another --coordinator"
        ) from None


def _is_numeric(host: str) -> bool:
    try:
        socket.getaddrinfo(host, None, flags=socket.AI_NUMERICHOST)
    except OSError:
        return False
    return True


def _bound(host: str, port: int) -> socket.socket:
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0] if host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=_BACKLOG)


@dataclass
class Switchboard:
    """Process 0's end: takes the others' connections, each with a greeting, and the tunnels of their JAX.

    Attributes:
      jax_port: of the coordination service, at this host's loopback.
      token: what a tunnel must know.
    """

    listener: socket.socket
    own: Greeting
    jax_port: int = 0
    token: str = field(default_factory=lambda: secrets.token_hex(16))

    def __post_init__(self) -> None:
        self._came: dict[int, socket.socket] = {}
        self._fault = ""
        self._news = threading.Condition()
        threading.Thread(target=self._accept, name="switchboard", daemon=True).start()

    def gather(self, seconds: float) -> list[socket.socket]:
        """Wait for the others; their connections in order.

        Raises:
          RunError: one does not come in time, or is of another kind; those who came are told.
        """
        end = time.monotonic() + seconds
        with self._news:
            self._news.wait_for(lambda: self._fault or len(self._came) == self.own.count - 1, end - time.monotonic())
            absent = [process for process in range(1, self.own.count) if process not in self._came]
            if absent and not self._fault:
                named = ", ".join(map(str, absent[:10])) + ("…" if len(absent) > 10 else "")
                self._fault = (
                    f"expected {self.own.count} processes within {seconds:g} seconds, got none for --process {named}; "
                    "start these too, with the same --coordinator, or raise --start-timeout"
                )
            if self._fault:
                for connection in self._came.values():
                    _refuse(connection, self._fault)
                self.close()
                raise RunError(self._fault)
            for connection in self._came.values():
                send_message(connection, Kind.DATA, self.token.encode())
            return [self._came[process] for process in range(1, self.own.count)]

    def close(self) -> None:
        """Take no more."""
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)  # wakes who waits for the next connection
        self.listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection = self.listener.accept()[0]
            except OSError:
                return
            threading.Thread(target=self._greet, args=(connection,), daemon=True).start()

    def _greet(self, connection: socket.socket) -> None:
        """Whoever says something else than a process of a run does is sent away without a word."""
        try:
            connection.settimeout(_GREETING_SECONDS)
            greeting = receive_line(connection)
            connection.settimeout(None)
        except (OSError, ClosedError):
            connection.close()
            return
        if greeting.get("eggroll") == "peer" and greeting.get("token") == self.own.token:
            self._take(connection, greeting)
        elif greeting.get("eggroll") == "jax" and greeting.get("token") == self.token:
            self._tunnel(connection)
        else:
            connection.close()

    def _take(self, connection: socket.socket, greeting: dict[str, Any]) -> None:
        with self._news:
            fault = self._wrong_with(greeting)
            if fault:
                _refuse(connection, fault)
                self._fault = self._fault or fault
            else:
                self._came[greeting["process"]] = connection
            self._news.notify_all()

    def _wrong_with(self, greeting: dict[str, Any]) -> str:
        process, count, versions = (greeting.get(name) for name in ("process", "count", "versions"))
        if count != self.own.count:
            got = f"--processes {self.own.count} at process 0 and {shown(count)} at process {shown(process)}"
            return f"expected the same --processes at every process, got {got}; give the same"
        if type(process) is not int or not 0 < process < self.own.count or process in self._came:
            most = self.own.count - 1
            return f"expected each --process from 1 to {most} once, got {shown(process)} again or beyond; mend it"
        if versions != self.own.versions:
            got = f"{_versions(self.own.versions)} at process 0 and {_versions(versions)} at process {process}"
            return f"expected the same versions at every process, got {got}; install the same"
        return ""

    def _tunnel(self, connection: socket.socket) -> None:
        """To the coordination service, which may be about to begin."""
        for _ in range(200):
            with contextlib.suppress(OSError):
                join(connection, socket.create_connection(("127.0.0.1", self.jax_port)), keep=False)
                return
            time.sleep(0.1)
        connection.close()


def _versions(versions: Any) -> str:
    return shown(" ".join(f"{k} {v}" for k, v in versions.items()) if isinstance(versions, dict) else versions)


def _refuse(connection: socket.socket, fault: str) -> None:
    with contextlib.suppress(ClosedError, OSError):
        send_message(connection, Kind.FAILED, fault.encode())
    connection.close()


def reach(host: str, port: int, own: Greeting, seconds: float) -> tuple[socket.socket, str]:
    """The connection to process 0 once all processes are there, and the token for tunnels.

    Raises:
      RunError: nobody answers in time, or process 0 refuses.
    """
    end = time.monotonic() + seconds
    connection, why = None, "no answer"
    while connection is None:
        try:
            connection = socket.create_connection((host, port), timeout=min(5.0, max(0.1, end - time.monotonic())))
        except OSError as error:
            why = error.strerror or str(error)
            if time.monotonic() + 0.2 > end:
                raise RunError(
                    f"expected process 0 at {host}:{port} within {seconds:g} seconds, got {why}; start it too, "
                    "mend --coordinator, or raise --start-timeout"
                ) from None
            time.sleep(0.2)
    try:
        connection.settimeout(max(1.0, end - time.monotonic()) + _GREETING_SECONDS)
        send_line(connection, {"eggroll": "peer", **vars(own)})
        kind, data = receive_message(connection)
    except (OSError, ClosedError) as error:
        connection.close()
        raise RunError(
            f"expected process 0 at {host}:{port}, got {error}; see what process 0 says, and mend --coordinator"
        ) from None
    if kind is Kind.FAILED:
        connection.close()
        raise RunError(data.decode(errors="replace")[:2000])
    return connection, data.decode()


def tunnel(host: str, port: int, token: str) -> int:
    """A port of this host's loopback at which JAX reaches the coordination service of process 0."""
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while True:
            connection = listener.accept()[0]
            with contextlib.suppress(OSError):
                far = socket.create_connection((host, port), timeout=_GREETING_SECONDS)
                far.settimeout(None)
                send_line(far, {"eggroll": "jax", "token": token})
                join(connection, far, keep=True)

    threading.Thread(target=accept, name="tunnel", daemon=True).start()
    return int(listener.getsockname()[1])


def join(near: socket.socket, far: socket.socket, *, keep: bool) -> None:
    """Carry bytes both ways from now on.

    Args:
      keep: leave `near` open, and silent, when `far` ends.
    """
    threading.Thread(target=_carry_both_ways, args=(near, far, keep), daemon=True).start()


def _carry_both_ways(near: socket.socket, far: socket.socket, keep: bool) -> None:
    for connection in (near, far):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    back = threading.Thread(target=_carry, args=(far, near, not keep), daemon=True)
    back.start()
    _carry(near, far, True)
    back.join()
    near.close()
    far.close()


def _carry(source: socket.socket, target: socket.socket, closes: bool) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(2**16):
            target.sendall(data)
    if closes:
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)
