"""Completions to rewards, and rewards to what a member is worth or a validation says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from eggroll.tasks.base import Example, Task

RIGHT = 1.0 - 1e-6
"""A reward from here on is a right answer."""


def scored(task: Task, examples: Sequence[Example], texts: Sequence[Sequence[str]]) -> np.ndarray:
    """Verify completions; those that say the same to one prompt are verified once.

    Args:
      texts: of each example, as many for every one.
    Returns:
      (examples, completions) float32.
    """
    found = []
    for example, own in zip(examples, texts, strict=True):
        known = {text: task.verify(example, text) for text in dict.fromkeys(own)}
        found.append([known[text] for text in own])
    return np.asarray(found, np.float32)


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
    task: Task, examples: Sequence[Example], texts: Sequence[Sequence[str]], values: np.ndarray
) -> float:
    """Right answers to a prompt that differ, on average, by the task's own `distinct_key` or spaces aside.

    Args:
      values: (prompts, samples) rewards of the texts.
    """
    key_of = getattr(task, "distinct_key", lambda example, text: "".join(text.split()))
    total = 0
    for example, own, rewards in zip(examples, texts, values, strict=True):
        total += len({key_of(example, text) for text, value in zip(own, rewards, strict=True) if value >= RIGHT})
    return total / len(examples)


def validation_metrics(
    task: Task,
    examples: Sequence[Example],
    texts: Sequence[Sequence[str]],
    values: np.ndarray,
    lengths: np.ndarray,
    pass_k: int,
) -> dict[str, Any]:
    """Accuracy, its standard error over prompts and, of several samples, pass@k and how many right answers differ.

    Args:
      texts, values, lengths: (prompts, samples): completions, rewards and tokens.
      pass_k: 1: that of all samples.
    """
    right = (values >= RIGHT).mean(-1)
    error = float(right.std(ddof=1)) / len(right) ** 0.5 if len(right) > 1 else 0.0
    metrics = {
        "accuracy": float(right.mean()),
        "accuracy_error": error,
        "reward": float(values.mean()),
        "answer_length": float(np.mean(lengths)),
    }
    samples = values.shape[1]
    if samples > 1:
        k = min(pass_k, samples) if pass_k > 1 else samples
        metrics[f"pass_at_{k}"] = float(pass_at(k, values).mean())
        metrics["distinct_right"] = distinct_right(task, examples, texts, values)
    return metrics


def shown(examples: Sequence[Example], texts: Sequence[str], values: Sequence[float], count: int) -> str:
    """Some answers of a validation, each with its reward, for people."""
    lines = [
        f"{example.prompt}⟶{text.rstrip()} [{value:g}]"
        for example, text, value in list(zip(examples, texts, values, strict=True))[:count]
    ]
    return "\n".join(lines)
