"""The processes of a run in a star around process 0: bytes for all, and an end for all when one is lost.

Each process hears from each that it is connected with every few seconds. A closed connection, or silence, ends the
process at once with one line: the journal is on the disk before every update, so nothing is lost by it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from types import TracebackType

from eggroll.core.errors import UsageError
from eggroll.distributed.channel import Channel, Kind

STATUS_LOST = 2
STATUS_INTERRUPTED = 130
_GRACE = 3.0
"""Seconds in which a lost process is found out after an error that may come of it, or the others may take leave."""


class Team:
    """The peers of a run whose processes are connected; see `runs.peers`.

    Args:
      process, count: which one this is, of how many.
      silence: seconds after which a process that says nothing is lost.
      name: what lines on standard error begin with.
      leaves: end the process on any error, since JAX would wait for the others first; else the error goes on.
    """

    def __init__(self, process: int, count: int, *, silence: float, name: str, leaves: bool = True) -> None:
        self.process, self.count = process, count
        self._silence, self._name, self._leaves = silence, name, leaves
        self._stderr = sys.stderr  # a progress bar or a parser may put something else there
        self._channels: list[Channel] = []
        self._ending, self._done = threading.Lock(), threading.Event()
        self._last: list[Callable[[], None]] = []

    def watch(self, channels: Sequence[Channel]) -> None:
        """Begin: these are the connections, at process 0 those of the others in order, else that to process 0."""
        self._channels = list(channels)
        for channel in self._channels:
            channel.start()
        threading.Thread(target=self._beat, name="signs of life", daemon=True).start()

    def at_the_end(self, action: Callable[[], None]) -> None:
        """Do this when all processes are done."""
        self._last.append(action)

    # ── bytes for all ──

    def broadcast(self, data: bytes = b"") -> bytes:
        """The bytes that process 0 gives, at every process."""
        if self.process:
            return self._channels[0].receive()
        for channel in self._channels:
            channel.send(Kind.DATA, data)
        return data

    def exchange(self, data: bytes) -> Sequence[bytes]:
        """What every process gives, in their order, at every process."""
        if self.process:
            self._channels[0].send(Kind.DATA, data)
            return [self._channels[0].receive() for _ in range(self.count)]
        everybody = [data, *(channel.receive() for channel in self._channels)]
        for channel in self._channels:
            for each in everybody:
                channel.send(Kind.DATA, each)
        return everybody

    # ── signs of life ──

    def _beat(self) -> None:
        pause = min(self._silence / 5, 5.0)
        woken = time.monotonic()
        while not self._done.wait(pause):
            now = time.monotonic()
            if now - woken > 2 * pause:  # this process itself was stopped: what the others said waits to be read
                for channel in self._channels:
                    channel.seen = now
            woken = now
            for channel in self._channels:
                channel.beat()
                if now - channel.seen > self._silence:
                    self.ended(channel.process, f"{self._silence:g} seconds of silence", False)

    def ended(self, process: int, reason: str, told: bool) -> None:
        """A process is lost, or has said why it ends: so does this one, after telling the others."""
        if self._done.is_set():
            return
        if told:
            line = "".join(c if c.isprintable() else "?" for c in reason)[:2000]
        else:
            at = next((channel.address for channel in self._channels if channel.process == process), "?")
            line = (
                f"expected {self.count} processes, lost process {process} at {at} ({reason}); "
                "start all of them again with --resume"
            )
        self._leave(line, line, STATUS_LOST, lost=process)

    def _leave(self, told: str, said: str, status: int, *, lost: int | None = None) -> None:
        """Tell the others and a person, once, whichever thread comes first; and end without waiting for the lost."""
        if not self._ending.acquire(blocking=False):
            threading.Event().wait()  # another thread is at it
        self._done.set()
        show_cursor = "\x1b[?25h" if self._stderr.isatty() else ""
        with contextlib.suppress(OSError, ValueError):
            self._stderr.write(f"{show_cursor}{said if said != told else f'{self._name}: {said}'}\n")
        self._tell(told, lost)
        for stream in (sys.stdout, self._stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)

    def _tell(self, line: str, lost: int | None = None) -> None:
        tellers = [threading.Thread(target=self._tell_one, args=(c, line), daemon=True) for c in self._channels]
        for teller in tellers:
            teller.start()
        end = time.monotonic() + _GRACE
        for teller, channel in zip(tellers, self._channels, strict=True):
            teller.join(max(0.0, end - time.monotonic()) if channel.process != lost else 0.1)

    @staticmethod
    def _tell_one(channel: Channel, line: str) -> None:
        channel.send(Kind.FAILED, line.encode())
        channel.close(_GRACE)

    # ── the end ──

    def __enter__(self) -> Team:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._finish()
        else:
            self._fail(error)

    def _finish(self) -> None:
        self.exchange(b"")
        self._done.set()
        for channel in self._channels:
            channel.send(Kind.BYE)
        for action in self._last:
            action()
        for channel in self._channels:
            channel.close(_GRACE)

    def _fail(self, error: BaseException) -> None:
        status, said = 1, ""
        if isinstance(error, UsageError):
            status, why = STATUS_LOST, str(error)
            said = f"{self._name}: {error}"
        elif isinstance(error, KeyboardInterrupt):
            status, why = STATUS_INTERRUPTED, "it was stopped at once"
            said = f"{self._name}: stopped at once; what the journal has is kept, go on with --resume"
        else:
            time.sleep(_GRACE)  # a collective fails when a process is lost, and the watch says it better
            why = " ".join(f"{type(error).__name__}: {error}".split())[:500]
            said = "".join(traceback.format_exception(error)).rstrip()
        line = f"expected all {self.count} processes to go on, process {self.process} ended: {why}"
        line += "" if ";" in why else "; start all of them again with --resume"
        if self._leaves:
            self._leave(line, said, status)
        self._done.set()
        self._tell(line)
        for action in self._last:
            action()
