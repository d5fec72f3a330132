"""A worker's socket: connect, prove, work until dismissed; come back where the coordinator is lost for a while."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

from eggroll.core.errors import UsageError
from eggroll.distributed.wire import MESSAGE_LIMIT, Inbox, WireError, pack, pack_json
from eggroll.distributed.wire import Message as Kind
from eggroll.distributed.worker import DismissedError, Worker
from eggroll.runs.folder import reason

_READ = 2**16
_RETRY_SECONDS = 0.5


def serve(
    worker: Worker, address: tuple[str, int], *, patience: float = 60.0, say: Callable[[str], None] = lambda line: None
) -> None:
    """Work for the coordinator at `address` until it says that the run has ended.

    Args:
      patience: seconds to try to connect, at the start and each time that the connection is lost.
      say: takes lines for a person.
    Raises:
      WireError: nobody answered for so long, or what came cannot be used.
      UsageError: the job cannot be built here; the coordinator is told.
    """
    lost_at = time.monotonic()
    while True:
        try:
            with socket.create_connection(address, timeout=max(patience, 1.0)) as connection:
                connection.settimeout(None)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                _converse(worker, connection)
        except DismissedError as error:
            say(str(error))
            return
        except OSError as error:
            if worker.was_welcome:
                lost_at, worker.was_welcome = time.monotonic(), False
                say(f"lost the coordinator at {address[0]}:{address[1]} ({reason(error)}); trying again")
            if time.monotonic() - lost_at > patience:
                raise WireError(
                    f"expected a coordinator at {address[0]}:{address[1]}, got none for {patience:g} s "
                    f"({reason(error)}); start it, or give its address"
                ) from None
            time.sleep(_RETRY_SECONDS)


def _converse(worker: Worker, connection: socket.socket) -> None:
    inbox = Inbox(MESSAGE_LIMIT)
    while True:
        data = connection.recv(_READ)
        if not data:
            raise ConnectionResetError("its connection is closed")
        try:
            for message in inbox.feed(data):
                for reply in worker.take(message):
                    connection.sendall(reply)
        except DismissedError:
            raise
        except UsageError as error:
            connection.sendall(pack(Kind.BYE, worker.run, 0, pack_json({"why": str(error)})))
            raise
