"""The ±1 update of int8 weights: integer sums against Python's integers, and the same bits on any number of devices."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from eggroll.core import noise
from eggroll.core.distribution import LowRank, make_plan
from eggroll.core.mesh import device_mesh
from eggroll.core.state import seed_words
from eggroll.integer.sums import collect
from eggroll.llm import lattice
from eggroll.llm.lattice import (
    Bounds,
    Decays,
    Moments,
    chance_level,
    integer_weights,
    most_level,
    moved,
    total,
    update,
    weighted_sums,
)
from tests.eight import run_on_eight

SHAPES = {"block/w": (2, 5, 4), "head": (6, 4)}
DECAYS = Decays(3, 5)


def plan(rank=1, law="popcount"):
    leaves = {path: jax.ShapeDtypeStruct(shape, jnp.int8) for path, shape in SHAPES.items()}
    tree = {"block": {"w": leaves["block/w"]}, "head": leaves["head"], "scale": jax.ShapeDtypeStruct((2,), jnp.float32)}
    distribution = LowRank(rank, law, stacked={"block/*": 1}, lattice=("block/*", "head"))
    return make_plan(distribution, tree, trainable=("block/*", "head"))


def by_hand(leaf, weights, seed, generation):
    """Pair by pair, in NumPy's own draws and int64."""
    shape = (1, *leaf.shape) if len(leaf.shape) == 2 else leaf.shape
    z = np.zeros(shape, np.int64)
    for pair, weight in enumerate(weights):
        sides = []
        for factor, rows in ((noise.FACTOR_A, shape[1]), (noise.FACTOR_B, shape[2])):
            words = {"seed": noise.seed_words(seed), "leaf": leaf.identity, "generation": generation}
            key = noise.stream_key(**words, factor=factor, pair=np.array([pair], np.int32))
            bits = noise.element_bits(key, np.arange(shape[0] * rows * leaf.rank, dtype=np.int32))
            sides.append(noise.law(leaf.law).integer(np, bits).astype(np.int64).reshape(shape[0], rows, leaf.rank))
        z += int(weight) * np.einsum("smk,snk->smn", *sides)
    return z.reshape(leaf.shape)


@pytest.mark.parametrize(("rank", "law"), [(1, "popcount"), (4, "table_normal"), (3, "signs")])
def test_sums_are_those_of_a_loop_in_python(rank, law, monkeypatch):
    own, weights = plan(rank, law), np.random.default_rng(0).integers(-127, 128, 23)
    words = {"seed": seed_words(2**63 + 9), "generation": jnp.int32(7)}
    whole = weighted_sums(own, jnp.asarray(weights, jnp.int32), **words)
    monkeypatch.setattr(lattice, "_EXACT", 5)  # few pairs in a block
    cut = weighted_sums(own, jnp.asarray(weights, jnp.int32), **words)
    for leaf, one, other in zip(own, whole, cut, strict=True):
        if leaf.frozen:
            assert one is None and other is None
            continue
        np.testing.assert_array_equal(collect(one), by_hand(leaf, weights, 2**63 + 9, 7))
        np.testing.assert_array_equal(collect(one), collect(other))


@pytest.mark.parametrize("law", ["popcount", "table_normal", "signs"])
def test_a_block_of_pairs_is_exact_in_float32(law):
    leaf = next(leaf for leaf in plan(4, law) if leaf.path == "head")
    most = np.abs(noise.law(law).integer(np, np.arange(-(2**31), 2**31, 2**16, dtype=np.int64).astype(np.int32))).max()
    assert lattice._exact_pairs(leaf) * 127 * int(most) ** 2 * 4 <= 2**24


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(np.int32, st.sampled_from([1, 7, 64])))
def test_a_total_is_pythons(values):
    limbs = jax.jit(total)(jnp.asarray(values))
    assert sum(int(limb) << (16 * k) for k, limb in enumerate(limbs)) == sum(map(int, values))


def test_a_total_of_many_is_pythons():
    values = np.random.default_rng(0).integers(-(2**31), 2**31, 100_003).astype(np.int32)
    limbs = total(jnp.asarray(values))
    assert sum(int(limb) << (16 * k) for k, limb in enumerate(limbs)) == int(values.astype(np.int64).sum())


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(np.int32, st.sampled_from([1, 2, 40]), elements=st.integers(-(2**18), 2**18)))
def test_z_scores_are_those_of_float64(values):
    found = np.asarray(jax.jit(lattice.z_scored)(jnp.asarray(values)), np.float64)
    mean, deviation = values.mean(), values.std()
    if not deviation:
        assert not found.any()
        return
    rounded = (1 + abs(mean) * 2**-22) / deviation  # of the mean, to an integer and to float32
    np.testing.assert_allclose(found, (values - mean) / deviation, rtol=2**-6 + rounded, atol=2 * rounded)


def anywhere(value, levels):
    """Bounds that keep no weight near where it was."""
    return Bounds(*map(jnp.asarray, lattice.bounds_of(np.asarray(value), np.asarray(value, np.float32), 0.0, levels)))


