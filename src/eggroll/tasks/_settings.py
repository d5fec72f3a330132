"""Settings of a task from names and values, as a command line or a file gives them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from eggroll.core.errors import UsageError

Settings = TypeVar("Settings")


def settings_from(kind: Callable[..., Settings], options: Mapping[str, Any], task: str) -> Settings:
    """A settings dataclass with some fields replaced.

    A value is turned into the kind of the field's default: text into a number, "3,4" and [3, 4] into a tuple of whole
    numbers, a whole number into a float.

    Raises:
      UsageError: a name that is no field (those that exist are listed); a value that cannot be turned.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    check_names(options, list(defaults), task)
    return kind(**{name: _turned(name, value, defaults[name]) for name, value in options.items()})


def check_names(options: Mapping[str, Any], known: list[str], task: str) -> None:
    """Refuses an option that a task does not have.

    Raises:
      UsageError: the first such option, with those that exist.
    """
    for name in options:
        if name not in known:
            listed = f"choose from {', '.join(known)}" if known else "leave it out: it has none"
            raise UsageError(f"expected an option of the task {task}, got {name!r}; {listed}")


def choice(name: str, value: str, known: tuple[str, ...]) -> None:
    """Refuses a value that is none of those known.

    Raises:
      UsageError: it is none of them.
    """
    if value not in known:
        raise UsageError(f"expected {name} to be {' or '.join(known)}, got {value!r}; choose one of them")


def _turned(name: str, value: Any, default: Any) -> Any:
    wrong = UsageError(f"expected {name} of the kind of {default!r}, got {value!r}; give a value like that")
    if isinstance(value, bool):
        raise wrong
    try:
        if isinstance(default, tuple):
            parts = value.split(",") if isinstance(value, str) else value
            return tuple(_whole(part) for part in parts)
        if isinstance(default, float):
            return float(value)
        if isinstance(default, int):
            return _whole(value)
    except (TypeError, ValueError, OverflowError):
        raise wrong from None
    if not isinstance(value, type(default)):
        raise wrong
    return value


def _whole(value: Any) -> int:
    if isinstance(value, (str, int)) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    raise ValueError("not a whole number")
