"""The job `eggroll trade pretrain`: the message model learns a market's flow, by cross-entropy and its gradient."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float32, Int32

from eggroll.core.errors import UsageError
from eggroll.core.population import key_of
from eggroll.distributed.running import Prepared, carried_out
from eggroll.distributed.worker import Built
from eggroll.runs.folder import RunFolder
from eggroll.runs.job import Evaluated, Learner, job_of, parameter_count
from eggroll.runs.loop import Outcome
from eggroll.runs.metrics import Metrics
from eggroll.runs.settings import from_json
from eggroll.runs.trees import filled
from eggroll.runs.weights import load_parameters
from eggroll.trading.config import PretrainConfig
from eggroll.trading.data import (
    Stream,
    calibration_of,
    days_in,
    generated_stream,
    read_pair,
    recorded_stream,
    split,
)
from eggroll.trading.distributions import draw_distributions
from eggroll.trading.model import ModelConfig, advance, init_model, log_probabilities, start_carry
from eggroll.trading.tokens import MODELLED
from eggroll.trading.world import FEATURES, SEEN

TOLD = {
    "kind": ("kind",),
    "side": ("side",),
    "gap": ("gap_scale", "gap_high"),
    "price": ("price_coarse", "price_fine", "price_part"),
    "size": ("size_lots", "size_odd"),
}
"""Fields of a message whose perplexity is told, each of some tokens."""
_DATA, _HELD_OUT, _STEPS, _START = range(4)  # streams of random numbers
_MOST_WINDOWS = 128


def pretrain(config: PretrainConfig, *, report: Callable[[str], None], started: float | None = None) -> Outcome:
    """Pretrain as `config` says and leave a run folder behind, or go on with one.

    Args:
      report: takes the lines that are for a person to read.
      started: `time.perf_counter()` when the program began; start-up is counted from it.
    Raises:
      UsageError: the data or the settings cannot be used; nothing was written.
    """
    return carried_out(config, config.job, prepared, worker_job, report=report, started=started)


def prepared(config: PretrainConfig) -> tuple[PretrainConfig, Prepared]:
    """The job.

    Raises:
      UsageError: the data cannot be used.
    """
    train, held_out = streams_of(config)
    sample = recorded_stream([read_pair(Path(config.sample))], config.length) if config.sample else None
    learner = learner_for(config, train)
    measure = _Measure(config, held_out, sample)
    evaluate = lambda state, generation: Evaluated(np.zeros(1, np.int8), None, {"messages": _messages(config)})
    job = job_of(
        config,
        learner,
        evaluate,
        validate=lambda state: measure(state.parameters),
        main_metric="nats_per_message",
        units=("messages", _messages(config)),
        falls=True,
    )
    extra = {"parameters": parameter_count(learner.parameters), "train_messages": len(train.tokens)}

    def keep(params: Any, folder: RunFolder) -> None:
        draw_distributions(config, model_of(config), params, folder)

    return config, Prepared(job, None, _describe(config, learner, train, held_out), keep, lambda: extra)


def model_of(config: PretrainConfig) -> ModelConfig:
    """The model's sizes."""
    return ModelConfig(config.width, config.layers, config.state, len(FEATURES))


def streams_of(config: PretrainConfig) -> tuple[Stream, Stream]:
    """What is learnt from, and what is held out.

    Raises:
      UsageError: the folder of recorded days, or the calibration, cannot be used.
    """
    if config.data:
        parts = [split(day) for day in days_in(config.data)]
        return tuple(recorded_stream([part[i] for part in parts], config.length) for i in (0, 1))  # type: ignore
    flow = calibration_of(config.calibration).flow()
    keys = [key_of(config.seed, name) for name in (_DATA, _HELD_OUT)]
    counts = (config.markets, config.held_out)
    train, held_out = (
        generated_stream(flow, own, count, config.market_messages, config.length)
        for own, count in zip(keys, counts, strict=True)
    )
    return train, held_out


def learner_for(config: PretrainConfig, train: Stream) -> Learner[Any]:
    """Start and update, which needs no weights: its journal's frames hold a zero."""
    params, steps = init_model(key_of(config.seed, _START), model_of(config)), key_of(config.seed, _STEPS)
    seen = params["observe"]["kernel"]
    params["observe"]["kernel"] = seen.at[SEEN:].set(0)  # what no message shows must not disturb who will see it
    optimizer = optimizer_of(config)

    @jax.jit
    def step(params: Any, state: Any, generation: Any) -> Any:
        own = jax.random.fold_in(steps, generation)
        places = train.starts[jax.random.randint(own, (config.batch,), 0, train.starts.shape[0])]
        value, gradient = jax.value_and_grad(loss)(params, config, train, places)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    def update(parameters: Any, state: Any, weights: np.ndarray, generation: int) -> tuple[Any, Any, Metrics]:
        new, state, value = step(parameters, state, jnp.int32(generation))
        return new, state, {"loss": float(value)}

    names = ("batch", "length", "learning_rate", "generations")
    settings = {"algorithm": "adam", **{name: getattr(config, name) for name in names}}
    return Learner(params, optimizer.init(params), update, "ternary", 1, settings)


def optimizer_of(config: PretrainConfig) -> optax.GradientTransformation:
    """Adam with a clipped gradient."""
    steps = config.generations
    rate = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, max(steps // 20, 1), max(steps, 2))
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))


