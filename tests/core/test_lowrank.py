"""Oracle: a model under `LowRankArray` equals the same model with base + scale·A·Bᵀ written out."""

import flax.linen as nn
import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from eggroll.core.lowrank import LowRankArray, MaterialiseError, apply_perturbed, perturbed_matmul

RANKS_AND_SIGNS = [(1, 1.0), (4, -1.0)]


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def low_rank(seed, shape, roles="rc", rank=4, scale=0.3, **kwargs):
    sides = [[n for n, role in zip(shape, roles, strict=True) if role in ("s", side)] for side in "rc"]
    base, a, b = normal(seed, *shape), normal(seed + 1, *sides[0], rank), normal(seed + 2, *sides[1], rank)
    return LowRankArray(base, a, b, jnp.float32(scale), roles, leaf="w", **kwargs)


def written_out(tree):
    """Every low-rank leaf as NumPy's dense sum, by a formula of its own."""

    def dense(x):
        if not isinstance(x, LowRankArray):
            return x
        axes = "defghijk"[: len(x.roles)]
        side = {s: "".join(n for n, r in zip(axes, x.roles, strict=True) if r in ("s", s)) for s in "rc"}
        delta = np.einsum(f"{side['r']}z,{side['c']}z->{axes}", *(np.asarray(f, np.float64) for f in (x.a, x.b)))
        return jnp.asarray(np.asarray(x.base, np.float64) + float(x.scale) * delta, x.base.dtype)

    return jax.tree.map(dense, tree, is_leaf=lambda x: isinstance(x, LowRankArray))


def assert_same(fn, *args, tolerance=2e-5):
    expected = fn(*written_out(args))
    got = jax.jit(lambda *a: apply_perturbed(fn, *a))(*args)
    jax.tree.map(lambda e, g: np.testing.assert_allclose(g, e, rtol=tolerance, atol=tolerance), expected, got)


def perturb_kernels(params, rank, scale, roles=lambda path, x: "rc" if x.ndim == 2 else ""):
    """Low-rank noise on every leaf that has roles."""
    count = iter(range(0, 10_000, 10))

    def one(path, x):
        own = roles(jax.tree_util.keystr(path), x)
        if not own:
            return x
        w = low_rank(next(count), x.shape, own, rank, scale)
        return LowRankArray(x, w.a, w.b, w.scale, own, leaf=jax.tree_util.keystr(path))

    return jax.tree_util.tree_map_with_path(one, params)


# ── whole models ──


@pytest.mark.parametrize(("rank", "scale"), RANKS_AND_SIGNS)
def test_plain_mlp(rank, scale):
    params = {
        "w1": low_rank(0, (5, 8), rank=rank, scale=scale),
        "w2": low_rank(3, (6, 8), rank=rank, scale=scale),
    }
    assert_same(lambda p, x: jnp.tanh(x @ p["w1"]) @ p["w2"].T, params, normal(9, 3, 5))


@pytest.mark.parametrize(("rank", "scale"), RANKS_AND_SIGNS)
def test_linen_mlp(rank, scale):
    model = nn.Sequential([nn.Dense(8), nn.gelu, nn.LayerNorm(), nn.Dense(4)])
    x = normal(1, 3, 5)
    params = perturb_kernels(model.init(jax.random.key(0), x), rank, scale)
    assert_same(model.apply, params, x)


@pytest.mark.parametrize(("rank", "scale"), RANKS_AND_SIGNS)
def test_nnx_mlp(rank, scale):
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.first, self.second = nnx.Linear(5, 8, rngs=rngs), nnx.Linear(8, 4, rngs=rngs)

        def __call__(self, x):
            return self.second(nnx.relu(self.first(x)))

    graph, state = nnx.split(Model(nnx.Rngs(0)))
    state = perturb_kernels(state, rank, scale)
    assert_same(lambda s, x: nnx.merge(graph, s)(x), state, normal(1, 3, 5))


@pytest.mark.parametrize(("rank", "scale"), RANKS_AND_SIGNS)
def test_embedding_with_tied_head(rank, scale):
    table, tokens = low_rank(0, (7, 6), rank=rank, scale=scale), jnp.array([[0, 3, 6], [2, 2, 5]])
    assert_same(lambda e, t: jnp.tanh(jnp.take(e, t, axis=0)) @ e.T, table, tokens)
    assert_same(lambda e, t: jnp.tanh(e[t]) @ e.T, table, tokens)
    assert_same(lambda e, t: e.at[t].get(mode="fill", fill_value=7.0), table, tokens + 3)


