"""Plans of a tree, and the noise drawn by them against `core.noise` in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eggroll.core import noise
from eggroll.core.distribution import (
    FullRank,
    LowRank,
    leaf_paths,
    make_plan,
)
from eggroll.core.draws import draw_elements, draw_noise, perturb, stream_keys, trainable, weighted_sum

from .oracle import direction, draw

SEED = jnp.array(noise.seed_words(5), jnp.int32)
PARAMS = {"layer": [jnp.ones((4, 3)), jnp.zeros(3)], "scale": jnp.float32(2.0)}


def drawn_for(plan, pairs=(0, 7)):
    draw = jax.jit(lambda p: draw_noise(plan, seed=SEED, generation=jnp.int32(2), pairs=p))
    return draw(jnp.array(pairs, jnp.int32))


def test_paths_are_joined_from_keys_attributes_and_indices():
    assert leaf_paths(PARAMS) == ["layer/0", "layer/1", "scale"]


def test_plan_of_each_kind_of_leaf():
    plan = make_plan(LowRank(rank=2), PARAMS, frozen=("scale",), allow_materialise=("layer/0",))
    assert [leaf.roles for leaf in plan] == ["rc", "", ""]
    assert [leaf.rank for leaf in plan] == [2, 0, 0]
    assert [leaf.frozen for leaf in plan] == [False, False, True]
    assert [leaf.may_materialise for leaf in plan] == [True, False, False]
    assert [leaf.identity for leaf in plan] == [noise.leaf_id(leaf.path) for leaf in plan]


@pytest.mark.parametrize("law", ["popcount", "signs", "table_normal"])
@pytest.mark.parametrize("rank", [1, 2])
def test_draws_are_those_of_numpy(law, rank):
    plan = make_plan(LowRank(rank, law), PARAMS)
    factors, bias, scale = drawn_for(plan)
    for row, pair in enumerate((0, 7)):
        which = {"seed": 5, "generation": 2, "pair": pair, "law": law}
        np.testing.assert_array_equal(factors.a[row], draw("layer/0", noise.FACTOR_A, (4, rank), **which))
        np.testing.assert_array_equal(factors.b[row], draw("layer/0", noise.FACTOR_B, (3, rank), **which))
        np.testing.assert_array_equal(bias[row], draw("layer/1", noise.FACTOR_DENSE, (3,), **which))
        np.testing.assert_array_equal(scale[row], draw("scale", noise.FACTOR_DENSE, (), **which))


def test_stacked_and_split_elements_count_through_the_whole_leaf():
    params = {"stack": jnp.ones((2, 4, 3)), "heads": jnp.ones((2, 3, 4)), "bias": jnp.ones((2, 3))}
    law = LowRank(rank=2, stacked={"stack": 1}, split={"heads": 2, "bias": 0})
    plan = make_plan(law, params)
    bias, heads, stack = drawn_for(plan, (3,))
    which = {"seed": 5, "generation": 2, "pair": 3}
    assert [leaf.roles for leaf in plan] == ["", "rrc", "src"]
    np.testing.assert_array_equal(bias[0], draw("bias", noise.FACTOR_DENSE, (2, 3), **which))
    np.testing.assert_array_equal(heads.a[0], draw("heads", noise.FACTOR_A, (2, 3, 2), **which))
    np.testing.assert_array_equal(heads.b[0], draw("heads", noise.FACTOR_B, (4, 2), **which))
    np.testing.assert_array_equal(stack.a[0], draw("stack", noise.FACTOR_A, (2, 4, 2), **which))
    np.testing.assert_array_equal(stack.b[0], draw("stack", noise.FACTOR_B, (2, 3, 2), **which))


def test_noise_of_a_leaf_does_not_depend_on_the_others():
    alone = drawn_for(make_plan(LowRank(), {"layer": PARAMS["layer"]}))
    together = drawn_for(make_plan(LowRank(), PARAMS))
    jax.tree.map(np.testing.assert_array_equal, alone, together[:2])


@pytest.mark.parametrize("distribution", [LowRank(rank=2), FullRank(law="popcount")])
def test_perturbed_parameters(distribution):
    plan = make_plan(distribution, PARAMS)
    own = jax.tree.map(lambda x: x[1], drawn_for(plan))
    moved = perturb(plan, PARAMS, own, jnp.float32(-0.1))
    low_rank = isinstance(distribution, LowRank)
    kernel = moved["layer"][0].dense() if low_rank else moved["layer"][0]
    which = {"seed": 5, "generation": 2, "pair": 7}
    expected = 1 - 0.1 * direction("layer/0", (4, 3), rank=2, low_rank=low_rank, **which)
    np.testing.assert_allclose(kernel, expected, rtol=1e-6)
    np.testing.assert_allclose(moved["layer"][1], -0.1 * direction("layer/1", (3,), **which), rtol=1e-6)


def test_noise_has_the_dtype_of_the_leaf_and_frozen_leaves_have_none():
    params = {"w": jnp.ones((4, 3), jnp.bfloat16), "table": jnp.arange(3)}
    plan = make_plan(LowRank(), params, frozen=("tab*",))
    none, factors = drawn_for(plan)
    assert none is None and factors.a.dtype == factors.b.dtype == jnp.bfloat16
    moved = perturb(plan, params, [None, jax.tree.map(lambda x: x[0], factors)], jnp.float32(0.1))
    assert moved["table"] is params["table"] and moved["w"].dense().dtype == jnp.bfloat16
    assert len(jax.tree.leaves(trainable(plan, jax.tree.leaves(params), jax.tree.structure(params)))) == 1


def test_weighted_sum_of_stacked_and_split_leaves():
    params = {"heads": jnp.ones((2, 3, 4)), "stack": jnp.ones((2, 4, 3))}
    plan = make_plan(LowRank(rank=2, stacked={"stack": 1}, split={"heads": 2}), params)
    weights = jnp.array([0.5, -2.0])
    for leaf, own, formula in zip(plan, drawn_for(plan), ("phdk,pok,p->hdo", "plmk,plnk,p->lmn"), strict=True):
        expected = np.einsum(formula, own.a, own.b, weights) / np.sqrt(2)
        np.testing.assert_allclose(weighted_sum(leaf, own, weights), expected, rtol=1e-5, atol=1e-6)


def refused(match, params=PARAMS, distribution=LowRank(), **kwargs):  # noqa: B008 (frozen)
    with pytest.raises(ValueError, match=match) as error:
        make_plan(distribution, params, **kwargs)
    assert "\n" not in str(error.value)


def test_errors_name_the_leaf_and_the_mend():
    ones = jnp.ones(2)
    three = {"deep": {"w": jnp.ones((2, 3, 4))}}
    refused(
        r"'deep/w', got shape \(2, 3, 4\), which is ambiguous; .*"
        r'distribution=LowRank\(split=\{"deep/w": 1\}\) .*distribution=LowRank\(stacked=\{"deep/w": 1\}\)',
        three,
    )
    refused(
        r"expected rank ≤ 3 for leaf 'layer/0' of shape \(4, 3\), got rank 4; .*"
        r'distribution=LowRank\(split=\{"layer/0": 0\}\)',
        distribution=LowRank(rank=4),
    )
    refused(
        r"expected float leaves, got int32 in leaf 'n'; name it in frozen",
        {"n": jnp.arange(3), "w": jnp.ones(2)},
    )
    refused("expected leaves with different paths, got 'a/b' twice; rename one", {"a": {"b": ones}, "a/b": ones})
    refused("expected at least one leaf to train, got 3 leaves, all frozen", frozen=("*",))
    refused("expected at least one leaf to train, got 0 leaves", {})
    refused("expected frozen patterns that match a leaf, got 'bias'; the leaves are layer/0", frozen=("bias",))
    refused("expected split patterns that match a leaf, got 'x'", distribution=LowRank(split={"x": 1}))
    refused("expected stacked and split axes within", distribution=LowRank(stacked={"layer/1": 2}))


@pytest.mark.parametrize("other", [jnp.tanh, "float32", np.array(["a"]), Ellipsis])
@pytest.mark.parametrize("frozen", [(), ("act",)])
def test_a_leaf_that_is_no_array_is_named(other, frozen):
    kind = type(other).__name__
    refused(
        f"expected arrays and numbers as leaves, got a {kind} in leaf 'act'; .*eqx.partition.*close over it",
        {"act": other, "w": jnp.ones(2)},
        frozen=frozen,
    )


def test_numbers_and_arrays_of_any_dtype_may_be_frozen():
    params = {"key": jax.random.key(0), "n": 3, "on": True, "table": np.arange(3), "w": 1.5, "z": 1j}
    plan = make_plan(LowRank(), params, frozen=("key", "n", "on", "table", "z"))
    assert [leaf.path for leaf in plan if not leaf.frozen] == ["w"]


def test_a_shard_draws_just_its_rows():
    plan = make_plan(LowRank(rank=2), PARAMS)
    factors, bias, _ = drawn_for(plan)
    counters = {"seed": SEED, "generation": jnp.int32(2), "pairs": jnp.array((0, 7), jnp.int32)}
    streams = [(plan[0].identity, noise.FACTOR_A), (plan[1].identity, noise.FACTOR_DENSE)]
    keys = list(zip(*stream_keys(streams, **counters), strict=True))
    rows = draw_elements(plan[0], (2, 2), keys[0], first=2)
    np.testing.assert_array_equal(rows, factors.a[:, 1:3])
    tail = jax.jit(lambda k: draw_elements(plan[1], (1,), keys[1], first=k))(jnp.int32(2))
    np.testing.assert_array_equal(tail, bias[:, 2:])


def test_settings_are_validated():
    for make, match in (
        (lambda: LowRank(rank=0), "expected rank ≥ 1, got 0"),
        (lambda: LowRank(law="cauchy"), "expected a noise law among"),
        (lambda: FullRank(law="cauchy"), "expected a noise law among"),
        (lambda: LowRank(stacked={"x": -1}), "expected stacked"),
    ):
        with pytest.raises(ValueError, match=match):
            make()


def test_matrices_with_an_axis_of_one_are_matrices():
    assert make_plan(LowRank(), {"w": jnp.ones((5, 1))})[0].roles == "rc"
