"""Completions of tokens to rewards."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eggroll.llm.generate import Completions
from eggroll.llm.prompts import Prompts
from eggroll.tasks.base import Example
from eggroll.tasks.score import scored


def rewards(prompts: Prompts, examples: Sequence[Example], completions: Completions) -> np.ndarray:
    """Verify completions; those that say the same to one prompt are verified once.

    Args:
      examples: (prompts).
      completions: of NumPy leaves (…, prompts · samples, length).
    Returns:
      (…, prompts, samples) float32.
    """
    outer, rows = np.shape(completions.lengths)[:-1], np.shape(completions.lengths)[-1]
    samples = rows // len(examples)
    by_prompt = texts_of(prompts, completions).reshape(-1, len(examples), samples).swapaxes(0, 1)
    found = scored(prompts.task, examples, by_prompt.reshape(len(examples), -1).tolist())
    return found.reshape(len(examples), -1, samples).swapaxes(0, 1).reshape(*outer, len(examples), samples)


def texts_of(prompts: Prompts, completions: Completions) -> np.ndarray:
    """What completions say, an array of texts of the shape of their lengths; those of the same tokens are read once."""
    tokens, lengths = np.asarray(completions.tokens), np.asarray(completions.lengths)
    known: dict[bytes, str] = {}
    found = []
    for row, length in zip(tokens.reshape(-1, tokens.shape[-1]), lengths.reshape(-1), strict=True):
        key = row[:length].tobytes()
        if key not in known:
            known[key] = prompts.read(row, int(length))
        found.append(known[key])
    return np.array(found, object).reshape(lengths.shape)
