"""`eggroll chat`: complete prompts with a model that a run left, or with any other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from eggroll.core.errors import UsageError
from eggroll.llm.config import FinetuneConfig
from eggroll.llm.generate import Sampling, generate
from eggroll.llm.quantise import converted
from eggroll.llm.source import find_model
from eggroll.llm.tokenizers import Tokenizer

_ROUND = 32
"""Prompts are filled up to a multiple of this, so that few lengths are compiled."""


@dataclasses.dataclass(frozen=True)
class ChatConfig:
    """Complete a prompt; without one, each line of standard input."""

    model: tyro.conf.Positional[str]
    """Folder of a run of eggroll finetune, or weights."""
    prompt: str = ""
    """Text to complete; none: read lines until the input ends."""
    tokenizer: str = ""
    """As in eggroll finetune; none: the run's, or what stands beside the weights."""
    tokens: int = 200
    """Most tokens to write."""
    stop: str = ""
    """Text whose single token ends the answer."""
    temperature: float = 0.7
    """Temperature of the draws; 0 takes the likeliest token."""
    top_p: float = 0.9
    """Draw from the fewest likeliest tokens whose probabilities sum to this."""
    seed: int = 0
    """Seed of the draws, in [0, 2**32)."""
    dtype: str = ""
    """Number format of the weights: float32, bfloat16 or int8; none: as they are stored."""

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise UsageError(f"expected --tokens of at least 1, got {self.tokens}; give a positive number")
        FinetuneConfig(model=self.model, temperature=self.temperature, top_p=self.top_p)  # its checks
        if not 0 <= self.seed < 2**32:
            raise UsageError(f"expected --seed in [0, 2**32), got {self.seed}; choose another seed")
        if self.dtype not in ("", "float32", "bfloat16", "int8"):
            raise UsageError(f"expected --dtype float32, bfloat16 or int8, got {self.dtype!r}; choose one of these")


def chat(config: ChatConfig, *, lines: Iterable[str], say: Callable[[str], None]) -> None:
    """Answer the prompt, or every line.

    Args:
      lines: where prompts come from, if the settings have none.
      say: takes each answer.
    Raises:
      UsageError: the model cannot be read.
    """
    answer = make_answerer(config)
    for number, prompt in enumerate([config.prompt] if config.prompt else lines):
        text = prompt if config.prompt else prompt.rstrip("\n")
        if text:
            say(answer(text, number))


def make_answerer(config: ChatConfig) -> Callable[[str, int], str]:
    """(prompt, number of the turn) → completion."""
    params, tokenizer = find_model(config.model, config.tokenizer)
    params = jax.tree.map(jnp.asarray, converted(params, config.dtype) if config.dtype else params)
    stop = tokenizer.encode(config.stop)[-1:] if config.stop else []
    how = Sampling(config.tokens, (tokenizer.end, *stop), 1, config.temperature, config.top_p)
    write = jax.jit(lambda params, tokens, mask, key: generate(params, tokens, mask, key, how))

    def answer(prompt: str, number: int) -> str:
        tokens, mask = _padded(tokenizer, prompt)
        key = jax.random.fold_in(jax.random.key(config.seed), number)
        done = write(params, tokens, mask, key)
        return tokenizer.decode(np.asarray(done.tokens)[0, : int(done.lengths[0])].tolist())

    return answer


def _padded(tokenizer: Tokenizer, prompt: str) -> tuple[np.ndarray, np.ndarray]:
    row = tokenizer.encode(prompt)
    length = -(-max(len(row), 1) // _ROUND) * _ROUND
    tokens, mask = np.zeros((1, length), np.int32), np.zeros((1, length), bool)
    tokens[0, length - len(row) :], mask[0, length - len(row) :] = row, True
    return tokens, mask
