"""The pretraining job: corpus to run folder."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eggroll.core import noise
from eggroll.core.errors import UsageError
from eggroll.core.state import seed_words
from eggroll.distributed.launch import check_fleet, fleet_for
from eggroll.distributed.worker import Built
from eggroll.integer.arithmetic import cpu_operand_dtype, use_cpu_operands
from eggroll.integer.model import Parameters, init_parameters
from eggroll.integer.update import alpha_at, threshold, update
from eggroll.pretrain.config import PretrainConfig
from eggroll.pretrain.corpus import Corpus, load_corpus
from eggroll.pretrain.devices import gather, mesh_of, on_mesh, on_one, start_carry
from eggroll.pretrain.entropy import reference_entropies
from eggroll.pretrain.lanes import Lanes
from eggroll.pretrain.population import chunk_pairs, make_evaluator, range_work
from eggroll.pretrain.sample import sample_text
from eggroll.pretrain.validation import make_validator
from eggroll.runs.environment import peak_memory
from eggroll.runs.folder import RunFolder
from eggroll.runs.going_on import go_on
from eggroll.runs.job import Job, Learner, RangeWork, RunState, Updater
from eggroll.runs.loop import Outcome, run
from eggroll.runs.metrics import Metrics
from eggroll.runs.peers import Alone, Peers, check_alike, told
from eggroll.runs.settings import from_json
from eggroll.runs.tracking import check_trackers
from eggroll.runs.trees import filled
from eggroll.runs.weights import load_parameters


def pretrain(
    config: PretrainConfig,
    *,
    report: Callable[[str], None],
    started: float | None = None,
    peers: Peers | None = None,
) -> Outcome:
    """Train as `config` says and leave a run folder behind, or go on with one.

    Args:
      report: takes the lines that are for a person to read.
      started: `time.perf_counter()` when the program began; start-up is counted from it.
      peers: the processes of the run, which `distributed.hosts.join` finds; none: this one alone. The settings of
        process 0 hold when going on.
    Raises:
      UsageError: the data or the settings cannot be used; nothing was written.
    """
    started, peers = time.perf_counter() if started is None else started, peers or Alone()
    report = _silent if peers.process else report
    check_trackers(() if peers.process else config.track)
    check_fleet(config)
    _settle_operands(peers)
    folder = None
    if config.resume:
        folder, config, finished = go_on(config, "pretrain", _jobs_on_these_devices, say=report, peers=peers)
        if finished is not None:
            return Outcome(finished, 0, RunState(()))
    else:
        config = dataclasses.replace(config, chunk_size=2 * chunk_pairs(config))
    job, extra, references, work = _prepared(config)
    check_alike(peers, job)
    if folder is None and peers.process == 0:
        folder = RunFolder.create(config.run_dir, "pretrain", config.as_json())
    report(references)
    with fleet_for(config, job, work, folder, worker_job, say=report) as fleet_job:
        seconds = time.perf_counter() - started
        outcome = run(fleet_job, folder, extra=extra, prefix_seconds=seconds, say=report, peers=peers)
    outcome.summary["peak_memory_bytes"] = peak_memory()
    if folder is not None:
        folder.write_json("summary.json", outcome.summary)
    return outcome


def _silent(line: str) -> None:
    """What a person need not read twice."""


def _settle_operands(peers: Peers) -> None:
    """Processes that share a program must compile the same one: the trial of process 0 decides."""
    if peers.count > 1 and jax.default_backend() == "cpu":
        use_cpu_operands(told(peers, cpu_operand_dtype().name if peers.process == 0 else None))


def _jobs_on_these_devices(recorded: PretrainConfig, wanted: PretrainConfig) -> tuple[Job[Any], Job[Any]]:
    return _prepared(_on_these_devices(recorded))[0], _prepared(wanted)[0]


def _prepared(config: PretrainConfig) -> tuple[Job[Parameters], dict[str, Any], str, RangeWork]:
    """The job, its entries of the summary, a line about both, and the job's evaluation in ranges."""
    corpus, lanes = _corpus(config)
    references = reference_entropies(corpus.validation)
    reference_bits = {
        "unigram_entropy": references.unigram,
        "bigram_entropy": references.bigram,
        "gzip_bits_per_byte": references.gzip,
    }
    extra = reference_bits | {
        "corpus": corpus.name,
        "corpus_sha256": corpus.sha256,
        "train_bytes": len(corpus.train),
        "validation_bytes": len(corpus.validation),
        "parameters": config.model().parameter_count,
    }
    job = dataclasses.replace(make_job(config, lanes, corpus.validation), data=corpus.sha256)
    return job, extra, _describe(config, corpus, reference_bits), range_work(config, lanes)