def loss(params: Any, config: PretrainConfig, stream: Stream, places: Int32[Array, "batch"]) -> Float32[Array, ""]:
    """Nats a message, over stretches that begin at `places`."""
    return -field_probabilities(params, config, stream, places).sum(-1).mean()


def field_probabilities(
    params: Any, config: PretrainConfig, stream: Stream, places: Int32[Array, "batch"]
) -> Float32[Array, "batch length fields"]:
    """Log-probability of each modelled field of the messages after those at `places` and on."""

    def one(place: Int32[Array, ""]) -> Float32[Array, "length fields"]:
        own = lambda leaf, count: jax.lax.dynamic_slice_in_dim(leaf, place, count)
        tokens = own(stream.tokens, config.length + 1)
        start = start_carry(model_of(config))
        _, hidden = advance(params, start, tokens[:-1], own(stream.features, config.length))
        return log_probabilities(params, hidden, tokens[1:])

    return jax.vmap(one)(places)


class _Measure:
    """Parameters → perplexities on held-out messages, and on those of a real sample."""

    def __init__(self, config: PretrainConfig, held_out: Stream, sample: Stream | None) -> None:
        streams = {"": held_out} | ({} if sample is None else {"sample_": sample})
        self._streams = {prefix: (own, _side_by_side(own, config.length)) for prefix, own in streams.items()}
        self._of = jax.jit(lambda params, stream, places: field_probabilities(params, config, stream, places))
        self._batch = config.batch

    def __call__(self, params: Any) -> Metrics:
        found: Metrics = {}
        for prefix, (stream, places) in self._streams.items():
            fields = self._fields(params, stream, places)
            found[f"{prefix}nats_per_message"] = -float(fields.sum())
            for name, parts in TOLD.items():
                nats = -sum(float(fields[MODELLED.index(part)]) for part in parts)
                found[f"{prefix}perplexity_{name}"] = float(np.exp(min(nats, 50.0)))
        return found

    def _fields(self, params: Any, stream: Stream, places: np.ndarray) -> np.ndarray:
        """Mean over messages, by field, of the stretches that begin at `places`."""
        size = min(self._batch, len(places))
        usable = len(places) // size * size
        batches = [self._of(params, stream, jnp.asarray(part)) for part in places[:usable].reshape(-1, size)]
        return np.mean([np.asarray(batch).mean((0, 1)) for batch in batches], axis=0)


def _side_by_side(stream: Stream, length: int) -> np.ndarray:
    """Of all starts those whose stretches do not overlap, at most so many."""
    chosen, after = [], -1
    for start in np.asarray(stream.starts).tolist():
        if start >= after:
            chosen.append(start)
            after = start + length
    return np.array(chosen[:_MOST_WINDOWS], np.int32)


def _messages(config: PretrainConfig) -> int:
    return config.batch * config.length


def _describe(config: PretrainConfig, learner: Learner[Any], train: Stream, held_out: Stream) -> str:
    what = f"recorded days in {config.data}" if config.data else f"{config.markets} generated days"
    return (
        f"S5 of {config.layers} layers of {config.width}, {parameter_count(learner.parameters):,} parameters; {what}: "
        f"{len(train.tokens):,} messages, {len(held_out.tokens):,} held out; {config.batch} stretches of "
        f"{config.length} a step"
    )


def learner_of(header: dict[str, Any], base: Path | None = None) -> Learner[Any]:
    """The learner that a journal's header describes.

    Args:
      base: start parameters of elsewhere, in place of the seed's.
    Raises:
      UsageError: its settings are none of this job's, or its data is not here any more.
    """
    config = header.get("config")
    if not isinstance(config, dict) or header.get("job") != "trade-pretrain":
        raise UsageError("expected settings of eggroll trade pretrain in the journal's header, got none; use another")
    recorded = from_json(PretrainConfig, config, "the journal's header")
    learner = learner_for(recorded, streams_of(recorded)[0])
    if base is not None:
        start = filled(learner.parameters, load_parameters(base), str(base))
        learner = dataclasses.replace(learner, parameters=jax.tree.map(jnp.asarray, start))
    return learner


def worker_job(welcome: dict[str, Any]) -> Built:
    """There is no population to share.

    Raises:
      UsageError: always.
    """
    raise UsageError("expected a run with a population to work for, got one by a gradient; start no workers")


def load_model(path: Path) -> tuple[Any, ModelConfig]:
    """A pretrained model and its sizes, from the folder of its run, a snapshot or a .safetensors file.

    Raises:
      UsageError: it is no model of messages.
    """
    leaves = load_parameters(path)
    try:
        width = leaves["norm/scale"].shape[0]
        layers = len({name.split("/")[1] for name in leaves if name.startswith("layers/")})
        state = 2 * next(leaf.shape[0] for name, leaf in leaves.items() if name.endswith("ssm/log_step"))
        config = ModelConfig(width, layers, state, leaves["observe/kernel"].shape[0])
    except (KeyError, StopIteration, IndexError):
        raise UsageError(
            f"expected a message model in {path}, got other parameters; make one with eggroll trade pretrain"
        ) from None
    shapes = jax.eval_shape(lambda key: init_model(key, config), jax.random.key(0))
    start = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.tree.map(jnp.asarray, filled(start, leaves, str(path))), config
