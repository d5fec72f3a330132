"""Completions of many rows at once, for one model or for a member of a population.

Static shapes: prompts are filled at the left, completions at the right with the token that ends a text. A loop over a
population stops when every row of every member has ended.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Float, Int

from eggroll.llm.rwkv7 import Params, read, read_one


class Sampling(NamedTuple):
    """How completions are written.

    Attributes:
      length: most tokens of a completion.
      ends: tokens that end it, the first is also what fills the rest.
      samples: completions of each prompt.
      temperature: 0 takes the likeliest token.
      top_p: draws from the fewest likeliest tokens whose probabilities sum to this.
    """

    length: int
    ends: tuple[int, ...] = (0,)
    samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0


class Completions(NamedTuple):
    """Of each row, prompt by prompt, a prompt's samples one after the other.

    Attributes:
      tokens: (rows, length) int32.
      lengths: (rows,) int32, the token that ended it counted.
      ended: (rows,) bool, whether one did.
    """

    tokens: Any
    lengths: Any
    ended: Any


@custom_vmap
def everyone(done: Bool[Array, " rows"]) -> Bool[Array, ""]:
    """Whether all have ended: under `vmap` of all members together, so that a loop needs no condition for each."""
    return done.all()


@everyone.def_vmap
def _everyone_of_all(size: int, batched: list[bool], done: Any) -> tuple[Any, bool]:
    return everyone(done.reshape(-1)), False


def generate(
    params: Params,
    prompts: Int[Array, "prompts time"],
    mask: Bool[Array, "prompts time"],
    key: Any,
    how: Sampling,
) -> Completions:
    """Complete every prompt `how.samples` times.

    Args:
      params: of `rwkv7`, or a member's.
      prompts: tokens, filled at the left.
      mask: False where they are filled.
      key: typed random key; each row draws from one of its own.
      how: settings.
    Returns:
      `Completions` of prompts · samples rows.
    """
    logits, state = read(params, prompts, mask=mask)
    rows = prompts.shape[0] * how.samples
    logits = jnp.repeat(logits, how.samples, axis=0)
    state = state.repeated(how.samples)
    keys = jax.random.split(key, rows)

    def going(carry: Any) -> Array:
        step, done = carry[0], carry[1]
        return (step < how.length) & ~everyone(done)

    def write(carry: Any) -> Any:
        step, done, tokens, lengths, logits, state = carry
        token = jnp.where(done, how.ends[0], choose(logits, keys, step, how))
        tokens = lax.dynamic_update_slice_in_dim(tokens, token[:, None], step, axis=1)
        lengths = lengths + (~done).astype(jnp.int32)
        done = done | jnp.isin(token, jnp.array(how.ends))
        logits, state = read_one(params, token, state)
        return step + 1, done, tokens, lengths, logits, state

    tokens = jnp.full((rows, how.length), how.ends[0], jnp.int32)
    start = (jnp.int32(0), jnp.zeros(rows, bool), tokens, jnp.zeros(rows, jnp.int32), logits, state)
    _, done, tokens, lengths, *_ = lax.while_loop(going, write, start)
    return Completions(tokens, lengths, done)


def choose(logits: Float[Array, "rows vocabulary"], keys: Any, step: Array, how: Sampling) -> Int[Array, " rows"]:
    """The next token of every row: the likeliest, or the one at which the running sum of probabilities passes a draw.

    One number is drawn for each row and step, whatever the size of the vocabulary.
    """
    if how.temperature == 0:
        return logits.argmax(-1).astype(jnp.int32)
    odds = jax.nn.softmax(logits / how.temperature, axis=-1)
    if how.top_p < 1:
        odds = jnp.where(odds >= _least_kept(odds, how.top_p)[:, None], odds, 0)
    draw = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, step)))(keys)
    running = jnp.cumsum(odds, axis=-1)
    level = jnp.minimum(draw, 1 - 1e-6) * running[:, -1]
    return (running > level[:, None]).argmax(-1).astype(jnp.int32)


def _least_kept(odds: Float[Array, "rows vocabulary"], top_p: float) -> Float[Array, " rows"]:
    """The smallest probability among the fewest that sum to `top_p`."""
    ordered = -jnp.sort(-odds, axis=-1)
    before = jnp.cumsum(ordered, axis=-1) - ordered
    return jnp.where(before < top_p, ordered, 2.0).min(-1)


def log_probabilities(
    params: Params, tokens: Int[Array, "rows time"], mask: Bool[Array, "rows time"]
) -> Float[Array, "rows rest"]:
    """Of each token after the first, given those before it; differentiable.

    Args:
      tokens: prompts filled at the left, with what follows them.
      mask: False where they are filled.
    Returns:
      (rows, time − 1) float32.
    """
    logits, _ = read(params, tokens[:, :-1], mask=mask[:, :-1], all_logits=True)
    return jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], axis=-1)[..., 0]
