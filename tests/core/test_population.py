"""Evaluating members: against a loop over members, whatever the chunks and groups."""

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from eggroll.core import noise
from eggroll.core.distribution import FullRank, LowRank, make_plan
from eggroll.core.population import Setting, evaluate, generation_key, per_group

from .oracle import member_params

PARAMS = {"b": jnp.zeros(3), "w": jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)}
X = jnp.asarray(np.random.default_rng(1).normal(size=(2, 4)), jnp.float32)
SEED, MEMBERS, SIGMA = 9, 12, 0.1


def model(params, x):
    return jnp.tanh(x @ params["w"]) + params["b"][None]


def score(params, key, x):
    return model(params, x).sum()


def run(fitness, *args, pairs=range(6), group_size=MEMBERS, chunk_pairs=6, distribution=LowRank(), **kwargs):  # noqa: B008
    plan = make_plan(distribution, PARAMS)

    def whole(params, pairs, args, carry):
        return evaluate(
            fitness,
            plan,
            params,
            pairs,
            args,
            seed=jnp.array(noise.seed_words(SEED), jnp.int32),
            generation=jnp.int32(3),
            sigma=jnp.float32(SIGMA),
            setting=Setting(MEMBERS, group_size, chunk_pairs),
            carry=carry,
            has_aux=kwargs.get("has_aux", False),
        )

    return jax.jit(whole)(PARAMS, jnp.array(list(pairs), jnp.int32), args, kwargs.get("carry"))


def by_loop(score_of, **kwargs):
    which = {"seed": SEED, "generation": 3, "sigma": SIGMA} | kwargs
    flat = {path: np.asarray(value) for path, value in PARAMS.items()}
    return [score_of(i, jax.tree.map(jnp.float32, member_params(flat, i, **which))) for i in range(MEMBERS)]


@pytest.mark.parametrize(
    ("distribution", "kwargs"),
    [
        (LowRank(1), {}),
        (LowRank(3, "signs"), {"rank": 3, "law": "signs"}),
        (FullRank("popcount"), {"low_rank": False}),
    ],
)
@pytest.mark.parametrize("chunk_pairs", [1, 4, 6])
def test_fitness_is_that_of_a_loop_over_members(distribution, kwargs, chunk_pairs):
    got = run(score, X, distribution=distribution, chunk_pairs=chunk_pairs).fitness
    expected = by_loop(lambda i, p: score(p, None, X), **kwargs)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_a_range_of_pairs_is_evaluated_as_in_the_whole():
    whole, part = run(score, X).fitness, run(score, X, pairs=[4, 5, 1]).fitness
    np.testing.assert_allclose(part, whole.reshape(6, 2)[jnp.array([4, 5, 1])].reshape(-1), rtol=1e-6)