def test_a_step_is_that_of_numpy():
    half, generator = ml_dtypes.bfloat16, np.random.default_rng(0)
    value = generator.integers(-7, 8, 500).astype(np.int8)
    m, v, g = (generator.normal(size=500).astype(half) for _ in range(3))
    v, level = np.abs(v), chance_level(0.3, 4, DECAYS)
    state, g32 = Moments(jnp.asarray(m), jnp.asarray(v)), jnp.asarray(g)
    new, after = moved(jnp.asarray(value), state, g32, jnp.float32(level), DECAYS, anywhere(value, 7))
    m = (m.astype(np.float64) * 7 / 8 + g.astype(np.float64) / 8).astype(half)
    v = (v.astype(np.float64) * 31 / 32 + g.astype(np.float64) ** 2 / 32).astype(half)
    goes = m.astype(np.float64) ** 2 >= level * v.astype(np.float64)
    np.testing.assert_array_equal(new, np.clip(value + np.where(goes, np.sign(m.astype(np.float64)), 0), -7, 7))
    np.testing.assert_array_equal(after.first, np.where(goes, half(0), m))
    np.testing.assert_array_equal(after.second, v)
    assert 0.05 < goes.mean() < 0.95 and np.abs(np.asarray(new)).max() == 7


@given(hnp.arrays(np.float32, 20, elements=st.floats(-7, 7, width=32)), st.sampled_from([0.5, 0.75, 1.0, 2.0]))
def test_weights_stay_within_reach_of_what_was_rounded(exact, reach):
    value = np.rint(exact).astype(np.int8)
    for level, most in enumerate(lattice.bounds_of(value, exact, reach, 7)):
        edge = most.astype(np.float32) - exact
        assert (np.abs(edge) <= max(reach, 0.5)).all() and (np.abs(most) <= 7).all()
        assert (most <= value).all() if level == 0 else (most >= value).all()
    least, most = lattice.bounds_of(value, exact, 1.0, 7)
    assert ((most > least) | (np.abs(exact) > 6) | (exact == value)).all()  # two levels, except at the end


@pytest.mark.parametrize("decays", [Decays(1, 1), Decays(3, 5), Decays(5, 5)])
def test_no_gradient_passes_the_highest_level(decays):
    m, v, most = 0.0, 0.0, 0.0
    for _ in range(200):  # of one sign all the time
        m, v = m + (1 - m) * 2.0**-decays.first, v + (1 - v) * 2.0**-decays.second
        most = max(most, m * m / v)
    assert most <= most_level(decays) * (1 + 1e-9)
    assert (chance_level(0.003, 10_000, decays) < most_level(decays)) == (decays != Decays(1, 1))


@pytest.mark.parametrize("alpha", [0.02, 0.2])
def test_chance_moves_no_more_than_its_share(alpha):
    generator, size, shares = np.random.default_rng(0), 20_000, []
    value, state = jnp.zeros(size, jnp.int8), lattice.start_moments([np.zeros(size)])[0]
    bounds = anywhere(value, 127)
    step = jax.jit(lambda value, state, g, level: moved(value, state, g, level, DECAYS, bounds))
    for generation in range(120):
        gradient = jnp.asarray(generator.normal(size=size), jnp.bfloat16)
        new, state = step(value, state, gradient, np.float32(chance_level(alpha, generation, DECAYS)))
        shares.append(float((new != value).mean()))
        value = new
    assert 0.2 * alpha < np.mean(shares[40:]) < alpha  # less, since what has moved begins anew
    assert max(shares) < 1.5 * alpha


@pytest.mark.parametrize("scale", [1e-6, 1.0, 300.0])
def test_weights_are_whole_and_float16_holds_them(scale):
    given = np.random.default_rng(0).standard_t(3, 1000).astype(np.float32) * np.float32(scale)
    found = integer_weights(given)
    assert np.corrcoef(found, given)[0, 1] > 0.9 and not integer_weights(0 * given).any()
    assert np.abs(found).max() == 127 and np.array_equal(found, np.rint(found))
    np.testing.assert_array_equal(found, found.astype(np.float16).astype(np.float32))


def steps(mesh):
    """Three generations' leaves and moments."""
    own, generator = plan(2), np.random.default_rng(0)
    leaves = [jnp.asarray(generator.integers(-7, 8, shape), jnp.int8) for shape in SHAPES.values()]
    moments = lattice.start_moments(leaves)
    bounds = [anywhere(leaf, 7) for leaf in leaves]
    fixed = {"decays": DECAYS, "bounds": bounds, "seed": seed_words(1), "mesh": mesh}
    step = jax.jit(lambda *args, generation: update(own, *args, generation=generation, **fixed))
    for generation in range(3):
        weights = jnp.asarray(generator.integers(-127, 128, 18), jnp.int32)
        level = np.float32(chance_level(0.5, generation, DECAYS))
        leaves, moments, count = step(leaves, moments, weights, level, generation=jnp.int32(generation))
    return [np.asarray(leaf) for leaf in (*leaves, *jax.tree.leaves(moments), count)]


def devices_agree():
    one, many = steps(None), steps(device_mesh())
    assert all(np.array_equal(left, right) for left, right in zip(one, many, strict=True)) and one[-1] > 0


def test_two_devices_take_the_same_steps():
    devices_agree()


def test_eight_devices_take_the_same_steps():
    run_on_eight("llm/eight_lattice.py")
