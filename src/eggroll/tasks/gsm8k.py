"""GSM8K: word problems of primary school, whose answer is one number.

Source: arXiv 2110.14168; files as in github.com/openai/grade-school-math.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from eggroll.core.errors import UsageError
from eggroll.tasks._files import read_splits
from eggroll.tasks._settings import choice
from eggroll.tasks._text import READ, last_boxed
from eggroll.tasks.base import Example, RowsTask

_TEMPLATES = {
    "plain": "Question: {question}\nAnswer:",
    "chat": "{question}\nPlease reason step by step, and put your final answer within \\boxed{{}}.",
}
_CALCULATOR = re.compile(r"<<[^<>]*>>")
_NUMBER = re.compile(
    r"(?P<minus>(?<![0-9A-Za-z).])[-−] ?)?\$? ?(?P<other>(?<=\$)[-−])?"
    r"(?P<number>(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|(?<![0-9])\.[0-9]+)"
)
_WORDS = re.compile(r"\\(?:text|mathrm|mbox|textbf|mathbf) ?\{([^{}]*)\}")


@dataclass(frozen=True)
class Gsm8kSettings:
    """How the questions are asked."""

    template: str = "plain"  # "plain": Question: … Answer:; "chat": the answer is to be in \boxed{}

    def __post_init__(self) -> None:
        choice("template", self.template, tuple(_TEMPLATES))


class Gsm8k(RowsTask):
    """GSM8K's two splits as a `Task`; an example's facts are {gold}, the number as text."""

    name = "gsm8k"

    def __init__(self, settings: Gsm8kSettings | None = None, *, data: str = "") -> None:
        """Reads the questions.

        Args:
          settings: as the fields say.
          data: a folder with train.jsonl and test.jsonl, or one such file (its last tenth is the test split, unless
            its rows have a field `split`); "" for what $EGGROLL_GSM8K names.
        Raises:
          UsageError: no files; a row without question, answer or a number after ####.
        """
        self.settings = Gsm8kSettings() if settings is None else settings
        place = data or os.environ.get("EGGROLL_GSM8K", "")
        if not place:
            raise UsageError(
                "expected data for gsm8k, got none; give the folder of its .jsonl files, or $EGGROLL_GSM8K"
            )
        self._rows = read_splits(Path(place), self._convert)

    def verify(self, example: Example, completion: str) -> float:
        """1.0 where the number that a completion answers is the right one, else 0.0."""
        found = answer_number(completion)
        return float(found is not None and found == first_number(example.facts["gold"]))

    def _convert(self, row: dict[str, Any]) -> Example:
        question, solution = row["question"], row["answer"]
        if not isinstance(question, str) or not isinstance(solution, str):
            raise TypeError("texts as question and answer")
        gold = solution.rpartition("####")[2].strip()
        if "####" not in solution or first_number(gold) is None:
            raise ValueError("a number after #### in the answer")
        answer = _CALCULATOR.sub("", solution)
        if self.settings.template == "chat":
            answer = answer.rpartition("####")[0] + f"The answer is \\boxed{{{gold}}}."
        prompt = _TEMPLATES[self.settings.template].format(question=question)
        return Example(prompt, {"gold": gold}, answer if self.settings.template == "chat" else f" {answer}")


def answer_number(completion: str) -> Fraction | None:
    r"""The number that a completion gives as its answer, or None.

    The last \boxed{…} counts, else the last "#### n", else the last number; only the end of the text is read. Commas of
    thousands, $, % and a full stop are no part of the number.
    """
    text = completion[-READ:]
    boxed = last_boxed(text)
    if boxed is not None:
        return first_number(_WORDS.sub("", boxed).replace("{,}", ",").replace("\\", "").rpartition("=")[2])
    if "####" in text:
        return first_number(text.rpartition("####")[2])
    numbers = list(_NUMBER.finditer(text))
    return _value(numbers[-1]) if numbers else None


def first_number(text: str) -> Fraction | None:
    """The first number in a text, exactly, or None."""
    found = _NUMBER.search(text[:READ])
    return None if found is None else _value(found)


def _value(found: re.Match[str]) -> Fraction:
    value = Fraction(found["number"].replace(",", ""))
    return -value if found["minus"] or found["other"] else value