@pytest.mark.parametrize(("rank", "scale"), RANKS_AND_SIGNS)
def test_scan_over_stacked_layers(rank, scale):
    layers = {"w": low_rank(0, (3, 6, 6), "src", rank, scale), "b": normal(5, 3, 6)}
    shared = low_rank(7, (6, 6), "rc", rank, scale)

    def model(layers, shared, x):
        def layer(h, p):
            return jnp.tanh(h @ p["w"] + p["b"][None]) @ shared, h.sum()

        return lax.scan(layer, x, layers)

    assert_same(model, layers, shared, normal(8, 6)[None])
    assert_same(
        lambda p, s, x: lax.fori_loop(0, 3, lambda i, h: jnp.tanh(h @ p["w"][i] @ s), x),
        layers,
        shared,
        normal(8, 2, 6),
    )


@pytest.mark.parametrize(("rank", "scale"), RANKS_AND_SIGNS)
def test_multi_head_attention_with_split_kernels(rank, scale):
    model = nn.MultiHeadDotProductAttention(num_heads=2)
    x = normal(1, 2, 3, 4)

    def roles(path, leaf):
        return {3: "rrc" if "'out'" in path else "rcc"}.get(leaf.ndim, "")

    assert_same(model.apply, perturb_kernels(model.init(jax.random.key(0), x), rank, scale, roles), x)


@pytest.mark.parametrize(("rank", "scale"), RANKS_AND_SIGNS)
@pytest.mark.parametrize(("spec", "shape", "roles"), [("HWIO", (3, 2, 2, 5), "rrrc"), ("OIHW", (5, 2, 3, 2), "rccc")])
def test_convolution(rank, scale, spec, shape, roles):
    def model(k, x):
        return lax.conv_general_dilated(x, k, (2, 1), "SAME", dimension_numbers=("NHWC", spec, "NCHW"))

    assert_same(model, low_rank(0, shape, roles, rank, scale), normal(4, 2, 5, 4, 2))


def test_without_jit():
    w, x = low_rank(0, (4, 4)), normal(1, 2, 4)
    np.testing.assert_allclose(apply_perturbed(jnp.matmul, x, w), x @ written_out(w), rtol=1e-5, atol=1e-5)


