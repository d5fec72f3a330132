"""A task's prompts as a transformer's tokens: through its chat template, where it has one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eggroll.core.errors import UsageError
from eggroll.tasks.base import Example, Task
from eggroll.tasks.choice import held_out, of_generation
from eggroll.vllm.blueprint import EXTRA
from eggroll.vllm.config import VllmConfig
from eggroll.vllm.engine import Row


class Prompts:
    """The prompts of a run: a pure function of its seed and the generation.

    Args:
      folder: of the model, whose tokenizer it is.
    Attributes:
      length: most tokens of a prompt.
      validation: held-out examples.
    Raises:
      UsageError: there is no tokenizer, or no prompt is short enough.
    """

    def __init__(self, task: Task, folder: Path, config: VllmConfig) -> None:
        self.task, self._config, self._tokenizer = task, config, load_tokenizer(folder)
        known = held_out(task, config.validation_prompts)
        self.length = config.prompt_tokens or max(len(self.tokens(example)) for example in known)
        self.validation = [example for example in known if self.fits(example)]
        if not self.validation:
            raise UsageError(
                f"expected prompts of at most {self.length} tokens, got none in {task.name}; raise --prompt-tokens"
            )

    def fits(self, example: Example) -> bool:
        """Whether its prompt is short enough."""
        return 0 < len(self.tokens(example)) <= self.length

    def tokens(self, example: Example) -> list[int]:
        """Of a prompt."""
        chat = getattr(self._tokenizer, "chat_template", None)
        if not chat or self._config.template == "never":
            return list(self._tokenizer(example.prompt)["input_ids"])
        said = [{"role": "system", "content": self._config.system}] if self._config.system else []
        said.append({"role": "user", "content": example.prompt})
        text = self._tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def of_generation(self, generation: int) -> list[list[Example]]:
        """Those of every group."""
        config = self._config
        return of_generation(self.task, config.seed, generation, (config.groups, config.prompts), self.fits)

    def rows(self, examples: Sequence[Example], samples: int, place: tuple[int, int]) -> list[Row]:
        """Completions to write of some prompts, those of one prompt side by side.

        Args:
          place: generation and group; whoever is there draws alike.
        """
        found: list[Row] = []
        for number, example in enumerate(examples):
            tokens = self.tokens(example)
            key = [self._config.seed & 0xFFFFFFFF, self._config.seed >> 32, *place, number]
            drawn = np.random.SeedSequence(key).generate_state(samples)
            found.extend(Row(tokens, int(seed)) for seed in drawn)
        return found


def load_tokenizer(folder: Path) -> Any:
    """That of a checkpoint.

    Raises:
      UsageError: transformers is missing, or there is none.
    """
    try:
        import transformers
    except ImportError as error:
        raise UsageError(f"expected the package {error.name}, got none; {EXTRA}") from None
    try:
        return transformers.AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        why = " ".join(str(error).strip().splitlines()[:1])[:200]
        raise UsageError(f"expected a tokenizer in {folder}, got {why}; copy the model's own there") from None
