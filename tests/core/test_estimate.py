"""The streamed estimate against a Python loop over members."""

import functools

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest

from eggroll.core import noise
from eggroll.core.distribution import FullRank, LowRank, make_plan
from eggroll.core.draws import draw_noise, weighted_sum
from eggroll.core.estimate import descent_direction, estimate_gradient, pair_weights

from .oracle import gradient

PARAMS = {"b": jnp.zeros(3), "s": jnp.float32(0.0), "w": jnp.ones((4, 3))}
UTILITIES = np.random.default_rng(0).normal(size=10).astype(np.float32)


def estimate(distribution, pairs=range(5), chunk_pairs=5, frozen=(), sigma=0.2):
    weights, index = pair_weights(jnp.asarray(UTILITIES)), jnp.array(list(pairs), jnp.int32)
    settings = {"sigma": jnp.float32(sigma), "population_size": 10, "chunk_pairs": chunk_pairs}
    seed, plan = (
        jnp.array(noise.seed_words(2**40 + 1), jnp.int32),
        make_plan(distribution, PARAMS, frozen=frozen),
    )

    def run(weights, index):
        return estimate_gradient(plan, weights, index, seed=seed, generation=jnp.int32(4), **settings)

    return jax.jit(run)(weights[index], index)


@pytest.mark.parametrize(
    ("distribution", "kwargs"),
    [(LowRank(1), {}), (LowRank(3, "signs"), {"rank": 3}), (FullRank("popcount"), {"low_rank": False})],
)
@pytest.mark.parametrize("chunk_pairs", [1, 2, 5, 100])
def test_equals_a_loop_over_members(distribution, kwargs, chunk_pairs):
    expected = gradient(PARAMS, UTILITIES, sigma=0.2, seed=2**40 + 1, generation=4, law=distribution.law, **kwargs)
    for got, path in zip(estimate(distribution, chunk_pairs=chunk_pairs), PARAMS, strict=True):
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, expected[path], rtol=1e-4, atol=1e-5)


def test_shares_of_disjoint_pairs_add_up():
    parts = [estimate(LowRank(2), pairs) for pairs in ([3, 0], [1, 2, 4])]
    for whole, one, two in zip(estimate(LowRank(2)), *parts, strict=True):
        np.testing.assert_allclose(one + two, whole, rtol=1e-5, atol=1e-5)


def test_no_perturbation_gives_no_gradient():
    for sigma in (0.0, -0.1, np.nan):
        for got in estimate(LowRank(), sigma=sigma):
            np.testing.assert_array_equal(got, np.zeros(got.shape))


def test_frozen_leaves_have_no_gradient_and_the_sign_turns():
    got = estimate(LowRank(), frozen=("b",))
    down = descent_direction(got)
    assert got[0] is None and down[0] is None
    np.testing.assert_array_equal(down[2], -got[2])


@pytest.mark.parametrize("distribution", [LowRank(), FullRank()])
def test_the_products_of_the_estimate_are_in_full_float32(distribution):
    (leaf,) = plan = make_plan(distribution, {"w": PARAMS["w"]})
    draw = functools.partial(draw_noise, plan, seed=jnp.zeros(2, jnp.int32), generation=jnp.int32(0))
    (own,) = draw(pairs=jnp.arange(2, dtype=jnp.int32))
    jaxpr = jax.make_jaxpr(lambda w: weighted_sum(leaf, own, w))(jnp.ones(2))

    def precisions(inner):
        found = [e.params["precision"] for e in inner.eqns if e.primitive.name == "dot_general"]
        return found + [p for sub in jax.extend.core.subjaxprs(inner) for p in precisions(sub)]

    assert precisions(jaxpr.jaxpr) == [(jax.lax.Precision.HIGHEST,) * 2]


def test_memory_is_that_of_the_factors():
    """No intermediate has as many elements as the dense noise of a chunk."""
    plan = make_plan(LowRank(), {"w": jnp.ones((64, 64))})
    counters = {"seed": jnp.zeros(2, jnp.int32), "generation": jnp.int32(0), "sigma": jnp.float32(1.0)}
    settings = counters | {"population_size": 16, "chunk_pairs": 4}
    run = functools.partial(estimate_gradient, plan, **settings)
    jaxpr = jax.make_jaxpr(run)(jnp.ones(8), jnp.arange(8, dtype=jnp.int32))

    def largest(inner):
        sizes = [v.aval.size for e in inner.eqns for v in e.outvars if hasattr(v.aval, "size")]
        return max([*sizes, *(largest(sub) for sub in jax.extend.core.subjaxprs(inner))])

    assert largest(jaxpr.jaxpr) == 64 * 64
