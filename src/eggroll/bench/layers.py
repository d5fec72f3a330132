"""The calls that `eggroll bench speed` compares: one linear layer for a whole population, by every way there is.

Each goes through the same functions of `core` that a training step goes through; `fused` calls the kernel itself.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from eggroll.core import kernels, noise
from eggroll.core.distribution import Distribution, FullRank, LowRank, Plan, make_plan
from eggroll.core.draws import draw_elements, draw_noise, noise_bytes, perturb, stream_keys
from eggroll.core.estimate import estimate_gradient
from eggroll.core.lowrank import apply_perturbed
from eggroll.core.population import in_chunks

SIGMA = 0.01
DENSE_BYTES = 2**28
"""Dense noise that OpenES may hold at a time; more members are measured in part, and counted up."""

Call = Callable[[], Any]
Params = dict[str, Array]


@dataclass(frozen=True)
class Layer:
    """A linear layer of `width` × `width` and a batch of members with `tokens` rows each."""

    width: int
    batch: int
    tokens: int
    dtype: str
    law: str
    chunk_pairs: int

    @property
    def params(self) -> Params:
        """The shared weight, (width, width)."""
        return {"w": jnp.ones((self.width, self.width), self.dtype) / self.width}

    def inputs(self, members: int) -> Float[Array, "pairs 2 tokens width"]:
        """What the members multiply."""
        return jnp.ones((members // 2, 2, self.tokens, self.width), self.dtype)

    @property
    def flop(self) -> float:
        """Of the shared product alone."""
        return 2.0 * self.batch * self.tokens * self.width**2


def forward(params: Params, x: Array) -> Array:
    """The user's layer, as anyone would write it."""
    return x @ params["w"]


def inference(layer: Layer) -> Call:
    """Pure batch inference: one weight for all, nothing perturbed."""
    return functools.partial(jax.jit(forward), layer.params, layer.inputs(layer.batch).reshape(-1, layer.width))


def forward_backward(layer: Layer) -> Call:
    """A forward and a backward pass, to weights and inputs: what a policy gradient pays for a batch."""

    def loss(params: Params, x: Array) -> Array:
        return jnp.square(forward(params, x)).sum().astype(jnp.float32)

    run = jax.jit(jax.grad(loss, argnums=(0, 1)))
    return functools.partial(run, layer.params, layer.inputs(layer.batch).reshape(-1, layer.width))


