"""Networks of a user's own, found by import path: of Flax, of Equinox, as functions, and things that are none."""

from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp


class Linen(nn.Module):
    """Takes the number of outputs alone."""

    outputs: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.Dense(self.outputs)(nn.relu(nn.Dense(4)(x)))


def linen(inputs: int, outputs: int) -> Any:
    return nn.Sequential([nn.Dense(4), jnp.tanh, nn.Dense(outputs)])


def equinox(inputs: int, outputs: int) -> Any:
    return lambda key: eqx.nn.MLP(inputs, outputs, 4, 1, key=key)


def pair(inputs: int, outputs: int) -> Any:
    def init(key: Any) -> Any:
        return {"w": jax.random.normal(key, (inputs, outputs)), "b": jnp.zeros(outputs)}

    return init, lambda params, x: x @ params["w"] + params["b"]


def heads(inputs: int, outputs: int) -> Any:
    """A leaf of three axes."""

    def init(key: Any) -> Any:
        return {"w": jax.random.normal(key, (inputs, 2, outputs))}

    return init, lambda params, x: jnp.einsum("i,iho->o", x, params["w"])


def nothing(inputs: int, outputs: int) -> Any:
    return 7


def three(inputs: int, hidden: int, outputs: int, more: int) -> Any:
    return None


number = 7
