"""What the mean model can do: held-out prompts, completed and verified."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eggroll.llm.fitness import likelihood
from eggroll.llm.generate import Completions, Sampling, generate
from eggroll.llm.prompts import Prompts
from eggroll.llm.score import rewards, texts_of
from eggroll.runs.metrics import Metrics
from eggroll.tasks.score import shown, validation_metrics

SHOWN = 4
"""Answers of a validation that people see."""
_KEY = 0x76616C


class Validator:
    """Completes the held-out prompts, the same draws each time.

    Args:
      prompts: of the run.
      how: greedy, or several samples of each prompt.
      pass_k: of them, whose chance is told where there are several.
      answer_tokens: most tokens of an answer whose log-likelihood is measured; 0: it is not.
    """

    def __init__(self, prompts: Prompts, how: Sampling, pass_k: int = 1, answer_tokens: int = 0) -> None:
        self._prompts, self._how, self._pass_k, self._answer_tokens = prompts, how, pass_k, answer_tokens
        self._key = jax.random.key(_KEY)
        self._write = jax.jit(lambda params, tokens, mask: generate(params, tokens, mask, self._key, how))
        self._likelihood = jax.jit(likelihood)
        self._last = ""

    def __call__(self, params: Any) -> Metrics:
        """Accuracy, its standard error over prompts, and what else was asked for."""
        batch = self._prompts.validation
        examples = batch.examples[0]
        done = self._write(params, batch.tokens[0], batch.mask[0])
        done = Completions(*map(np.asarray, done))
        found = rewards(self._prompts, examples, done)
        texts = texts_of(self._prompts, done).reshape(found.shape).tolist()
        task, lengths = self._prompts.task, done.lengths.reshape(found.shape)
        metrics = validation_metrics(task, examples, texts, found, lengths, self._pass_k)
        if self._answer_tokens:
            answers = self._prompts.answers(batch, self._answer_tokens)
            values = self._likelihood(params, batch.tokens[0], batch.mask[0], *(part[0] for part in answers))
            metrics["log_likelihood"] = float(jnp.mean(values))
        self._last = shown(examples, [own[0] for own in texts], found[:, 0].tolist(), SHOWN)
        return metrics

    def shown(self, params: Any) -> str:
        """Some answers of the last validation, each with its reward; the run asks for them right after it."""
        if not self._last:
            self(params)
        return self._last