def population(layer: Layer, distribution: Distribution, *, redraw: bool) -> tuple[Call, int]:
    """The layer for perturbed members; returns the call and how many members it evaluates.

    Args:
      redraw: draw the noise in the call, as a training step does, or have it at hand in memory.
    """
    plan = make_plan(distribution, layer.params)
    members = _members(layer, plan)
    draw = functools.partial(draw_noise, plan, seed=jnp.zeros(2, jnp.int32), generation=jnp.int32(0))
    params, x, pairs = layer.params, layer.inputs(members), jnp.arange(members // 2, dtype=jnp.int32)

    def chunked(function: Callable[..., Array], items: Any) -> Array:
        return in_chunks(lambda part: function(*part), items, members // 2, layer.chunk_pairs)

    if redraw:
        redrawn = jax.jit(
            lambda params, pairs, x: chunked(lambda i, x: _products(plan, params, draw(pairs=i), x), (pairs, x))
        )
        return functools.partial(redrawn, params, pairs, x), members
    drawn = jax.jit(draw)(pairs=pairs)
    at_hand = jax.jit(lambda params, drawn, x: chunked(lambda d, x: _products(plan, params, d, x), (drawn, x)))
    return functools.partial(at_hand, params, drawn, x), members


def fused(layer: Layer, rank: int, *, redraw: bool, interpret: bool = False) -> Call | None:
    """The layer by the Pallas kernel, its second factor at hand or drawn inside; None where it has no whole tiles.

    Args:
      interpret: run on any device, slowly, to test.
    """
    pairs, rows = layer.batch // 2, layer.batch * layer.tokens
    (leaf,) = make_plan(LowRank(rank=rank, law=layer.law), layer.params)
    whole = kernels.fits(kernels.Tiles(), rows, layer.width, layer.width, 2 * layer.tokens)
    if not whole or (redraw and layer.law not in kernels.REDRAWN_LAWS):
        return None
    scale = jnp.repeat(jnp.array([SIGMA, -SIGMA], jnp.float32), layer.tokens)[None, :, None] / math.sqrt(rank)

    def run(base: Array, x: Array, near: Any, far: Any) -> Array:
        own = draw_elements(leaf, leaf.factor_shape("r"), near) if redraw else near
        side = kernels.Drawn(far, layer.law) if redraw else far
        low = jnp.einsum("pik,pkr->pir", x, own, preferred_element_type=jnp.float32) * scale
        return kernels.joined_product(x.reshape(rows, -1), base, low.reshape(rows, rank), side, interpret=interpret)

    streams = [(leaf.identity, factor) for factor in (noise.FACTOR_A, noise.FACTOR_B)]
    counters = {"seed": jnp.zeros(2, jnp.int32), "generation": jnp.int32(0)}
    keys = zip(*stream_keys(streams, **counters, pairs=jnp.arange(pairs, dtype=jnp.int32)), strict=True)
    sides = [
        key if redraw else draw_elements(leaf, leaf.factor_shape(side), key)
        for side, key in zip("rc", keys, strict=True)
    ]
    x = layer.inputs(layer.batch).reshape(pairs, 2 * layer.tokens, layer.width)
    return functools.partial(jax.jit(run), layer.params["w"], x, *sides)


def update(layer: Layer, distribution: Distribution, chunk_pairs: int = 512) -> Call:
    """The gradient estimate of a generation of `batch` members."""
    plan, pairs = make_plan(distribution, layer.params), jnp.arange(layer.batch // 2, dtype=jnp.int32)
    chunk = min(chunk_pairs, _members(layer, plan) // 2)
    counters = {"seed": jnp.zeros(2, jnp.int32), "generation": jnp.int32(0), "sigma": jnp.float32(SIGMA)}
    run = jax.jit(functools.partial(estimate_gradient, plan, population_size=layer.batch, chunk_pairs=chunk))
    return functools.partial(run, jnp.ones(layer.batch // 2), pairs, **counters)


def distributions(law: str, ranks: tuple[int, ...]) -> dict[str, Distribution]:
    """The ways to perturb that are compared, by the name they have in tables."""
    low = {f"EGGROLL rank {rank}": LowRank(rank=rank, law=law) for rank in ranks}
    return {**low, "OpenES": FullRank(law=law)}


def _members(layer: Layer, plan: Plan) -> int:
    """All of them, or for dense noise as many as `DENSE_BYTES` hold, even."""
    if all(leaf.rank for leaf in plan):
        return layer.batch
    return min(layer.batch, max(2, DENSE_BYTES // noise_bytes(plan) // 2 * 2))


def _products(plan: Plan, params: Params, drawn: Any, x: Float[Array, "pairs 2 tokens width"]) -> Array:
    """Each member's product, in the two nested `vmap`s of `core.population`."""
    scales = jnp.array([SIGMA, -SIGMA], jnp.float32)

    def member(own: Any, scale: Array, x: Array) -> Array:
        return apply_perturbed(forward, perturb(plan, params, own, scale), x)

    return jax.vmap(jax.vmap(member, in_axes=(None, 0, 0)), in_axes=(0, None, 0))(drawn, scales, x)


def batch_for(intensity: float, width: int, itemsize: int, rank: int | None) -> int | None:
    """The batch at which a layer reaches so many operations a byte; None where no batch does.

    With `d` the width and `s` the bytes of a number, `2·B·d²` operations move `s·(d² + 2·B·d)` bytes in inference, and
    `2·B·d·r` more numbers where members have factors of rank `r`.

    Source: arXiv 2511.16652, arithmetic intensity (352 at rank 1 against 324, for 300 operations a byte at 8192).
    """
    per_member = 2 + (0 if rank is None else 2 * rank)
    share = 1 - intensity * itemsize / 2 * per_member / width
    return math.ceil(intensity * itemsize / 2 / share) if share > 0 else None
