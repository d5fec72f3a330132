"""What every task is: examples by split and index, and a verifier that scores a completion."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

from eggroll.core.errors import UsageError

SPLITS = ("train", "test")


class Example(NamedTuple):
    """A prompt, and what it takes to score its completions."""

    prompt: str
    facts: Any  # what `verify` needs; JSON can hold it
    answer: str = ""  # a right completion where one is known: what supervised training teaches


@runtime_checkable
class Task(Protocol):
    """A set of examples in two splits, the same at every call, with a verifier.

    Attributes:
      name: what the task is called in reports.
    """

    name: str

    def size(self, split: str) -> int:
        """How many examples a split ("train" or "test") has.

        Raises:
          UsageError: no such split.
        """

    def example(self, split: str, index: int) -> Example:
        """The example at `index`, 0 ≤ index < size(split).

        Raises:
          UsageError: no such split or index.
        """

    def verify(self, example: Example, completion: str) -> float:
        """The reward of a completion, in [0, 1]; no text, however hostile, makes it raise or hang."""


class RowsTask:
    """The part of a `Task` whose examples are rows that were read.

    Attributes:
      name: as in `Task`.
    """

    name: str
    _rows: dict[str, list[Example]]

    def size(self, split: str) -> int:
        """How many examples a split has."""
        check_split(split)
        return len(self._rows[split])

    def example(self, split: str, index: int) -> Example:
        """The example at `index` of a split."""
        check_split(split)
        _check_index(self.name, split, index, len(self._rows[split]))
        return self._rows[split][index]


def check_place(task: Task, split: str, index: int) -> None:
    """Refuses a split or an index that a task does not have.

    Raises:
      UsageError: no such split; index < 0 or ≥ the split's size.
    """
    _check_index(task.name, split, index, task.size(split))


def _check_index(name: str, split: str, index: int, size: int) -> None:
    if not 0 <= index < size:
        raise UsageError(
            f"expected an index from 0 to {size - 1} in {name}'s {split} split, got {index}; take it modulo {size}"
        )


def check_split(split: str) -> None:
    """Refuses what is not one of `SPLITS`.

    Raises:
      UsageError: no such split.
    """
    if split not in SPLITS:
        raise UsageError(f"expected a split, train or test, got {split!r}; give one of the two")
