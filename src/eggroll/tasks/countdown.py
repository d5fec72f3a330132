"""Countdown: reach a target from a few numbers with + − * /; made index by index, or read from TinyZero's JSON.

Source: TinyZero's countdown task (github.com/Jiayi-Pan/TinyZero).
"""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from eggroll.core.errors import UsageError
from eggroll.tasks._settings import choice
from eggroll.tasks._text import last_tag
from eggroll.tasks.arithmetic import canonical, evaluate
from eggroll.tasks.base import SPLITS, Example, check_place, check_split

_HELD_OUT = 8
"""One puzzle of this many belongs to the test split, by its hash."""

_DRAWS = 2000
"""Draws for one example, after which its settings are refused."""

_FILE_TEST = 200
"""Examples at the end of a file that are its test split."""

_DECIMALS = Fraction(1, 10**9)
"""How near a fraction has to come to a target that a file writes in decimals, of its size."""

_CHAT = (
    "You are a helpful assistant. You first think about the reasoning process in your mind and then provide the user "
    "with the answer.Using the numbers [{numbers}], create an equation that equals {target}. You can use basic "
    "arithmetic operations (+, -, *, /) and each number can only be used once. Show your work in <think> </think> "
    "tags. And return the final answer in <answer> </answer> tags, for example <answer> (1 + 2) / 3 </answer>."
    "Let me solve this step by step.\n<think>"
)


@dataclass(frozen=True)
class CountdownSettings:
    """What puzzles there are and how they are asked; defaults are TinyZero's sizes."""

    numbers: tuple[int, ...] = (3, 4)  # fewest and most numbers of a puzzle
    maximum: int = 99  # largest number
    target_maximum: int = 999  # largest target
    seed: int = 0
    train_size: int = 100_000  # examples
    test_size: int = 512  # examples
    template: str = "bare"  # "bare": `3 5 7=22:` → `3*5+7`; "chat": TinyZero's words, the answer in <answer>
    answers: str = "any"  # "any": each number at most once; "all": exactly once
    format_reward: float = 0.0  # for a wrong answer that is arithmetic, from 0 to 1

    def __post_init__(self) -> None:
        choice("template", self.template, ("bare", "chat"))
        choice("answers", self.answers, ("any", "all"))
        if len(self.numbers) != 2 or not 2 <= self.numbers[0] <= self.numbers[1] <= 8:
            raise UsageError(f"expected numbers to be fewest,most from 2 to 8, got {self.numbers}; give such as 3,4")
        if not 0 <= self.format_reward < 1:
            raise UsageError(f"expected 0 ≤ format_reward < 1, got {self.format_reward}; give less than a right answer")
        for name in ("maximum", "target_maximum", "train_size", "test_size"):
            if not 1 <= getattr(self, name) < 2**31:
                raise UsageError(f"expected 1 ≤ {name} < 2³¹, got {getattr(self, name)}; give a count")
        if not 0 <= self.seed < 2**64:
            raise UsageError(f"expected 0 ≤ seed < 2⁶⁴, got {self.seed}; give a whole number in that range")


class Countdown:
    """Puzzles as a `Task`: procedural ones, or those of a file.

    A procedural example is a pure function of (settings, split, index), and its target is the value of a random
    expression over all its numbers, and none of them. The hash of (sorted numbers, target) says which split a puzzle
    belongs to, and a draw of the other split's is drawn again: the splits are disjoint.
    """

    name = "countdown"

    def __init__(self, settings: CountdownSettings | None = None, *, data: str = "") -> None:
        """Makes the puzzles, or reads them.

        Args:
          settings: as the fields say; with `data` only `answers` and `format_reward` count.
          data: a JSON file, a list of {context, numbers, target, solution}: contexts are the prompts, of the kind
            "chat", and the last 200 (of fewer than 400, half) are the test split.
        Raises:
          UsageError: the file cannot be used; the settings leave a split without puzzles.
        """
        self.settings = CountdownSettings() if settings is None else settings
        self._rows = _read(Path(data), self.settings) if data else None
        if self._rows is None:
            for split in SPLITS:
                self.example(split, 0)

    def size(self, split: str) -> int:
        """How many examples a split has."""
        check_split(split)
        if self._rows is not None:
            return len(self._rows[split])
        return self.settings.train_size if split == "train" else self.settings.test_size

    def example(self, split: str, index: int) -> Example:
        """The example at `index` of a split; its facts are {numbers, target, template, answers}."""
        check_place(self, split, index)
        return self._rows[split][index] if self._rows is not None else _draw(self.settings, split, index)

    def verify(self, example: Example, completion: str) -> float:
        """1.0 for an expression of the given numbers whose value is the target, `format_reward` for another."""
        return score(example, completion, self.settings.format_reward)

    @staticmethod
    def distinct_key(example: Example, completion: str) -> str:
        """See `distinct_key`."""
        return distinct_key(example, completion)


def score(example: Example, completion: str, format_reward: float = 0.0) -> float:
    """The reward of a completion, from the example alone: 1.0, `format_reward` or 0.0; see `Countdown.verify`."""
    found = evaluate(_answer(example, completion))
    if found is None:
        return 0.0
    used, given = Counter(found.numbers), Counter(example.facts["numbers"])
    fits = used == given if example.facts["answers"] == "all" else used <= given
    return 1.0 if fits and _hits(found.value, example.facts["target"]) else format_reward