@pytest.mark.parametrize("chunk_pairs", [1, 4, 6])
def test_groups_share_key_and_data(chunk_pairs):
    data = jnp.arange(3 * 2 * 4, dtype=jnp.float32).reshape(3, 2, 4) / 10

    def noisy(params, key, batch, shift):
        return score(params, None, batch["x"]) + jax.random.normal(key) + shift

    got = run(noisy, per_group({"x": data}), jnp.float32(1), group_size=4, chunk_pairs=chunk_pairs).fitness
    key = generation_key(jnp.array(noise.seed_words(SEED), jnp.int32), jnp.int32(3))
    shifts = [1 + jax.random.normal(jax.random.fold_in(key, group)) for group in range(3)]
    expected = by_loop(lambda i, p: score(p, None, data[i // 4]) + shifts[i // 4])
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunk_pairs", [4, 6])
def test_carry_and_aux_go_by_member(chunk_pairs):
    carry = {"n": jnp.arange(MEMBERS), "h": jnp.ones((MEMBERS, 2))}

    def fitness(params, key, own, x):
        out = model(params, x)
        return out.sum() + own["n"], {"n": own["n"] + 1, "h": own["h"] * out[:, 0]}, {"first": out[0]}

    got = run(fitness, X, carry=carry, has_aux=True, chunk_pairs=chunk_pairs)
    outs = by_loop(lambda i, p: model(p, X))
    close = {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(got.fitness, [o.sum() + i for i, o in enumerate(outs)], **close)
    np.testing.assert_array_equal(got.carry["n"], jnp.arange(MEMBERS) + 1)
    np.testing.assert_allclose(got.carry["h"], [o[:, 0] for o in outs], **close)
    np.testing.assert_allclose(got.aux["first"], [o[0] for o in outs], **close)


def every_equation(jaxpr):
    yield from jaxpr.eqns
    for inner in jax.extend.core.subjaxprs(jaxpr):
        yield from every_equation(inner)


def test_no_member_has_a_dense_matrix():
    """No intermediate of a low-rank evaluation is as large as the matrices of a chunk's members or pairs."""
    params = {"w1": jnp.ones((32, 40)), "w2": jnp.ones((40, 32))}
    plan = make_plan(LowRank(2), params)

    def two_layers(params, key, x):
        return (jnp.tanh(x @ params["w1"]) @ params["w2"]).sum()

    def whole(params, x):
        pairs, setting = jnp.arange(4, dtype=jnp.int32), Setting(8, 8, 4)
        counters = {"seed": jnp.zeros(2, jnp.int32), "generation": jnp.int32(0), "sigma": jnp.float32(0.1)}
        return evaluate(two_layers, plan, params, pairs, (x,), setting=setting, **counters)

    jaxpr = jax.make_jaxpr(whole)(params, jnp.ones((2, 32)))
    sizes = [v.aval.size for e in every_equation(jaxpr.jaxpr) for v in e.outvars if hasattr(v.aval, "size")]
    assert max(sizes) < 32 * 40


@pytest.mark.parametrize(
    ("fitness", "kwargs", "match"),
    [
        (lambda p, k, x: p["b"], {}, r"expected fitness to return a scalar number, got float32\[3\]"),
        (lambda p, k, x: "good", {}, "expected fitness to return a scalar number, got a str"),
        (lambda p, k, x: jnp.complex64(1j), {}, r"scalar number, got complex64\[\]"),
        (
            lambda p, k, x: (x.sum(), x),
            {},
            "expected fitness to return a scalar number, got a tuple; .*has_aux",
        ),
        (
            lambda p, k, x: x.sum(),
            {"has_aux": True},
            r"expected fitness to return \(fitness, aux\), got float32\[\]",
        ),
        (
            lambda p, k, c, x: (x.sum(), c),
            {"carry": jnp.ones(3)},
            "expected a leading axis of 12 members in carry",
        ),
        (
            lambda p, k, c, x: (x.sum(), x),
            {"carry": jnp.ones(12)},
            "expected fitness to return a carry like the one",
        ),
    ],
)
def test_errors(fitness, kwargs, match):
    with pytest.raises(ValueError, match=match) as error:
        run(fitness, X, **kwargs)
    assert "\n" not in str(error.value).split("\n---")[0]


def test_pairs_may_be_sharded_over_a_mesh():
    """`evaluate` under `shard_map` gives what one device gives; a fitness's own scan rules `check_vma` out."""
    mesh = jax.make_mesh((2,), ("population",), axis_types=(jax.sharding.AxisType.Auto,))
    counters = {"seed": jnp.zeros(2, jnp.int32), "generation": jnp.int32(0), "sigma": jnp.float32(0.1)}
    plan, data = make_plan(LowRank(), PARAMS), jnp.stack([X, X + 1])

    def fitness(params, key, x):
        return jax.lax.scan(lambda total, _: (total + score(params, key, x), None), 0.0, None, length=2)[0]

    def part(params, pairs, x):
        args = (per_group(x),)
        return evaluate(fitness, plan, params, pairs, args, setting=Setting(16, 8, 2), **counters).fitness

    specs = (PartitionSpec(), PartitionSpec("population"), PartitionSpec())
    sharded = jax.shard_map(part, mesh=mesh, in_specs=specs, out_specs=specs[1], check_vma=False)
    pairs = jnp.arange(8, dtype=jnp.int32)
    np.testing.assert_allclose(jax.jit(sharded)(PARAMS, pairs, data), jax.jit(part)(PARAMS, pairs, data), rtol=1e-6)


def test_per_group_needs_one_part_for_each_group():
    with pytest.raises(ValueError, match=r"expected a leading axis of 3 groups in per_group, got shape \(2, 4\)"):
        run(score, per_group(X), group_size=4)
