"""A task of the user's own, named by import path: `module:name`."""

from __future__ import annotations

import importlib
import inspect
import numbers
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from eggroll.core.errors import UsageError
from eggroll.runs.hub import PREFIX
from eggroll.tasks._files import read_hub, read_splits
from eggroll.tasks.base import Example, RowsTask, Task

_NEEDED = "a Task, or a function (prompt, completion, facts) -> reward"


def make_own(name: str, *, data: str = "", options: Mapping[str, Any] | None = None) -> Task:
    """The task at an import path.

    Args:
      name: "module:name", the module importable or in the working folder. It is a Task; or a class or a function of
        `options` (and `data`, where given) that makes one, if it is a class; or a reward function
        (prompt, completion, facts) -> float in [0, 1], which needs `data`.
      data: for a reward function, JSON Lines with `prompt`, maybe `answer` and `split`; the other fields are facts.
        Without `split` the last tenth is the test split. Or a Hugging Face data set with such columns, hf:NAME,
        hf:NAME:CONFIG or hf:/saved/folder.
      options: keyword arguments of a class.
    Raises:
      UsageError: module or name missing; neither a task nor callable; options that it does not take; no data.
    """
    found = _found(name)
    options = dict(options or {})
    if inspect.isclass(found):
        found = _constructed(name, found, options | ({"data": data} if data else {}))
    elif options:
        raise UsageError(f"expected no options for {name}, got {', '.join(options)}; only a class takes them")
    if isinstance(found, Task):
        return found
    if not callable(found):
        raise UsageError(f"expected {_NEEDED}, as {name}, got {type(found).__name__}; name one of the two")
    if not data:
        raise UsageError(f"expected data for the reward function {name}, got none; give a .jsonl file with prompt")
    return OwnTask(name, found, data)


class OwnTask(RowsTask):
    """Prompts of a file, scored by a function of the user's, as a `Task`; facts are a row's other fields."""

    def __init__(self, name: str, reward: Callable[[str, str, Any], float], data: str) -> None:
        """Reads the prompts.

        Args:
          name: what the task is called.
          reward: (prompt, completion, facts) → a number in [0, 1].
          data: as in `make_own`.
        Raises:
          UsageError: no file; a row without a text as prompt.
        """
        self.name = name
        self._reward = reward
        self._rows = read_hub(data, _convert) if data.startswith(PREFIX) else read_splits(Path(data), _convert)

    def verify(self, example: Example, completion: str) -> float:
        """What the user's function gives; what that raises is not caught.

        Raises:
          UsageError: it gave no number in [0, 1].
        """
        reward = self._reward(example.prompt, completion, example.facts)
        if not isinstance(reward, numbers.Real) or not 0 <= reward <= 1:
            raise UsageError(f"expected a reward from 0 to 1 of {self.name}, got {reward!r}; return a number in [0, 1]")
        return float(reward)


def _convert(row: dict[str, Any]) -> Example:
    prompt, answer = row["prompt"], row.get("answer", "")
    if not isinstance(prompt, str) or not isinstance(answer, (str, int, float)):
        raise TypeError("texts as prompt and answer")
    facts = {name: value for name, value in row.items() if name not in ("prompt", "split")}
    return Example(prompt, facts, str(answer))


def _found(name: str) -> Any:
    """What an import path names."""
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise UsageError(f"expected module:name, got {name!r}; write such as rewards:length")
    module = _module(module_name, name)
    for part in attribute.split("."):
        if not hasattr(module, part):
            public = [each for each in dir(module) if not each.startswith("_")][:20]
            raise UsageError(
                f"expected {part!r} in {module_name}, got {', '.join(public) or 'nothing'}; name one of its"
            )
        module = getattr(module, part)
    return module


def _module(module_name: str, name: str) -> Any:
    """A module, also of the working folder."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        importlib.invalidate_caches()
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        own = module_name == missing or module_name.startswith(f"{missing}.")
        mend = f"run where {missing} is, or set PYTHONPATH" if own else f"install {missing}"
        raise UsageError(f"expected the module {missing} for {name}, got none; {mend}") from None
    except (TypeError, ValueError, ImportError, SyntaxError) as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise UsageError(f"expected {module_name} to import, got {reason}; mend it") from error
    finally:
        if here in sys.path:
            sys.path.remove(here)


def _constructed(name: str, kind: Any, arguments: dict[str, Any]) -> Any:
    try:
        inspect.signature(kind).bind(**arguments)
    except TypeError as error:
        raise UsageError(f"expected options that {name} takes, got {arguments}: {error}; change them") from None
    return kind(**arguments)
