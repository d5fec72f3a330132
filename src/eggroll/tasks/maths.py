r"""Problems of mathematics (MATH, AIME, DeepScaleR): the answer is an expression, compared by `math-verify`.

Source: github.com/huggingface/Math-Verify.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from eggroll.core.errors import UsageError
from eggroll.tasks._files import read_splits
from eggroll.tasks._settings import choice
from eggroll.tasks._text import READ, last_boxed
from eggroll.tasks._worker import Worker
from eggroll.tasks.base import Example, RowsTask

_TEMPLATES = {
    "chat": "{problem}\nPlease reason step by step, and put your final answer within \\boxed{{}}.",
    "plain": "Problem: {problem}\nAnswer:",
}
_LONGEST = 300
"""Characters of an answer that are parsed; a longer \boxed{…} is wrong."""

_EXPONENT = 10_000
"""Largest exponent, also as a product of the numbers in it."""

_DIGITS = 40
"""Digits of a number in an answer."""

_DEPTH = 30
"""Brackets in brackets in an answer; the parser takes exponential time over deep ones."""

_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")
_worker = Worker("eggroll.tasks.maths:compare")


@dataclass(frozen=True)
class MathsSettings:
    """How the problems are asked."""

    template: str = "chat"  # "chat": the answer is to be in \boxed{}; "plain": Problem: … Answer:

    def __post_init__(self) -> None:
        choice("template", self.template, tuple(_TEMPLATES))


class Maths(RowsTask):
    r"""Problems of a JSONL file as a `Task`.

    A row has `problem`, `question` or `prompt`; and `expected_answer` or `answer` (text or a number), or a `solution`
    with \boxed{…}. An example's facts are {gold}, the answer as text.
    """

    name = "maths"

    def __init__(self, settings: MathsSettings | None = None, *, data: str = "") -> None:
        """Reads the problems.

        Args:
          settings: as the fields say.
          data: a folder with train.jsonl and test.jsonl, or one such file (its last tenth is the test split, unless
            its rows have a field `split`).
        Raises:
          UsageError: no file; a row without a problem or an answer; the package math-verify is missing.
        """
        self.settings = MathsSettings() if settings is None else settings
        if importlib.util.find_spec("math_verify") is None:
            raise UsageError('expected the package math-verify for maths, got none; pip install "eggroll-es[llm]"')
        if not data:
            raise UsageError("expected data for maths, got none; give a .jsonl file with problem and answer")
        self._rows = read_splits(Path(data), self._convert)

    def verify(self, example: Example, completion: str) -> float:
        r"""1.0 where a completion's answer equals the right one, else 0.0.

        The answer is the last \boxed{…} of the last 2,000 characters, else math-verify looks for it in the last 300.
        Expressions with towers of powers are refused unread; what takes longer than two seconds of computing is wrong.
        """
        gold = example.facts["gold"]
        text = completion[-READ:]
        boxed = last_boxed(text)
        answer = text[-_LONGEST:] if boxed is None else boxed
        if boxed is not None:
            if _plain(boxed) == _plain(gold):
                return 1.0
            if _NUMBER.fullmatch(_plain(boxed)) and _NUMBER.fullmatch(_plain(gold)):
                return float(Fraction(_plain(boxed)) == Fraction(_plain(gold)))
        if len(answer) > _LONGEST or is_huge(answer):
            return 0.0
        return float(_worker([gold, answer if boxed is None else f"\\boxed{{{answer}}}"]) is True)

    def _convert(self, row: dict[str, Any]) -> Example:
        problem = next((row[name] for name in ("problem", "question", "prompt") if name in row), None)
        if not isinstance(problem, str):
            raise TypeError("a text as problem, question or prompt")
        gold = _gold(row)
        solution = row.get("solution")
        worked = isinstance(solution, str) and last_boxed(solution) is not None
        answer = str(solution) if worked else f"\\boxed{{{gold}}}"
        return Example(_TEMPLATES[self.settings.template].format(problem=problem), {"gold": gold}, answer)


def _gold(row: dict[str, Any]) -> str:
    for name in ("expected_answer", "answer", "solution"):
        value = row.get(name)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return str(value)
        if isinstance(value, str):
            boxed = last_boxed(value)
            if boxed or (name != "solution" and value.strip()):
                return boxed or value.rpartition("####")[2].strip()
    raise ValueError("an answer, or a solution with \\boxed{…}")


def _plain(text: str) -> str:
    """An answer without what LaTeX may leave out."""
    for without in (" ", "$", r"\!", r"\,", "{,}"):
        text = text.replace(without, "")
    text = re.sub(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))", "", text) if re.fullmatch(r"-?[0-9,.]+", text) else text
    return text.replace(r"\dfrac", r"\frac").replace(r"\tfrac", r"\frac").rstrip(".")


def is_huge(text: str) -> bool:
    """Whether an expression is too much to parse or to compute with, by a look at its text.

    True for brackets more than 30 deep; a number of more than 40 digits; a power in the exponent, or a power of a power
    (9**9**9, (9^9)^9); an exponent whose numbers multiply to more than 10⁴; a factorial of more than four digits, or of
    a bracket with a factorial before its end.
    """
    text = re.sub(r"\s|\\left|\\right|\\[,!;: ]", "", text).replace("**", "^")
    if _depth(text) > _DEPTH or re.search(rf"[0-9]{{{_DIGITS + 1}}}|[0-9]{{5,}}\)?!|[)}}!]!", text):
        return True
    if re.search(r"[)}]\^", text) and text.count("^") > 1 and _powers_nest(text):
        return True
    return any(_exponent_is_huge(text, place.end()) for place in re.finditer(r"\^", text))


def _depth(text: str) -> int:
    """The most brackets open at once."""
    steps = ({"(": 1, "{": 1, "[": 1, ")": -1, "}": -1, "]": -1}.get(sign, 0) for sign in text)
    return max(itertools.accumulate(steps), default=0)


def _powers_nest(text: str) -> bool:
    """Whether the brackets before some ^ hold another."""
    opened: list[int] = []
    for place, sign in enumerate(text):
        if sign in "({":
            opened.append(place)
        elif sign in ")}" and opened:
            start = opened.pop()
            if text[place + 1 : place + 2] == "^" and re.search(r"\^(?!\{?[0-4]\}?(?![0-9^]))", text[start:place]):
                return True
    return False


def _exponent_is_huge(text: str, start: int) -> bool:
    exponent = _exponent(text, start)
    if any(sign in exponent for sign in "^!") or text[start + len(exponent) : start + len(exponent) + 1] == "^":
        return True
    product = 1
    for number in re.findall("[0-9]+", exponent):
        product *= max(1, int(number))
    return product > _EXPONENT


def _exponent(text: str, start: int) -> str:
    """What stands after a ^: a bracket with all in it, or a run of digits, or one sign."""
    if text[start : start + 1] not in ("{", "("):
        found = re.compile(r"[-+]?(?:[0-9.]+|\\?[A-Za-z]+|.|$)").match(text, start)
        return found[0] if found else ""
    depth = 0
    for place in range(start, len(text)):
        depth += {"{": 1, "(": 1, "}": -1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return text[start : place + 1]
    return text[start:]


def prepare() -> None:
    """Loads what `compare` needs, once for all servers of the scoring process."""
    compare(["\\frac{1}{2}", "\\boxed{0.5}"])


def compare(request: list[str]) -> bool:
    """Whether an answer equals the gold one, by math-verify; runs in the scoring process."""
    from math_verify import parse, verify

    gold, answer = request
    found = parse(answer, parsing_timeout=None)
    return bool(verify(_parsed_gold(gold), found, timeout_seconds=None))


@functools.lru_cache(4096)
def _parsed_gold(gold: str) -> list[Any]:
    from math_verify import parse

    return parse(f"\\boxed{{{gold}}}", parsing_timeout=None)
