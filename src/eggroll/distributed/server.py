"""The coordinator's socket: one thread that moves bytes between workers and a `Coordinator`."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from types import TracebackType

from eggroll.core.errors import UsageError
from eggroll.distributed.coordinator import Coordinator
from eggroll.distributed.wire import OVERHEAD, Inbox, WireError
from eggroll.runs.folder import RunError, reason

QUEUE_LIMIT = 64 * 2**20
"""Bytes that may wait for a worker that does not read, before it is given up."""
_TICK_SECONDS = 0.2
_READ = 2**16


class _Connection:
    """A worker's socket, and what waits for it."""

    def __init__(self, number: int, sock: socket.socket) -> None:
        self.number, self.socket = number, sock
        self.inbox = Inbox()
        self.queue: deque[bytes | Iterator[bytes]] = deque()
        self.waiting = 0  # bytes in the queue
        self.current = memoryview(b"")

    def put(self, data: bytes | Iterator[bytes]) -> None:
        self.queue.append(data)
        self.waiting += len(data) if isinstance(data, bytes) else 0

    def flush(self) -> bool:
        """Send what the socket takes; True where something is left. Iterators are asked for one message at a time."""
        while True:
            if not self.current and not self._next():
                return False
            try:
                self.current = self.current[self.socket.send(self.current) :]
            except (BlockingIOError, InterruptedError):
                return True

    def _next(self) -> bool:
        while self.queue:
            head = self.queue[0]
            if isinstance(head, bytes):
                self.queue.popleft()
                self.waiting -= len(head)
                self.current = memoryview(head)
                return True
            data = next(head, None)
            if data is not None:
                self.current = memoryview(data)
                return True
            self.queue.popleft()
        return False


class Server:
    """Listens, and runs the coordinator's side of every connection in a thread of its own.

    Whoever else calls the coordinator holds `lock` meanwhile, which is notified whenever something has changed, and
    calls `wake` afterwards.

    Args:
      address: host and port to bind to; port 0 takes a free one.
    Raises:
      UsageError: the address cannot be bound to.
    """

    def __init__(self, coordinator: Coordinator, address: tuple[str, int]) -> None:
        self.coordinator, self.lock = coordinator, threading.Condition()
        self._connections: dict[int, _Connection] = {}
        self._full: dict[int, _Connection] = {}  # those whose socket took no more
        self._count = 0
        try:
            family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
            self._listener = socket.create_server(address, family=family, backlog=1024)
        except OSError as error:
            raise UsageError(
                f"expected an address of this machine that is free, got {address[0]}:{address[1]}: {error.strerror}; "
                "give another --listen"
            ) from None
        self._listener.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._woken, self._waker = socket.socketpair()
        self._woken.setblocking(False)
        self._waker.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._closing, self._deadline = False, 0.0  # until when what is left is sent
        self._thread = threading.Thread(target=self._serve, name="eggroll coordinator", daemon=True)
        self._thread.start()

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that workers connect to."""
        host, port = self._listener.getsockname()[:2]
        return str(host), int(port)

    def wake(self) -> None:
        """Have the thread send what the coordinator has put out."""
        with contextlib.suppress(BlockingIOError):
            self._waker.send(b"\0")

    def close(self, why: str) -> None:
        """Send every worker away and let the port go; a second call does nothing."""
        with self.lock:
            if self._closing:
                return
            self.coordinator.dismiss(why)
            self._closing, self._deadline = True, time.monotonic() + 1
        self.wake()
        self._thread.join(timeout=5)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close("the run has ended" if error is None else f"the run has stopped: {reason(error)}")

    # ── the thread ──

    def _serve(self) -> None:
        try:
            while not self._closing or self._unsent():
                events = self._selector.select(_TICK_SECONDS)
                with self.lock:
                    for key, mask in events:
                        self._handle(key, mask)
                    self.coordinator.tick(time.monotonic())
                    self._send_out()
                    self.lock.notify_all()
        except Exception as error:  # whoever waits must hear of it
            with self.lock:
                self.coordinator.fault = RunError(f"expected the coordinator to go on, got {reason(error)}; report it")
                self.lock.notify_all()
        finally:
            for connection in list(self._connections.values()):
                connection.socket.close()
            for end in (self._listener, self._woken, self._waker, self._selector):
                end.close()

    def _unsent(self) -> bool:
        """What is left when closing, for a second at most."""
        waiting = any(c.queue or c.current for c in self._connections.values()) or bool(self.coordinator.out)
        return waiting and time.monotonic() < self._deadline

    def _handle(self, key: selectors.SelectorKey, mask: int) -> None:
        if key.fileobj is self._listener:
            self._accept()
        elif key.fileobj is self._woken:
            with contextlib.suppress(BlockingIOError):
                self._woken.recv(4096)
        elif mask & selectors.EVENT_READ:
            self._read(key.data)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError:  # the peer is gone again, or there are too many files
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            connection = _Connection(self._count, sock)
            self._count += 1
            self._connections[connection.number] = connection
            self._selector.register(sock, selectors.EVENT_READ, connection)
            self.coordinator.connected(connection.number)

    def _read(self, connection: _Connection) -> None:
        if connection.number not in self._connections:
            return
        try:
            data = connection.socket.recv(_READ)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._drop(connection, reason(error))
            return
        if not data:
            self._drop(connection, "its connection is closed")
            return
        try:
            for message in connection.inbox.feed(data):
                size = len(message.body) + OVERHEAD
                self.coordinator.received(connection.number, message, size, time.monotonic())
                connection.inbox.limit = self.coordinator.limit(connection.number)
        except WireError as error:
            self._drop(connection, str(error))

    def _drop(self, connection: _Connection, why: str) -> None:
        self._full.pop(connection.number, None)
        if self._connections.pop(connection.number, None) is not None:
            self._selector.unregister(connection.socket)
            connection.socket.close()
            self.coordinator.closed(connection.number, why, time.monotonic())

    def _send_out(self) -> None:
        for full in list(self._full.values()):
            self._flush(full)
        out = self.coordinator.out
        while out:
            number, data = out.popleft()
            connection = self._connections.get(number)
            if connection is not None:
                connection.put(data)
                self._flush(connection)
        for number, why in list(self.coordinator.closing.items()):
            connection = self._connections.get(number)
            if connection is None or not (connection.current or connection.queue):
                del self.coordinator.closing[number]
                if connection is not None:
                    self._drop(connection, why)

    def _flush(self, connection: _Connection) -> None:
        try:
            left = connection.flush()
        except RunError as error:  # a snapshot that cannot be read
            self.coordinator.fault = error
            return
        except OSError as error:
            self._drop(connection, reason(error))
            return
        if connection.waiting > QUEUE_LIMIT:
            self._drop(connection, f"more than {QUEUE_LIMIT:,} bytes wait for it")
            return
        if left:
            self._full[connection.number] = connection
        else:
            self._full.pop(connection.number, None)
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if left else 0)
        if self._selector.get_key(connection.socket).events != events:
            self._selector.modify(connection.socket, events, connection)
