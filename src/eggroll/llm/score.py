"""Completions to rewards, and rewards to what a member is worth."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from eggroll.llm.generate import Completions
from eggroll.llm.prompts import Prompts
from eggroll.tasks.base import Example

RIGHT = 1.0 - 1e-6
"""A reward from here on is a right answer."""


def rewards(prompts: Prompts, examples: Sequence[Example], completions: Completions) -> np.ndarray:
    """Verify completions; those that say the same to one prompt are verified once.

    Args:
      examples: (prompts).
      completions: of NumPy leaves (…, prompts · samples, length).
    Returns:
      (…, prompts, samples) float32.
    """
    tokens, lengths = np.asarray(completions.tokens), np.asarray(completions.lengths)
    outer, rows = lengths.shape[:-1], lengths.shape[-1]
    samples = rows // len(examples)
    flat, counts = tokens.reshape(-1, rows, tokens.shape[-1]), lengths.reshape(-1, rows)
    known: dict[tuple[int, bytes], float] = {}
    found = np.zeros(counts.shape, np.float32)
    for member in range(len(flat)):
        for row in range(rows):
            prompt, own = row // samples, flat[member, row, : counts[member, row]]
            key = (prompt, own.tobytes())
            if key not in known:
                known[key] = prompts.task.verify(examples[prompt], prompts.read(own, len(own)))
            found[member, row] = known[key]
    return found.reshape(*outer, len(examples), samples)


def pass_at(k: int, values: np.ndarray) -> np.ndarray:
    """The chance that at least one of `k` completions is right, without bias: 1 − C(n − c, k) / C(n, k).

    Args:
      k: at most n; 1 is the mean reward.
      values: (…, n) rewards, of which those of 1 are right.
    Returns:
      (…) float32.
    Source: Chen et al., arXiv 2107.03374, equation 1.
    """
    if k == 1:
        return values.mean(-1, dtype=np.float64).astype(np.float32)
    count = values.shape[-1]
    table = [1 - math.comb(count - right, k) / math.comb(count, k) for right in range(count + 1)]
    return np.array(table, np.float32)[(values >= RIGHT).sum(-1)]


def distinct_right(
    prompts: Prompts, examples: Sequence[Example], completions: Completions, values: np.ndarray
) -> float:
    """Right answers to a prompt that differ, on average, by the task's own `distinct_key` or spaces aside.

    Args:
      values: (prompts, samples) rewards.
    """
    tokens, lengths = np.asarray(completions.tokens), np.asarray(completions.lengths)
    samples, total = values.shape[1], 0
    key_of = getattr(prompts.task, "distinct_key", lambda example, text: "".join(text.split()))
    for prompt, example in enumerate(examples):
        rows = range(prompt * samples, (prompt + 1) * samples)
        texts = [prompts.read(tokens[row], int(lengths[row])) for row in rows]
        right = [text for text, value in zip(texts, values[prompt], strict=True) if value >= RIGHT]
        total += len({key_of(example, text) for text in right})
    return total / len(examples)
