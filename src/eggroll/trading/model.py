"""A model of the messages of a limit order book: which message comes next, field by field.

A position of the sequence is a message: the embeddings of its modelled fields, plus a projection of what else was seen
with it (the book, an inventory), go through S5 layers. The fields of the next message are then predicted one after
another, each from the last layer and from the fields before it. Parameters are nested dicts of float32:

    embed/FIELD (values, width)                     of each of `tokens.MODELLED`
    observe/kernel (features, width)
    layers/0, layers/1, …                           see `s5`
    norm/scale, bias (width,)
    head/hidden/kernel (width, modelled · width), head/hidden/bias        a block of columns a field, in order
    head/embed/FIELD (values, width)                of all but the last
    head/logits/kernel (width, all values), head/logits/bias              likewise

The dense projections are the leaves `*/kernel`, which may be replaced by low-rank members of a population.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Int32, Key

from eggroll.core.errors import UsageError
from eggroll.trading.s5 import Params, discretised, init_layer, init_norm, layer_norm, layer_scan, layer_step, normals
from eggroll.trading.tokens import COLUMN, MODELLED, VALUES

_SPANS = dict(
    zip(MODELLED, itertools.pairwise(itertools.accumulate((VALUES[name] for name in MODELLED), initial=0)), strict=True)
)
"""The columns of head/logits that are a field's."""
_TOTAL = _SPANS[MODELLED[-1]][1]
_LOW = tuple(name for name in VALUES if name not in MODELLED)


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of a model.

    Attributes:
      width: of a position.
      layers: S5 layers.
      state: of each layer, even; state/2 complex numbers.
      features: numbers seen with a message besides it.
    """

    width: int = 64
    layers: int = 4
    state: int = 64
    features: int = 8

    def __post_init__(self) -> None:
        for name in ("width", "layers", "state", "features"):
            if getattr(self, name) < 1:
                raise UsageError(f"expected {name} ≥ 1, got {getattr(self, name)}; the default is a good start")
        if self.state % 2:
            raise UsageError(f"expected an even state, got {self.state}; its numbers are complex, in conjugate pairs")


def init_model(key: Key[Array, ""], config: ModelConfig) -> Params:
    """A model at its start, as the module says."""
    width, hidden = config.width, len(MODELLED) * config.width
    one, two = jax.random.split(key)
    layers = jax.vmap(lambda own: init_layer(own, width, config.state))(jax.random.split(one, config.layers))
    shapes = (_TOTAL, width), (config.features, width), (width, hidden), (_TOTAL, width), (width, _TOTAL)
    embed, observe, inner, seen, logits = normals(two, *shapes)
    return {
        "embed": _tables(embed, MODELLED),
        "observe": {"kernel": observe / math.sqrt(config.features)},
        "layers": {str(index): jax.tree.map(lambda leaf, at=index: leaf[at], layers) for index in range(config.layers)},
        "norm": init_norm(width),
        "head": {
            "hidden": {"kernel": inner / math.sqrt(width), "bias": jnp.zeros(hidden)},
            "embed": _tables(seen, MODELLED[:-1]),
            "logits": {"kernel": logits / math.sqrt(width), "bias": jnp.zeros(_TOTAL)},
        },
    }


def _tables(rows: Float[Array, "all width"], names: tuple[str, ...]) -> Params:
    """Embeddings of some fields, whose sum has unit variance."""
    return {name: rows[slice(*_SPANS[name])] / math.sqrt(len(names)) for name in names}


def prepared(params: Params) -> Params:
    """The same model with its layers discretised, so that a loop of steps does not do it in each; all below take it."""
    layers = {index: {**layer, "ssm": discretised(layer["ssm"])} for index, layer in params["layers"].items()}
    return {**params, "layers": layers}


def start_carry(config: ModelConfig) -> Float[Array, "layers 2 pairs"]:
    """The states of all layers before the first message: zeros."""
    return jnp.zeros((config.layers, 2, config.state // 2))


def advance(
    params: Params,
    carry: Float[Array, "layers 2 pairs"],
    tokens: Int[Array, "time fields"],
    features: Float[Array, "time features"],
) -> tuple[Float[Array, "layers 2 pairs"], Float[Array, "time width"]]:
    """Read messages, one or more, in a row.

    Args:
      carry: from `start_carry`, or from the messages before.
      tokens: rows of `tokens.encode`; columns that are not modelled are not read.
      features: what was seen with each message.
    Returns:
      The carry after the last; and a vector for each message, from which the next is predicted.
    """
    return _through(params, carry, tokens, features, layer_scan)


def step(
    params: Params,
    carry: Float[Array, "layers 2 pairs"],
    tokens: Int[Array, " fields"],
    features: Float[Array, " features"],
) -> tuple[Float[Array, "layers 2 pairs"], Float[Array, " width"]]:
    """Read one message; see `advance`."""
    return _through(params, carry, tokens, features, layer_step)


def _through(params: Params, carry: Array, tokens: Array, features: Array, layer: Callable[..., Any]) -> Any:
    x = features @ params["observe"]["kernel"]
    for name in MODELLED:
        x = x + params["embed"][name][tokens[..., COLUMN[name]]]
    ends = []
    for index in range(len(params["layers"])):
        end, x = layer(params["layers"][str(index)], carry[index], x)
        ends.append(end)
    return jnp.stack(ends), layer_norm(params["norm"], x)


def _affine(dense: Params, x: Array, start: int, stop: int) -> Array:
    """Some outputs of a dense projection."""
    out = x @ dense["kernel"][:, start:stop]
    return out + jnp.broadcast_to(dense["bias"][start:stop], out.shape)


def _logits(head: Params, hidden: Array, seen: Array, field: str) -> Array:
    """Logits of a field; `seen` is the sum of the embeddings of the fields before it."""
    place, width = MODELLED.index(field), hidden.shape[-1]
    inner = _affine(head["hidden"], hidden, place * width, (place + 1) * width) + seen
    return _affine(head["logits"], jax.nn.gelu(inner), *_SPANS[field])


def field_logits(
    params: Params, hidden: Float[Array, "*n width"], tokens: Int[Array, "*n fields"], field: str
) -> Float[Array, "*n values"]:
    """Logits of one field of the next message.

    Args:
      hidden: from `advance` or `step`.
      tokens: the next message's row, of which only the modelled fields before this one are read.
      field: one of `tokens.MODELLED`.
    """
    head, seen = params["head"], jnp.zeros_like(hidden)
    for name in MODELLED[: MODELLED.index(field)]:
        seen = seen + head["embed"][name][tokens[..., COLUMN[name]]]
    return _logits(head, hidden, seen, field)


def log_probabilities(
    params: Params, hidden: Float[Array, "*n width"], targets: Int[Array, "*n fields"]
) -> Float[Array, "*n modelled"]:
    """Log-probability, in nats, of each modelled field of the messages that follow, given the fields before it.

    Args:
      hidden: from `advance` or `step`.
      targets: the message after each.
    Returns:
      Columns as `tokens.MODELLED`.
    """
    head, seen, found = params["head"], jnp.zeros_like(hidden), []
    for name in MODELLED:
        logits, target = _logits(head, hidden, seen, name), targets[..., COLUMN[name]]
        # a masked sum, whose gradient takes half the time of a lookup's on CPUs
        chosen = jnp.where(jax.nn.one_hot(target, VALUES[name], dtype=bool), logits, 0).sum(-1)
        found.append(chosen - jax.nn.logsumexp(logits, axis=-1))
        if name in head["embed"]:
            seen = seen + head["embed"][name][target]
    return jnp.stack(found, axis=-1)


def draw(
    params: Params,
    hidden: Float[Array, " width"],
    key: Key[Array, ""],
    *,
    given: Mapping[str, ArrayLike | None] | None = None,
    temperature: ArrayLike = 1.0,
    allowed: Mapping[str, Bool[Array, " values"]] | None = None,
) -> Int32[Array, " fields"]:
    """Draw the next message, one field after another.

    Args:
      hidden: from `advance` or `step`.
      given: field → its token, which is not drawn; the fields after it see it. None is as if it were not there.
      temperature: logits are divided by it; 0: the likeliest token of each field.
      allowed: field → which of its tokens may be drawn, at least one.
    Returns:
      A row of tokens. The low columns of the gap, which are not modelled, are uniform where they are not given.
    Raises:
      UsageError: `given` names no field, or `allowed` none that is modelled.
    """
    given, allowed = given or {}, allowed or {}
    _known("given", given, COLUMN)
    _known("allowed", allowed, MODELLED)
    head, seen, row = params["head"], jnp.zeros_like(hidden), []
    one, two = jax.random.split(key)
    noise = _noise(one, temperature)
    low = dict(zip(_LOW, jax.random.randint(two, (len(_LOW),), 0, VALUES[_LOW[0]]), strict=True))
    for name in VALUES:
        token = given.get(name)
        if token is None:
            token = low[name] if name in low else _likeliest(_logits(head, hidden, seen, name), name, noise, allowed)
        row.append(jnp.asarray(token, jnp.int32))
        if name in head["embed"]:
            seen = seen + head["embed"][name][row[-1]]
    return jnp.stack(row)


def _noise(key: Key[Array, ""], temperature: ArrayLike) -> Array | None:
    """Gumbel noise by the temperature for all logits; the largest sum of both is a draw from softmax(logits / T)."""
    if isinstance(temperature, int | float) and temperature == 0:
        return None
    return jax.random.gumbel(key, (_TOTAL,)) * temperature


def _likeliest(logits: Array, field: str, noise: Array | None, allowed: Mapping[str, Array]) -> Array:
    if noise is not None:
        logits = logits + noise[slice(*_SPANS[field])]
    return jnp.argmax(jnp.where(allowed[field], logits, -jnp.inf) if field in allowed else logits)


def _known(what: str, names: Iterable[str], known: Iterable[str]) -> None:
    for name in names:
        if name not in known:
            raise UsageError(f"expected {what} fields among {', '.join(known)}, got {name!r}; choose one of these")
