"""The kernels in interpret mode against plain expressions, through the dispatch, and lowered for CUDA."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from eggroll.core import EvolutionStrategy, dispatch, kernels, noise
from eggroll.core.distribution import LowRank, make_plan
from eggroll.core.draws import draw_noise, stream_keys, weighted_sum

TILES = kernels.Tiles(16, 32, 16)
COUNTERS = {"seed": jnp.array([5, 6], jnp.int32), "generation": jnp.int32(2)}


def normal(seed, *shape, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def keys(pairs, factor=noise.FACTOR_A, path="w"):
    streams = [(noise.leaf_id(path), factor)]
    first, second = stream_keys(streams, **COUNTERS, pairs=jnp.arange(pairs, dtype=jnp.int32))
    return first[0], second[0]


def dense(x, base, low, far):
    members, (_, columns) = far.shape[0], base.shape
    sliver = jnp.einsum("mtr,mnr->mtn", low.reshape(members, -1, low.shape[1]), far.astype(jnp.float32))
    return x.astype(jnp.float32) @ base.astype(jnp.float32) + sliver.reshape(-1, columns)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("own", "rank"), [(1, 1), (2, 3), (16, 4), (32, 1)])
def test_the_joined_product_is_the_sum_of_both(own, rank, dtype):
    x, base, low = normal(0, 64, 48, dtype=dtype), normal(1, 48, 64, dtype=dtype), normal(2, 64, rank)
    far = normal(3, 64 // own, 64, rank, dtype=dtype)
    tolerance = 1e-5 if dtype == jnp.float32 else 2**-7
    for transposed, weight in ((False, base), (True, base.T)):
        settings = {"transposed": transposed, "tiles": TILES, "interpret": True}
        got = kernels.joined_product(x, weight, low, far, **settings)
        assert got.dtype == dtype
        expected = dense(x, base, low, far)
        np.testing.assert_allclose(got.astype(jnp.float32), expected, rtol=tolerance, atol=20 * tolerance)


@pytest.mark.parametrize("law", kernels.REDRAWN_LAWS)
@pytest.mark.parametrize(("own", "rank"), [(1, 1), (4, 2), (32, 1)])
def test_a_factor_drawn_in_the_kernel_is_the_one_at_hand(own, rank, law):
    plan = make_plan(LowRank(rank=rank, law=law), {"w": normal(0, 64, 48)})
    pairs = 64 // own
    (drawn,) = draw_noise(plan, **COUNTERS, pairs=jnp.arange(pairs, dtype=jnp.int32))
    x, base, low = normal(1, 64, 48), normal(2, 48, 64), normal(3, 64, rank)
    own_keys = kernels.Drawn(keys(pairs), law)
    at_hand, redrawn = (
        kernels.joined_product(x, base, low, far, tiles=TILES, interpret=True) for far in (drawn.a, own_keys)
    )
    np.testing.assert_allclose(at_hand, redrawn, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("law", kernels.REDRAWN_LAWS)
@pytest.mark.parametrize("rank", [1, 3])
def test_the_fused_update_is_the_weighted_sum(rank, law):
    plan = make_plan(LowRank(rank=rank, law=law), {"w": normal(0, 32, 64)})
    weights = normal(1, 48)
    (drawn,) = draw_noise(plan, **COUNTERS, pairs=jnp.arange(48, dtype=jnp.int32))
    sides = (kernels.Drawn(keys(48, factor), law) for factor in (noise.FACTOR_A, noise.FACTOR_B))
    got = kernels.fused_update(*sides, weights, shape=(32, 64), rank=rank, tiles=TILES, interpret=True)
    np.testing.assert_allclose(got, weighted_sum(plan[0], drawn, weights), rtol=1e-4, atol=1e-4)


def large(params, key, x):
    return jnp.square(jnp.tanh(x @ params["w1"]) @ params["w2"].T).mean()


@pytest.mark.parametrize("rank", [1, 2])
def test_a_step_by_kernels_is_a_step_by_xla(rank, monkeypatch):
    """Shapes of whole tiles, so that both kernels run: members with inputs of their own from the second layer on."""
    params = {"w1": normal(0, 128, 128) / 11, "w2": normal(1, 128, 128) / 11}
    seen = {}
    for mode in ("xla", "interpret"):
        monkeypatch.setenv("EGGROLL_KERNELS", mode)
        used = []
        for name in ("joined_product", "fused_update"):
            original = getattr(kernels, name)
            spy = lambda *a, own=original, name=name, used=used, **k: (used.append(name), own(*a, **k))[1]
            monkeypatch.setattr(kernels, name, spy)
        es = EvolutionStrategy(optax.sgd(1.0), population_size=128, sigma=0.1, rank=rank, chunk_size=128)
        state, info = es.step(es.init(params), large, normal(2, 1, 128))
        seen[mode] = (info.fitness, state.params, set(used))
        monkeypatch.undo()
    assert seen["xla"][2] == set() and seen["interpret"][2] == {"joined_product", "fused_update"}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *(s[:2] for s in seen.values()))


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")
def test_both_kernels_lower_for_cuda():
    """Without a GPU this is as far as it goes: Pallas turns them into Triton's code for CUDA.

    jax 0.11 still does so, and says that it will be Mosaic's turn one day.
    """
    shape = jax.ShapeDtypeStruct
    x, low, far = shape((256, 256), jnp.bfloat16), shape((256, 1), jnp.float32), shape((256, 256, 1), jnp.bfloat16)
    key, weights = shape((256,), jnp.int32), shape((256,), jnp.float32)
    sides = {
        "at hand": (kernels.joined_product, (x, x, low, far)),
        "redrawn": (
            lambda x, b, c, k: kernels.joined_product(x, b, c, kernels.Drawn((k, k), "popcount")),
            (x, x, low, key),
        ),
        "update": (
            lambda w, k: kernels.fused_update(
                kernels.Drawn((k, k), "signs"), kernels.Drawn((k, k), "popcount"), w, shape=(128, 256), rank=1
            ),
            (weights, key),
        ),
    }
    gpu = jax.sharding.AbstractDevice("NVIDIA H100 80GB HBM3", None, "gpu")  # jax 0.11 asks which GPU it is for
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=gpu)):
        for function, arguments in sides.values():
            lowered = jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",))
            assert "triton" in lowered.as_text()


def test_what_does_not_divide_into_tiles_goes_by_xla():
    tiles = kernels.Tiles(128, 128, 64)
    assert kernels.fits(tiles, 256, 64, 128, 2) and kernels.fits(tiles, 512, 64, 128, 256)
    for sizes in ((200, 64, 128, 1), (256, 60, 128, 1), (256, 64, 100, 1), (384, 64, 128, 3), (576, 64, 128, 192)):
        assert not kernels.fits(tiles, *sizes)


def test_the_mode_is_one_of_four(monkeypatch):
    monkeypatch.delenv("EGGROLL_KERNELS", raising=False)
    assert dispatch.kernel_mode() == "auto"
    monkeypatch.setenv("EGGROLL_KERNELS", "cuda")
    with pytest.raises(ValueError, match="expected EGGROLL_KERNELS among auto, xla, pallas, interpret, got 'cuda'"):
        dispatch.kernel_mode()