def _corpus(config: PretrainConfig) -> tuple[Corpus, Lanes]:
    corpus = load_corpus(config.data or None, validation_bytes=config.validation_bytes)
    return corpus, Lanes(corpus.train, config.population_size // config.group_size, config.seq_len)


def worker_job(welcome: dict[str, Any]) -> Built:
    """The job as a worker of a fleet makes it, of the header that the run sends.

    Raises:
      UsageError: its settings are none of this job's, or the data is not on this machine.
    """
    config = dataclasses.replace(_config_in(welcome["header"]), devices=1)  # a worker is for one device
    corpus, lanes = _corpus(config)
    return Built(make_learner(config), range_work(config, lanes), (), {"data": corpus.sha256})


def make_job(config: PretrainConfig, lanes: Lanes, validation: np.ndarray) -> Job[Parameters]:
    """The job at generation 0: parameters, members' states, and the compiled steps."""
    model = config.model()
    validator, mesh = make_validator(model, validation), mesh_of(config)

    def sample(parameters: Parameters) -> str:
        return sample_text(on_one(mesh, parameters), model=model, count=config.sample_bytes)

    return Job(
        name="pretrain",
        config=config.as_json(),
        learner=make_learner(config),
        evaluate=make_evaluator(config, lanes),
        validate=lambda state: {"bits_per_byte": validator(on_one(mesh, state.parameters))},
        main_metric="bits_per_byte",
        units=("bytes", config.population_size * config.seq_len),
        generations=config.generations,
        validate_every=config.validate_every,
        snapshot_every=config.snapshot_every,
        snapshots_kept=config.snapshots_kept,
        carry=start_carry(config, mesh),
        sample=sample if config.sample_bytes else None,
        trackers=config.track,
        log_every=config.log_every,
        gather=None if mesh is None else functools.partial(gather, mesh),
    )


def make_learner(config: PretrainConfig, base: Path | None = None) -> Learner[Parameters]:
    """Start parameters and update: what a replay needs, without any data.

    Args:
      base: where the start parameters are, in place of what `config` says.
    Raises:
      UsageError: they are not this model's.
    """
    model = config.model()
    parameters = jax.tree.map(jnp.asarray, init_parameters(model, config.seed))
    source = base if base is not None else Path(config.start_from) if config.start_from else None
    if source is not None:
        parameters = jax.tree.map(jnp.asarray, filled(parameters, load_parameters(source), str(source)))
    settings = {
        "population_size": config.population_size,
        "antithetic": True,
        "sigma": 2.0**-config.sigma_shift,
        "sigma_shift": config.sigma_shift,
        "rank": config.rank,
        "optimizer": {"name": "threshold", "alpha": config.alpha, "decay": config.decay},
        "shaping": "pair_signs",
        "noise": noise.noise_version(["table_normal"]),
        "noise_reuse": 1,
        "trainable": "*",
        "group_size": config.group_size,
        "chunk_size": 2 * chunk_pairs(config),
        "seed": config.seed,
    }
    return Learner(parameters, (), _updater(config), "ternary", config.population_size // 2, settings)


def learner_of(header: dict[str, Any], base: Path | None = None) -> Learner[Parameters]:
    """The learner that a journal's header describes, on the devices that are here.

    Raises:
      UsageError: its settings are none of this job's.
    """
    return make_learner(_on_these_devices(_config_in(header)), base)


def _config_in(header: dict[str, Any]) -> PretrainConfig:
    config = header.get("config")
    if not isinstance(config, dict):
        raise UsageError("expected settings in the journal's header, got none; use another journal")
    return from_json(PretrainConfig, config, "the journal's header")


def _on_these_devices(config: PretrainConfig) -> PretrainConfig:
    """Recorded settings for whatever devices are here; those that a run had may be elsewhere."""
    return dataclasses.replace(config, devices="auto", update="auto")


def _updater(config: PretrainConfig) -> Updater:
    model, pairs, mesh = config.model(), config.population_size // 2, mesh_of(config)

    @jax.jit
    def step(parameters: Parameters, signs: jax.Array, level: jax.Array, generation: jax.Array) -> Any:
        counters = {"seed": seed_words(config.seed), "generation": generation}
        return update(parameters, signs, level, model, mesh=mesh, way=config.update, **counters)

    def updater(
        parameters: Parameters, optimizer: Any, signs: np.ndarray, generation: int
    ) -> tuple[Parameters, Any, Metrics]:
        alpha = alpha_at(generation, config.alpha, config.decay)
        level = np.int32(threshold(alpha, pairs, config.rank))
        parameters, moved = step(on_mesh(mesh, parameters), signs, level, np.int32(generation))
        return parameters, optimizer, {"alpha": alpha, "moved_share": int(moved) / model.parameter_count}

    return updater


def _describe(config: PretrainConfig, corpus: Corpus, references: dict[str, float]) -> str:
    unigram, bigram, gzip = references.values()
    return (
        f"{corpus.name}: {len(corpus.train):,} bytes to train on, {len(corpus.validation):,} held out "
        f"(unigram {unigram:.3f}, bigram {bigram:.3f}, gzip -9 {gzip:.3f} bits per byte); "
        f"{config.model().parameter_count:,} int8 parameters, population {config.population_size:,}"
    )
