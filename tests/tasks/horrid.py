"""A function for the scoring process that does what its request says."""

import os
import time
from pathlib import Path
from typing import Any


def prepare() -> None:
    """Nothing to load."""


def act(request: list[Any]) -> Any:
    """[verb, value] → what comes of it."""
    verb, value = request
    match verb:
        case "return":
            return value
        case "pid":
            return os.getpid()
        case "raise":
            raise RuntimeError(value)
        case "compute":
            while True:
                value += 1
        case "sleep":
            time.sleep(value)
        case "allocate":
            return len(bytearray(value))
        case "recurse":
            return act(request)
        case "print":
            os.write(1, value.encode())
            return "printed"
        case "exit":
            os._exit(value)
        case "write":
            return Path(value).write_text("")
    return None
