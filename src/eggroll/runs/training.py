"""A strategy's training as a run: journal, snapshots, metrics, resume and replay around `EvolutionStrategy`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eggroll.core import noise
from eggroll.core.distribution import leaf_paths
from eggroll.core.errors import UsageError
from eggroll.core.mesh import gathered, spans_processes
from eggroll.core.state import Info, State
from eggroll.core.strategy import EvolutionStrategy
from eggroll.runs.folder import RunFolder
from eggroll.runs.job import Evaluated, Job, Learner, Part, RangeWork, RunState
from eggroll.runs.journal import Journal
from eggroll.runs.loop import Outcome, run
from eggroll.runs.metrics import Metrics
from eggroll.runs.peers import Alone, Peers, check_alike, told
from eggroll.runs.replay import replay as replay_journal
from eggroll.runs.resume import check_change, differences, finished_summary, recorded_config
from eggroll.runs.tracking import check_trackers

JOB = "library"
_SIGMA_AT = (0, 1, 2, 5, 10, 100, 1000, 10_000, 100_000)
"""Generations at which a header tells a schedule's value: enough to know another schedule from it."""


def train(
    es: EvolutionStrategy,
    params: Any,
    fitness: Callable[..., Any],
    *,
    generations: int,
    batches: Callable[[int], tuple[Any, ...]] | None = None,
    seed: int = 0,
    carry: Any = None,
    has_aux: bool = False,
    validate: Callable[[Any], Metrics] | None = None,
    run_dir: str | Path | None = None,
    resume: bool = False,
    frames: str | None = None,
    validate_every: int = 100,
    snapshot_every: int = 100,
    snapshots_kept: int = 2,
    track: Sequence[str] = (),
    log_every: int = 0,
    say: Callable[[str], None] = lambda line: None,
    peers: Peers | None = None,
) -> tuple[State, dict[str, Any]]:
    """Train under a run folder that survives anything: what was killed goes on with `resume=True`, to the same bits.

    Args:
      es: the strategy; the chunk size of "auto" is found once and recorded.
      params: start parameters.
      fitness: of one member, as in `EvolutionStrategy.step`.
      generations: updates to make in all.
      batches: generation → arguments of fitness after the key (and the carry): a function, so that a resumed run sees
        the same data; none: no arguments.
      seed: in [0, 2⁶⁴).
      carry: pytree with a leading axis of members. With one, a resumed run evaluates again from its newest snapshot;
        without, it replays the journal.
      has_aux: fitness returns a dict of numbers last; their means over the members are metrics.
      validate: params → metrics, before the first generation, every `validate_every` and after the last; the first of
        its names is shown on the progress bar.
      run_dir: folder of the run; none: a fresh name under runs/.
      resume: go on with the run in `run_dir`; finished, it returns at once.
      frames: "float32" (what the journal holds of a weight), "float16" (half of it, and the updates use what is left),
        "ternary" (the default under the shaping "antithetic_sign").
      validate_every, snapshot_every, log_every: in generations.
      track: "tensorboard", "wandb".
      say: takes lines for a person.
      peers: the processes of the run; `eggroll.train` finds those over which JAX was started. Only process 0 has the
        folder; `run_dir` and `say` of the others are passed over.
    Returns:
      The last state and the summary; `summary["finished"]` is False after Ctrl-C or SIGTERM.
    Raises:
      UsageError: the settings cannot be used, or are not those of the run to go on with.
    """
    peers = peers or Alone()
    if peers.process:
        track, say = (), lambda line: None
    check_trackers(track)
    _check_arguments(generations, batches, run_dir, resume, (validate_every, snapshot_every, snapshots_kept))
    arguments = batches or (lambda generation: ())
    leads = peers.process == 0
    folder = RunFolder.open(Path(run_dir)) if resume and run_dir is not None and leads else None
    recorded = told(peers, None if folder is None else recorded_config(folder))
    state = es.init(params, seed)
    if leads or es.mesh is not None:  # on a mesh it takes all processes to find out
        es = _with_chunk(es, recorded, state, fitness, arguments(0), carry, has_aux)
    chunk = told(peers, es.chunk_size)
    es = es if es.chunk_size == chunk else es.with_chunk_size(chunk)
    es.init(params, seed)
    config = {"job": JOB, "seed": seed, "generations": generations, **_settings(es, state)}
    job: Job[Any] = Job(
        name=JOB,
        config=config,
        learner=strategy_learner(es, state, frames),
        evaluate=_evaluator(es, state.seed, fitness, arguments, has_aux),
        validate=lambda state: validate(state.parameters) if validate else {},
        main_metric="fitness_mean",
        units=("members", es.population_size),
        generations=generations,
        validate_every=validate_every,
        snapshot_every=snapshot_every,
        snapshots_kept=snapshots_kept,
        carry=carry,
        trackers=tuple(track),
        log_every=log_every,
        gather=lambda state: state._replace(carry=_here(es, state.carry)),
    )
    check_alike(peers, job)
    if folder is not None:
        check_change(differences({**(recorded or {}), "generations": generations}, config), "refuse")
        if finished_summary(folder, generations) is not None:
            say(f"the run in {folder.path} is finished; nothing to do")
    elif leads:
        folder = RunFolder.create(None if run_dir is None else Path(run_dir), JOB, config)
    outcome: Outcome = run(job, folder, extra={}, say=say, peers=peers)
    return _as_state(outcome.state, state.seed, outcome.summary["generations"]), outcome.summary


