"""Variance per pair and cost: closed forms against all noise added up and draws; the model against its table."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erfinv

from eggroll.core import noise
from eggroll.theory import cost, moments, variance
from eggroll.theory.chips import CHIPS
from eggroll.theory.entry import INFINITE
from eggroll.theory.noise import perturbations


@pytest.mark.parametrize("law", variance.LAWS)
def test_the_kurtosis_of_a_law_is_that_of_its_draws(law):
    key = noise.stream_key(seed=(1, 2), leaf=3, factor=0, generation=0, pair=np.arange(1, dtype=np.int32))
    bits = noise.element_bits((key[0][:, None], key[1][:, None]), np.arange(2**18, dtype=np.int32)[None, :])
    values = noise.to_float(np, noise.law(law), bits, erf_inv=erfinv).astype(float).reshape(-1)
    error = np.std(values**4) / len(values) ** 0.5
    assert abs(np.mean(values**4) - moments.law_kurtosis(law)) < 5 * error + 1e-6


@pytest.mark.parametrize("rank", [1, 2])
def test_the_energy_with_signs_is_the_sum_over_all_of_them(rank):
    gradient, total, count = np.random.default_rng(0).normal(size=(2, 3)), 0.0, 0
    for signs in itertools.product((-1.0, 1.0), repeat=5 * rank):
        a, b = np.reshape(signs[: 2 * rank], (2, rank)), np.reshape(signs[2 * rank :], (3, rank))
        e = a @ b.T / np.sqrt(rank)
        total, count = total + np.sum(gradient * e) ** 2 * np.sum(e**2), count + 1
    assert total / count / np.sum(gradient**2) == pytest.approx(moments.energy(rank, 2, 3, kurtosis=1.0))


def test_the_energy_is_a_contraction_of_the_fourth_moments():
    for rank in (1, 3, INFINITE):
        fourth = moments.fourth_moments(rank, 2, 3, kurtosis=2.5)
        gradient = np.random.default_rng(1).normal(size=(2, 3))
        found = np.einsum("ipjqkrkr,ip,jq->", fourth, gradient, gradient)
        assert found / np.sum(gradient**2) == pytest.approx(moments.energy(rank, 2, 3, kurtosis=2.5))


@pytest.mark.parametrize(("rank", "law"), [(1, "normal"), (4, "popcount"), (1, "signs"), (0, "normal"), (0, "signs")])
def test_drawn_estimates_have_the_variance(rank, law):
    mean, error = variance.measured_linear(rank, 8, law, pairs=2**14, seed=2)
    assert abs(mean - variance.linear_variance(rank, (8, 8), law)) < 5 * error


def test_signs_cost_nothing_at_rank_1_and_normals_2_over_m_and_2_over_n():
    dense = variance.linear_variance(0, (64, 64), "normal")
    assert variance.linear_variance(1, (64, 64), "signs") == 64 * 64 - 1 < dense
    assert variance.linear_variance(1, (64, 64), "normal") / dense == pytest.approx(1 + 4 / 64, rel=0.01)
    narrow = [variance.linear_variance(rank, (256, 2), "normal") for rank in (1, 0)]
    assert narrow[0] / narrow[1] == pytest.approx(2, rel=0.02)


@pytest.mark.parametrize("rank", [1, 0])
def test_noise_in_fitness_adds_the_same_at_every_rank(rank):
    side, sigma, tau, draw = 6, 0.1, 0.5, np.random.default_rng(0).normal
    gradient = draw(size=(side, side))
    (e,) = perturbations((side, side), rank, "normal", 2**15, 4)
    e = np.asarray(e, float)
    slope = np.einsum("pij,ij->p", e, gradient) + tau * (draw(size=len(e)) - draw(size=len(e))) / (2 * sigma)
    each = slope**2 * np.sum(e**2, axis=(1, 2))
    clean = np.sum(gradient**2) * (variance.linear_variance(rank, (side, side), "normal") + 1)
    wanted = clean + tau**2 * side**2 / (2 * sigma**2)
    assert abs(each.mean() - wanted) < 5 * each.std() / len(each) ** 0.5


def test_a_network_of_small_sigma_has_the_linear_variance():
    for rank in (1, 0):
        found, error = variance.network_variance(rank, "normal", 0.05, pairs=2**12, seed=0)
        wanted = variance.linear_variance(rank, (variance.NETWORK_SIDE,) * 2, "normal")
        assert found == pytest.approx(wanted, abs=5 * error + 0.05 * wanted)


def test_the_model_is_its_table():
    chip, pairs, tokens, m, n = CHIPS["h100"], 32, 4, 128, 256
    peak, bandwidth = 989.4e12, 3.35e12
    evaluate, update = cost.modelled_seconds(chip, "bfloat16", (m, n), rank=2, pairs=pairs, tokens=tokens)
    operations = 2 * pairs * tokens * (2 * m * n + 2 * 2 * (m + n))
    moved = 2 * (m * n + 2 * pairs * tokens * (m + n) + pairs * 2 * (m + n))
    assert evaluate == pytest.approx(max(operations / peak, moved / bandwidth))
    moved = 2 * pairs * 2 * (m + n) + 4 * m * n
    assert update == pytest.approx(max(2 * pairs * 2 * m * n / peak, moved / bandwidth))
    dense, _ = cost.modelled_seconds(chip, "bfloat16", (m, n), rank=0, pairs=pairs, tokens=tokens)
    assert dense == pytest.approx(2 * (m * n + 2 * pairs * tokens * (m + n) + pairs * m * n) / bandwidth)


def test_rank_1_is_never_behind_and_ties_with_rank_2_where_tokens_are_many():
    work = variance.modelled_work("h100", "bfloat16", 8192, 512)
    for name, own in work.items():
        assert np.all(np.array(own) >= 0.999 * np.array(work["rank 1"])), name
    assert work["rank 2"][0] > 1.1 * work["rank 1"][0] and work["rank 2"][-1] < 1.01 * work["rank 1"][-1]


def test_what_is_timed_is_a_generation():
    seconds = cost.measured_seconds((64, 64), (1, 0), pairs=32, tokens=1, repeats=1)
    assert set(seconds) == {1, 0} and min(seconds.values()) > 0
    run = cost._generation(cost.plan_of((4, 4), 1, "popcount"), (4, 4), 8, 2)
    assert run().shape == (4, 4) and jnp.all(jnp.isfinite(run()))
