"""The policy: three hidden layers of 256 with LayerNorm and ReLU, for any action space; or one of the user's own.

Source: arXiv 2511.16652, appendix on reinforcement learning (network and settings).
"""

from __future__ import annotations

import functools
import importlib
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from eggroll.core.errors import UsageError
from eggroll.rl.environments.base import ActionSpace, Box, Discrete, Environment, MultiDiscrete

HIDDEN = (256, 256, 256)
EPSILON = 1e-6
OBSERVATION_LIMIT = 10.0
"""Normalised observations are cut here, in standard deviations."""
START_STD = 0.5
"""Of a stochastic continuous action, as a share of half its range."""


class Policy(NamedTuple):
    """A policy as two pure functions."""

    init: Callable[[Any], Any]
    """Key → parameters."""
    act: Callable[[Any, Any, Any], Any]
    """(parameters, key, observation (size,)) → an action of the space."""


Network = tuple[Callable[[Any], Any], Callable[[Any, Any], Any]]
"""key → parameters, and (parameters, observation (size,)) → the numbers that `decide` takes, (outputs,)."""


def outputs(space: ActionSpace, deterministic: bool) -> int:
    """How many numbers a network gives: logits, or means and, where actions are drawn, logarithms of deviations."""
    if isinstance(space, Discrete):
        return space.n
    if isinstance(space, MultiDiscrete):
        return sum(space.sizes)
    return space.size if deterministic else 2 * space.size


def decide(space: ActionSpace, deterministic: bool, numbers: Float[Array, " outputs"], key: Any) -> Array:
    """The action that a network's numbers come to.

    Args:
      numbers: (outputs,): logits of each choice in turn; or of a `Box` the means, and then the logarithms of standard
        deviations as shares of the range. tanh of a mean is brought into the range; a bound at infinity leaves it as
        it is.
      key: typed; unused where deterministic.
    Returns:
      int32 () of a `Discrete`, int32 (choices,) of a `MultiDiscrete`, float32 (size,) within bounds of a `Box`.
    """
    if isinstance(space, Box):
        return _continuous(space, deterministic, numbers, key)
    sizes = (space.n,) if isinstance(space, Discrete) else space.sizes
    edges = list(itertools.accumulate(sizes))[:-1]
    chosen = []
    for place, logits in enumerate(jnp.split(numbers, edges)):
        if deterministic:
            chosen.append(jnp.argmax(logits))
        else:
            chosen.append(jax.random.categorical(jax.random.fold_in(key, place), logits))
    action = jnp.stack(chosen).astype(jnp.int32)
    return action[0] if isinstance(space, Discrete) else action


def _continuous(space: Box, deterministic: bool, numbers: Array, key: Any) -> Array:
    low, high = jnp.array(space.low, jnp.float32), jnp.array(space.high, jnp.float32)
    bounded = jnp.isfinite(low) & jnp.isfinite(high)
    middle = jnp.where(bounded, (low + high) / 2, 0.0)
    reach = jnp.where(bounded, (high - low) / 2, 1.0)
    mean = jnp.where(bounded, jnp.tanh(numbers[: space.size]), numbers[: space.size])
    if deterministic:
        return jnp.clip(middle + reach * mean, low, high)
    deviation = START_STD * jnp.exp(jnp.clip(numbers[space.size :], -5.0, 2.0))
    drawn = mean + deviation * jax.random.normal(key, mean.shape)
    return jnp.clip(middle + reach * drawn, low, high)


def mlp(inputs: int, numbers: int, hidden: Sequence[int] = HIDDEN) -> Network:
    """Dense → LayerNorm → ReLU for each hidden layer, then Dense; kernels start LeCun normal, the last at 0.01 of it.

    Parameters: {"layer_0": {"kernel": (inputs, hidden), "bias", "scale", "offset"}, …, "head": {"kernel", "bias"}}.
    """
    sizes = [inputs, *hidden, numbers]

    def init(key: Any) -> dict[str, Any]:
        params: dict[str, Any] = {}
        for k, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
            last = k == len(hidden)
            kernel = jax.random.normal(jax.random.fold_in(key, k), (fan_in, fan_out)) / math.sqrt(fan_in)
            layer = {"kernel": kernel * (0.01 if last else 1.0), "bias": jnp.zeros(fan_out)}
            if not last:
                layer |= {"scale": jnp.ones(fan_out), "offset": jnp.zeros(fan_out)}
            params["head" if last else f"layer_{k}"] = layer
        return params

    def apply(params: dict[str, Any], observation: Float[Array, " inputs"]) -> Float[Array, " outputs"]:
        x = observation
        for k in range(len(hidden)):
            layer = params[f"layer_{k}"]
            x = x @ layer["kernel"] + layer["bias"]
            x = jax.nn.relu(_layer_norm(x) * layer["scale"] + layer["offset"])
        return x @ params["head"]["kernel"] + params["head"]["bias"]

    return init, apply


def _layer_norm(x: Array) -> Array:
    centred = x - x.mean()
    return centred * jax.lax.rsqrt(jnp.square(centred).mean() + EPSILON)


