"""The kernel of the perturbed product in interpret mode and lowered for CUDA, and what else differs on accelerators."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eggroll.core import draws, noise
from eggroll.integer import arithmetic, kernels, model, population, sums
from tests.integer import oracle

TILES = kernels.Tiles(4, 8, 16)
SIGNS = model.sign_axis(True)
COUNTERS = {"seed": jnp.array([5, -6], jnp.int32), "generation": jnp.int32(2)}


def int8(generator, extreme, *shape):
    values = np.array([-127, 127]) if extreme else np.arange(-127, 128)
    return jnp.asarray(generator.choice(values, shape), jnp.int8)


@given(
    seed=st.integers(0, 2**32 - 1),
    inputs=st.sampled_from([256, 1024]),
    tiles=st.sampled_from([(1, 3), (3, 2), (2, kernels.SUMMED_ONCE)]),
    time=st.sampled_from([(), (3,)]),
    extreme=st.booleans(),
    sigma_shift=st.sampled_from([0, 4]),
)
@settings(max_examples=10, deadline=None)
def test_the_kernel_equals_the_plain_product(seed, inputs, tiles, time, extreme, sigma_shift):
    """Any number of tiles each way, time axes in front, and values at the ends of their range."""
    generator = np.random.default_rng(seed)
    pairs, outputs = tiles[0] * TILES.rows, tiles[1] * TILES.columns
    x, weight = int8(generator, extreme, *time, 2, pairs, inputs), int8(generator, extreme, outputs, inputs)
    a, b = int8(generator, extreme, pairs, 1, outputs), int8(generator, extreme, pairs, 1, inputs)
    expected = arithmetic.linear(x, weight, arithmetic.Factors(a, b), SIGNS, sigma_shift)
    shifts = arithmetic.perturbation_shift(sigma_shift, 1), arithmetic.output_shift(inputs)
    scaling = kernels.Scaling(*shifts, arithmetic.sum_limit(inputs, 1))
    got = kernels.perturbed_product(x, weight, a[:, 0], b[:, 0], scaling, tiles=TILES, interpret=True)
    assert got.dtype == jnp.int8
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("inputs", [256, 1024, 4096])
def test_the_largest_sums_there_are(inputs):
    """x·W and x·B as large as can be, of either sign: at 4096 inputs only the clip of x·B keeps int32."""
    pairs, outputs = TILES.rows, TILES.columns
    signs = np.where(np.arange(pairs * 2).reshape(2, pairs, 1) % 2, 1, -1) * np.ones((1, 1, inputs))
    x = jnp.asarray(127 * signs, jnp.int8)
    weight = jnp.full((outputs, inputs), 127, jnp.int8).at[::2].set(-127)
    a, b = jnp.full((pairs, 1, outputs), 127, jnp.int8).at[:2].set(-127), jnp.full((pairs, 1, inputs), 127, jnp.int8)
    scaling = kernels.Scaling(
        arithmetic.perturbation_shift(0, 1), arithmetic.output_shift(inputs), arithmetic.sum_limit(inputs, 1)
    )
    assert (scaling.limit is not None) == (inputs == 4096)
    got = kernels.perturbed_product(x, weight, a[:, 0], b[:, 0], scaling, tiles=TILES, interpret=True)
    for s, sign in enumerate((1, -1)):
        for p in range(pairs):
            factors = sign * a[p].T.astype(int), b[p].T
            expected = oracle.mm(
                np.asarray(x[s, p]), np.asarray(weight), *map(np.asarray, factors), scaling.perturbation
            )
            np.testing.assert_array_equal(got[s, p], expected)


def test_a_population_by_kernels_is_the_population_by_xla(monkeypatch):
    """Every product of the model: two chunks, states carried, documents that begin."""
    config = model.Config(layers=2, width=16)
    generator = np.random.default_rng(0)
    parameters = model.init_parameters(config, 0)
    state = generator.integers(-127, 128, (2, 2, 8, 16)).astype(np.int8)
    lanes = generator.integers(0, 256, (4, 5)).astype(np.uint8)
    lanes[1, 2] = 0
    monkeypatch.setattr(kernels, "tiles_for", lambda inputs: kernels.Tiles(4, 16, 16))
    used, original = [], kernels.perturbed_product
    monkeypatch.setattr(kernels, "perturbed_product", lambda *a, **k: (used.append(1), original(*a, **k))[1])
    run = functools.partial(population.evaluate, config=config, group_size=4, chunk_pairs=4, **COUNTERS)
    results = {}
    for mode in ("xla", "interpret"):
        monkeypatch.setenv("EGGROLL_KERNELS", mode)
        results[mode] = jax.jit(lambda *args: run(*args))(parameters, state, lanes)
        assert bool(used) == (mode == "interpret")
    jax.tree.map(np.testing.assert_array_equal, *results.values())


def test_other_ranks_and_shapes_go_by_xla(monkeypatch):
    monkeypatch.setenv("EGGROLL_KERNELS", "interpret")
    monkeypatch.setattr(kernels, "perturbed_product", lambda *_, **__: pytest.fail("the kernel ran"))
    generator = np.random.default_rng(0)
    for pairs, outputs, rank in ((128, 256, 4), (32, 256, 1), (128, 64, 1)):
        x, weight = int8(generator, False, 2, pairs, 64), int8(generator, False, outputs, 64)
        factors = arithmetic.Factors(
            int8(generator, False, pairs, rank, outputs), int8(generator, False, pairs, rank, 64)
        )
        assert arithmetic.linear(x, weight, factors, SIGNS, 4).shape == (2, pairs, outputs)
    arithmetic.linear(int8(generator, False, 1, 128, 64), int8(generator, False, 256, 64), None, SIGNS[:1], 4)


@pytest.fixture
def hopper():
    """A GPU to lower for; jax 0.11 asks which."""
    gpu = jax.sharding.AbstractDevice("NVIDIA H100 80GB HBM3", None, "gpu")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=gpu)):
        yield lambda function, *args: jax.jit(function).trace(*args).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")
@pytest.mark.parametrize(("inputs", "outputs"), [(256, 256), (256, 1024), (1024, 256), (4096, 1024)])
def test_the_product_lowers_to_the_kernel_on_cuda(inputs, outputs, hopper, monkeypatch):
    """By default, and to XLA's own where it is told so."""
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.int8)
    args = shape(3, 2, 256, inputs), shape(outputs, inputs), shape(256, 1, outputs), shape(256, 1, inputs)
    product = lambda x, weight, a, b: arithmetic.linear(x, weight, arithmetic.Factors(a, b), SIGNS, 4)
    monkeypatch.delenv("EGGROLL_KERNELS", raising=False)
    assert "triton" in hopper(product, *args)
    monkeypatch.setenv("EGGROLL_KERNELS", "xla")
    assert "triton" not in hopper(lambda *args: product(*args), *args)


