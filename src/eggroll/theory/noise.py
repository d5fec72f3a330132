"""The library's own perturbations of one matrix as dense matrices, for what is measured on them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64

from eggroll.core.distribution import FullRank, LowRank, Plan, make_plan
from eggroll.core.draws import draw_noise, weighted_sum
from eggroll.core.noise import seed_words

DENSE_NUMBERS = 2**23
"""Most numbers of dense noise at a time."""


def plan_of(shape: tuple[int, int], rank: int, law: str) -> Plan:
    """The plan of one float32 matrix: of rank `rank`, or elementwise where that is 0."""
    distribution = LowRank(rank=rank, law=law) if rank else FullRank(law=law)
    return make_plan(distribution, {"w": jnp.zeros(shape)})


def perturbations(
    shape: tuple[int, int], rank: int, law: str, pairs: int, seed: int
) -> Iterator[Float[Array, "some m n"]]:
    """The E of so many pairs, some at a time, as the library draws and sums them.

    Args:
      rank: of EGGROLL's; 0 for Gaussian ES or another elementwise law.
    """
    draw = _drawer(shape, rank, law)
    words = jnp.array(seed_words(seed), jnp.int32)
    size = max(1, min(pairs, DENSE_NUMBERS // (shape[0] * shape[1])))
    for first in range(0, pairs, size):
        yield draw(words, jnp.arange(first, min(first + size, pairs), dtype=jnp.int32))


@functools.lru_cache(maxsize=64)
def _drawer(shape: tuple[int, int], rank: int, law: str) -> Callable[[Array, Array], Array]:
    """Noise of some pairs, compiled once for each shape."""
    plan = plan_of(shape, rank, law)

    def draw(words: Array, pairs: Array) -> Array:
        (own,) = draw_noise(plan, seed=words, generation=jnp.int32(0), pairs=pairs)
        one = lambda noise: weighted_sum(plan[0], jax.tree.map(lambda part: part[None], noise), jnp.ones(1))
        return jax.vmap(one)(own)

    return jax.jit(draw)


def mean_and_error(values: Float64[np.ndarray, " n"]) -> tuple[float, float]:
    """The mean of independent numbers and its standard error."""
    return float(values.mean()), float(values.std(ddof=1)) / len(values) ** 0.5