def replay(
    source: str | Path, es: EvolutionStrategy, params: Any, *, to: int | None = None
) -> tuple[State, dict[str, Any]]:
    """Rebuild a run's state from its start parameters and its journal.

    Args:
      source: folder of a run, whose snapshots are compared on the way, or a journal file.
      es: a strategy with the settings and the optimiser of the run; the journal names what differs. The structure of
        its optimiser's state is checked, since optax optimisers have no names. The chunk size is the recorded one.
      params: start parameters; their hashes are compared leaf by leaf.
      to: generations to replay; default all.
    Returns:
      The state, and what was found: generation, verified and differing snapshots, largest difference, seconds.
    Raises:
      UsageError: another start, other settings, or a journal or snapshot that cannot be used.
    """
    path = Path(source)
    folder = None if path.is_file() else RunFolder.open(path)
    with Journal.open(path if folder is None else folder.journal) as journal:
        config = journal.header.get("config")
        seed, chunk = (config.get(name) if isinstance(config, dict) else None for name in ("seed", "chunk_size"))
        if not isinstance(seed, int) or not 0 <= seed < 2**64 or not isinstance(chunk, int) or chunk < 2:
            raise UsageError(f"expected the journal of eggroll.train, got {path} of another job; use eggroll replay")
        es = es.with_chunk_size(chunk)
        state = es.init(params, seed)
        learner = strategy_learner(es, state, journal.header["frames"])
        found = replay_journal(journal, lambda header: learner, to=to, folder=folder)
    summary = {
        "generation": found.generation,
        "verified": found.verified,
        "differing": found.differing,
        "largest_difference": found.largest_difference,
        "seconds": round(found.seconds, 3),
    }
    return _as_state(RunState(found.parameters, found.optimizer), state.seed, found.generation), summary


def _check_arguments(generations: int, batches: Any, run_dir: Any, resume: bool, cadence: tuple[int, ...]) -> None:
    if generations < 0 or min(cadence) < 1:
        raise UsageError(f"expected generations ≥ 0 and intervals ≥ 1, got {generations} and {cadence}; raise them")
    if batches is not None and not callable(batches):
        raise UsageError(
            f"expected batches as a function of the generation, got a {type(batches).__name__}; an iterator cannot be "
            "gone back in when a run is resumed: pass lambda generation: data[generation]"
        )
    if resume and run_dir is None:
        raise UsageError("expected run_dir with resume=True, got None; give the folder of the run to go on with")


def _with_chunk(
    es: EvolutionStrategy, recorded: dict[str, Any] | None, state: State, fitness: Any, args: Any, carry: Any, aux: bool
) -> EvolutionStrategy:
    """The strategy with a chunk size: its own, the recorded one, or what "auto" comes to."""
    if es.chunk_size is None and recorded is not None and isinstance(recorded.get("chunk_size"), int):
        return es.with_chunk_size(recorded["chunk_size"])
    es.resolve_chunk_size(state, fitness, *args, carry=carry, has_aux=aux)
    return es


def _settings(es: EvolutionStrategy, state: State) -> dict[str, Any]:
    """Everything of a strategy that its updates depend on, as JSON."""
    plan = es.plan(state.params)
    sigma = [float(es.sigma(at)) for at in _SIGMA_AT] if callable(es.sigma) else float(es.sigma)
    return {
        "population_size": es.population_size,
        "antithetic": True,
        "group_size": es.group_size,
        "chunk_size": es.chunk_size,
        "sigma": {"at": list(_SIGMA_AT), "is": sigma} if isinstance(sigma, list) else sigma,
        "distribution": type(es.distribution).__name__,
        "rank": es.distribution.rank,
        "noise": noise.noise_version([leaf.law for leaf in plan if not leaf.frozen]),
        "noise_reuse": es.noise_reuse,
        "shaping": getattr(es.shaping, "__name__", type(es.shaping).__name__),
        "trainable": [f"{leaf.path} {leaf.roles or '-'} {leaf.law}" for leaf in plan if not leaf.frozen],
        "optimizer": dict(zip(leaf_paths(state.opt_state), _kinds(state.opt_state), strict=True)),
    }


