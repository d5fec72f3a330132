"""`chunk_size="auto"`: what a chunk needs grows in proportion, and the chosen one is the largest within the budget."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from eggroll.core import EvolutionStrategy, FullRank, LowRank, memory

PARAMS = {"w1": jnp.ones((8, 64)) / 8, "w2": jnp.ones((64, 2)) / 64}  # where tanh is not flat, or rounding is all
X = jnp.ones((4, 8))


def score(params, key, x):
    return jnp.tanh(jnp.tanh(x @ params["w1"]) @ params["w2"]).sum()


def strategy(chunk_size, distribution=LowRank(), population_size=256):  # noqa: B008 (frozen)
    settings = {"population_size": population_size, "sigma": 0.1, "distribution": distribution}
    return EvolutionStrategy(optax.sgd(0.1), chunk_size=chunk_size, **settings)


def bytes_at(chunk_size, distribution):
    es = strategy(chunk_size, distribution)
    state, pairs = es.init(PARAMS), chunk_size // 2
    return memory.working_bytes(lambda s, x: es._evaluate(s, (x,), None, pairs, score, False), state, X)


@pytest.mark.parametrize("distribution", [LowRank(), FullRank()])
def test_working_memory_is_proportional_to_the_chunk(distribution):
    small, large = bytes_at(16, distribution), bytes_at(128, distribution)
    assert large == pytest.approx(8 * small, rel=0.1)


@pytest.mark.parametrize("distribution", [LowRank(), FullRank()])
def test_auto_takes_the_largest_chunk_within_the_budget(distribution, monkeypatch):
    budget = 3 * bytes_at(16, distribution)
    monkeypatch.setattr(memory, "memory_budget", lambda *_: budget)
    es = strategy("auto", distribution)
    assert es.chunk_size is None
    state, info = es.step(es.init(PARAMS), score, X)
    assert 32 <= es.chunk_size <= 48 and bytes_at(es.chunk_size, distribution) <= 1.05 * budget
    again, _ = es.step(state, score, X)
    fixed = strategy(es.chunk_size, distribution)
    known, same = fixed.step(fixed.init(PARAMS), score, X)
    np.testing.assert_array_equal(info.fitness, same.fitness)
    jax.tree.map(np.testing.assert_array_equal, again.params, fixed.step(known, score, X)[0].params)


def test_auto_serves_tell_carries_and_tiny_populations(monkeypatch):
    es = strategy("auto", population_size=2)  # nothing to find out: no probe
    state, _ = es.tell(es.init(PARAMS), [1.0, 2.0])
    assert es.chunk_size is None
    state, _, carry = es.step(state, lambda p, k, c, x: (score(p, k, x), c + 1), X, carry=jnp.zeros((2, 3)))
    assert es.chunk_size == 2 and carry.tolist() == [[1.0] * 3] * 2
    monkeypatch.setattr(memory, "memory_budget", lambda *_: 1)
    es = strategy("auto")
    es.tell(es.init(PARAMS), np.arange(256.0))
    es.step(es.init(PARAMS), score, X)
    assert es.chunk_size == 2


def test_chunks_are_evened_out():
    assert memory.largest_chunk(100, 1, 10, 10_000) == 100
    assert memory.largest_chunk(100, 1, 10, 990) == 50
    assert memory.largest_chunk(100, 4, 40, 400) == 34
    assert memory.largest_chunk(100, 8, 10**9, 1) == 1


def test_the_budget_is_that_of_the_cache_or_of_the_weights():
    least, most = memory.CACHE_BUDGET
    small = memory.memory_budget({"w": jnp.ones(3)})
    assert least <= small <= most
    large = {"w": jax.ShapeDtypeStruct((most,), jnp.float32)}
    assert most < memory.memory_budget(large) <= 4 * most


def test_a_wrong_word_is_refused():
    with pytest.raises(ValueError, match="expected an even chunk_size or \"auto\", got 'large'"):
        strategy("large")


def test_auto_is_resolved_inside_vmap_and_jit():
    es, states = strategy("auto", population_size=32), [strategy("auto").init(PARAMS, seed=s) for s in (0, 1)]
    together, _ = jax.vmap(lambda s: es.step(s, score, X))(jax.tree.map(lambda *x: jnp.stack(x), *states))
    traced = strategy("auto", population_size=32)
    alone, _ = jax.jit(lambda s: traced.step(s, score, X))(states[1])
    assert es.chunk_size == traced.chunk_size == 32
    np.testing.assert_allclose(together.params["w1"][1], alone.params["w1"], rtol=1e-5, atol=1e-6)
