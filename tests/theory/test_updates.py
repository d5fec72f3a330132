"""Expected updates over rank: exact where all noise can be added up, and two ways of computing that agree."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eggroll.theory import moments, quasi, rank
from eggroll.theory.entry import INFINITE
from eggroll.theory.fitting import power_law
from eggroll.theory.noise import perturbations
from eggroll.theory.updates import (
    Network,
    Ridge,
    coupled_difference,
    edgeworth_weight,
    first_order,
    norm_with_error,
)


def test_a_quadratics_update_is_its_gradient_at_every_rank():
    assert rank.quadratic_difference(seed=0) < 1e-12


@pytest.mark.parametrize("r", [1, 2, 3])
def test_a_cubics_update_is_that_of_its_moments(r):
    shape, sigma = (2, 2), 0.7
    cubic = rank.random_cubic(1, shape)

    def fitness(offset):
        flat = offset.reshape(-1, 4)
        return np.einsum("bi,bj,bk,ijk->b", flat, flat, flat, cubic) / 6

    found = rank.enumerated_update(r, sigma, fitness, shape)
    np.testing.assert_allclose(found, moments.cubic_update(r, sigma, cubic, shape, kurtosis=1.0), atol=1e-12)
    assert np.abs(found).max() > 0.01


@given(r=st.integers(1, 50), kurtosis=st.floats(1, 6))
def test_a_cubics_difference_is_exactly_as_1_over_r(r, kurtosis):
    cubic, shape = rank.random_cubic(2, (2, 3)), (2, 3)
    at = lambda r: moments.cubic_update(r, 0.5, cubic, shape, kurtosis)
    np.testing.assert_allclose(r * (at(r) - at(INFINITE)), at(1) - at(INFINITE), atol=1e-9)


def test_gaussian_noise_on_a_cubic_sees_the_trace_of_its_tensor():
    cubic = rank.random_cubic(3, (2, 2))
    wanted = 0.5**2 / 2 * np.einsum("ijj->i", cubic)  # the paper's Theorem 2
    np.testing.assert_allclose(moments.cubic_update(INFINITE, 0.5, cubic, (2, 2)).reshape(-1), wanted)


@settings(deadline=None, max_examples=10)
@given(r=st.integers(2, 40), seed=st.integers(0, 1000))
def test_wishart_roots_have_the_moments_of_factors(r, seed):
    uniform = quasi.points(4096, quasi.root_dimensions(3), np.random.default_rng(seed).uniform(size=6))
    root = quasi.wishart_root(uniform, r, 3)
    square = root @ root.transpose(0, 2, 1)
    np.testing.assert_allclose(square.mean(0), np.eye(3), atol=0.03)
    variance = np.diag([2.0 / r] * 3) + (1 - np.eye(3)) / r  # of the elements of BᵀB/r
    np.testing.assert_allclose(square.var(0), variance, rtol=0.2)


def test_the_root_below_rank_1_less_than_columns_is_refused():
    with pytest.raises(ValueError, match="expected a rank of at least 2, got 1; "):
        quasi.wishart_root(np.full((1, 6), 0.5), 1, 3)


@pytest.mark.parametrize("function", ["tanh", "sine", "bump"])
@pytest.mark.parametrize("r", [2, 8])
def test_quadrature_and_quasi_monte_carlo_agree(function, r):
    ridge = Ridge.random(function, seed=5, rows=2, columns=2)
    samples = coupled_difference(ridge, r, 0.5, count=2048, shifts=8, seed=1)
    wanted = ridge.update(r, 0.5) - ridge.update(INFINITE, 0.5)
    error = samples.std(axis=0, ddof=1) / len(samples) ** 0.5
    assert np.all(np.abs(samples.mean(0) - wanted) < 6 * error + 1e-7)
    assert np.linalg.norm(error) < 0.2 * np.linalg.norm(wanted)


@pytest.mark.parametrize("r", [1, 4, 0])
def test_the_librarys_own_perturbations_give_the_update(r):
    ridge, sigma = Ridge.random("tanh", seed=6, rows=4, columns=4), 0.6
    (noise,) = perturbations((4, 4), r, "normal", 2**15, seed=1)
    noise = np.asarray(noise, float)
    each = ((ridge.fitness(sigma * noise) - ridge.fitness(-sigma * noise)) / (2 * sigma))[:, None, None] * noise
    error = each.std(axis=0) / len(each) ** 0.5
    wanted = ridge.update(r or INFINITE, sigma)
    assert np.all(np.abs(each.mean(0) - wanted) < 5 * error)
    assert np.linalg.norm(ridge.gradient() - wanted) > 5 * np.linalg.norm(error), "σ is too small to tell"


@pytest.mark.parametrize("r", [1, 2, 3])
def test_a_fitness_that_sees_the_rank_gives_no_update_below_it(r):
    (noise,) = perturbations((3, 3), r, "normal", 4096, seed=0)
    noise = np.asarray(noise, float)
    sees = np.abs(np.linalg.det(noise)) > 1e-5 * np.linalg.norm(noise, axis=(1, 2)) ** 3
    update = np.mean((sees * np.sign(noise[:, 0, 0]))[:, None, None] * noise, axis=0)
    assert update[0, 0] > 0.5 if r == 3 else np.all(update == 0)


def test_the_update_of_a_small_sigma_is_the_gradient():
    for function in ("tanh", "bump"):
        ridge = Ridge.random(function, seed=2)
        np.testing.assert_allclose(ridge.update(1, 1e-3), ridge.gradient(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("function", ["tanh", "sine", "bump", "step"])
def test_ridge_functions_differ_as_1_over_r(function):
    ridge, ranks = Ridge.random(function, seed=0), np.array([8.0, 16, 32, 64])
    gaussian = ridge.update(INFINITE, 0.5)
    distance = np.array([np.linalg.norm(ridge.update(r, 0.5) - gaussian) for r in ranks])
    assert power_law(ranks, distance).exponent == pytest.approx(-1, abs=0.15)


def test_the_expansion_of_a_ridge_functions_update_leaves_1_over_r_squared():
    ridge, ranks = Ridge.random("sine", seed=0), np.array([16.0, 32, 64])
    left = np.array([np.linalg.norm(ridge.update(r, 0.5) - ridge.update(r, 0.5, edgeworth=True)) for r in ranks])
    assert power_law(ranks, left).exponent == pytest.approx(-2, abs=0.1)


def test_a_networks_updates_differ_as_1_over_r_and_by_the_first_order_term():
    network, ranks, sigma = Network.random(1), (8, 16, 32, 64), 0.5
    pairs = [norm_with_error(coupled_difference(network, r, sigma, count=2048, shifts=8, seed=r)) for r in ranks]
    value, error = np.array(pairs).T
    law = power_law(np.array(ranks, float), value, error)
    assert law.exponent == pytest.approx(-1, abs=0.15) and law.error < 0.05
    term, own = norm_with_error(first_order(network, sigma, count=8192, shifts=8, seed=3))
    assert 64 * value[-1] == pytest.approx(term, rel=0.3) and own < 0.15 * term


def test_the_networks_gradient():
    network, step = Network.random(4), 1e-6
    for i, j in np.ndindex(network.weight.shape):
        offset = np.zeros_like(network.weight)
        offset[i, j] = step
        slope = (network.fitness(offset) - network.fitness(-offset)) / (2 * step)
        assert network.gradient()[i, j] == pytest.approx(float(slope), abs=1e-8)


def test_the_joint_expansion_is_hermites_for_one_entry_and_integrates_to_nothing():
    x = np.linspace(-2, 2, 5)
    np.testing.assert_allclose(edgeworth_weight(x.reshape(-1, 1, 1)), x**4 - 6 * x**2 + 3, atol=1e-12)
    noise = np.random.default_rng(0).normal(size=(200_000, 2, 3))
    weight = edgeworth_weight(noise)
    error = weight.std() / len(weight) ** 0.5
    assert abs(weight.mean()) < 5 * error
    second = weight[:, None] * noise.reshape(-1, 6) ** 2
    assert np.all(np.abs(second.mean(0)) < 5 * second.std(0) / len(weight) ** 0.5), "covariance is the identity"


def test_power_laws_are_found_with_their_errors():
    x = np.array([1.0, 2, 4, 8])
    law = power_law(x, 3 * x**-1.5)
    assert (law.exponent, law.factor) == (pytest.approx(-1.5), pytest.approx(3)) and law.error < 1e-6
    np.testing.assert_allclose(law(np.array([16.0])), 3 * 16**-1.5)
    draw = np.random.default_rng(0).normal
    fitted = [power_law(x, x**-1 * np.exp(0.1 * draw(size=4)), 0.1 * x**-1).exponent for _ in range(400)]
    told = power_law(x, x**-1, 0.1 * x**-1).error
    assert np.std(fitted) == pytest.approx(told, rel=0.15)
