"""A connection between two processes of a run: whole messages, in order, and a sign of life with each.

Nothing that arrives is executed or trusted: messages are bytes with a length, read piece by piece.
"""

from __future__ import annotations

import contextlib
import json
import queue
import socket
import struct
import threading
import time
from collections.abc import Callable
from enum import IntEnum
from typing import Any

_HEAD = struct.Struct("<BQ")
_PIECE = 2**20
_LINE_LIMIT = 4096
MOST = 2**40
"""Bytes of a message, at most."""


class Kind(IntEnum):
    """What a message is."""

    DATA = 0
    BEAT = 1  # nothing but a sign of life
    FAILED = 2  # why the sender ends, a line for a person
    BYE = 3  # the sender is done: that the connection closes is no loss


class ClosedError(Exception):
    """The other end has closed the connection, or it broke."""


def send_message(connection: socket.socket, kind: Kind, data: bytes) -> None:
    """Send a whole message.

    Raises:
      ClosedError: it cannot be sent.
    """
    try:
        connection.sendall(_HEAD.pack(kind, len(data)))
        connection.sendall(data)
    except OSError as error:
        raise ClosedError(str(error)) from None


def receive_message(connection: socket.socket, alive: Callable[[], None] = lambda: None) -> tuple[Kind, bytes]:
    """The next whole message.

    Args:
      alive: called with every piece that comes.
    Raises:
      ClosedError: the connection ended, or what came is no message.
    """
    kind, length = _HEAD.unpack(_receive(connection, _HEAD.size, alive))
    if kind not in Kind._value2member_map_ or length > MOST:
        raise ClosedError("something that is no message came")
    return Kind(kind), _receive(connection, length, alive)


def _receive(connection: socket.socket, count: int, alive: Callable[[], None]) -> bytes:
    """Memory grows with what has come, not with what was announced."""
    data = bytearray()
    while len(data) < count:
        try:
            piece = connection.recv(min(_PIECE, count - len(data)))
        except OSError:
            piece = b""  # reset: the other end was killed before it had read all
        if not piece:
            raise ClosedError("connection closed")
        data += piece
        alive()
    return bytes(data)


def send_line(connection: socket.socket, value: dict[str, Any]) -> None:
    """The first thing on a connection: a line of JSON that says what it is for."""
    connection.sendall(json.dumps(value).encode() + b"\n")


def receive_line(connection: socket.socket) -> dict[str, Any]:
    """The first thing on a connection; not a byte more is taken.

    Raises:
      ClosedError: it is something else.
    """
    line = b""
    while not line.endswith(b"\n"):
        piece = connection.recv(1)
        if not piece or len(line) > _LINE_LIMIT:
            raise ClosedError("no greeting")
        line += piece
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise ClosedError("no greeting") from None
    if not isinstance(value, dict):
        raise ClosedError("no greeting")
    return value


class Channel:
    """A connection to one other process, read by a thread of its own.

    Args:
      ended: called once, by that thread, with (process, reason, whether the reason is a line of the other's).
    Attributes:
      seen: `time.monotonic()` when anything came last.
      address: of the other end.
    """

    def __init__(self, connection: socket.socket, process: int, ended: Callable[[int, str, bool], None]) -> None:
        connection.settimeout(None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.process, self._ended, self._connection = process, ended, connection
        self.seen = time.monotonic()
        self.address = str(connection.getpeername()[0])
        self._arrived: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._sending = threading.Lock()
        self._reader = threading.Thread(target=self._read, name=f"process {process}", daemon=True)

    def start(self) -> None:
        """Read from here on."""
        self._reader.start()

    def send(self, kind: Kind, data: bytes = b"") -> None:
        """Send a message; a broken connection is the reader's to tell."""
        with self._sending:
            self._try_sending(kind, data)

    def beat(self) -> None:
        """A sign of life, unless something is being sent that is one."""
        if self._sending.acquire(blocking=False):
            try:
                self._try_sending(Kind.BEAT, b"")
            finally:
                self._sending.release()

    def _try_sending(self, kind: Kind, data: bytes) -> None:
        with contextlib.suppress(ClosedError):
            send_message(self._connection, kind, data)

    def receive(self) -> bytes:
        """The next message of data; waits for it."""
        return self._arrived.get()

    def close(self, seconds: float) -> None:
        """Send no more, and wait until the other end is done too, so that nothing sent is lost."""
        try:
            self._connection.shutdown(socket.SHUT_WR)
        except OSError:
            return
        if threading.current_thread() is not self._reader:
            self._reader.join(seconds)
            if not self._reader.is_alive():
                self._connection.close()

    def _alive(self) -> None:
        self.seen = time.monotonic()

    def _read(self) -> None:
        finished = False
        try:
            while True:
                kind, data = receive_message(self._connection, self._alive)
                if kind is Kind.DATA:
                    self._arrived.put(data)
                elif kind is Kind.BYE:
                    finished = True
                elif kind is Kind.FAILED:
                    self._ended(self.process, data.decode(errors="replace"), True)
        except ClosedError as reason:
            if not finished:
                self._ended(self.process, str(reason), False)