def make_policy(
    environment: Environment, *, network: str = "", hidden: Sequence[int] = HIDDEN, deterministic: bool = False
) -> Policy:
    """A policy for an environment with one agent.

    Args:
      network: "module:name" of a network of the user's own (see `load_network`); "": `mlp`.
      hidden: sizes of the layers of `mlp`.
      deterministic: take the likeliest choice, or the mean, instead of drawing.
    """
    space = environment.action_space
    numbers = outputs(space, deterministic)
    init, apply = (
        load_network(network, environment.observation_size, numbers)
        if network
        else mlp(environment.observation_size, numbers, hidden)
    )

    def act(params: Any, key: Any, observation: Array) -> Array:
        return decide(space, deterministic, apply(params, observation), key)

    return Policy(init, act)


def make_team_policy(
    environment: Environment, *, shared: bool, hidden: Sequence[int], deterministic: bool = False
) -> Policy:
    """A policy for an environment with several agents, each of which sees its own observation alone.

    Args:
      shared: all agents have the same parameters, and their observation says which agent they are; otherwise each has
        parameters of its own under its name.
    """
    agents, space = environment.agents, environment.action_space
    assert isinstance(space, Discrete)  # the games here have no other
    names = jnp.eye(len(agents), dtype=jnp.float32)
    allowed = jnp.array([[k < count for k in range(space.n)] for count in environment.actions])
    inputs = environment.observation_size + (len(agents) if shared else 0)
    init_one, apply = mlp(inputs, space.n, hidden)

    def choose(logits: Array, own: Array, key: Any) -> Array:
        return decide(space, deterministic, jnp.where(own, logits, -1e9), key)

    def init(key: Any) -> Any:
        if shared:
            return init_one(key)
        return {name: init_one(jax.random.fold_in(key, k)) for k, name in enumerate(agents)}

    def act(params: Any, key: Any, observations: Float[Array, "agents size"]) -> Array:
        keys = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(len(agents)))
        if shared:
            logits = jax.vmap(functools.partial(apply, params))(jnp.concatenate([observations, names], axis=1))
        else:
            logits = jnp.stack([apply(params[name], observations[k]) for k, name in enumerate(agents)])
        return jax.vmap(choose)(logits, allowed, keys)

    return Policy(init, act)


def load_network(path: str, inputs: int, numbers: int) -> Network:
    """A network of the user's own: a Flax Linen or Equinox module, or two functions.

    Args:
      path: "module:name" of a function `(inputs, outputs) → network`, or of a Flax Linen module class that takes
        `outputs` alone. The network is a Flax Linen module, a function of a key that makes an Equinox module (or any
        pytree that is called with an observation), or a pair of functions as in `Network`.
    Raises:
      UsageError: there is no such thing, or it is none of these.
    """
    made = _imported(path)
    try:
        network = made(inputs, numbers)
    except TypeError:
        try:
            network = made(numbers)
        except TypeError as error:
            raise UsageError(
                f"expected --policy {path} to take (inputs, outputs) numbers, got {error}; see docs/rl.md"
            ) from None
    if isinstance(network, tuple) and len(network) == 2:
        return network
    if hasattr(network, "init") and hasattr(network, "apply"):
        return (lambda key: network.init(key, jnp.zeros(inputs)), lambda params, x: network.apply(params, x))
    if callable(network):
        return _of_equinox(network)
    raise UsageError(
        f"expected --policy {path} to make a Flax module, a function key → Equinox module, or a pair of functions, "
        f"got a {type(network).__name__}; see docs/rl.md"
    )


def _of_equinox(make: Callable[[Any], Any]) -> Network:
    """Arrays of an Equinox module are parameters, all else is part of the program."""
    skeleton = jax.eval_shape(lambda key: _arrays(make(key)), jax.random.key(0))
    _, tree = jax.tree.flatten(skeleton)
    rest = _others(make(jax.random.key(0)))

    def init(key: Any) -> Any:
        return {f"{k:03}": leaf for k, leaf in enumerate(jax.tree.leaves(_arrays(make(key))))}

    def apply(params: Any, observation: Array) -> Any:
        arrays = jax.tree.unflatten(tree, [params[name] for name in sorted(params)])
        model = jax.tree.map(lambda a, b: b if a is None else a, arrays, rest, is_leaf=lambda leaf: leaf is None)
        return model(observation)

    return init, apply


def _arrays(model: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf if isinstance(leaf, jax.Array) else None, model)


def _others(model: Any) -> Any:
    return jax.tree.map(lambda leaf: None if isinstance(leaf, jax.Array) else leaf, model)


def _imported(path: str) -> Callable[..., Any]:
    module, _, name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise UsageError(
            f"expected --policy module:name that can be imported, got {path!r} ({error}); run it where the module is"
        ) from None
    if not callable(found):
        raise UsageError(f"expected --policy {path} to be a function, got a {type(found).__name__}; see docs/rl.md")
    return found
