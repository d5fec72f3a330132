"""What a generation costs on one matrix: a model of operations and bytes, and the time that it takes on this machine.

A layer of m × n numbers of s bytes, P pairs of members with T rows each, factors or dense noise at hand, one a pair:

| | operations | bytes |
|---|---|---|
| evaluate, rank r | `2P·T·(2mn + 2r(m+n))` | `s·(mn + 2P·T·(m+n) + P·r·(m+n))` |
| evaluate, dense | `2P·T·2mn + 2P·mn` | `s·(mn + 2P·T·(m+n) + P·mn)` |
| update, rank r | `2P·r·mn` | `s·P·r·(m+n) + 4mn` |
| update, dense | `2P·mn` | `s·P·mn + 4mn` |

Each of the two takes as long as the slower of its operations and its bytes. Drawing the noise is left out: where it is
drawn again in the kernel, its bytes become integer operations.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from eggroll.core.distribution import Plan
from eggroll.core.draws import draw_noise, perturb
from eggroll.core.estimate import estimate_gradient
from eggroll.core.lowrank import apply_perturbed
from eggroll.runs.timing import interleaved
from eggroll.theory.chips import Chip
from eggroll.theory.noise import plan_of


def modelled_seconds(
    chip: Chip, dtype: str, shape: tuple[int, int], *, rank: int, pairs: int, tokens: int
) -> tuple[float, float]:
    """Seconds of evaluation and update by the table above.

    Args:
      rank: of EGGROLL; 0 for dense noise.
      tokens: T, rows that each member multiplies.
    """
    (rows, columns), size, members = shape, chip.itemsize(dtype), 2 * pairs
    both, numbers = rows + columns, rows * columns
    noise = pairs * (rank * both if rank else numbers)
    extra = members * tokens * 2 * rank * both if rank else members * numbers
    evaluate = members * tokens * 2 * numbers + extra, size * (numbers + members * tokens * both + noise)
    update = 2 * pairs * max(rank, 1) * numbers, size * noise + 4 * numbers
    peak, bandwidth = chip.peak(dtype), chip.bandwidth
    slower = [max(operations / peak, moved / bandwidth) for operations, moved in (evaluate, update)]
    return slower[0], slower[1]


def measured_seconds(
    shape: tuple[int, int], ranks: tuple[int, ...], *, pairs: int, tokens: int, repeats: int, law: str = "popcount"
) -> dict[int, float]:
    """Median seconds of a generation here, by rank (0: dense): noise drawn, members evaluated, gradient estimated."""
    calls = {str(rank): _generation(plan_of(shape, rank, law), shape, pairs, tokens) for rank in ranks}
    return {int(name): time for name, time in interleaved(calls, repeats).items()}


def _generation(plan: Plan, shape: tuple[int, int], pairs: int, tokens: int) -> Callable[[], Any]:
    params = {"w": jnp.ones(shape) / shape[1]}
    x = jnp.ones((pairs, 2, tokens, shape[1]))
    words, chosen = jnp.zeros(2, jnp.int32), jnp.arange(pairs, dtype=jnp.int32)
    return functools.partial(_run, plan, params, x, words, chosen)


def outputs(params: Any, x: Float[Array, "tokens n"]) -> Float[Array, " tokens"]:
    """A linear layer as anyone would write it, and a sum over its outputs."""
    return jnp.sum(x @ params["w"].T, axis=1)


@functools.partial(jax.jit, static_argnames="plan")
def _run(plan: Plan, params: Any, x: Array, words: Array, pairs: Array) -> Array:
    sigma, settings = jnp.float32(0.01), {"seed": words, "generation": jnp.int32(0)}
    drawn = draw_noise(plan, **settings, pairs=pairs)

    def member(own: Any, scale: Array, rows: Array) -> Array:
        return jnp.sum(apply_perturbed(outputs, perturb(plan, params, own, scale), rows))

    both = jax.vmap(jax.vmap(member, in_axes=(None, 0, 0)), in_axes=(0, None, 0))
    scores = both(drawn, jnp.stack([sigma, -sigma]), x)
    weights, count = (scores[:, 0] - scores[:, 1]) / 2, pairs.shape[0]
    (gradient,) = estimate_gradient(
        plan, weights, pairs, **settings, sigma=sigma, population_size=2 * count, chunk_pairs=count
    )
    if gradient is None:
        raise TypeError("expected the gradient of a leaf that is trained, got none")
    return gradient
