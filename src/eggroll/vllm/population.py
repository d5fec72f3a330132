"""What members are worth: they complete prompts on the engines, and the task verifies."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from eggroll.core.estimate import pair_weights
from eggroll.core.fitness import group_per_prompt
from eggroll.core.state import summarise
from eggroll.runs.evolution import sigma_at
from eggroll.runs.job import Evaluated
from eggroll.runs.metrics import Metrics
from eggroll.runs.training import info_metrics
from eggroll.tasks.score import pass_at, scored, shown, validation_metrics
from eggroll.vllm.config import VllmConfig
from eggroll.vllm.crew import Crew
from eggroll.vllm.engine import Sampling, Written
from eggroll.vllm.prompts import Prompts

SHOWN = 4
"""Answers of a validation that people see."""
_VALIDATION = 2**31 - 1
"""Stands for the generation in the draws of a validation."""


class Judge:
    """Evaluates members, and the mean in a validation.

    Args:
      crew: engines at the weights of the generation that is asked for.
    """

    def __init__(self, config: VllmConfig, prompts: Prompts, crew: Crew) -> None:
        self._config, self._prompts, self._crew = config, prompts, crew
        self._last = ""

    @property
    def sampling(self) -> Sampling:
        """Of members' completions."""
        config = self._config
        return Sampling(config.tokens, config.temperature, config.top_p, config.stop)

    def weights(self, generation: int) -> Evaluated:
        """What the whole population is worth, as weights of its pairs."""
        config, chosen = self._config, self._prompts.of_generation(generation)
        rows = [
            self._prompts.rows(examples, config.samples, (generation, group)) for group, examples in enumerate(chosen)
        ]
        sigma = float(sigma_at(config, generation))
        of_member = [rows[member // config.group] for member in range(config.population_size)]
        drawn = (config.noise_generation(generation), sigma)
        written = self._crew.complete_members(drawn, of_member, self.sampling, config.chunk)
        values = np.concatenate(
            [self._scored(chosen[g], written[g * config.group : (g + 1) * config.group]) for g in range(config.groups)]
        )
        fitness = jnp.asarray(pass_at(config.pass_k, values))
        info = summarise(fitness, jnp.float32(sigma), jnp.int32(generation))
        weights = pair_weights(group_per_prompt(config.group)(fitness))
        metrics = info_metrics(info) | _of_completions(written) | {"reward_mean": float(values.mean())}
        return Evaluated(np.asarray(weights), None, metrics)

    def _scored(self, examples: list, written: list[list[Written]]) -> np.ndarray:
        """(members of a group, prompts, samples) rewards."""
        members, samples = len(written), self._config.samples
        texts = np.array([[each.text for each in own] for own in written], object)
        by_prompt = texts.reshape(members, len(examples), samples).swapaxes(0, 1).reshape(len(examples), -1)
        found = scored(self._prompts.task, examples, by_prompt.tolist())
        return found.reshape(len(examples), members, samples).swapaxes(0, 1)

    def validate(self) -> Metrics:
        """What the mean can do with held-out prompts, the same draws each time."""
        config, examples = self._config, self._prompts.validation
        samples = config.validation_samples
        drawn = (config.temperature, config.top_p) if samples > 1 else (0.0, 1.0)
        how = Sampling(config.tokens, *drawn, config.stop)
        written = self._crew.complete_mean(self._prompts.rows(examples, samples, (_VALIDATION, 0)), how)
        texts = [[each.text for each in written[k : k + samples]] for k in range(0, len(written), samples)]
        values = scored(self._prompts.task, examples, texts)
        lengths = np.array([each.tokens for each in written])
        self._last = shown(examples, [own[0] for own in texts], values[:, 0].tolist(), SHOWN)
        return validation_metrics(self._prompts.task, examples, texts, values, lengths, config.pass_k)

    def shown(self) -> str:
        """Some answers of the last validation."""
        if not self._last:
            self.validate()
        return self._last


def _of_completions(written: list[list[Written]]) -> Metrics:
    flat = [each for own in written for each in own]
    tokens = sum(each.tokens for each in flat)
    return {
        "generation_tokens": tokens,
        "completion_length": tokens / len(flat),
        "ended_share": sum(each.ended for each in flat) / len(flat),
    }
