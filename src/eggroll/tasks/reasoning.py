"""The tasks of `reasoning-gym`: over a hundred procedural puzzles, each with its own verifier.

Source: arXiv 2505.24760; github.com/open-thought/reasoning-gym.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from eggroll.core.errors import UsageError
from eggroll.tasks._settings import check_names, choice, settings_from
from eggroll.tasks._text import last_tag
from eggroll.tasks._worker import Worker
from eggroll.tasks.base import SPLITS, Example, check_place, check_split

_LARGEST = 1 << 20
"""Examples of a split: a set's item is seeded by seed + index, so that seeds have to lie this far apart."""

_LONGEST = 10_000
"""Characters at the end of a completion that are read."""

_ASK = "\n\nThink step by step, and give the final answer in <answer> </answer> tags."
_worker = Worker("eggroll.tasks.reasoning:score", seconds=5.0)


@dataclass(frozen=True)
class ReasoningSettings:
    """What every set has; the other options are the set's own."""

    seed: int = 0  # from 0 to 999
    train_size: int = 10_000  # examples, at most 2²⁰; some sets are made whole at the start
    test_size: int = 512  # examples, at most 2²⁰
    template: str = "plain"  # "plain": the question and a new line; "chat": asks for <answer> </answer>

    def __post_init__(self) -> None:
        choice("template", self.template, ("plain", "chat"))
        if not 0 <= self.seed < 1000:
            raise UsageError(f"expected seed from 0 to 999, got {self.seed}; give one in that range")
        for name in ("train_size", "test_size"):
            if not 1 <= getattr(self, name) <= _LARGEST:
                raise UsageError(f"expected {name} from 1 to {_LARGEST}, got {getattr(self, name)}; give such a count")


class Reasoning:
    """One set of reasoning-gym as a `Task`; the seeds of its two splits' items never meet."""

    def __init__(self, name: str, options: Mapping[str, Any] | None = None) -> None:
        """Makes the set.

        Args:
          name: as reasoning-gym has it, such as "basic_arithmetic".
          options: fields of `ReasoningSettings`, and those of the set's own configuration.
        Raises:
          UsageError: reasoning-gym is missing; no such set, option or value.
        """
        options = dict(options or {})
        kind = _configuration(name)
        ours = [field.name for field in dataclasses.fields(ReasoningSettings)]
        own = [field.name for field in dataclasses.fields(kind) if field.name not in ("seed", "size")]
        self.name = f"reasoning_gym:{name}"
        check_names(options, [*ours, *own], self.name)
        self.settings = settings_from(
            ReasoningSettings, {key: value for key, value in options.items() if key in ours}, self.name
        )
        self._own = {key: value for key, value in options.items() if key not in ours}
        self._set = name
        for split in SPLITS:
            self._made(split)

    def size(self, split: str) -> int:
        """How many examples a split has."""
        check_split(split)
        return self.settings.train_size if split == "train" else self.settings.test_size

    def example(self, split: str, index: int) -> Example:
        """The example at `index` of a split; its facts are the set's entry, and how to make it again.

        A few sets (polynomial_multiplication) depend on the order of Python's sets: their examples are the same in two
        processes only where PYTHONHASHSEED is.
        """
        check_place(self, split, index)
        entry = self._made(split)[index]
        facts = {"set": self._set, "options": self._own, "index": index, **self._range(split), "entry": _plain(entry)}
        question, answer = str(entry["question"]), "" if entry["answer"] is None else str(entry["answer"])
        if self.settings.template == "plain":
            return Example(f"{question}\n", facts, answer)
        return Example(question + _ASK, facts, f"<answer>{answer}</answer>" if answer else "")

    def verify(self, example: Example, completion: str) -> float:
        """What the set's own verifier gives for the last <answer>, else for the whole completion, within [0, 1]."""
        text = completion[-_LONGEST:]
        tagged = last_tag(text, "answer")
        return float(_worker([example.facts, text.strip() if tagged is None else tagged]) or 0.0)

    def _range(self, split: str) -> dict[str, int]:
        """The seed and the size of a split's set."""
        return {"seed": (self.settings.seed << 21) + (split == "test") * _LARGEST, "size": self.size(split)}

    def _made(self, split: str) -> Any:
        try:
            return _dataset(self._set, json.dumps(self._own), **self._range(split))
        except (AssertionError, TypeError, ValueError) as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise UsageError(
                f"expected options that {self.name} takes, got {self._own}: {reason}; change them"
            ) from None


def prepare() -> None:
    """Loads what `score` needs, once for all servers of the scoring process."""
    _gym()


def score(request: list[Any]) -> float:
    """The set's own score of an answer, within [0, 1]; runs in the scoring process."""
    facts, answer = request
    key = (facts["set"], json.dumps(facts["options"]), facts["seed"], facts["size"])
    entry = facts["entry"]
    if not entry.pop("whole"):  # what JSON cannot hold is made again, unless it comes out as another here
        again = _entry(*key, facts["index"])
        entry = again if again["question"] == entry["question"] else entry
    value = float(_dataset(*key).score_answer(answer, entry))
    return min(1.0, max(0.0, value)) if math.isfinite(value) else 0.0


def _plain(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry as JSON has it, with `whole`: whether nothing was lost."""
    plain = json.loads(json.dumps(dict(entry), default=str, skipkeys=True))
    return {**plain, "whole": _same(plain, entry)}


def _same(plain: Any, value: Any) -> bool:
    """Whether two values are equal, and of the same types all through."""
    if type(plain) is not type(value):
        return False
    if isinstance(plain, dict):
        return plain.keys() == value.keys() and all(_same(plain[name], value[name]) for name in plain)
    if isinstance(plain, list):
        return len(plain) == len(value) and all(map(_same, plain, value))
    return bool(plain == value)


def _gym() -> Any:
    """The package reasoning-gym."""
    with warnings.catch_warnings():  # a package it needs compares to a literal by "is": seen without bytecode
        warnings.simplefilter("ignore", SyntaxWarning)
        return importlib.import_module("reasoning_gym")


def _configuration(name: str) -> Any:
    """The class of a set's configuration."""
    try:
        _gym()
        factory = importlib.import_module("reasoning_gym.factory")
    except ModuleNotFoundError:
        raise UsageError(
            f'expected the package reasoning-gym for {name}, got none; pip install "eggroll-es[llm]"'
        ) from None
    if name not in factory.DATASETS:
        near = difflib.get_close_matches(name, factory.DATASETS, n=5, cutoff=0.4) or sorted(factory.DATASETS)
        raise UsageError(f"expected a set of reasoning-gym, got {name!r}; near: {', '.join(near)}")
    return factory.DATASETS[name][1]


@functools.lru_cache(16)
def _dataset(name: str, options: str, seed: int, size: int) -> Any:
    """A set; it is lazy, an item is made when it is asked for."""
    return _gym().create_dataset(name, seed=seed, size=size, **json.loads(options))


@functools.lru_cache(256)
def _entry(name: str, options: str, seed: int, size: int, index: int) -> Any:
    return _dataset(name, options, seed, size)[index]
