"""Tasks by name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from eggroll.core.errors import UsageError
from eggroll.tasks._settings import settings_from
from eggroll.tasks.base import Task

_BUILT_IN = ("countdown", "gsm8k", "maths")


def names() -> tuple[str, ...]:
    """The names that `make_task` takes; those in capitals stand for many."""
    return (*_BUILT_IN, "reasoning_gym:NAME", "MODULE:FUNCTION")


def make_task(name: str, *, data: str = "", options: Mapping[str, Any] | None = None) -> Task:
    """A task by name.

    Args:
      name: one of `names()`: "countdown", "gsm8k", "maths", "reasoning_gym:basic_arithmetic", or your own
        "module:function" (see `eggroll.tasks.own`).
      data: its file or folder, where it has one.
      options: values for the fields of the task's settings (`CountdownSettings`, …), or text that reads as such.
    Raises:
      UsageError: unknown name (the near ones are named), option (those that exist are) or value; unusable data; a
        package is missing (its install line is named).
    """
    options = options or {}
    family, colon, rest = name.partition(":")
    if family == "reasoning_gym":
        return _reasoning(rest, data, options)
    if colon:
        from eggroll.tasks.own import make_own

        return make_own(name, data=data, options=options)
    return _built_in(name, data, options)


def _built_in(name: str, data: str, options: Mapping[str, Any]) -> Task:
    if name == "countdown":
        from eggroll.tasks.countdown import Countdown, CountdownSettings

        return Countdown(settings_from(CountdownSettings, options, name), data=data)
    if name == "gsm8k":
        from eggroll.tasks.gsm8k import Gsm8k, Gsm8kSettings

        return Gsm8k(settings_from(Gsm8kSettings, options, name), data=data)
    if name == "maths":
        from eggroll.tasks.maths import Maths, MathsSettings

        return Maths(settings_from(MathsSettings, options, name), data=data)
    near = difflib.get_close_matches(name.lower(), [*_BUILT_IN, "reasoning_gym"], n=3, cutoff=0.5)
    listed = f"near: {', '.join(near)}" if near else f"known: {', '.join(names())}"
    raise UsageError(f"expected the name of a task, got {name!r}; {listed}; or give MODULE:FUNCTION of your own")


def _reasoning(name: str, data: str, options: Mapping[str, Any]) -> Task:
    if data:
        raise UsageError(f"expected no data for reasoning_gym:{name}, got {data!r}; leave it out, its sets are made")
    from eggroll.tasks.reasoning import Reasoning

    return Reasoning(name, options)
