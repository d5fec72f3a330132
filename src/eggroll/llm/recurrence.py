"""RWKV-7's recurrence: a matrix-valued state for each head, step by step or a chunk of steps at a time.

    Sₜ = Sₜ₋₁·(diag(wₜ) + aₜ·bₜᵀ) + vₜ·kₜᵀ        yₜ = Sₜ·rₜ

with S of (value, key), a = −κ and b = κ ⊙ (learning rate) for the unit vector κ. Source: Peng et al., arXiv 2503.14456,
equations 15 to 19; the chunked form is that of Yang et al., arXiv 2406.06484, with decays.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

CHUNK = 16
"""Steps that are taken at once. A decay is at least exp(−0.607) a step, so that its inverse over 16 steps stays below
2·10⁴: float32 holds products with it to three digits more than the model needs."""


class Inputs(NamedTuple):
    """Of each step and head; every leaf is (…, heads, size) float32."""

    r: Any
    log_w: Any  # ≤ 0
    k: Any
    v: Any
    a: Any
    b: Any


def step(state: Float[Array, "rows heads n n"], x: Inputs) -> tuple[Array, Array]:
    """One step for rows of leaves (rows, heads, n).

    Returns:
      The new state and (rows, heads, n) float32.
    """
    moved = jnp.einsum("phvk,phk->phv", state, x.a)
    state = state * jnp.exp(x.log_w)[..., None, :] + moved[..., None] * x.b[..., None, :]
    state = state + x.v[..., None] * x.k[..., None, :]
    return state, jnp.einsum("phvk,phk->phv", state, x.r)


def sequence(state: Float[Array, "rows heads n n"], x: Inputs) -> tuple[Array, Array]:
    """Many steps; leaves are (rows, time, heads, n).

    A chunk at a time, but on a CPU one by one where nothing is differentiated: small matrices are slow to multiply
    there, and the steps two to five times as fast, while their gradient is half as fast.

    Returns:
      The state after the last step, and (rows, time, heads, n) float32.
    """
    return _on_a_cpu(state, x) if jax.default_backend() == "cpu" else chunked(state, x)


def chunked(state: Float[Array, "rows heads n n"], x: Inputs) -> tuple[Array, Array]:
    """`sequence`, `CHUNK` steps at a time."""
    time = x.r.shape[1]
    missing = -time % CHUNK
    x = Inputs(*(jnp.pad(leaf, ((0, 0), (0, missing), (0, 0), (0, 0))) for leaf in x))  # steps that change nothing
    parts = Inputs(*(_in_chunks(leaf) for leaf in x))
    state, y = lax.scan(_chunk, state, parts)
    y = jnp.moveaxis(y, (0, 2), (1, 3))  # (rows, chunks, CHUNK, heads, n)
    return state, y.reshape(y.shape[0], time + missing, *y.shape[3:])[:, :time]


def _in_chunks(leaf: Array) -> Array:
    """(rows, time, heads, n) → (chunks, rows, heads, CHUNK, n)."""
    rows, time, heads, n = leaf.shape
    return jnp.transpose(leaf.reshape(rows, time // CHUNK, CHUNK, heads, n), (1, 0, 3, 2, 4))


def _chunk(state: Array, x: Inputs) -> tuple[Array, Array]:
    """A chunk of steps; leaves are (rows, heads, CHUNK, n).

    With cₜ the product of decays so far and Ŝₜ = Sₜ·diag(1/cₜ), a step adds uₜ·(bₜ/cₜ)ᵀ + vₜ·(kₜ/cₜ)ᵀ to Ŝ, where
    uₜ = Ŝₜ₋₁·(cₜ₋₁ ⊙ aₜ) depends on the u before it: a unit lower triangular system.
    """
    logs = jnp.cumsum(x.log_w, axis=-2)
    upto, before, inverse = jnp.exp(logs), jnp.exp(logs - x.log_w), jnp.exp(-logs)
    a, r, b, k = x.a * before, x.r * upto, x.b * inverse, x.k * inverse
    products = lambda left, right: jnp.einsum("phtn,phsn->phts", left, right)
    strictly = jnp.tril(jnp.ones((CHUNK, CHUNK), bool), -1)
    so_far = jnp.tril(jnp.ones((CHUNK, CHUNK), bool))
    start = lambda left: jnp.einsum("phvn,phtn->phtv", state, left)
    right = start(a) + jnp.where(strictly, products(a, k), 0) @ x.v
    u = _unit_lower_inverse(-jnp.where(strictly, products(a, b), 0)) @ right
    y = start(r) + jnp.where(so_far, products(r, b), 0) @ u + jnp.where(so_far, products(r, k), 0) @ x.v
    added = jnp.einsum("phtv,phtn->phvn", u, b) + jnp.einsum("phtv,phtn->phvn", x.v, k)
    return (state + added) * upto[..., -1:, :], y


def _unit_lower_inverse(below: Float[Array, "*batch n n"]) -> Float[Array, "*batch n n"]:
    """(I + below)⁻¹ of a strictly lower triangular matrix, n a power of two, by halves.

    As stable as forward substitution, which LAPACK's solver would do; that one can hang when several threads of XLA's
    call it, as they do here.
    """
    n = below.shape[-1]
    if n == 1:
        return jnp.ones_like(below)
    half = n // 2
    upper, lower = _unit_lower_inverse(jnp.stack([below[..., :half, :half], below[..., half:, half:]]))
    corner = -lower @ below[..., half:, :half] @ upper
    top = jnp.concatenate([upper, jnp.zeros_like(upper)], axis=-1)
    return jnp.concatenate([top, jnp.concatenate([corner, lower], axis=-1)], axis=-2)


def stepwise(state: Float[Array, "rows heads n n"], x: Inputs) -> tuple[Array, Array]:
    """`sequence`, a step at a time."""
    turned = Inputs(*(jnp.moveaxis(leaf, 1, 0) for leaf in x))
    state, y = lax.scan(step, state, turned)
    return state, jnp.moveaxis(y, 0, 1)


_on_a_cpu = jax.custom_vjp(stepwise)
_on_a_cpu.defvjp(lambda state, x: jax.vjp(chunked, state, x), lambda transposed, given: transposed(given))
