"""One entry of a rank-r perturbation: Bessel functions against SciPy, densities against integrals and drawn entries."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, special, stats

from eggroll.theory import entry, score
from eggroll.theory.bessel import log_bessel_k
from eggroll.theory.entry import INFINITE
from eggroll.theory.fitting import power_law

RANKS = (1, 2, 3, 5, 8, 50)


@settings(deadline=None)
@given(order=st.floats(0, 60), x=st.floats(1e-6, 300))
def test_bessel_functions_are_those_of_scipy(order, x):
    (found,) = log_bessel_k(order, np.array([x]))
    wanted = special.kve(order, x)
    if math.isfinite(wanted):
        assert found == pytest.approx(math.log(wanted) - x, abs=1e-11, rel=1e-12)
    assert log_bessel_k(-order, np.array([x]))[0] == found


def test_bessel_functions_of_half_orders_are_elementary():
    x = np.geomspace(0.01, 50, 40)
    half = np.log(np.pi / (2 * x)) / 2 - x
    for order, polynomial in ((0.5, 1 + 0 * x), (1.5, 1 + 1 / x), (2.5, 1 + 3 / x + 3 / x**2)):
        np.testing.assert_allclose(log_bessel_k(order, x), half + np.log(polynomial), atol=1e-12)
    assert log_bessel_k(0.0, np.array([0.0]))[0] == math.inf


@pytest.mark.parametrize("rank", RANKS)
def test_the_density_has_the_characteristic_function_of_a_sum_of_products(rank):
    for t in (0.0, 0.7, 3.0):
        assert entry.expectation(rank, lambda x, t=t: np.cos(t * x)) == pytest.approx((1 + t**2 / rank) ** (-rank / 2))
    fourth = entry.expectation(rank, lambda x: x**4)
    assert fourth - 3 == pytest.approx(entry.excess_kurtosis(rank)) == 6 / rank


def test_the_density_of_rank_1_is_a_bessel_function_and_of_rank_2_laplaces():
    x = np.array([-2.0, -0.3, 0.01, 1.0, 5.0])
    np.testing.assert_allclose(entry.density(1, x), special.k0(np.abs(x)) / np.pi, rtol=1e-12)
    np.testing.assert_allclose(entry.density(2, x), np.exp(-math.sqrt(2) * np.abs(x)) / math.sqrt(2), rtol=1e-12)
    np.testing.assert_allclose(entry.density(INFINITE, x), stats.norm.pdf(x), rtol=1e-12)


@pytest.mark.parametrize("rank", (*RANKS, INFINITE))
def test_the_slope_is_the_derivative_and_the_score_its_ratio(rank):
    x, step = np.array([-3.0, -1.0, -0.2, 0.5, 2.0, 6.0]), 1e-5
    difference = (entry.density(rank, x + step) - entry.density(rank, x - step)) / (2 * step)
    np.testing.assert_allclose(entry.slope(rank, x), difference, rtol=1e-7, atol=1e-10)
    np.testing.assert_allclose(entry.score(rank, x), entry.slope(rank, x) / entry.density(rank, x), rtol=1e-10)


@pytest.mark.parametrize("rank", RANKS)
def test_the_score_is_that_of_the_papers_theorem_6(rank):
    x, nu = np.array([0.1, 1.0, 3.0]), (rank - 1) / 2
    y = math.sqrt(rank) * x
    wanted = (rank - 1) / x - math.sqrt(rank) * special.kv(nu + 1, y) / special.kv(nu, y)
    np.testing.assert_allclose(entry.score(rank, x), wanted, rtol=1e-9)


def test_the_expanded_density_of_rank_1_is_negative_somewhere_and_of_rank_2_nowhere():
    x = np.linspace(-8, 8, 801)
    assert entry.edgeworth_density(1, x).min() < 0 <= entry.edgeworth_density(2, x).min()


def test_rank_1_diverges_at_0_rank_2_jumps_and_rank_3_does_neither():
    zero, close = np.array([0.0]), np.array([1e-7])
    assert entry.density(1, zero)[0] == math.inf and entry.slope(1, close)[0] < -1e6
    assert entry.density(1, close)[0] < entry.density(1, close / 10)[0]
    assert entry.slope(2, close)[0] == pytest.approx(-1, abs=1e-6) == -entry.slope(2, -close)[0]
    assert abs(entry.slope(3, close)[0]) < 1e-5 and math.isfinite(entry.density(2, zero)[0])
    assert score.distances(1, score.grid())[::2] == (math.inf, math.inf)


def test_far_out_the_score_is_bounded_and_no_gaussians():
    assert entry.score(4, np.array([1e3]))[0] == pytest.approx(-2, rel=0.01)


def test_probabilities_of_bins_are_integrals():
    edges = np.array([-1.0, 0.0, 0.5, 2.0])
    for rank in (1, 3):
        wanted = [
            integrate.quad(lambda x, r=rank: entry.density(r, np.array([x]))[0], *ends)[0]
            for ends in ((0, 0.5), (0.5, 2))
        ]
        np.testing.assert_allclose(entry.probabilities(rank, edges)[1:], wanted, rtol=1e-5)


@pytest.mark.parametrize("rank", [1, 5])
def test_drawn_entries_have_the_density(rank):
    found = score.histogram(rank, pairs=256, seed=3)
    assert found["entries"] == 256 * 32
    assert found["chi_square"] < stats.chi2.ppf(1 - 1e-6, len(score.EDGES) - 1)
    other = entry.probabilities(INFINITE, score.EDGES) * found["entries"]
    assert np.sum((np.array(found["counts"]) - other) ** 2 / other) > 300 / rank


def test_distances_from_the_gaussian_fall_as_1_over_r_from_8_and_more_steeply_before():
    x, ranks = score.grid(), np.array([8.0, 16, 32, 64, 128])
    for kind, name in enumerate(("density", "x times density", "score times density")):
        late = power_law(ranks, np.array([score.distances(rank, x)[kind] for rank in ranks]))
        assert late.exponent == pytest.approx(-1, abs=0.1), name
        early = power_law(np.array([2.0, 3, 4]), np.array([score.distances(rank, x)[kind] for rank in (2, 3, 4)]))
        assert name == "x times density" or early.exponent < -1.3


def test_the_expansion_leaves_1_over_r_squared():
    x, ranks = np.linspace(-4, 4, 401), np.array([32.0, 64, 128])
    inner = x[np.abs(x) <= 2]
    for exact, expanded, at in (
        (entry.density, entry.edgeworth_density, x),
        (entry.slope, entry.edgeworth_slope, x),
        (entry.score, entry.edgeworth_score, inner),
    ):
        left = np.array([np.max(np.abs(exact(rank, at) - expanded(rank, at))) for rank in ranks])
        assert power_law(ranks, left).exponent == pytest.approx(-2, abs=0.15)


def test_hermite_polynomials():
    x = np.array([0.5, -2.0])
    np.testing.assert_allclose(entry.hermite(4, x), x**4 - 6 * x**2 + 3)
    np.testing.assert_allclose(entry.hermite(5, x), x**5 - 10 * x**3 + 15 * x)