def _kinds(tree: Any) -> list[str]:
    return [f"{leaf.dtype}{list(leaf.shape)}" for leaf in jax.tree.leaves(tree)]


def strategy_learner(es: EvolutionStrategy, state: State, frames: str | None = None) -> Learner[Any]:
    """A strategy's start and update, as the loop and a replay want them; its settings are the header's."""

    def update(params: Any, opt_state: Any, weights: np.ndarray, generation: int) -> tuple[Any, Any, Metrics]:
        new = es.update(State(params, opt_state, state.seed, jnp.int32(generation)), np.asarray(weights, np.float32))
        return new.params, new.opt_state, {}

    settings = _settings(es, state)
    kind = frames or ("ternary" if settings["shaping"] == "antithetic_sign" else "float32")
    devices = {} if es.mesh is None else {"mesh": dict(es.mesh.shape), "update": es.update_way}
    return Learner(state.params, state.opt_state, update, kind, es.population_size // 2, settings, devices)


def _evaluator(
    es: EvolutionStrategy, seed: Any, fitness: Any, arguments: Callable[[int], tuple[Any, ...]], has_aux: bool
) -> Callable[[RunState, int], Evaluated]:
    def evaluate(state: RunState, generation: int) -> Evaluated:
        own = State(state.parameters, state.optimizer, seed, jnp.int32(generation))
        result = es.evaluate(own, fitness, *arguments(generation), carry=state.carry, has_aux=has_aux)
        weights, info, evaluation = result
        return Evaluated(np.asarray(weights), evaluation.carry, _metrics(info, _here(es, evaluation.aux)))

    return evaluate


def _here(es: EvolutionStrategy, tree: Any) -> Any:
    """A tree of which other processes hold a part, whole."""
    return gathered(es.mesh, tree) if es.mesh is not None and spans_processes(es.mesh) else tree


def range_work(
    es: EvolutionStrategy,
    seed: Any,
    fitness: Callable[..., Any],
    arguments: Callable[[int], tuple[Any, ...]],
    *,
    start_carry: Callable[[int, int], Any] | None = None,
    aux: Sequence[str] = (),
) -> RangeWork:
    """A strategy's evaluation in ranges of pairs, for a fleet (see `distributed.fleet`): what a float job is made of.

    Args:
      es: with a chunk size, the same at every worker.
      seed: the two words of the run's seed.
      fitness, arguments: as `fitness` and `batches` of `train`.
      start_carry: (first pair, pairs) → carry of these members at generation 0, with a leading axis of members.
      aux: names of the numbers that fitness returns last; their means are metrics.
    """

    def evaluate(state: RunState, generation: int, first_pair: int, pairs: int) -> Part:
        own = State(state.parameters, state.optimizer, seed, jnp.int32(generation))
        span = {"first_pair": first_pair, "pairs": pairs}
        result = es.evaluate_range(own, fitness, *arguments(generation), carry=state.carry, has_aux=bool(aux), **span)
        sums = [float(np.asarray(result.aux[name]).sum(dtype=np.float64)) for name in aux]
        return Part(np.asarray(result.fitness).reshape(pairs, -1), np.array([2 * pairs, *sums]), result.carry)

    def combine(values: np.ndarray, tallies: Sequence[np.ndarray], state: RunState, generation: int) -> Evaluated:
        own = State(state.parameters, state.optimizer, seed, jnp.int32(generation))
        weights, info = es.weigh(own, values.reshape(es.population_size, *values.shape[2:]))
        members, *sums = np.sum(tallies, axis=0)
        means = {name: float(total / members) for name, total in zip(aux, sums, strict=True)}
        return Evaluated(np.asarray(weights), None, info_metrics(info) | means, state.shared)

    def cut(carry: Any, first_pair: int, pairs: int) -> Any:
        return jax.tree.map(lambda leaf: leaf[2 * first_pair : 2 * (first_pair + pairs)], carry)

    def join(carries: Sequence[Any]) -> Any:
        return jax.tree.map(lambda *parts: np.concatenate([np.asarray(part) for part in parts]), *carries)

    return RangeWork(evaluate, combine, start_carry, cut, join)


def _metrics(info: Info, aux: Any) -> Metrics:
    return info_metrics(info) | {name: float(np.mean(value)) for name, value in (aux or {}).items()}


def info_metrics(info: Info) -> Metrics:
    """Of the population's fitness, for a line of metrics."""
    names = ("fitness_mean", "fitness_max", "fitness_min", "fitness_std", "sigma")
    return {name: float(getattr(info, name)) for name in names} | {"nan_count": int(info.nan_count)}


def _as_state(state: RunState, seed: Any, generation: int) -> State:
    return State(state.parameters, state.optimizer, seed, jnp.int32(generation))