@pytest.mark.parametrize("count", [1, 5])
def test_keys_at_once_are_keys_in_turn(count, hopper):
    """What a GPU does gives the integers of a CPU, and has a barrier where a CPU has a loop."""
    streams = [(noise.leaf_id(str(k)), k % 3) for k in range(count)]
    pairs = jnp.arange(7, dtype=jnp.int32) + 2**20
    keys = functools.partial(draws.stream_keys, streams, pairs=pairs)
    leaf, factor = (jnp.array(column, jnp.int32) for column in zip(*streams, strict=True))
    at_once = draws._keys_at_once(leaf, factor, COUNTERS["seed"], COUNTERS["generation"], pairs)
    jax.tree.map(np.testing.assert_array_equal, at_once, keys(**COUNTERS))
    lowered = hopper(lambda seed, generation: keys(seed=seed, generation=generation), *COUNTERS.values())
    assert "optimization_barrier" in lowered and "while" not in lowered


@pytest.mark.parametrize(("rank", "pairs"), [(1, 2500), (4, 300)])
def test_an_accelerators_blocks_sum_to_those_of_a_cpu(rank, pairs, monkeypatch):
    """Larger, filled up with pairs of no weight, multiplied by slices; at the bound on memory, smaller again."""
    config = model.Config(layers=1, width=16, rank=rank)
    signs = jnp.asarray(np.random.default_rng(0).integers(-1, 2, pairs), jnp.int8)
    sizes = {"blocks/W1": (64, 16), "blocks/bf": (16,)}

    def total(path):
        rows, columns = sizes[path][0], sizes[path][-1]
        part = sums.Part(0, rows, rows)
        run = jax.jit(lambda signs: sums.layer_sums(path, columns, part, jnp.int32(0), signs, config, **COUNTERS))
        return np.asarray(sums.collect(run(signs)))

    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    expected = {path: total(path) for path in sizes}
    few = sums.block_pairs(rank, 80, pairs)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    for most in (2**28, 80 * rank * 2048, 1):
        monkeypatch.setattr(sums, "ACCELERATOR_BYTES", most)
        assert sums.block_pairs(rank, 80, pairs) % few == 0
        for path in list(sizes)[: 2 if most > 1 else 1]:
            np.testing.assert_array_equal(total(path), expected[path])
    assert sums.block_pairs(rank, 80, pairs) == few
    monkeypatch.setattr(sums, "ACCELERATOR_BYTES", 2**28)
    assert sums.block_pairs(rank, 80, pairs) > few
    assert sums.block_pairs(rank, 80, 2**24) * rank == sums.ACCELERATOR_BLOCK


def test_the_largest_block_is_exact():
    """2¹⁵ inputs of ±127, by slices."""
    a = jnp.full((2, sums.ACCELERATOR_BLOCK), 127, jnp.int8)
    assert (np.asarray(sums._sliced_matmul(a, -a)) == -(127**2) * sums.ACCELERATOR_BLOCK).all()
    assert 127**2 * sums.ACCELERATOR_BLOCK < 2**31


def test_more_rows_at_once_on_an_accelerator(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert model.time_block(100, 2048) == 2
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert model.time_block(100, 2048) == 25 and model.time_block(100, 2**20) == 1
