"""The job `eggroll trade execute`: the pretrained message model learns to execute an order, by EGGROLL on adapters."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from eggroll.core.adapters import add_lora, merge_lora, with_lora
from eggroll.core.distribution import LowRank
from eggroll.core.errors import UsageError
from eggroll.core.fitness import centred_rank
from eggroll.core.population import key_of
from eggroll.core.state import State, seed_words
from eggroll.core.strategy import EvolutionStrategy
from eggroll.distributed.running import Prepared, carried_out
from eggroll.distributed.worker import Built
from eggroll.runs.evolution import learning_rate_at, mesh_of, sigma_at
from eggroll.runs.folder import RunFolder
from eggroll.runs.job import Evaluated, Learner, Part, RangeWork, RunState, job_of, parameter_count
from eggroll.runs.loop import Outcome as RunOutcome
from eggroll.runs.metrics import Metrics
from eggroll.runs.settings import from_json
from eggroll.runs.tensors import save_tensors
from eggroll.runs.training import info_metrics, strategy_learner
from eggroll.runs.trees import as_arrays, filled
from eggroll.runs.weights import load_parameters
from eggroll.trading.config import ExecuteConfig
from eggroll.trading.data import OPENING, calibration_of, days_in, generated_market, recorded_markets, split
from eggroll.trading.execution import Immediate, Outcome, Scheduled, Task, Trace, Trader, Twap, episode
from eggroll.trading.model import ModelConfig
from eggroll.trading.pretrain import load_model
from eggroll.trading.trader import ModelTrader
from eggroll.trading.world import Market, Others, generated

ADAPTED = ("*/kernel",)
"""The projections; state space, norms and embeddings stay."""
WEIGHTS = "model.safetensors"
EPISODE = "episode.json"
_MOST_BOOKS = 512
_TRAIN, _HELD_OUT, _ADAPTERS, _EPISODES = range(4)  # streams of random numbers


class World(NamedTuple):
    """Where episodes take place."""

    others: Others
    train: Market  # with a leading axis of beginnings
    held_out: Market
    held_out_others: Others


class Parts(NamedTuple):
    """A run before it starts."""

    es: EvolutionStrategy
    params: Any  # with adapters
    fitness: Callable[..., Any]
    arguments: Callable[[int], tuple[Any, ...]]
    model: ModelConfig
    world: World


def execute(config: ExecuteConfig, *, report: Callable[[str], None], started: float | None = None) -> RunOutcome:
    """Fine-tune as `config` says and leave a run folder behind, or go on with one.

    Args:
      report: takes the lines that are for a person to read.
      started: `time.perf_counter()` when the program began; start-up is counted from it.
    Raises:
      UsageError: the model, the data or the settings cannot be used; nothing was written.
    """
    return carried_out(config, config.job, prepared, worker_job, report=report, started=started)


def prepared(config: ExecuteConfig) -> tuple[ExecuteConfig, Prepared]:
    """The job; and its settings with numbers in place of "auto", which are what is recorded.

    Raises:
      UsageError: the model, the data or the settings cannot be used.
    """
    parts = parts_of(config)
    try:
        state = parts.es.init(parts.params, config.seed)
        if jax.default_backend() == "cpu" and config.chunk_size == "auto":
            parts = parts._replace(es=parts.es.with_chunk_size(_chunk(config)))
        parts.es.resolve_chunk_size(state, parts.fitness, *parts.arguments(0), has_aux=True)
        config = dataclasses.replace(config, chunk_size=parts.es.chunk_size or "auto")
        learner = strategy_learner(parts.es, state)
    except ValueError as error:  # a rank that does not fit the adapters
        raise UsageError(str(error)) from None
    compared = Comparison(config, parts)
    work = _work(config, parts, state.seed)
    messages = config.population_size * config.episodes * config.task.messages

    def evaluate(own: RunState, generation: int) -> Evaluated:
        at = State(own.parameters, own.optimizer, state.seed, jnp.int32(generation))
        found = parts.es.evaluate(at, parts.fitness, *parts.arguments(generation), has_aux=True)[2]
        values, tally = _values(found.aux)
        return work.combine(values, [tally], own, generation)

    job = job_of(
        config,
        learner,
        evaluate,
        validate=lambda state: compared(state.parameters),
        main_metric="pnl",
        units=("messages", messages),
    )
    extra = lambda: {"parameters": parameter_count(parts.params["lora"]), **compared.plain()}

    def keep(params: Any, folder: RunFolder) -> None:
        save_tensors(as_arrays(merge_lora(params, scale=config.lora_scale)), folder.path / WEIGHTS)
        folder.write_json(EPISODE, compared.episode(params))

    return config, Prepared(job, lambda: work, _describe(config, parts), keep, extra)


def _chunk(config: ExecuteConfig) -> int:
    """Members whose books a CPU's cache holds: the largest even divisor of the population with so many episodes."""
    most = max(_MOST_BOOKS // config.episodes, 2)
    return max(size for size in range(2, most + 1, 2) if config.population_size % size == 0)


def parts_of(config: ExecuteConfig) -> Parts:
    """Model, world and strategy.

    Raises:
      UsageError: the model or the data cannot be used.
    """
    params, model = start_of(config)
    world = world_of(config)
    task, others = config.task, world.others

    def fitness(params: Any, key: Any, markets: Market) -> tuple[Any, Outcome]:
        trader = ModelTrader(params, model, task, config.temperature)
        keys = jax.random.split(key, config.episodes)
        found, _ = jax.vmap(lambda market, key: episode(task, others, trader, market, key))(markets, keys)
        return found.pnl.mean(), found

    def arguments(generation: int) -> tuple[Any, ...]:
        numbers = np.random.default_rng([config.seed, generation]).choice(config.markets, config.episodes, False)
        return (jax.tree.map(lambda leaf: leaf[jnp.asarray(numbers)], world.train),)

    return Parts(make_strategy(config), params, with_lora(fitness, scale=config.lora_scale), arguments, model, world)


def start_of(config: ExecuteConfig) -> tuple[Any, ModelConfig]:
    """The pretrained model with adapters beside it, and its sizes.

    Raises:
      UsageError: it is no model of messages.
    """
    base, model = load_model(Path(config.model))
    return add_lora(base, key_of(config.seed, _ADAPTERS), targets=ADAPTED, rank=config.lora_rank), model


def world_of(config: ExecuteConfig) -> World:
    """Where episodes begin, and the flow of others.

    Raises:
      UsageError: the folder of recorded days, or the calibration, cannot be used.
    """
    if config.data:
        parts = [split(day) for day in days_in(config.data)]
        (train, others), (held_out, after) = (
            recorded_markets([part[i] for part in parts], config.markets, config.task.messages) for i in (0, 1)
        )
        return World(others, train, held_out, after)
    flow = calibration_of(config.calibration).flow()
    opened = jax.jit(jax.vmap(lambda key: generated_market(flow, key, OPENING)))
    keys = (jax.random.split(key_of(config.seed, name), config.markets) for name in (_TRAIN, _HELD_OUT))
    others = generated(flow)
    train, held_out = (opened(own) for own in keys)
    return World(others, train, held_out, others)


def episode_rank(scores: Float[Array, "members *episodes"]) -> Float[Array, "members"]:
    """The centred rank of each member's PnL in each episode, which all members share, averaged over episodes.

    Ranked singly, an episode in which the price runs away counts no more than another.
    """
    by_episode = scores.reshape(scores.shape[0], -1)
    return jax.vmap(centred_rank, in_axes=1)(by_episode).mean(0)


def risk_rank(aversion: float) -> Callable[..., Any]:
    """Make the shaping that ranks members by mean PnL less `aversion` times its deviation, over their episodes."""

    def shape(scores: Float[Array, "members *episodes"]) -> Float[Array, "members"]:
        by_episode = scores.reshape(scores.shape[0], -1)
        return centred_rank(by_episode.mean(-1) - aversion * by_episode.std(-1))

    shape.__name__ = f"risk_rank({aversion})"  # as a journal's header has it
    return shape


def make_strategy(config: ExecuteConfig) -> EvolutionStrategy:
    """The strategy of a run: adapters evolve, by ranks of PnL under common random numbers."""
    kinds: dict[str, Callable[..., Any]] = {"sgd": optax.sgd, "adam": optax.adam}
    return EvolutionStrategy(
        kinds[config.optimizer](lambda generation: learning_rate_at(config, generation)),
        population_size=config.population_size,
        sigma=lambda generation: sigma_at(config, generation),
        distribution=LowRank(config.rank),
        shaping=risk_rank(config.risk_aversion) if config.risk_aversion else episode_rank,
        group_size=config.population_size,
        chunk_size=config.chunk_size,
        trainable="lora/*",
        mesh=mesh_of(config),
        update=config.update,
    )


class Comparison:
    """The mean model on held-out episodes, against its start, TWAP and immediate execution on the same ones."""

    def __init__(self, config: ExecuteConfig, parts: Parts) -> None:
        self._config, self._parts = config, parts
        count = config.validation_episodes
        self._keys = jax.random.split(key_of(config.seed, _EPISODES), count)
        numbers = jnp.arange(count) % config.markets
        self._markets = jax.tree.map(lambda leaf: leaf[numbers], parts.world.held_out)
        self._of_model = jax.jit(lambda params: self._run(self._trader(params)))
        self._of_plan = jax.jit(lambda due: self._run(Scheduled(self._task, due)))
        self._found: dict[str, tuple[Outcome, Trace]] = {}

    def __call__(self, params: Any) -> Metrics:
        """Mean and deviation over episodes, and the mean difference to each other way with its standard error."""
        own, _ = jax.tree.map(np.asarray, self._of_model(params))
        metrics = _told(own)
        for name, (other, _) in self._plain().items():
            difference = own.pnl - other.pnl
            metrics[f"over_{name}"] = float(difference.mean())
            metrics[f"over_{name}_error"] = float(difference.std(ddof=1) / len(difference) ** 0.5)
        return metrics

    def plain(self) -> Metrics:
        """What the other ways come to."""
        return {f"{name}_{key}": value for name, own in self._plain().items() for key, value in _told(own[0]).items()}

    def episode(self, params: Any) -> dict[str, Any]:
        """The first held-out episode by the mean model, its start and TWAP, message by message."""
        plain = self._plain()
        ways = {"model": self._of_model(params), "start": plain["start"], "twap": plain["twap"]}
        found = {
            name: {"pnl": float(outcome.pnl[0]), **{key: _listed(leaf) for key, leaf in trace._asdict().items()}}
            for name, (outcome, trace) in ways.items()
        }
        return {"side": self._task.side, "quantity": self._task.quantity, "interval": self._task.interval, **found}

    @property
    def _task(self) -> Task:
        return self._config.task

    @property
    def _others(self) -> Others:
        return self._parts.world.held_out_others

    def _trader(self, params: Any) -> Trader:
        return ModelTrader(
            merge_lora(params, scale=self._config.lora_scale), self._parts.model, self._task, self._config.temperature
        )

    def _run(self, trader: Trader) -> tuple[Outcome, Trace]:
        """All outcomes, and the course of the first."""
        one = lambda market, key: episode(self._task, self._others, trader, market, key)
        outcomes, traces = jax.vmap(one)(self._markets, self._keys)
        return outcomes, jax.tree.map(lambda leaf: leaf[0], traces)

    def _plain(self) -> dict[str, tuple[Outcome, Trace]]:
        if not self._found:
            plans = {"twap": Twap(self._task), "immediate": Immediate(self._task)}
            found = {name: self._of_plan(plan.due) for name, plan in plans.items()}
            found["start"] = self._of_model(self._parts.params)
            self._found = jax.tree.map(np.asarray, found)
        return self._found


def _told(outcome: Outcome) -> Metrics:
    """Of held-out episodes."""
    pnl = np.asarray(outcome.pnl, np.float64)
    return {
        "pnl": float(pnl.mean()),
        "pnl_variance": float(pnl.var(ddof=1)),
        "slippage": float(np.mean(outcome.slippage)),
        "passive_share": float(np.mean(outcome.passive)),
        "left_share": float(np.mean(outcome.left)),
    }


def _listed(leaf: Any) -> list[Any]:
    return [round(float(value), 1) for value in leaf] if leaf.dtype == jnp.float32 else np.asarray(leaf).tolist()


def _values(outcome: Outcome) -> tuple[np.ndarray, np.ndarray]:
    """PnL of some members, (members, episodes); and [episodes, sums of the shares taken passively and left]."""
    pnl, passive, left = (np.asarray(leaf) for leaf in (outcome.pnl, outcome.passive, outcome.left))
    return pnl, np.array([pnl.size, passive.sum(dtype=np.float64), left.sum(dtype=np.float64)])


def _work(config: ExecuteConfig, parts: Parts, seed: Any) -> RangeWork:
    """The population in ranges of pairs, for workers that hold some of it."""

    def one_range(state: RunState, generation: int, first_pair: int, pairs: int) -> Part:
        own = State(state.parameters, state.optimizer, seed, jnp.int32(generation))
        span = {"first_pair": first_pair, "pairs": pairs}
        found = parts.es.evaluate_range(own, parts.fitness, *parts.arguments(generation), has_aux=True, **span)
        values, tally = _values(found.aux)
        return Part(values.reshape(pairs, -1), tally, None)

    def combine(values: np.ndarray, tallies: Sequence[np.ndarray], state: RunState, generation: int) -> Evaluated:
        scores = values.reshape(config.population_size, config.episodes)
        weights, info = parts.es.weigh(State((), (), seed, jnp.int32(generation)), scores)
        episodes, passive, left = np.sum(tallies, axis=0)
        shares = {"population_passive_share": passive / episodes, "population_left_share": left / episodes}
        variance = {"population_pnl_variance": float(scores.var(dtype=np.float64))}
        return Evaluated(np.asarray(weights), None, info_metrics(info) | variance | shares)

    return RangeWork(one_range, combine, None)


def _describe(config: ExecuteConfig, parts: Parts) -> str:
    task = config.task
    market = f"records in {config.data}" if config.data else "a generated market"
    return (
        f"{config.model}: {parameter_count(parts.params['lora']):,} numbers of adapters of rank {config.lora_rank} "
        f"evolve; {task.side} {task.quantity} shares in {task.decisions} decisions, {task.interval} messages of "
        f"{market} between two; population {config.population_size:,} in chunks of {config.chunk_size}, "
        f"{config.episodes} episodes a member"
    )


def learner_of(header: dict[str, Any], base: Path | None = None) -> Learner[Any]:
    """The learner that a journal's header describes.

    Args:
      base: start parameters of elsewhere, with adapters, in place of the recorded model's.
    Raises:
      UsageError: its settings are none of this job's, or its model is not here any more.
    """
    config = _config_in(header)
    params, es = start_of(config)[0], make_strategy(config)
    if base is not None:
        params = jax.tree.map(jnp.asarray, filled(params, load_parameters(base), str(base)))
    return strategy_learner(es, es.init(params, config.seed))


def worker_job(welcome: dict[str, Any]) -> Built:
    """The job as a worker of a fleet makes it, of the header that the run sends.

    Raises:
      UsageError: its settings are none of this job's, or the model or the data is not on this machine.
    """
    config = dataclasses.replace(_config_in(welcome["header"]), devices=1)  # a worker is for one device
    parts = parts_of(config)
    learner = strategy_learner(parts.es, parts.es.init(parts.params, config.seed))
    return Built(learner, _work(config, parts, seed_words(config.seed)), (), {"data": ""})


def _config_in(header: dict[str, Any]) -> ExecuteConfig:
    config = header.get("config")
    if not isinstance(config, dict) or header.get("job") != "trade-execute":
        raise UsageError("expected settings of eggroll trade execute in the journal's header, got none; use another")
    return from_json(ExecuteConfig, config, "the journal's header")