def test_flax_scan_with_remat():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, h, _):
            return h + nn.Dense(6)(jnp.tanh(nn.Dense(8)(nn.LayerNorm()(h)))), None

    stack = nn.scan(nn.remat(Block), variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
    x = normal(1, 2, 6)
    params = stack().init(jax.random.key(0), x, None)
    params = perturb_kernels(params, 2, 0.3, lambda path, leaf: "src" if leaf.ndim == 3 else "")
    assert_same(lambda p, x: stack().apply(p, x, None)[0], params, x)


# ── functions around the product ──


def custom_jvp_product(x, w):
    @jax.custom_jvp
    def product(x, w):
        return jnp.tanh(x @ w)

    product.defjvp(lambda primals, tangents: (product(*primals), tangents[0]))
    return product(x, w)


def custom_vjp_product(x, w):
    @jax.custom_vjp
    def product(x, w):
        return jnp.tanh(x @ w)

    product.defvjp(lambda x, w: (product(x, w), None), lambda residual, c: (c, c))
    return product(x, w)


FUNCTIONS = {
    "checkpoint": lambda x, w: jax.checkpoint(lambda w: jnp.sin(x @ w))(w),
    "jit": lambda x, w: jax.jit(jnp.matmul)(x, w),
    "custom_jvp": custom_jvp_product,
    "custom_vjp": custom_vjp_product,
    "cond": lambda x, w: lax.cond(x.sum() > 0, lambda w: x @ w, lambda w: 2 * (x @ w), w),
    "switch": lambda x, w: lax.switch(2, [lambda: x @ w, lambda: x, lambda: jnp.cos(x @ w)]),
    "while": lambda x, w: lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, jnp.tanh(c[1] @ w)), (0, x)),
    "vmap over rows": lambda x, w: jax.vmap(lambda row: w.T @ row)(x),
    "weight first": lambda x, w: w @ x.T,
    "gradient in the model": lambda x, w: jax.grad(lambda x: jnp.tanh(x @ w).sum())(x),
    "einsum": lambda x, w: jnp.einsum("bi,oi->bo", x, w),
    "vector": lambda x, w: x[0] @ w,
    "three axes": lambda x, w: jnp.stack([x, x]) @ w,
    "scaled": lambda x, w: x @ (-w * 2.0 / 3.0),
    "half": lambda x, w: (x.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16)).astype(jnp.float32).round(0),
    "accumulate": lambda x, w: lax.dot(x, w, preferred_element_type=jnp.float32, precision="highest"),
    "slice": lambda x, w: x[:, :2] @ w[1:3, ::2],
    "dynamic slice": lambda x, w: x[:, :2] @ lax.dynamic_slice(w, (jnp.int32(1), 0), (2, 6)),
    "dynamic slice from below −n": lambda x, w: x @ lax.dynamic_slice(w, (jnp.int32(-9), jnp.int32(-7)), (6, 2)),
    "dynamic slice that clamps": lambda x, w: (
        x[:, :2] @ lax.dynamic_slice(w, (jnp.int32(-2), jnp.int32(5)), (2, 3), allow_negative_indices=False)
    ),
    "dynamic index from below −n": lambda x, w: lax.dynamic_index_in_dim(w, jnp.int32(-8), keepdims=False) + x[0],
    "one row": lambda x, w: w[1] + w[jnp.int32(2)] + w[:, 3],
    "element": lambda x, w: w[jnp.array([0, 1]), jnp.array([2, 3])],
    "columns": lambda x, w: jnp.take(w, jnp.array([[1], [4]]), axis=1),
    "split": lambda x, w: [x @ part for part in jnp.split(w, 2, axis=1)],
    "reshape": lambda x, w: jnp.einsum("bi,ihd->bhd", x, w.reshape(6, 2, 3)),
    "new axis": lambda x, w: jnp.einsum("bi,kio->bko", x, w[None]),
    "broadcast": lambda x, w: jnp.einsum("bi,bio->bo", x, jnp.broadcast_to(w, (6, 6, 6))),
    "stop_gradient": lambda x, w: x @ lax.stop_gradient(w),
    "scan over rows": lambda x, w: lax.scan(lambda c, row: (c + row, row * 2.0), x[0], w),
    "sums": lambda x, w: (w.sum(0), w.sum(1), w.sum()),
    "full contraction": lambda x, w: jnp.einsum("io,io->", x, w),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name):
    assert_same(FUNCTIONS[name], normal(5, 6, 6), low_rank(0, (6, 6), scale=-0.2))


STACKED = {
    "batched product": lambda x, w: jnp.einsum("lbi,lio->lbo", x, w),
    "batched, transposed": lambda x, w: jnp.einsum("lbo,lio->lbi", jnp.tile(x, (1, 1, 2))[..., :5], w),
    "one layer": lambda x, w: x[1] @ w[1],
    "chosen layers": lambda x, w: jnp.einsum("lbi,lio->lbo", x[:2], w[jnp.array([2, 0])]),
    "vmap over layers": lambda x, w: jax.vmap(jnp.matmul)(x, w),
    "sum over layers and rows": lambda x, w: jnp.einsum("lbi,lio->bo", x, w),
    "transpose": lambda x, w: jnp.einsum("lbi,olj->bo", x, jnp.transpose(w, (2, 0, 1))[:, :, :1] * 1.0),
}


@pytest.mark.parametrize("name", STACKED)
def test_stacked(name):
    assert_same(STACKED[name], normal(5, 3, 2, 4), low_rank(0, (3, 4, 5), "src"))


HEADS = {
    "one of two row axes": lambda x, w: jnp.einsum("bhd,hdo->bho", x, w),
    "rows merged": lambda x, w: x.reshape(2, 12) @ w.reshape(12, 5),
    "rows in the other order": lambda x, w: jnp.einsum("bhd,dho->bo", x, w.transpose(1, 0, 2)),
    "columns": lambda x, w: jnp.einsum("hdo,bo->bhd", w, x.reshape(-1, 6)[:, :5]),
}


@pytest.mark.parametrize("name", HEADS)
def test_heads(name):
    assert_same(HEADS[name], normal(5, 2, 3, 4), low_rank(0, (3, 4, 5), "rrc"))


# ── refusing to materialise ──

