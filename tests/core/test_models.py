"""Unmodified models of every framework: perturbed, they equal themselves with M + σ/√r·ABᵀ written out."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import lax

import eggroll
from eggroll.core.distribution import make_plan
from eggroll.core.draws import Factors, perturb
from eggroll.core.lowrank import LowRankArray, apply_perturbed
from tests.core.test_lowrank import assert_same, low_rank, normal, written_out
from tests.core.zoo import MODELS

SIGMA = 0.3
SIGNS = jnp.array([1.0, -1.0])
ROUNDOFF = {jnp.float32: 2.0**-24, jnp.bfloat16: 2.0**-8}


def cast(tree, dtype):
    """Every float array, factors of low-rank leaves too; never their scale. NumPy casts without compiling."""

    def array(x):
        return jnp.asarray(np.asarray(x).astype(dtype)) if jnp.issubdtype(x.dtype, jnp.floating) else x

    def one(x):
        if isinstance(x, LowRankArray):
            return LowRankArray(*map(array, (x.base, x.a, x.b)), x.scale, x.roles, x.leaf)
        return array(x)

    return jax.tree.map(one, tree, is_leaf=lambda x: isinstance(x, LowRankArray))


def flat(tree):
    return np.concatenate([np.ravel(np.asarray(x, np.float32)) for x in jax.tree.leaves(tree)])


@pytest.mark.parametrize("dtype", ROUNDOFF, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_model_equals_itself_written_out(name, dtype):
    """Rank 1 and 4, both signs; outputs are judged against float32 with dense weights.

    In float32 only the order of sums differs: 64 roundings. In bfloat16 every layer rounds what it gives on by one
    part in 2⁸, and the product of a factor once more; models here are 2 to 6 layers deep and keep the size of
    what they pass on, so 8 roundings of the largest output bound their sum. What the noise does to the outputs has
    to exceed that bound several times over, or else the test would see nothing.
    """
    model = MODELS[name]()
    mixed = model.reference is not None
    tolerance = 8 * ROUNDOFF[jnp.bfloat16] if mixed or dtype == jnp.bfloat16 else 64 * ROUNDOFF[jnp.float32]
    reference = jax.jit(model.reference or model.apply)
    params, x = cast(model.params, dtype), cast(model.x, dtype)
    mean = flat(reference(cast(params, jnp.float32), cast(x, jnp.float32)))
    for rank in (1, 4):
        plan = make_plan(eggroll.LowRank(rank, stacked=model.stacked, split=model.split), params)
        noise = [
            leaf.rank and Factors(*(cast(normal(k, *leaf.factor_shape(side)), dtype) for side in "rc"))
            for k, leaf in enumerate(plan)
        ]
        assert any(noise)
        noise = [own or None for own in noise]

        def member(sign, plan=plan, noise=noise):
            return apply_perturbed(model.apply, perturb(plan, params, noise, sign * SIGMA), x)

        got = jax.jit(jax.vmap(member))(SIGNS)
        assert jax.tree.map(lambda g: g.dtype, got) == jax.tree.map(
            lambda g: g.dtype, jax.eval_shape(model.apply, params, x)
        )
        for k, sign in enumerate(SIGNS):
            moved = cast(perturb(plan, params, noise, sign * SIGMA), jnp.float32)
            expected = flat(reference(written_out(moved), cast(x, jnp.float32)))
            size = np.abs(expected).max()
            error = np.abs(flat(jax.tree.map(lambda g, k=k: g[k], got)) - expected).max() / size
            assert error <= tolerance, f"rank {rank}, sign {sign}: {error:.3g}"
            assert np.abs(expected - mean).max() / size > 3 * tolerance


PUBLIC = ["plain_custom_rules", "linen_scanned_transformer", "nnx_scanned_layers", "equinox_cnn", "haiku_layer_stack"]


@pytest.mark.parametrize("name", PUBLIC)
def test_step_gives_the_fitness_of_a_loop_over_members(name):
    model = MODELS[name]()

    def fitness(params, key, x):
        return jnp.mean(model.apply(params, x) ** 2)

    es = eggroll.EvolutionStrategy(
        optax.sgd(0.1),
        population_size=6,
        chunk_size=4,
        sigma=0.2,
        distribution=eggroll.LowRank(2, stacked=model.stacked, split=model.split),
    )
    state, alone = es.init(model.params, seed=3), jax.jit(fitness)
    after, info = es.step(state, fitness, model.x)
    expected = [alone(es.perturbed(state, member), None, model.x) for member in range(6)]
    np.testing.assert_allclose(info.fitness, expected, rtol=1e-4)
    assert np.std(info.fitness) > 1e-3 * np.mean(info.fitness)
    assert jax.tree.structure(after.params) == jax.tree.structure(state.params)


# ── adapters that are themselves evolved ──


def adapted(apply):
    """A function of x and an adapter (A, B) beside a shared matrix, which calls `apply_perturbed` itself."""

    def run(adapter, base, x):
        value = LowRankArray(base, adapter["a"], adapter["b"], jnp.float32(0.5), leaf="inner")
        return apply_perturbed(apply, {"w": value}, x)

    return run


ADAPTED = {
    "product": lambda p, x: jnp.tanh(x @ p["w"]),
    "tied": lambda p, x: jnp.tanh(x @ p["w"]) @ p["w"].T,
    "lookup": lambda p, x: p["w"][jnp.array([[4, 0], [2, 2]])] @ x.T[:5],
    "bfloat16": lambda p, x: (x.astype(jnp.bfloat16) @ p["w"].astype(jnp.bfloat16)).astype(jnp.float32),
}


@pytest.mark.parametrize("name", ADAPTED)
@pytest.mark.parametrize("base_too", [False, True])
def test_nested_apply_perturbed(name, base_too):
    """The inner weights are W + s·A'·B'ᵀ, where A', B' (and W) are themselves low-rank, under two vmaps."""
    base, x = normal(1, 6, 5), normal(2, 3, 6)
    pairs = [
        {"a": low_rank(k, (6, 4), rank=2), "b": low_rank(k + 3, (5, 4), rank=2), "base": low_rank(k + 6, (6, 5))}
        for k in (10, 30)
    ]
    means = {key: w.base for key, w in pairs[0].items()}
    factors = jax.tree.map(lambda *f: jnp.stack(f), *({k: (w.a, w.b) for k, w in pair.items()} for pair in pairs))
    fn = adapted(ADAPTED[name])

    def member(own, scale):
        moved = {k: LowRankArray(means[k], *own[k], scale, leaf=k) for k in own}
        return apply_perturbed(fn, {"a": moved["a"], "b": moved["b"]}, moved["base"] if base_too else base, x)

    signs = jnp.array([0.3, -0.3])
    got = jax.jit(jax.vmap(jax.vmap(member, (None, 0)), (0, None)))(factors, signs)
    for i, pair in enumerate(pairs):
        for j, scale in enumerate(signs):
            dense = written_out({k: LowRankArray(means[k], w.a, w.b, scale) for k, w in pair.items()})
            whole = (dense["base"] if base_too else base) + 0.5 * dense["a"] @ dense["b"].T
            expected = ADAPTED[name]({"w": whole}, x)
            tolerance = 0.05 if name == "bfloat16" else 1e-4
            np.testing.assert_allclose(got[i, j], expected, rtol=tolerance, atol=tolerance)


# ── what frameworks do to weights on the way ──

FUNCTIONS = {
    "joined columns": lambda x, v, w: x @ jnp.concatenate([v, w], axis=1),
    "joined rows": lambda x, v, w: jnp.tile(x, 2) @ jnp.concatenate([v, -0.5 * w]),
    "joined to zeros": lambda x, v, w: x @ jnp.concatenate([v, jnp.zeros((6, 2)), w], axis=1),
    "joined rows looked up": lambda x, v, w: jnp.concatenate([v, w])[jnp.array([1, 7, 11])],
    "stacked and scanned": lambda x, v, w: lax.scan(lambda h, u: (jnp.tanh(h @ u), None), x, jnp.stack([v, w, v]))[0],
    "stacked and batched": lambda x, v, w: jax.vmap(lambda u: x @ u)(jnp.stack([v, w])),
    "stacked last": lambda x, v, w: jnp.einsum("bi,iok->bok", x, jnp.stack([v, w], -1)),
    "reversed": lambda x, v, w: x @ v[::-1] @ w[:, ::-1],
    "scan that gives weights on": lambda x, v, w: x @ lax.scan(lambda h, u: (h, u * 2.0), x, jnp.stack([v, w]))[1][1],
    "scan that carries weights": lambda x, v, w: lax.scan(
        lambda c, _: ((c[0], c[1] @ c[0]), None), (v, x), None, length=3
    )[0][1],
    "loop that carries weights": lambda x, v, w: lax.fori_loop(0, 3, lambda _, c: (c[0], c[1] @ c[0]), (v, x))[1],
    "cond that gives weights on": lambda x, v, w: (
        lax.cond(x.sum() > 0, lambda p, y: (p, y @ p), lambda p, y: (p, y), v, x)[1] @ w
    ),
    "gradient through checkpoint": lambda x, v, w: jax.grad(
        lambda x: jax.checkpoint(lambda x: jnp.tanh(x @ v) @ w)(x).sum()
    )(x),
    "nnx cond": lambda x, v, w: nnx_cond(x, v) @ w,
}


def nnx_cond(x, w):
    layer = nnx.Linear(6, 6, rngs=nnx.Rngs(0))
    layer.kernel[...] = w
    return nnx.cond(x.sum() > 0, lambda layer, x: layer(x), lambda layer, x: x, layer, x)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name):
    v, w = low_rank(0, (6, 6), rank=2, scale=0.2), low_rank(10, (6, 6), rank=2, scale=-0.4)
    assert_same(FUNCTIONS[name], normal(5, 2, 6), v, w)
