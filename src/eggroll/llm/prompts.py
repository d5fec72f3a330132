"""A task's examples as arrays: which prompts a generation has, filled at the left to one length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from eggroll.core.errors import UsageError
from eggroll.llm.config import TaskSettings
from eggroll.llm.tokenizers import Tokenizer
from eggroll.tasks.base import Example, Task
from eggroll.tasks.choice import held_out, of_generation

_ROUND = 8
"""The found length of prompts is a multiple of this."""


class Batch(NamedTuple):
    """Prompts of some groups.

    Attributes:
      examples: of each group.
      tokens: (groups, prompts, time) int32.
      mask: (groups, prompts, time) bool, False where they are filled.
    """

    examples: list[list[Example]]
    tokens: np.ndarray
    mask: np.ndarray


class Prompts:
    """The prompts of a run: a pure function of its seed and the generation.

    Args:
      task, tokenizer: of the run.
      config: prompt_tokens 0 is found here.
    Raises:
      UsageError: every prompt is too long, or the task has no examples.
    """

    def __init__(self, task: Task, tokenizer: Tokenizer, config: TaskSettings) -> None:
        self.task, self.tokenizer, self.seed = task, tokenizer, config.seed
        self.groups, self.count = config.groups, config.prompts
        known = held_out(task, config.validation_prompts)
        longest = max(len(tokenizer.encode(example.prompt)) for example in known)
        self.length = config.prompt_tokens or -(-longest // _ROUND) * _ROUND
        kept = [example for example in known if self.fits(example)]
        if not kept:
            raise UsageError(
                f"expected prompts of at most {self.length} tokens, got none in {task.name}; raise --prompt-tokens"
            )
        self.validation = self.arrays([kept])

    def fits(self, example: Example) -> bool:
        """Whether its prompt is short enough."""
        return 0 < len(self.tokenizer.encode(example.prompt)) <= self.length

    def of_generation(self, generation: int) -> Batch:
        """Those of every group."""
        chosen = of_generation(self.task, self.seed, generation, (self.groups, self.count), self.fits)
        return self.arrays(chosen)

    def arrays(self, examples: Sequence[Sequence[Example]]) -> Batch:
        """Examples of each group, as many in every one, as arrays."""
        rows = [[self.tokenizer.encode(example.prompt) for example in group] for group in examples]
        tokens = np.zeros((len(rows), len(rows[0]), self.length), np.int32)
        mask = np.zeros(tokens.shape, bool)
        for g, group in enumerate(rows):
            for p, row in enumerate(group):
                tokens[g, p, self.length - len(row) :] = row
                mask[g, p, self.length - len(row) :] = True
        return Batch([list(group) for group in examples], tokens, mask)

    def answers(self, batch: Batch, length: int) -> tuple[np.ndarray, np.ndarray]:
        """What a right completion of each prompt is: tokens and mask (groups, prompts, length), the end included.

        Raises:
          UsageError: the task knows none.
        """
        tokens = np.full((*batch.tokens.shape[:2], length), self.tokenizer.end, np.int32)
        mask = np.zeros(tokens.shape, bool)
        for g, group in enumerate(batch.examples):
            for p, example in enumerate(group):
                if not example.answer:
                    raise UsageError(
                        f"expected answers to learn from in {self.task.name}, got none to {example.prompt[:40]!r}; "
                        "give a task with answers, or train on rewards"
                    )
                row = [*self.tokenizer.encode(example.answer), self.tokenizer.end][:length]
                tokens[g, p, : len(row)], mask[g, p, : len(row)] = row, True
        return tokens, mask

    def read(self, tokens: Any, length: int) -> str:
        """The text of a completion."""
        return self.tokenizer.decode(np.asarray(tokens)[:length].tolist())
