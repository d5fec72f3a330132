"""S5 layers: a diagonal state space, over a sequence at once or a step at a time.

A layer keeps `pairs` complex states x and applies x_k = Λ̄ x_{k−1} + B̄ u_k, y_k = 2·Re(C x_k) + D·u_k, where
Λ̄ = exp(ΛΔ) and B̄ = (Λ̄ − 1)/Λ · B (zero-order hold). Every state stands for itself and its conjugate. Parameters are
nested dicts of float32, complex numbers as real and imaginary parts:

    ssm/log_decay, frequency, log_step (pairs,)     Λ = −exp(log_decay) + i·frequency; Δ = exp(log_step)
    ssm/input_real, input_imag (width, pairs)       Bᵀ
    ssm/output_real, output_imag (pairs, width)     Cᵀ
    ssm/skip (width,)                               D
    norm/scale, bias (width,)
    gate/kernel (width, width), gate/bias (width,)

Source: Smith, Warrington and Linderman, arXiv 2208.04933.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Key

Params = dict[str, Any]
NORM_EPS = 1e-6
BLOCK = 32
"""Sequences up to this length are taken step by step."""
STEPS = (1e-3, 1e-1)
"""Δ at the start is between these, uniform in its logarithm."""


class Discretised(NamedTuple):
    """A state space as its steps need it."""

    decay: Float[Array, " 2*pairs"]  # Λ̄, the real parts before the imaginary parts
    hold: Float[Array, " 2*pairs"]  # (Λ̄ − 1)/Λ, likewise
    inputs: Float[Array, "width 2*pairs"]  # Bᵀ, likewise
    outputs: Float[Array, "2*pairs width"]  # 2·Cᵀ, the real parts above the negated imaginary parts
    skip: Float[Array, " width"]  # D


def hippo(state: int) -> tuple[np.ndarray, np.ndarray]:
    """The normal part of HiPPO-LegS, diagonalised; one of each conjugate pair.

    Args:
      state: its size, even.
    Returns:
      Eigenvalues (state/2,) complex128, all of real part −½ and positive imaginary part, ascending; and eigenvectors
      (state, state/2), unitary, each with a first element that is positive.
    Source: arXiv 2208.04933, appendix on initialisation.
    """
    order = np.arange(state)
    root = np.sqrt(order + 0.5)
    skew = np.outer(root, root) * (np.sign(order[None] - order[:, None]))  # HiPPO + ½·P·Pᵀ + ½, from n² to ± alone
    frequency, vectors = np.linalg.eigh(-1j * skew)
    frequency, vectors = frequency[state // 2 :], vectors[:, state // 2 :]
    return -0.5 + 1j * frequency, vectors * (abs(vectors[0]) / vectors[0])


def normals(key: Key[Array, ""], *shapes: tuple[int, ...]) -> list[Array]:
    """Standard normal arrays, all from one draw: XLA takes half a second to compile each draw."""
    sizes = [math.prod(shape) for shape in shapes]
    parts = jnp.split(jax.random.normal(key, (sum(sizes),)), np.cumsum(sizes)[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def init_ssm(key: Key[Array, ""], width: int, state: int, steps: tuple[float, float] = STEPS) -> Params:
    """A state space at its start.

    Args:
      key: for B and C (normal, of variance 1/width and 1/state before they are turned to the eigenvectors), D (standard
        normal) and Δ.
      width: inputs, and outputs.
      state: size of the real state space, even; it has state/2 conjugate pairs.
      steps: lowest and highest Δ.
    """
    matrices, own = jax.random.split(key)
    eigenvalues, vectors = hippo(state)
    real, imag = (jnp.asarray(part, jnp.float32) for part in (vectors.real, vectors.imag))
    (b, c_real, c_imag), skip = normals(matrices, (3, width, state), (width,))
    b, c_real, c_imag = b / math.sqrt(width), c_real / math.sqrt(state), c_imag / math.sqrt(state)
    low, high = (math.log(step) for step in steps)
    return {
        "log_decay": jnp.asarray(np.log(-eigenvalues.real), jnp.float32),
        "frequency": jnp.asarray(eigenvalues.imag, jnp.float32),
        "log_step": jax.random.uniform(own, (state // 2,), minval=low, maxval=high),
        "input_real": b @ real,
        "input_imag": -b @ imag,
        "output_real": (c_real @ real - c_imag @ imag).T,
        "output_imag": (c_real @ imag + c_imag @ real).T,
        "skip": skip,
    }


def init_layer(key: Key[Array, ""], width: int, state: int) -> Params:
    """A layer at its start: norm, state space, gate."""
    ssm, gate = jax.random.split(key)
    kernel = jax.random.normal(gate, (width, width)) / math.sqrt(width)
    return {
        "norm": init_norm(width),
        "ssm": init_ssm(ssm, width, state),
        "gate": {"kernel": kernel, "bias": jnp.zeros(width)},
    }


def init_norm(width: int) -> Params:
    """A layer norm at its start."""
    return {"scale": jnp.ones(width), "bias": jnp.zeros(width)}


def discretised(params: Params | Discretised) -> Discretised:
    """A state space as its steps need it; what is so already stays."""
    if isinstance(params, Discretised):
        return params
    rate, frequency, step = -jnp.exp(params["log_decay"]), params["frequency"], jnp.exp(params["log_step"])
    size, angle = rate * step, frequency * step
    real, imag = jnp.exp(size) * jnp.cos(angle), jnp.exp(size) * jnp.sin(angle)
    # Λ̄ − 1 without the cancellation that a small step would bring
    grown = jnp.expm1(size) * jnp.cos(angle) - 2 * jnp.sin(angle / 2) ** 2
    return Discretised(
        decay=jnp.concatenate([real, imag]),
        hold=jnp.concatenate(_quotient(grown, imag, rate, frequency)),
        inputs=jnp.concatenate([params["input_real"], params["input_imag"]], axis=1),
        outputs=jnp.concatenate([2 * params["output_real"], -2 * params["output_imag"]]),
        skip=params["skip"],
    )


def _quotient(a: Array, b: Array, c: Array, d: Array) -> tuple[Array, Array]:
    """(a + i·b) / (c + i·d)."""
    size = c * c + d * d
    return (a * c + b * d) / size, (b * c - a * d) / size


def ssm_scan(
    params: Params | Discretised, state: Float[Array, "2 pairs"], inputs: Float[Array, "time width"]
) -> tuple[Float[Array, "2 pairs"], Float[Array, "time width"]]:
    """The state space over a sequence of one step or more.

    Args:
      params: from `init_ssm`, or from `discretised`.
      state: before the first step, real and imaginary parts.
    Returns:
      The state after the last step, and the outputs.
    """
    ssm = discretised(params)
    states = _states(ssm.decay, state.reshape(-1), _driven(ssm, inputs))
    return states[-1].reshape(2, -1), states @ ssm.outputs + inputs * _along(ssm.skip, inputs)


def ssm_step(
    params: Params | Discretised, state: Float[Array, "2 pairs"], inputs: Float[Array, " width"]
) -> tuple[Float[Array, "2 pairs"], Float[Array, " width"]]:
    """One step; see `ssm_scan`."""
    ssm = discretised(params)
    new = _times(ssm.decay, state.reshape(-1)) + _driven(ssm, inputs)
    return new.reshape(2, -1), new @ ssm.outputs + inputs * ssm.skip


def _driven(ssm: Discretised, inputs: Float[Array, "*n width"]) -> Float[Array, "*n both"]:
    """B̄ u: the product with B, which may be a low-rank member of a population, and then with what holds it."""
    product = inputs @ ssm.inputs
    return _times(_along(ssm.hold, product), product)


def _along(vector: Array, x: Array) -> Array:
    """A vector for each position of x."""
    return jnp.broadcast_to(vector, x.shape)


def _times(a: Float[Array, "*m both"], b: Float[Array, "*n both"]) -> Float[Array, "*k both"]:
    """Complex products; the real parts stand before the imaginary parts."""
    (a, i), (b, j) = (jnp.split(x, 2, axis=-1) for x in (a, b))
    return jnp.concatenate([a * b - i * j, a * j + i * b], axis=-1)


def _recur(
    decay: Float[Array, " both"], start: Float[Array, "*n both"], driven: Float[Array, "time *n both"]
) -> Float[Array, "time *n both"]:
    """x_k = decay · x_{k−1} + driven_k, step by step."""
    decay = _along(decay, start)

    def step(x: Array, b: Array) -> tuple[Array, Array]:
        x = _times(decay, x) + b
        return x, x

    return lax.scan(step, start, driven)[1]


def _states(
    decay: Float[Array, " both"], start: Float[Array, " both"], driven: Float[Array, "time both"]
) -> Float[Array, "time both"]:
    """The same in about 2·√time steps: all blocks at once from zero, then from block to block.

    On two cores this takes half the time of `lax.associative_scan`, forwards and backwards, and a tenth of its
    compilation.
    """
    time, both = driven.shape
    if time <= BLOCK:
        return _recur(decay, start, driven)
    block = 1 << ((time - 1).bit_length() + 1) // 2
    blocks = -(-time // block)
    padded = jnp.pad(driven, [(0, block * blocks - time), (0, 0)])
    within = _recur(decay, jnp.zeros((blocks, both)), padded.reshape(blocks, block, both).swapaxes(0, 1))
    one = jnp.repeat(jnp.array([1.0, 0.0]), both // 2)
    powers = _recur(decay, one, jnp.zeros((block, both)))
    ends = _recur(powers[-1], start, within[-1])
    before = jnp.concatenate([start[None], ends[:-1]])
    states = within + _times(powers[:, None], before[None])
    return states.swapaxes(0, 1).reshape(-1, both)[:time]


def layer_norm(params: Params, x: Float[Array, "*n width"]) -> Float[Array, "*n width"]:
    """Each position less its mean, over its standard deviation; then scale and bias."""
    centred = x - x.mean(-1, keepdims=True)
    normed = centred * lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + NORM_EPS)
    return normed * _along(params["scale"], x) + _along(params["bias"], x)


def layer_scan(
    layer: Params, state: Float[Array, "2 pairs"], x: Float[Array, "time width"]
) -> tuple[Float[Array, "2 pairs"], Float[Array, "time width"]]:
    """A layer over a sequence: x + g · sigmoid(gate(g)), where g = GELU(state space(norm(x))).

    Args:
      layer: from `init_layer`; its `ssm` may be discretised.
      state: before the first step.
    Returns:
      The state after the last step, and the outputs.
    """
    return _layer(ssm_scan, layer, state, x)


def layer_step(
    layer: Params, state: Float[Array, "2 pairs"], x: Float[Array, " width"]
) -> tuple[Float[Array, "2 pairs"], Float[Array, " width"]]:
    """One step of a layer; see `layer_scan`."""
    return _layer(ssm_step, layer, state, x)


def _layer(apply: Callable[..., Any], layer: Params, state: Array, x: Array) -> tuple[Array, Array]:
    state, outputs = apply(layer["ssm"], state, layer_norm(layer["norm"], x))
    inner = jax.nn.gelu(outputs)
    gate = inner @ layer["gate"]["kernel"]
    return state, x + inner * jax.nn.sigmoid(gate + _along(layer["gate"]["bias"], gate))