REFUSED = {
    "add": lambda w: w + 1.0,
    "mul": lambda w: w * w,
    "exp": lambda w: jnp.exp(w),
    "dot_general": lambda w: w @ w,
    "reduce_max": lambda w: w.max(),
    "reshape": lambda w: w.reshape(-1),
    "the function's output": lambda w: w.T,
    "a scan carry": lambda w: lax.scan(lambda c, _: (c.T, None), w, None, length=2)[0],
}


@pytest.mark.parametrize("operation", REFUSED)
def test_refuses_to_materialise_unless_allowed(operation):
    with pytest.raises(MaterialiseError) as error:
        apply_perturbed(REFUSED[operation], low_rank(0, (3, 3)))
    text = str(error.value)
    assert "\n" not in text
    mends = ('distribution=LowRank(split={"w": 0})', 'allow_materialise=("w",)')
    for part in ("expected", "got " + operation, "'w'", "float32[3,3]", *mends):
        assert part in text
    assert_same(REFUSED[operation], low_rank(0, (3, 3), may_materialise=True))


def test_outer_product_with_stacked_mixture_is_refused():
    with pytest.raises(MaterialiseError, match="dot_general"):
        apply_perturbed(lambda x, w: jnp.einsum("l,lio->io", x, w), normal(1, 3), low_rank(0, (3, 4, 5), "src"))


# ── the product under vmap ──


def dense_product(x, base, near, far, scale):
    return x @ (base + scale * near @ far.T)


@pytest.mark.parametrize("x_axes", [(None, None), (0, None), (None, 0), (0, 0)])
@pytest.mark.parametrize("outer", [False, True])
def test_perturbed_matmul_under_nested_vmaps(x_axes, outer):
    """Pairs outside, signs inside, and where `outer` a third axis that also batches the weights."""
    pair_axis, sign_axis = x_axes
    lead = ((4,) if outer else ()) + ((3,) if pair_axis == 0 else ()) + ((2,) if sign_axis == 0 else ())
    count = (4,) if outer else ()
    x, base = normal(0, *lead, 5, 6), normal(1, *count, 6, 7)
    near, far, signs = normal(2, *count, 3, 6, 2), normal(3, *count, 3, 7, 2), jnp.array([0.5, -0.5])

    def over_members(product):
        signed = jax.vmap(product, in_axes=(sign_axis, None, None, None, 0))
        paired = jax.vmap(signed, in_axes=(pair_axis, None, 0, 0, None))
        return jax.vmap(paired, in_axes=(0, 0, 0, 0, None)) if outer else paired

    expected = over_members(dense_product)(x, base, near, far, signs)
    for transform in (lambda f: f, jax.jit):
        got = transform(over_members(perturbed_matmul))(x, base, near, far, signs)
        np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-5)


