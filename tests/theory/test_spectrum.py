"""The averaged update: its rank, its effective rank, and that it is the library's own step."""

import itertools

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from eggroll.core.strategy import EvolutionStrategy
from eggroll.theory import spectrum


def test_it_is_a_step_of_evolution_strategy():
    es = EvolutionStrategy(
        optax.sgd(1.0),
        population_size=12,
        sigma=spectrum.SIGMA,
        rank=4,
        shaping=lambda scores: scores,
        chunk_size=12,
    )
    state = es.init({"w": jnp.zeros(spectrum.SHAPE)}, seed=5)
    fitness = lambda params, key, x, y: spectrum.fitness(params, x, y)
    state, _ = es.step(state, fitness, *spectrum.batch_of("full", 5))
    (found,) = spectrum.averaged_updates(4, [6], "full", 5)
    np.testing.assert_allclose(found, state.params["w"], rtol=1e-3, atol=1e-3 * np.abs(found).max())


@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize("signal", ["full", "none"])
def test_its_rank_is_that_of_pairs_times_rank_until_it_is_full(rank, signal):
    pairs = (1, 3, 10, 15, 40, 64, 200)
    updates = spectrum.averaged_updates(rank, pairs, signal, seed=1)
    found = [spectrum.numerical_rank(np.linalg.svd(update, compute_uv=False)) for update in updates]
    assert found == [min(p * rank, *spectrum.SHAPE) for p in pairs]


def test_its_effective_rank_comes_to_that_of_gaussian_es():
    low, dense = (
        [
            spectrum.effective_rank(np.linalg.svd(u, compute_uv=False))
            for u in spectrum.averaged_updates(rank, (16, 512), "none", 2)
        ]
        for rank in (1, 0)
    )
    assert low[0] < 0.5 * dense[0] and low[1] > 0.9 * dense[1]


def test_signs_on_2_by_2_repeat_themselves():
    vectors = [np.array(v) for v in itertools.product((-1.0, 1.0), repeat=2)]
    ranks = [
        spectrum.numerical_rank(np.linalg.svd(np.outer(a, b) + 0.7 * np.outer(c, d), compute_uv=False))
        for a, b, c, d in itertools.product(vectors, repeat=4)
    ]
    assert ranks.count(1) / len(ranks) == 0.75


def test_ranks_of_known_spectra():
    assert spectrum.effective_rank(np.ones(7)) == pytest.approx(7)
    assert spectrum.effective_rank(np.array([1.0, 0.0])) == pytest.approx(1)
    assert spectrum.numerical_rank(np.array([1.0, 1e-5, 1e-7])) == 2
