"""High dimension: closed forms against the library's draws, exponents, and the tangent-kernel network."""

import jax.numpy as jnp
import numpy as np
import pytest

from eggroll.theory import families, linearisation, moments, tangent
from eggroll.theory.entry import INFINITE
from eggroll.theory.fitting import power_law
from eggroll.theory.noise import perturbations

ORDER_ONE = 2**13


@pytest.mark.parametrize("rank", [1, 0])
def test_closed_forms_are_what_the_librarys_draws_give(rank):
    found = families.measured(rank, side=16, pairs=ORDER_ONE, seed=0)
    for family in families.FAMILIES:
        mean, error = found[family.name]
        wanted = family.error(rank or INFINITE, 16, 16, 1.0)
        assert abs(mean - wanted) < 5 * error < wanted, family.name


@pytest.mark.parametrize("family", families.FAMILIES, ids=lambda family: family.kind + str(family.degree))
def test_what_is_averaged_is_the_fitness_itself(family):
    noise = np.random.default_rng(0).normal(size=(3, 4, 5))
    for found, e in zip(family.along(jnp.asarray(noise, jnp.float32)), noise, strict=True):
        each = []
        for direction in np.eye(20).reshape(20, 4, 5):
            inner, norm = np.sum(direction * e), np.linalg.norm(e)
            cubic = inner * norm**family.degree if family.kind == "radial" else np.trace(e @ e.T @ e @ direction.T)
            each.append(inner * cubic)
        assert float(found) == pytest.approx(np.mean(each), rel=1e-4)


@pytest.mark.parametrize("rank", [1, 2, INFINITE])
def test_the_errors_of_the_cubics_are_multiples_of_u_by_the_fourth_moments(rank):
    fourth, direction = moments.fourth_moments(rank, 3, 4), np.random.default_rng(1).normal(size=(3, 4))
    radial = np.einsum("ipjqkrkr,jq->ip", fourth, direction)  # E[E·⟨U, E⟩·‖E‖²]
    np.testing.assert_allclose(radial, families.radial_moment(rank, 3, 4, 2.0) * direction)
    spectral = np.einsum("ipjqkqkr,jr->ip", fourth, direction)  # E[E·Σ E_jq·E_kq·E_kr·U_jr]
    np.testing.assert_allclose(spectral, families.spectral_moment(rank, 3, 4) * direction, atol=1e-12)


@pytest.mark.parametrize("rank", [2, 3])
def test_closed_forms_between_rank_1_and_gaussian(rank):
    noise = np.concatenate([np.asarray(e, float) for e in perturbations((6, 6), rank, "normal", 2**15, 1)])
    for family in (families.FAMILIES[0], families.FAMILIES[2]):
        each = np.asarray(family.along(jnp.asarray(noise, jnp.float32)), float)
        error = each.std() / len(each) ** 0.5
        assert abs(each.mean() - family.error(rank, 6, 6, 1.0)) < 5 * error


def test_a_rank_without_a_closed_form_is_refused():
    with pytest.raises(ValueError, match=r"expected rank 1 or an infinite one for degree 1\.0, got rank 2; "):
        families.radial_moment(2, 4, 4, 1.0)


@pytest.mark.parametrize("family", families.FAMILIES, ids=lambda family: family.kind + str(family.degree))
@pytest.mark.parametrize("method", linearisation.METHODS)
@pytest.mark.parametrize("alpha", linearisation.ALPHAS)
def test_errors_grow_below_the_critical_exponent_stay_at_it_and_vanish_above(family, method, alpha):
    rank, sides = linearisation.METHODS[method][0], np.array([256, 512, 1024, 2048])
    error = [family.error(rank, int(side), int(side), linearisation.sigma_at(alpha, int(side))) for side in sides]
    law = power_law(sides.astype(float) ** 2, np.array(error))
    critical = family.critical[list(linearisation.METHODS).index(method)]
    assert law.exponent == pytest.approx(family.degree * (critical - alpha), abs=0.02)
    assert np.sign(round(law.exponent, 1)) == np.sign(critical - alpha)


def test_what_is_held_is_held():
    for alpha in linearisation.ALPHAS:
        held = [linearisation.sigma_at(alpha, side) * side ** (2 * alpha) for side in linearisation.SIDES]
        np.testing.assert_allclose(held, held[0])


@pytest.mark.parametrize("rank", [1, 0])
def test_the_networks_exact_update_is_what_the_librarys_draws_give(rank):
    width, sigma = 8, 0.8
    network = tangent.WideNetwork.random(width, 0, inputs=1)
    h, z = network.hidden()
    (noise,) = perturbations((width, width), rank, "normal", 2**15, 3)
    noise = np.asarray(noise, float)
    move = sigma * noise @ h[0] / np.sqrt(width)
    half = (np.tanh(z[0] + move) - np.tanh(z[0] - move)) @ network.v / (2 * np.sqrt(width) * sigma)
    each = half[:, None, None] * noise
    found, error = each.mean(0), each.std(0) / len(each) ** 0.5
    wanted = np.outer(network.v * network.tangents(rank or INFINITE, sigma)[0], h[0]) / width
    assert np.all(np.abs(found - wanted) < 5.5 * error)


def test_the_networks_error_is_three_times_as_large_at_rank_1_and_does_not_hang_on_width():
    errors = {
        (width, rank): tangent.update_error(tangent.WideNetwork.random(width, 0), rank, 0.05)
        for width in (64, 256)
        for rank in (1, INFINITE)
    }
    for width in (64, 256):
        assert errors[width, 1] / errors[width, INFINITE] == pytest.approx(3, abs=0.1)
    assert errors[256, 1] == pytest.approx(errors[64, 1], rel=0.3)


def test_the_networks_third_derivative_is_of_order_d_to_minus_a_quarter():
    """It is `Σ_k c_k·t_k³` in the parts of E along h: its norm is the largest |c_k|, all of E in one row."""
    widths, norms = np.array([32, 128, 512]), []
    for width in widths:
        network = tangent.WideNetwork.random(int(width), 0)
        h, z = network.hidden()
        third = (2 - 6 * (1 - np.tanh(z) ** 2)) * (1 - np.tanh(z) ** 2)
        length = np.linalg.norm(h, axis=1, keepdims=True) / np.sqrt(width)
        norms.append(np.abs(network.v * third * length**3).max() / np.sqrt(width))
    law = power_law(widths.astype(float) ** 2, np.array(norms))
    assert law.exponent == pytest.approx(-0.25, abs=0.07)


def test_errors_of_update_and_kernel_fall_as_sigma_squared():
    network, sigmas = tangent.WideNetwork.random(32, 1), np.array([0.05, 0.1, 0.2])
    for error in (tangent.update_error, tangent.kernel_error):
        values = np.array([error(network, INFINITE, float(sigma)) for sigma in sigmas])
        assert power_law(sigmas, values).exponent == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("rank", [1, 0])
def test_the_drawn_nonlinearity_falls_with_sigma(rank):
    network = tangent.WideNetwork.random(16, 0)
    large, small = (tangent.nonlinearity(network, rank, sigma, pairs=32, seed=0) for sigma in (0.4, 0.2))
    assert 2 < large / small < 5
