"""The pretraining job: corpus to run folder."""

from __future__ import annotations

import functools
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eggroll.core import noise
from eggroll.integer.model import Parameters, init_parameters, zero_state
from eggroll.integer.population import evaluate, largest_divisor
from eggroll.integer.update import alpha_at, pair_signs, threshold, update
from eggroll.pretrain.config import PretrainConfig
from eggroll.pretrain.corpus import Corpus, load_corpus
from eggroll.pretrain.entropy import reference_entropies
from eggroll.pretrain.lanes import Lanes
from eggroll.pretrain.validation import make_validator
from eggroll.runs.folder import RunFolder
from eggroll.runs.loop import Job, Metrics, Outcome, run

CHUNK_ELEMENTS = {"cpu": 2**16}
"""Activations (members × width) of one chunk: what stays in a core's cache, or fills an accelerator."""
_ACCELERATOR_ELEMENTS = 2**24


def pretrain(config: PretrainConfig, *, report: Callable[[str], None], started: float | None = None) -> Outcome:
    """Train as `config` says and leave a run folder behind.

    Args:
      report: takes the lines that are for a person to read.
      started: `time.perf_counter()` when the program began; start-up is counted from it.
    Raises:
      UsageError: the data or the settings cannot be used; nothing was written.
    """
    started = time.perf_counter() if started is None else started
    corpus = load_corpus(config.data or None, validation_bytes=config.validation_bytes)
    lanes = Lanes(corpus.train, config.population_size // config.group_size, config.seq_len)
    references = reference_entropies(corpus.validation)
    folder = RunFolder.create(config.run_dir, "pretrain", config.as_json() | {"job": "pretrain"})
    reference_bits = {
        "unigram_entropy": references.unigram,
        "bigram_entropy": references.bigram,
        "gzip_bits_per_byte": references.gzip,
    }
    report(_describe(config, corpus, reference_bits))
    job = make_job(config, lanes, corpus.validation)
    extra = reference_bits | {
        "corpus": corpus.name,
        "corpus_sha256": corpus.sha256,
        "train_bytes": len(corpus.train),
        "validation_bytes": len(corpus.validation),
        "parameters": config.model().parameter_count,
    }
    outcome = run(job, folder, extra=extra, prefix_seconds=time.perf_counter() - started)
    outcome.summary["peak_memory_bytes"] = peak_memory()
    folder.write_json("summary.json", outcome.summary)
    return outcome


def make_job(config: PretrainConfig, lanes: Lanes, validation: np.ndarray) -> Job[Parameters, jax.Array]:
    """The job at generation 0: parameters, members' states, and the compiled steps."""
    model = config.model()
    validator = make_validator(model, validation)
    return Job(
        name="pretrain",
        parameters=jax.tree.map(jnp.asarray, init_parameters(model, config.seed)),
        carry=zero_state(model, 2, config.population_size // 2),
        evaluate=_evaluator(config, lanes),
        update=_updater(config),
        validate=lambda parameters: {"bits_per_byte": validator(parameters)},
        main_metric="bits_per_byte",
        units=("bytes", config.population_size * config.seq_len),
        generations=config.generations,
        validate_every=config.validate_every,
        snapshot_every=config.snapshot_every,
    )


def chunk_pairs(config: PretrainConfig) -> int:
    """Pairs evaluated at once: as told, or as many as suit the device."""
    pairs = config.population_size // 2
    if config.chunk_size != "auto":
        return config.chunk_size // 2
    elements = CHUNK_ELEMENTS.get(jax.default_backend(), _ACCELERATOR_ELEMENTS)
    return largest_divisor(pairs, max(1, elements // (2 * config.width)))


def _evaluator(config: PretrainConfig, lanes: Lanes) -> Callable[..., tuple[np.ndarray, jax.Array, Metrics]]:
    population = functools.partial(
        evaluate, config=config.model(), group_size=config.group_size, chunk_pairs=chunk_pairs(config)
    )

    @functools.partial(jax.jit, donate_argnums=1)
    def step(parameters: Parameters, state: jax.Array, batch: jax.Array, generation: jax.Array) -> Any:
        likelihood, state = population(parameters, state, batch, seed=_seed(config), generation=generation)
        return pair_signs(likelihood), likelihood, state

    def evaluator(parameters: Parameters, state: jax.Array, generation: int) -> tuple[np.ndarray, jax.Array, Metrics]:
        batch = jnp.asarray(lanes.batch(generation))
        signs, likelihood, state = step(parameters, state, batch, np.int32(generation))
        return np.asarray(signs), state, _population_metrics(np.asarray(likelihood), config.seq_len)

    return evaluator


def _population_metrics(likelihood: np.ndarray, seq_len: int) -> Metrics:
    """Fitness is the log-likelihood in bits per byte, so at most about 0; higher is better."""
    fitness = likelihood / (16 * seq_len)
    return {
        "fitness_mean": float(fitness.mean()),
        "fitness_max": float(fitness.max()),
        "fitness_min": float(fitness.min()),
        "fitness_std": float(fitness.std()),
        "tied_pairs": int((likelihood[0] == likelihood[1]).sum()),
    }


def _updater(config: PretrainConfig) -> Callable[..., tuple[Parameters, Metrics]]:
    model, pairs = config.model(), config.population_size // 2

    @jax.jit
    def step(parameters: Parameters, signs: jax.Array, level: jax.Array, generation: jax.Array) -> Any:
        return update(parameters, signs, level, model, seed=_seed(config), generation=generation)

    def updater(parameters: Parameters, signs: np.ndarray, generation: int) -> tuple[Parameters, Metrics]:
        alpha = alpha_at(generation, config.alpha, config.decay)
        level = np.int32(threshold(alpha, pairs, config.rank))
        parameters, moved = step(parameters, signs, level, np.int32(generation))
        return parameters, {"alpha": alpha, "moved_share": int(moved) / model.parameter_count}

    return updater


def _seed(config: PretrainConfig) -> jax.Array:
    return jnp.asarray(noise.seed_words(config.seed), jnp.int32)


def _describe(config: PretrainConfig, corpus: Corpus, references: dict[str, float]) -> str:
    unigram, bigram, gzip = references.values()
    return (
        f"{corpus.name}: {len(corpus.train):,} bytes to train on, {len(corpus.validation):,} held out "
        f"(unigram {unigram:.3f}, bigram {bigram:.3f}, gzip -9 {gzip:.3f} bits per byte); "
        f"{config.model().parameter_count:,} int8 parameters, population {config.population_size:,}"
    )


def peak_memory() -> int:
    """Peak resident memory of this process, in bytes.

    Where /proc tells it, from there: `getrusage` would count what the process that started this one held at the time.
    """
    try:
        status = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
