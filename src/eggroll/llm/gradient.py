"""What follows a gradient, to compare with: GRPO on the task's rewards, and supervised training on its answers.

GRPO: Shao et al., arXiv 2402.03300, without the KL term: the advantage of a completion is its reward against its
prompt's others in units of their deviation, and the clipped ratio of probabilities is averaged over its tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from eggroll.core.distribution import leaf_paths, matches
from eggroll.core.population import generation_key
from eggroll.core.state import seed_words
from eggroll.llm.config import FinetuneConfig
from eggroll.llm.evolve import patterns_of
from eggroll.llm.fitness import likelihood, optimizer_of, sampling_of
from eggroll.llm.generate import Completions, generate, log_probabilities
from eggroll.llm.prompts import Batch, Prompts
from eggroll.llm.score import rewards
from eggroll.runs.job import Evaluated, Learner, RunState
from eggroll.runs.metrics import Metrics

Evaluate = Callable[[RunState, int], Evaluated]


def masked_optimizer(config: FinetuneConfig, params: Any) -> optax.GradientTransformation:
    """The optimiser on the leaves that are trained; the others stay. Supervised training moves all by default."""
    patterns = patterns_of(config.trainable or (("all",) if config.learner == "supervised" else ()), params)
    moving = [matches(patterns, path) for path in leaf_paths(params)]
    tree = jax.tree.unflatten(jax.tree.structure(params), moving)
    still = jax.tree.map(lambda moves: not moves, tree)
    own = optax.chain(optax.clip_by_global_norm(1.0), optimizer_of(config))
    return optax.chain(optax.masked(own, tree), optax.masked(optax.set_to_zero(), still))


def grpo(config: FinetuneConfig, prompts: Prompts, params: Any) -> tuple[Learner[Any], Evaluate]:
    """Start and update, and the rollout before it.

    The journal holds the rewards; the completions that they are for are a function of parameters, seed and generation,
    and a replay writes them again.
    """
    how, optimizer = sampling_of(config, prompts), masked_optimizer(config, params)
    write = jax.jit(lambda params, key, tokens, mask: generate(params, tokens, mask, key, how))
    kept: dict[int, Completions] = {}

    def completions(parameters: Any, generation: int, batch: Batch) -> Completions:
        if generation not in kept:
            kept.clear()
            key = generation_key(seed_words(config.seed), jnp.int32(generation))
            kept[generation] = write(parameters, key, batch.tokens[0], batch.mask[0])
        return kept[generation]

    def evaluate(state: RunState, generation: int) -> Evaluated:
        batch = prompts.of_generation(generation)
        done = jax.tree.map(np.asarray, completions(state.parameters, generation, batch))
        found = rewards(prompts, batch.examples[0], done)
        tokens = int(done.lengths.sum())
        metrics: Metrics = {
            "generation_tokens": tokens,
            "completion_length": tokens / done.lengths.size,
            "ended_share": float(done.ended.mean()),
            "reward_mean": float(found.mean()),
        }
        return Evaluated(found.reshape(-1), None, metrics)

    step = jax.jit(_grpo_step(config, optimizer))

    def update(parameters: Any, state: Any, weights: np.ndarray, generation: int) -> tuple[Any, Any, Metrics]:
        batch = prompts.of_generation(generation)
        done = completions(parameters, generation, batch)
        values = np.asarray(weights, np.float32).reshape(config.prompts, config.samples)
        new, state = step(parameters, state, batch.tokens[0], batch.mask[0], done.tokens, done.lengths, values)
        return new, state, {}

    settings = _settings(config, ("prompts", "samples", "temperature", "top_p", "clip", "epochs", "tokens"))
    learner = Learner(params, optimizer.init(params), update, "float32", config.prompts * config.samples, settings)
    return learner, evaluate


def _grpo_step(config: FinetuneConfig, optimizer: optax.GradientTransformation) -> Callable[..., Any]:
    def log_ratios(params: Any, rows: Any, there: Any) -> Any:
        return log_probabilities(params, rows, there)[:, -config.tokens :]

    def loss(params: Any, rows: Any, there: Any, known: Any, old: Any, advantages: Any) -> Any:
        ratio = jnp.exp(log_ratios(params, rows, there) - old)
        clipped = jnp.clip(ratio, 1 - config.clip, 1 + config.clip)
        gain = jnp.minimum(ratio * advantages[:, None], clipped * advantages[:, None])
        return -(jnp.where(known, gain, 0).sum(-1) / known.sum(-1)).mean()

    def step(params: Any, state: Any, tokens: Any, mask: Any, done: Any, lengths: Any, values: Any) -> Any:
        repeated = lambda each: jnp.repeat(each, config.samples, axis=0)
        rows = jnp.concatenate([repeated(tokens), done], axis=1)
        known = jnp.arange(config.tokens)[None] < lengths[:, None]
        there = jnp.concatenate([repeated(mask), jnp.ones_like(known)], axis=1)
        centred = values - values.mean(-1, keepdims=True)
        advantages = (centred / (values.std(-1, keepdims=True) + 1e-4)).reshape(-1)
        old = log_ratios(params, rows, there)

        def epoch(carry: Any, _: Any) -> Any:
            params, state = carry
            gradient = jax.grad(loss)(params, rows, there, known, old, advantages)
            updates, state = optimizer.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(epoch, (params, state), length=config.epochs)[0]

    return step


def supervised(config: FinetuneConfig, prompts: Prompts, params: Any) -> tuple[Learner[Any], Evaluate]:
    """Start and update, which needs no weights: its journal's frames hold a zero."""
    optimizer = masked_optimizer(config, params)

    @jax.jit
    def step(params: Any, state: Any, *batch: Any) -> Any:
        loss = lambda params: -likelihood(params, *batch).mean()
        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    def update(parameters: Any, state: Any, weights: np.ndarray, generation: int) -> tuple[Any, Any, Metrics]:
        batch = prompts.of_generation(generation)
        parts = (batch.tokens, batch.mask, *prompts.answers(batch, config.tokens))
        new, state, loss = step(parameters, state, *(part[0] for part in parts))
        return new, state, {"loss": float(loss)}

    def evaluate(state: RunState, generation: int) -> Evaluated:
        tokens = config.prompts * config.tokens
        return Evaluated(np.zeros(1, np.int8), None, {"generation_tokens": tokens})

    settings = _settings(config, ("prompts", "tokens"))
    return Learner(params, optimizer.init(params), update, "ternary", 1, settings), evaluate


def _settings(config: FinetuneConfig, names: tuple[str, ...]) -> dict[str, Any]:
    common = ("seed", "optimizer", "learning_rate", "learning_rate_decay", "task", "task_options", "prompt_tokens")
    held = {name: getattr(config, name) for name in (*common, *names)}
    return held | {"algorithm": config.learner, "trainable": list(config.trainable)}