def distinct_key(example: Example, completion: str) -> str:
    """A completion's expression in canonical form, "" where it has none; equal keys are the same answer.

    The number of distinct keys among the completions that verify counts the different right answers.
    """
    return canonical(_answer(example, completion)) or ""


def _answer(example: Example, completion: str) -> str:
    """The expression that a completion offers: its first line, or its last <answer>."""
    if example.facts["template"] == "chat":
        return last_tag(completion, "answer") or ""
    return completion.partition("\n")[0]


def _hits(value: Fraction, target: int | str) -> bool:
    """Whether a value is the target: exactly, but for the decimals that a file writes of a fraction."""
    if isinstance(target, int):
        return value == target
    wanted = Fraction(target)
    return abs(value - wanted) <= _DECIMALS * max(Fraction(1), abs(wanted))


def _draw(settings: CountdownSettings, split: str, index: int) -> Example:
    """The first draw for an index that gives a puzzle of that split."""
    for attempt in range(_DRAWS):
        counter = np.array([0, attempt, index, SPLITS.index(split)], np.uint64)
        key = np.array([settings.seed, 0], np.uint64)
        draw = np.random.Generator(np.random.Philox(counter=counter, key=key))
        count = int(draw.integers(settings.numbers[0], settings.numbers[1] + 1))
        numbers = [int(number) for number in draw.integers(1, settings.maximum + 1, count)]
        expression, value = _expression(draw, numbers)
        target = int(value)
        fits = value == target and 0 < target <= settings.target_maximum and target not in numbers
        if fits and _split(numbers, target) == split:
            return _example(settings, numbers, target, expression)
    raise UsageError(
        f"expected puzzles for the {split} split, got none in {_DRAWS} draws of {asdict(settings)}; "
        f"raise maximum, target_maximum or numbers"
    )


def _expression(draw: np.random.Generator, numbers: Sequence[int]) -> tuple[str, Fraction]:
    """A random expression over all the numbers: two parts at a time become one."""
    parts = [(str(number), Fraction(number)) for number in numbers]
    while len(parts) > 1:
        (left, x), (right, y) = (parts.pop(int(draw.integers(len(parts)))) for _ in range(2))
        values = {"+": x + y, "*": x * y}
        if x > y:  # what is at hand stays positive and whole, so that most draws give a puzzle
            values["-"] = x - y
        if (x / y).denominator == 1:
            values["/"] = x / y
        sign = list(values)[int(draw.integers(len(values)))]
        parts.append((f"({left}{sign}{right})", values[sign]))
    return parts[0]


def _split(numbers: Sequence[int], target: int) -> str:
    """The split that a puzzle belongs to, whatever the settings."""
    return "test" if zlib.crc32(repr((sorted(numbers), target)).encode()) % _HELD_OUT == 0 else "train"


def _example(settings: CountdownSettings, numbers: list[int], target: int, expression: str) -> Example:
    facts = {"numbers": numbers, "target": target, "template": settings.template, "answers": settings.answers}
    listed = " ".join(str(number) for number in numbers)
    plain = canonical(expression) or expression
    if settings.template == "bare":
        return Example(f"{listed}={target}:", facts, f"{plain}\n")
    return Example(_CHAT.format(numbers=listed, target=target), facts, _tagged(plain))


def _tagged(expression: str) -> str:
    return f" {expression} </think>\n<answer> {expression} </answer>"


def _read(path: Path, settings: CountdownSettings) -> dict[str, list[Example]]:
    """The two splits of a file."""
    default = CountdownSettings()
    for name in ("numbers", "maximum", "target_maximum", "seed", "train_size", "test_size", "template"):
        if getattr(settings, name) != getattr(default, name):
            raise UsageError(f"expected no {name} beside data, got {getattr(settings, name)!r}; leave out one of them")
    try:
        rows = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"expected a JSON list in {path}, got {type(error).__name__}; give such a file") from None
    if not isinstance(rows, list) or len(rows) < 2:
        got = len(rows) if isinstance(rows, list) else type(rows).__name__
        raise UsageError(f"expected a list of two puzzles or more in {path}, got {got}; give such a file")
    examples = [_from_row(path, number, row, settings) for number, row in enumerate(rows)]
    first = len(rows) - min(_FILE_TEST, len(rows) // 2)
    return {"train": examples[:first], "test": examples[first:]}


def _from_row(path: Path, number: int, row: Any, settings: CountdownSettings) -> Example:
    try:
        facts = {
            "numbers": [int(each) for each in row["numbers"]],
            "target": _target(row["target"]),
            "template": "chat",
            "answers": settings.answers,
        }
        example = Example(str(row["context"]), facts, _tagged(str(row.get("solution") or "")))
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        raise UsageError(
            f"expected context, numbers and target in item {number} of {path}, got {str(row)[:60]!r}; mend that item"
        ) from None
    # a few solutions of TinyZero's file are none, or use a number twice
    return example if score(example, example.answer) == 1 else example._replace(answer="")


def _target(value: Any) -> int | str:
    """A whole number, or the text of a decimal one; TinyZero's file holds both as text."""
    number = Fraction(str(value))
    return int(number) if number.denominator == 1 else str(value)
