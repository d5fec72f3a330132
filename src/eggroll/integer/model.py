"""EGG, the recurrent byte model whose every number is an integer, run for a chunk of the population at once.

A chunk is laid out as (signs, pairs, width): the two members of a pair share their factors and lie one sign apart, so
noise is drawn, kept and read once for both. An unperturbed model is a chunk without factors, whose signs axis is 1 and
whose pairs axis counts independent sequences.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int8, Int32, Integer, UInt8

from eggroll.core.errors import UsageError
from eggroll.core.mesh import largest_divisor
from eggroll.integer.arithmetic import (
    FRACTION_BITS,
    Factors,
    expand,
    linear,
    log_likelihood,
    normalise,
    output_shift,
    perturbation_shift,
    saturate,
)

VOCABULARY = 256
BLOCK_ROWS = 4096
"""Rows of one matrix product that the time axis is blocked to: enough for full speed, few enough for the cache."""
ACCELERATOR_BLOCK_ROWS = 65536
"""The same on accelerators, where fewer rows would leave some of them idle."""

Parameters = dict[str, Any]
"""`embedding`, `head`, `norm_out`, and under `blocks`, stacked over layers, `norm1`, `Wf`, `Uf`, `bf`, `Wh`, `Uh`,
`bh`, `norm2`, `W1`, `W2`; all int8, matrices (out, in)."""


@dataclass(frozen=True)
class Config:
    """Shape of the model and scale of its perturbations.

    Args:
      layers: number of blocks, ≥ 1.
      width: units of the residual stream, a power of 4 from 16.
      sigma_shift: perturbation standard deviation is 2^−sigma_shift in units of 1.0 (16 steps of a weight).
      rank: rank of a perturbation, a power of 4 up to the width.
    """

    layers: int = 6
    width: int = 256
    sigma_shift: int = 4
    rank: int = 1

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise UsageError(f"expected at least one layer, got {self.layers}; set layers to 1 or more")
        output_shift(self.width)
        perturbation_shift(self.sigma_shift, self.rank)
        if self.width < 16 or self.rank > self.width:
            raise UsageError(
                f"expected width ≥ 16 and rank ≤ width, got width {self.width} and rank {self.rank}; "
                "raise the width or lower the rank"
            )

    @property
    def parameter_count(self) -> int:
        """`513·D + L·(4·D + 12·D²)`."""
        return 513 * self.width + self.layers * (4 * self.width + 12 * self.width**2)


def leaf_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """The shape of each leaf by its path; blocks are stacked on axis 0."""
    layers, width = config.layers, config.width
    vectors = dict.fromkeys(("norm1", "bf", "bh", "norm2"), (layers, width))
    squares = dict.fromkeys(("Wf", "Uf", "Wh", "Uh"), (layers, width, width))
    wide = {"W1": (layers, 4 * width, width), "W2": (layers, width, 4 * width)}
    blocks = {f"blocks/{name}": shape for name, shape in (vectors | squares | wide).items()}
    return {"embedding": (VOCABULARY, width), "head": (VOCABULARY, width), "norm_out": (width,)} | blocks


def is_matrix(path: str) -> bool:
    """Whether the leaf is a matrix (perturbed by two factors) rather than a vector (by a product of two draws)."""
    return not path.endswith(("norm1", "norm2", "norm_out", "bf", "bh"))


def is_stacked(path: str) -> bool:
    """Whether the leaf has a leading axis of layers."""
    return path.startswith("blocks/")


def nested(leaves: dict[str, Any]) -> dict[str, Any]:
    """A tree from leaves by path: `{"blocks/W1": x}` → `{"blocks": {"W1": x}}`."""
    blocks = {path.removeprefix("blocks/"): leaf for path, leaf in leaves.items() if path.startswith("blocks/")}
    return {path: leaf for path, leaf in leaves.items() if not path.startswith("blocks/")} | {"blocks": blocks}


def flat(tree: dict[str, Any]) -> dict[str, Any]:
    """Leaves by path from a tree; the inverse of `nested`."""
    blocks = {f"blocks/{name}": leaf for name, leaf in tree["blocks"].items()}
    return {path: leaf for path, leaf in tree.items() if path != "blocks"} | blocks


def init_parameters(config: Config, seed: int) -> Parameters:
    """Start parameters: matrices `round(16·N(0, 1))` saturated, LN weights 16, biases 0; int8 NumPy arrays."""
    generator = np.random.default_rng(seed)
    leaves = {}
    for path, shape in leaf_shapes(config).items():
        if is_matrix(path):
            leaves[path] = np.round(16 * generator.standard_normal(shape)).clip(-127, 127).astype(np.int8)
        else:
            leaves[path] = np.full(shape, 16 if "norm" in path else 0, np.int8)
    return nested(leaves)


def zero_state(config: Config, signs: int, pairs: int) -> Int8[Array, "layers signs pairs width"]:
    """The state at the start of a document."""
    return jnp.zeros((config.layers, signs, pairs, config.width), jnp.int8)


def sign_axis(perturbed: bool) -> Int32[Array, "signs 1 1"]:
    """`[+1, −1]` for the members of a pair, `[+1]` for an unperturbed chunk."""
    return jnp.asarray([1, -1] if perturbed else [1], jnp.int32).reshape(-1, 1, 1)


def embed(
    embedding: Int8[Array, "bytes width"],
    factors: Factors | None,
    tokens: UInt8[Array, "time pairs"],
    signs: Int32[Array, "signs 1 1"],
    config: Config,
) -> Int8[Array, "time signs pairs width"]:
    """`sat(E[t] + ((±A[t]·Bᵀ) ≫ (4 + s + log2(r)/2)))`, the rank summed before the shift."""
    rows = embedding.astype(jnp.int32)[tokens.astype(jnp.int32)][:, None]
    if factors is None:
        return rows.astype(jnp.int8)
    pairs = jnp.arange(tokens.shape[1])[None]
    chosen = factors.a.astype(jnp.int32)[pairs, :, tokens.astype(jnp.int32)]  # (time, pairs, rank)
    delta: Array | int = 0
    for k in range(config.rank):
        row = expand(factors.b[:, k].astype(jnp.int32), 4)
        delta = delta + (chosen[:, None, :, k, None] * expand(signs, 4)) * row
    return saturate(rows + (delta >> perturbation_shift(config.sigma_shift, config.rank))).astype(jnp.int8)


def vector(
    value: Int8[Array, "width"],
    product: Integer[Array, "pairs width"] | None,
    signs: Int32[Array, "signs 1 1"],
    config: Config,
) -> Int32[Array, "signs #pairs width"]:
    """`sat(p + ((±a·b) ≫ (4 + s)))`, with `product` = a·b, which 16 bits hold."""
    base = value.astype(jnp.int32)[None, None]
    if product is None:
        return base
    return saturate(base + ((product.astype(jnp.int32)[None] * signs) >> (FRACTION_BITS + config.sigma_shift)))


def gated_step(
    block: Parameters,
    noise: Parameters,
    config: Config,
    signs: Int32[Array, "signs 1 1"],
    state: Int8[Array, "signs pairs width"],
    inputs: tuple[Array, Array, Array],
) -> tuple[Array, Array]:
    """One step of the recurrence, given what depends on its input alone: `Wf·u`, `Wh·u` and where documents start."""
    forget_input, candidate_input, starts = inputs

    def product(x: Array, name: str) -> Array:
        return linear(x, block[name], noise[name], signs, config.sigma_shift)

    h8 = jnp.where(starts[None, :, None], jnp.int8(0), state)
    h = h8.astype(jnp.int32)
    gate = saturate(forget_input + product(h8, "Uf") + vector(block["bf"], noise["bf"], signs, config)) + 127
    gated = ((gate * h) >> 8).astype(jnp.int8)
    candidate = saturate(candidate_input + product(gated, "Uh") + vector(block["bh"], noise["bh"], signs, config))
    new_state = (h + ((gate * (candidate - h)) >> 8)).astype(jnp.int8)
    return new_state, new_state


def block_forward(
    block: Parameters,
    noise: Parameters,
    config: Config,
    signs: Int32[Array, "signs 1 1"],
    state: Int8[Array, "signs pairs width"],
    x: Int8[Array, "time signs pairs width"],
    starts: Array,
) -> tuple[Array, Array]:
    """One block over a few time steps: what needs no state as one product over all of them, the recurrence by step."""

    def product(x: Array, name: str) -> Array:
        return linear(x, block[name], noise[name], signs, config.sigma_shift).astype(jnp.int8)

    def norm(x: Array, name: str) -> Array:
        return normalise(x, vector(block[name], noise[name], signs, config))

    u = norm(x, "norm1")
    inputs = (product(u, "Wf"), product(u, "Wh"), starts)
    state, outputs = lax.scan(lambda h, step: gated_step(block, noise, config, signs, h, step), state, inputs)
    x = saturate(x.astype(jnp.int32) + outputs).astype(jnp.int8)
    hidden = product(norm(x, "norm2"), "W1")
    return state, saturate(x.astype(jnp.int32) + product(hidden, "W2")).astype(jnp.int8)


def time_block(steps: int, rows: int) -> int:
    """The largest divisor of `steps` that keeps a product within the rows of a block, and at least 1."""
    most = BLOCK_ROWS if jax.default_backend() == "cpu" else ACCELERATOR_BLOCK_ROWS
    return largest_divisor(steps, most // rows)


def hidden_forward(
    parameters: Parameters,
    factors: Parameters | None,
    config: Config,
    tokens: UInt8[Array, "time pairs"],
    state: Int8[Array, "layers signs pairs width"],
) -> tuple[Int8[Array, "time signs pairs width"], Int8[Array, "layers signs pairs width"]]:
    """Embedding and all blocks, layer by layer, each over time blocks; returns the stream and the new state."""
    signs = sign_axis(factors is not None)
    noise = factors if factors is not None else _no_factors(parameters)
    x = embed(parameters["embedding"], noise["embedding"], tokens, signs, config)
    steps = time_block(tokens.shape[0], x.shape[1] * x.shape[2])
    starts = (tokens == 0).reshape(-1, steps, tokens.shape[1])

    def layer(x: Array, inputs: Any) -> tuple[Array, Array]:
        block, block_noise, h = inputs

        def several_steps(index: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            h, x = carry
            h, out = block_forward(block, block_noise, config, signs, h, x[index], starts[index])
            return h, x.at[index].set(out)

        # in place: a scan over the steps would fill an array for its results first
        h, x = lax.fori_loop(0, x.shape[0], several_steps, (h, x))
        return x, h

    blocked = x.reshape(-1, steps, *x.shape[1:])
    blocked, state = lax.scan(layer, blocked, (parameters["blocks"], noise["blocks"], state))
    return blocked.reshape(x.shape), state


def _no_factors(parameters: Parameters) -> Parameters:
    return dict.fromkeys(parameters) | {"blocks": dict.fromkeys(parameters["blocks"])}


def logits_of(
    parameters: Parameters,
    factors: Parameters | None,
    config: Config,
    x: Int8[Array, "*time signs pairs width"],
) -> Int32[Array, "*time signs pairs bytes"]:
    """The head: `mm(LN(x), Wout)`, values in [−127, 127]."""
    signs = sign_axis(factors is not None)
    noise = factors if factors is not None else _no_factors(parameters)
    u = normalise(x, vector(parameters["norm_out"], noise["norm_out"], signs, config))
    return linear(u, parameters["head"], noise["head"], signs, config.sigma_shift)


def forward(
    parameters: Parameters,
    factors: Parameters | None,
    config: Config,
    tokens: UInt8[Array, "time_and_one pairs"],
    state: Int8[Array, "layers signs pairs width"],
    counted: Bool[Array, "time pairs"] | None = None,
) -> tuple[Int32[Array, "signs pairs"], Int8[Array, "layers signs pairs width"]]:
    """Σ log-likelihood of each member over its sequence, in sixteenths of a bit, and the new state.

    Args:
      parameters: see `Parameters`.
      factors: the chunk's perturbations in the same tree (`Factors` for a matrix with blocks stacked in front,
        (pairs, width) int16 products for a vector), or None for the unperturbed model.
      tokens: time + 1 bytes of each pair: inputs are all but the last, targets all but the first.
      state: int8; where an input byte is 0 it is reset before that step.
      counted: which targets enter the sum; all of them by default.
    Source: spec of the integer model.
    """
    x, state = hidden_forward(parameters, factors, config, tokens[:-1], state)
    weights = jnp.ones(x.shape[:1] + x.shape[2:3], jnp.int32) if counted is None else counted.astype(jnp.int32)
    steps = time_block(x.shape[0], math.prod(x.shape[1:3]))

    def score(total: Array, inputs: tuple[Array, Array, Array]) -> tuple[Array, None]:
        block, target, weight = inputs
        likelihood = log_likelihood(logits_of(parameters, factors, config, block), target)
        return total + jnp.sum(likelihood * weight, axis=0), None

    def blocked(value: Array) -> Array:
        return value.reshape(-1, steps, 1, value.shape[-1])

    start = jnp.zeros(x.shape[1:3], jnp.int32)
    inputs = (x.reshape(-1, steps, *x.shape[1:]), blocked(tokens[1:]), blocked(weights))
    return lax.scan(score, start, inputs)[0], state


def parameter_leaves(parameters: Parameters) -> dict[str, jax.Array]:
    """`flat` of the parameters as JAX arrays."""
    return {path: jnp.asarray(leaf) for path, leaf in flat(parameters).items()}
