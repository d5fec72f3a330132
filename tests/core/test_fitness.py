"""Laws of fitness shaping."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from eggroll.core import fitness as shaping

ANY = st.floats(width=32, allow_nan=True, allow_infinity=True)
FINITE = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)
SHAPINGS = ["z_score", "centred_rank", "group_z_score", "per_prompt", "antithetic_sign"]
QUICK = settings(max_examples=15, deadline=None)


def shape(name, scores):
    return np.asarray(shaping.shape_by_name(name, group_size=4)(jnp.asarray(scores, jnp.float32)))


@pytest.mark.parametrize("name", SHAPINGS)
@QUICK
@given(scores=arrays(np.float32, 8, elements=ANY))
def test_utilities_are_finite_and_centred(name, scores):
    utilities = shape(name, scores)
    assert utilities.shape == (8,) and utilities.dtype == np.float32
    assert np.isfinite(utilities).all()
    assert abs(utilities.mean()) < 1e-5


@pytest.mark.parametrize("name", SHAPINGS)
@QUICK
@given(value=ANY)
def test_equal_scores_give_zero(name, value):
    assert (shape(name, np.full(8, value, np.float32)) == 0).all()


@pytest.mark.parametrize("name", ["z_score", "centred_rank", "per_prompt"])
@QUICK
@given(scores=arrays(np.float32, 8, elements=FINITE))
def test_a_better_score_never_gets_less(name, scores):
    utilities = shape(name, scores)[np.argsort(scores, kind="stable")]
    assert (np.diff(utilities) >= 0).all()


@pytest.mark.parametrize("name", SHAPINGS)
@QUICK
@given(scores=arrays(np.float32, 8, elements=FINITE), data=st.data())
def test_infinities_are_the_extremes(name, scores, data):
    """Inside what is compared: the group of four for group_z_score, everything otherwise."""
    place = data.draw(st.integers(0, 7))
    peers = slice(place // 4 * 4, place // 4 * 4 + 4) if name == "group_z_score" else slice(0, 8)
    others = np.delete(scores[peers], place - peers.start)
    for bad, replacement in ((-np.inf, others.min()), (np.inf, others.max())):
        spoiled, repaired = scores.copy(), scores.copy()
        spoiled[place], repaired[place] = bad, replacement
        np.testing.assert_array_equal(shape(name, spoiled), shape(name, repaired))


@pytest.mark.parametrize("name", SHAPINGS)
@QUICK
@given(scores=arrays(np.float32, 8, elements=st.sampled_from(np.float32([np.nan, np.inf, -np.inf, 1, 1.5])) | ANY))
def test_nan_is_strictly_worse_than_anything_it_is_compared_with(name, scores):
    utilities, size = shape(name, scores), {"group_z_score": 4, "antithetic_sign": 2}.get(name, 8)
    for values, peers in zip(utilities.reshape(-1, size), scores.reshape(-1, size), strict=True):
        lost = np.isnan(peers)
        if lost.any() and not lost.all():
            assert values[lost].max() < values[~lost].min()
            assert values[lost].max() < 0 < values[~lost].max()
            assert len(set(values[lost])) == 1


@pytest.mark.parametrize("low", [0.0, -3.4e38])
@pytest.mark.parametrize("high", [2.0**127, 1.701412e38, 3.4e38])
def test_the_widest_spreads_still_count(low, high):
    lost = np.full(6, np.nan)
    np.testing.assert_allclose(shape("z_score", [low, high, *lost])[:3], [0.5, 2.5, -0.5], rtol=1e-6)


def test_nan_by_hand():
    nan = np.nan
    np.testing.assert_array_equal(
        shape("antithetic_sign", [3, nan, nan, 3, nan, nan, 3, 4]), [1, -1, -1, 1, 0, 0, -1, 1]
    )
    np.testing.assert_allclose(shape("centred_rank", [5, 5, nan, 5]), np.array([2, 2, 0, 2]) / 3 - 0.5, atol=1e-6)
    tied = np.array([1, 1, 1, -3]) / np.sqrt(3)
    for name in ("z_score", "group_z_score", "per_prompt"):
        np.testing.assert_allclose(shape(name, [5, 5, 5, nan]), tied, rtol=1e-6)
    for scores, filled in (([1, 3, nan], [1, 3, 0]), ([7, -np.inf, 3, nan], [7, 3, 3, 3 - np.std([7, 3, 3])])):
        np.testing.assert_allclose(shape("z_score", scores), shape("z_score", filled), rtol=1e-5)


def test_per_prompt_leaves_out_a_prompt_that_nobody_answered():
    scores = np.random.default_rng(0).choice([999.0, 1001.0], size=(6, 3))
    scores[:, 1] = np.nan
    np.testing.assert_allclose(shape("per_prompt", scores), shape("per_prompt", scores[:, ::2]), rtol=1e-5)
    assert np.abs(shape("per_prompt", scores)).max() > 0.5
    scores[:, 1] = np.inf  # a tie, which does not stretch the scale of the others
    tied = np.column_stack([scores[:, ::2], np.full(6, 999.0)])
    np.testing.assert_allclose(shape("per_prompt", scores), shape("per_prompt", tied), rtol=1e-5)
    assert (shape("per_prompt", np.full((6, 3), np.nan)) == 0).all()


def test_per_prompt_sets_nan_one_deviation_below_the_worst_of_its_prompt():
    scores = np.array([[5.0, 1.0], [5.0, 2.0], [np.nan, 3.0], [5.0, 4.0]])
    filled = scores.copy()
    filled[2, 0] = 5 - np.nanstd(scores)
    np.testing.assert_allclose(shape("per_prompt", scores), shape("per_prompt", filled), rtol=1e-5)


@QUICK
@given(scores=arrays(np.float32, 8, elements=st.floats(-100, 100, width=32, allow_subnormal=False)))
def test_formulas(scores):
    wide = scores.astype(np.float64)
    if scores.max() - scores.min() < 1e-3:
        return
    np.testing.assert_allclose(shape("z_score", scores), (wide - wide.mean()) / wide.std(), rtol=1e-3, atol=1e-3)
    ranks = np.array([((wide < f).sum() + (wide <= f).sum() - 1) / 2 for f in wide])
    np.testing.assert_allclose(shape("centred_rank", scores), ranks / 7 - 0.5, atol=1e-6)
    sign = np.sign(scores[::2] - scores[1::2])
    np.testing.assert_array_equal(shape("antithetic_sign", scores), np.stack([sign, -sign], 1).ravel())
    halves = [shape("z_score", half) for half in scores.reshape(2, 4)]
    np.testing.assert_allclose(shape("group_z_score", scores), np.concatenate(halves), rtol=1e-5, atol=1e-6)


def test_per_prompt_by_hand():
    scores = np.random.default_rng(0).normal(size=(6, 3)) + np.array([[0.0, 5.0, -9.0]])
    expected = ((scores - scores.mean(0)) / scores.std()).mean(1)
    np.testing.assert_allclose(shape("per_prompt", scores), expected, rtol=1e-4, atol=1e-5)
    easy_and_hard = np.array([[1.0, 0.0]] * 4)
    assert (shape("per_prompt", easy_and_hard) == 0).all()


def test_counts_nan():
    assert shaping.count_nan(jnp.array([1.0, jnp.nan, jnp.inf, jnp.nan])) == 2


def test_errors_say_what_was_expected():
    with pytest.raises(ValueError, match=r"expected a shaping among z_score, .*group_per_prompt, got 'softmax'"):
        shaping.shape_by_name("softmax")
    with pytest.raises(ValueError, match="expected a group_size"):
        shaping.shape_by_name("group_z_score")
    with pytest.raises(ValueError, match="expected group_size ≥ 2, got 1"):
        shaping.group_z_score(1)
    with pytest.raises(ValueError, match="expected a group_size that divides the 8 members, got 3"):
        shaping.group_z_score(3)(jnp.zeros(8))


@QUICK
@given(scores=arrays(np.float32, (8, 3), elements=st.floats(-4, 4, width=32)))
def test_prompts_of_groups_are_centred_in_their_group(scores):
    """By hand: each prompt of each group around its own mean, in units of one deviation of all."""
    grouped = scores.astype(np.float64).reshape(2, 4, 3)
    deviation = scores.astype(np.float64).std()
    centred = (grouped - grouped.mean(1, keepdims=True)) / (deviation or 1.0)
    if 0 < deviation < 1e-3:
        return  # rounding is all there is
    found = shape("group_per_prompt", scores)
    np.testing.assert_allclose(found, centred.mean(-1).reshape(-1), atol=1e-3)
    np.testing.assert_allclose(found.reshape(2, 4).sum(1), 0, atol=1e-5)


@QUICK
@given(scores=arrays(np.float32, (4, 5), elements=ANY))
def test_one_group_with_its_prompts_is_per_prompt(scores):
    np.testing.assert_array_equal(shape("group_per_prompt", scores), shape("per_prompt", scores))
