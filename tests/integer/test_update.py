"""The ±1 update against a Python loop in int64, and its limits."""

from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eggroll.core.errors import UsageError
from eggroll.integer import arithmetic, model, sums, update
from tests.integer.test_model import SEED, numpy_noise

LIMIT = 2**27 - 1


UPDATE = jax.jit(update.update, static_argnames="config")


def loop_sum(config, signs, generation):
    """`Z` of every leaf by a loop over pairs."""
    total = {}
    for pair, sign in enumerate(signs):
        for path, draw in numpy_noise(config, generation, pair).items():
            if model.is_matrix(path):
                a, b = (side.astype(np.int64) for side in draw)
                draw = a @ np.moveaxis(b, -1, -2)
            total[path] = total.get(path, 0) + int(sign) * draw
    return {path: np.clip(z, -LIMIT, LIMIT) for path, z in total.items()}


@pytest.mark.parametrize(("rank", "pairs", "block"), [(1, 37, 1024), (1, 37, 8), (4, 9, 16), (16, 5, 1024)])
@pytest.mark.parametrize("level", [0, 4000])
def test_update_equals_a_loop(monkeypatch, rank, pairs, block, level):
    """Also when the pairs are cut into many blocks, the last of them padded."""
    monkeypatch.setattr(sums, "EXACT_BLOCK", block)
    config = model.Config(layers=2, width=16, rank=rank)
    leaves = model.flat(model.init_parameters(config, 0))
    leaves["head"][:3] = 127
    signs = np.random.default_rng(pairs).integers(-1, 2, pairs).astype(np.int8)
    new, moved = jax.jit(update.update, static_argnames="config")(
        model.nested(leaves), jnp.asarray(signs), jnp.int32(level * 16), config=config,
        seed=jnp.asarray(SEED, jnp.int32), generation=jnp.int32(3),
    )  # fmt: skip
    changed = 0
    for path, z in loop_sum(config, signs, 3).items():
        step = np.where(16 * np.abs(z) < level * 16, 0, np.sign(z))
        expected = np.clip(leaves[path].astype(int) + step, -127, 127)
        np.testing.assert_array_equal(model.flat(new)[path], expected)
        changed += int((expected != leaves[path]).sum())
    assert int(moved) == changed > 0


def test_matmul_of_a_full_block_is_exact():
    """1024 pairs of ±127: the largest sum a block can reach."""
    a = np.full((2, arithmetic.EXACT_BLOCK), 127, np.int8)
    got = arithmetic.matmul(jnp.asarray(a), jnp.asarray(-a))
    assert (np.asarray(got) == -(127**2) * arithmetic.EXACT_BLOCK).all()


@given(st.lists(st.integers(-(2**24), 2**24), min_size=1, max_size=40), st.sampled_from([1, 300]))
@settings(max_examples=50, deadline=None)
def test_two_words_sum_and_saturate(values, times):
    words = sums.zero_words((1,))
    add = jax.jit(lambda w, v: jax.lax.fori_loop(0, times, lambda _, u: sums.add_to(u, v), w))
    for value in values:
        words = add(words, jnp.asarray([value], jnp.int32))
    assert int(sums.collect(words)[0]) == int(np.clip(times * sum(values), -LIMIT, LIMIT))


@pytest.mark.parametrize(
    "total", [LIMIT - 1, LIMIT, LIMIT + 1, LIMIT + 2, -LIMIT, -LIMIT - 1, -LIMIT - 2, 0, -1, 2**31 - 1]
)
def test_saturation_at_its_edge(total):
    words = sums.add_to(sums.zero_words((1,)), jnp.asarray([total], jnp.int32))
    assert int(sums.collect(words)[0]) == int(np.clip(total, -LIMIT, LIMIT))


def test_zero_never_moves_and_weights_saturate():
    value, z = jnp.asarray([5, 127, -127, -127], jnp.int8), jnp.asarray([0, LIMIT, -LIMIT, 1], jnp.int32)
    np.testing.assert_array_equal(update.apply_threshold(value, z, jnp.int32(0)), [5, 127, -127, -126])
    np.testing.assert_array_equal(update.apply_threshold(value, z, jnp.int32(2**31 - 1)), value)


def test_threshold_and_alpha():
    assert update.threshold(1.0, 100) == 0
    assert update.threshold(0.3, 4) == 16 * 2 * 256
    assert update.threshold(0.3, 5, rank=16) == 16 * 2 * 256 * 4
    assert update.threshold(1e-300, 2**40) == 2**31 - 1
    assert update.alpha_at(50, 0.25, 1000.0) == 0.25
    assert update.alpha_at(0, 4.0, 1000.0) == 1
    assert update.alpha_at(1000, 4.0, 1000.0) == pytest.approx(1 / 16)


@pytest.mark.parametrize(("alpha", "decay"), [(0.0, 1.0), (-1.0, 1.0), (float("nan"), 1.0), (4.0, 0.0)])
def test_bad_alpha(alpha, decay):
    with pytest.raises(UsageError, match="expected alpha > 0 and decay > 0, got"):
        update.alpha_at(0, alpha, decay)


def test_chance_moves_about_alpha_of_the_weights():
    """With random signs the threshold does what its name says, τ being cut to sixteenths."""
    config = model.Config(layers=1, width=64)
    signs = np.random.default_rng(0).choice(np.array([-1, 1], np.int8), 400)
    for alpha in (1.0, 0.5, 0.1):
        level = jnp.int32(update.threshold(alpha, 400))
        _, moved = UPDATE(
            model.init_parameters(config, 0), jnp.asarray(signs), level, config=config,
            seed=jnp.asarray(SEED, jnp.int32), generation=jnp.int32(0),
        )  # fmt: skip
        tau = int(16 * NormalDist().inv_cdf(1 - alpha / 2)) / 16
        expected = 2 - 2 * NormalDist().cdf(tau)
        assert abs(int(moved) / config.parameter_count - expected) < 0.02


def test_pair_signs():
    scores = jnp.asarray([[3, -5, 2], [1, -4, 2]], jnp.int32)
    np.testing.assert_array_equal(update.pair_signs(scores), [1, -1, 0])