def test_shared_weights_meet_all_members_in_one_product():
    """The only product with the (6, 7) weights has all members' rows; or those of a shared input once."""
    base, near, far, signs = normal(1, 6, 7), normal(2, 3, 6, 1), normal(3, 3, 7, 1), jnp.array([1.0, -1.0])

    def rows_that_meet_the_weights(x, axis):
        signed = jax.vmap(perturbed_matmul, in_axes=(axis, None, None, None, 0))
        jaxpr = jax.make_jaxpr(jax.vmap(signed, in_axes=(axis, None, 0, 0, None)))(x, base, near, far, signs)
        text = [e for e in jaxpr.jaxpr.eqns if e.primitive.name == "dot_general"]
        return [e.outvars[0].aval.size // 7 for e in text if e.invars[1].aval.shape == (6, 7)]

    assert rows_that_meet_the_weights(normal(0, 3, 2, 5, 6), 0) == [3 * 2 * 5]
    assert rows_that_meet_the_weights(normal(0, 5, 6), None) == [5]


def test_transposed_product():
    x, base, near, far = normal(0, 5, 6), normal(1, 7, 6), normal(2, 6, 2), normal(3, 7, 2)
    got = perturbed_matmul(x, base, near, far, jnp.float32(0.1), transposed=True)
    np.testing.assert_allclose(got, dense_product(x, base.T, near, far, 0.1), rtol=1e-5, atol=1e-5)


def precisions(jaxpr):
    """Of every product, in calls too."""
    products = [e for e in jaxpr.eqns if e.primitive.name in ("dot_general", "conv_general_dilated")]
    own = [e.params["precision"] for e in products]
    return own + [p for inner in jax.extend.core.subjaxprs(jaxpr) for p in precisions(inner)]


HIGHEST = (lax.Precision.HIGHEST, lax.Precision.HIGHEST)


def test_every_part_of_a_convolution_has_its_precision():
    def model(k, x):
        return lax.conv(x, k, (1, 1), "SAME", precision="highest")

    jaxpr = jax.make_jaxpr(lambda *a: apply_perturbed(model, *a))(
        low_rank(0, (5, 2, 3, 2), "rccc"), normal(4, 2, 2, 5, 4)
    )
    assert precisions(jaxpr.jaxpr) == [HIGHEST] * 3


@pytest.mark.parametrize("batched", [(0, 0), (None, 0), (None, None)])
def test_the_sliver_has_the_precision_of_the_product(batched):
    """Members with own input and factors, with own factors, and with nothing of their own but the sign."""
    arrays = [normal(k, *((2,) if axis == 0 else ()), *shape) for k, (axis, shape) in enumerate(
        [(batched[0], (5, 6)), (None, (6, 7)), (batched[1], (6, 1)), (batched[1], (7, 1))]
    )]  # fmt: skip
    product = jax.vmap(
        lambda *a: perturbed_matmul(*a, precision="highest"), in_axes=(batched[0], None, batched[1], batched[1], 0)
    )

    found = precisions(jax.make_jaxpr(product)(*arrays, jnp.array([1.0, -1.0])).jaxpr)
    assert found == [HIGHEST] * 3


@pytest.mark.parametrize("name", ["scan", "conv", "attend", "cond", "custom_vjp"])
def test_models_under_the_two_vmaps(name):
    """Factors differ by pair, signs inside: the same as a Python loop over members."""
    models = {
        "scan": ((3, 4, 4), "src", lambda w, x: lax.scan(lambda h, v: (jnp.tanh(h @ v), None), x, w)[0]),
        "conv": (
            (2, 2, 3, 4),
            "rrrc",
            lambda w, x: lax.conv(x[None, :3, :, None], w.transpose(3, 2, 0, 1), (1, 1), "SAME"),
        ),
        "attend": ((5, 4), "rc", lambda w, x: w[jnp.array([1, 3])] @ w.T),
        "cond": ((4, 4), "rc", lambda w, x: lax.cond((x @ w).sum() > 0, lambda: x @ w, lambda: -x)),
        "custom_vjp": ((4, 4), "rc", lambda w, x: custom_vjp_product(x, w)),
    }
    shape, roles, model = models[name]
    pairs = [low_rank(k, shape, roles, rank=2) for k in (0, 10, 20)]
    base, x, signs = pairs[0].base, normal(7, 4, 4), jnp.array([0.3, -0.3])

    def member(a, b, scale):
        return apply_perturbed(model, LowRankArray(base, a, b, scale, roles), x)

    stacked = jnp.stack([p.a for p in pairs]), jnp.stack([p.b for p in pairs])
    got = jax.jit(jax.vmap(jax.vmap(member, (None, None, 0)), (0, 0, None)))(*stacked, signs)
    for i, pair in enumerate(pairs):
        for j, scale in enumerate(signs):
            dense = written_out(LowRankArray(base, pair.a, pair.b, scale, roles))
            np.testing.assert_allclose(got[i, j], model(dense, x), rtol=1e-4, atol=1e-4)


# ── loops whose condition was batched ──


def halved(w, lengths, x):
    """Lane by lane: as many steps as `lengths` says, which the lanes do not share."""

    def lane(length, row):
        going = lambda carry: (carry[0] < length) & (jnp.abs(carry[1]).sum() < 50)
        return lax.while_loop(going, lambda carry: (carry[0] + 1, jnp.tanh(carry[1] @ w) * 1.5), (jnp.int32(0), row))

    return jax.vmap(lane)(lengths, x)


LENGTHS = jnp.array([0, 3, 1, 7])


@pytest.mark.parametrize(("rank", "scale"), RANKS_AND_SIGNS)
def test_while_over_lanes_of_different_lengths(rank, scale):
    w, x = low_rank(0, (5, 5), rank=rank, scale=scale), normal(4, 4, 5)
    assert_same(halved, w, LENGTHS, x, tolerance=2e-4)
    steps, end = jax.jit(lambda w: apply_perturbed(halved, w, LENGTHS, x))(w)
    assert steps.tolist() == LENGTHS.tolist()
    np.testing.assert_array_equal(end[0], x[0])  # a lane that never went is as it came
    one_by_one = [halved(written_out(w), LENGTHS[k : k + 1], x[k : k + 1])[1][0] for k in range(4)]
    np.testing.assert_allclose(end, jnp.stack(one_by_one), rtol=2e-4, atol=2e-4)


def test_while_under_vmap_over_lanes_and_members():
    """Two axes of lanes inside, members outside, with typed keys in the carry."""
    keys = jax.random.wrap_key_data(jnp.arange(4, dtype=jnp.uint32).reshape(2, 2))
    base, x = low_rank(0, (4, 4)), normal(4, 2, 3, 4)
    lengths = jnp.array([[0, 2, 1], [4, 1, 3]])

    def model(w, lengths, x):
        def lane(length, row):
            def step(carry):
                count, keys, row = carry
                return count + 1, keys[::-1], jnp.tanh(row @ w)

            end = lax.while_loop(lambda c: c[0] < length, step, (jnp.int32(0), keys, row))
            return end[0], jax.random.key_data(end[1]), end[2]

        return jax.vmap(jax.vmap(lane))(lengths, x)

    assert_same(model, base, lengths, x)
    scales = jnp.array([0.3, -0.3])
    moved = lambda scale: LowRankArray(base.base, base.a, base.b, scale, base.roles, leaf="w")
    got = jax.jit(jax.vmap(lambda s: apply_perturbed(model, moved(s), lengths, x)))(scales)
    for k, scale in enumerate(scales):
        expected = model(written_out(moved(scale)), lengths, x)
        jax.tree.map(lambda e, g, k=k: np.testing.assert_allclose(g[k], e, rtol=2e-5, atol=2e-5), expected, got)


def test_while_of_lanes_nested_in_scan():
    def model(layers, x):
        def layer(h, own):
            return halved(own["w"], own["lengths"], h)[1], h.sum()

        return lax.scan(layer, x, layers)

    lengths = jnp.array([[0, 3, 1, 7], [2, 0, 0, 1], [0, 0, 0, 0]])
    assert_same(model, {"w": low_rank(0, (3, 5, 5), "src"), "lengths": lengths}, normal(4, 4, 5), tolerance=2e-4)


def test_scan_nested_in_while_of_lanes():
    def model(layers, lengths, x):
        def lane(length, row):
            deep = lambda h: lax.scan(lambda h, w: (jnp.tanh(h @ w), None), h, layers)[0]
            return lax.while_loop(lambda c: c[0] < length, lambda c: (c[0] + 1, deep(c[1])), (jnp.int32(0), row))

        return jax.vmap(lane)(lengths, x)

    assert_same(model, low_rank(0, (2, 5, 5), "src"), LENGTHS, normal(4, 4, 5))


def test_while_with_a_scalar_condition():
    """Which the weights may be part of, and lanes may share."""

    def model(w, x):
        small = lambda carry: (carry[0] < 9) & (jnp.abs(carry[1] @ w).max() < 40)
        return lax.while_loop(small, lambda carry: (carry[0] + 1, carry[1] @ w), (jnp.int32(0), x))

    assert_same(model, low_rank(0, (4, 4)), normal(4, 2, 4), tolerance=1e-4)

    def shared(w, x):
        step = lambda carry: (carry[0] + 1, jnp.tanh(carry[1] @ w))
        return jax.vmap(lambda row: lax.while_loop(lambda c: c[0] < 3, step, (jnp.int32(0), row)))(x)

    assert_same(shared, low_rank(0, (4, 4)), normal(4, 2, 4))


def test_while_of_lanes_that_the_weights_end():
    def model(w, x):
        def lane(row):
            large = lambda carry: (carry[0] < 20) & (jnp.linalg.norm(carry[1] @ w) > 0.5)
            return lax.while_loop(large, lambda carry: (carry[0] + 1, 0.3 * carry[1] @ w), (jnp.int32(0), row))

        return jax.vmap(lane)(x)

    w, x = low_rank(0, (4, 4)), normal(4, 5, 4) * jnp.array([1e-3, 1.0, 10.0, 100.0, 1000.0])[:, None]
    assert_same(model, w, x, tolerance=1e-4)
    assert len(set(model(written_out(w), x)[0].tolist())) > 2
