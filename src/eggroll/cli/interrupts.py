"""Ctrl-C while a command starts: after what is being imported.

In the middle of an import, numpy and jaxlib print a traceback of their own, or make an ImportError of it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_AGAIN = 0.05
"""Seconds after which it is looked again."""


@contextlib.contextmanager
def interrupts_between_imports() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, but not while a module is imported: then as soon as that is done.

    A handler that is somebody else's stays as it is.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if not _is_importing(frame):
        raise KeyboardInterrupt
    again = threading.Timer(_AGAIN, os.kill, (os.getpid(), number))
    again.daemon = True
    again.start()


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_globals.get("__name__") == "importlib._bootstrap":
            return True
        frame = frame.f_back
    return False
