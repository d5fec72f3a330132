"""What engines are compared with: the JAX core's own members and updates, and transformers with them merged in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

import eggroll
from eggroll.core.state import State
from eggroll.vllm.config import VllmConfig

Weights = dict[str, np.ndarray]


def strategy_of(config: VllmConfig) -> eggroll.EvolutionStrategy:
    """The strategy of the JAX core with a run's settings; for updates by given weights alone."""
    kinds = {"sgd": optax.sgd, "adam": optax.adam}
    return eggroll.EvolutionStrategy(
        kinds[config.optimizer](config.learning_rate),
        population_size=config.population_size,
        sigma=config.sigma,
        rank=config.rank,
        noise_reuse=config.noise_reuse,
        chunk_size=config.population_size,
    )


def start(config: VllmConfig, weights: Mapping[str, Any]) -> tuple[eggroll.EvolutionStrategy, State]:
    """Strategy and state at generation 0."""
    es = strategy_of(config)
    return es, es.init({name: jnp.asarray(np.asarray(value)) for name, value in weights.items()}, config.seed)


def dense_update(es: eggroll.EvolutionStrategy, state: State, pairs: np.ndarray, memory: dict[str, Any]) -> State:
    """One update written out: every pair's matrix in full, the gradient in float64, the optimiser by its formula."""
    sigma, size = float(es.sigma), es.population_size
    mean = {name: np.asarray(value, np.float64) for name, value in state.params.items()}
    gradient = {name: np.zeros_like(value) for name, value in mean.items()}
    nothing = state._replace(params={name: jnp.zeros(value.shape) for name, value in mean.items()})
    for pair, weight in enumerate(pairs):
        for name, value in es.perturbed(nothing, 2 * pair).items():
            gradient[name] += weight * np.asarray(value, np.float64) / sigma
    count = memory.setdefault("count", 0) + 1
    memory["count"] = count
    new = {}
    for name, value in mean.items():
        g = gradient[name] * 2 / (size * sigma)
        if memory["optimizer"] == "sgd":
            new[name] = value + memory["rate"] * g
            continue
        m = memory.setdefault(f"m {name}", np.zeros_like(g)) * 0.9 + 0.1 * g
        v = memory.setdefault(f"v {name}", np.zeros_like(g)) * 0.999 + 0.001 * g**2
        memory[f"m {name}"], memory[f"v {name}"] = m, v
        new[name] = value + memory["rate"] * (m / (1 - 0.9**count)) / (np.sqrt(v / (1 - 0.999**count)) + 1e-8)
    params = {name: jnp.asarray(value, jnp.float32) for name, value in new.items()}
    return state._replace(params=params, generation=state.generation + 1)


def log_probabilities(folder: Path, weights: Mapping[str, Any], prompts: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """Of each token of each prompt after the first, by transformers with these weights in place of the checkpoint's."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    named = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            named[name].copy_(torch.from_numpy(np.array(value, np.float32)))
        found = []
        for prompt in prompts:
            logits = torch.log_softmax(model(torch.tensor([prompt])).logits[0].double(), -1)
            found.append(logits[:-1].gather(1, torch.tensor(prompt[1:])[:, None])[:, 0].numpy())
    return found
