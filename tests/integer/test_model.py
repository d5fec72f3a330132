"""The chunked, time-blocked model against the member-by-member oracle, with the noise that the house draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eggroll.core import noise
from eggroll.core.errors import UsageError
from eggroll.integer import model, perturbation, population
from tests.integer import oracle

SEED = noise.seed_words(12345678901234567890)


EVALUATE = jax.jit(population.evaluate, static_argnames=("config", "group_size", "chunk_pairs"))


def table_normals(path, factor, elements, *, generation, pair):
    """NumPy draws of one stream, straight from the counter hash."""
    key = noise.stream_key(
        seed=SEED,
        leaf=noise.leaf_id(path),
        factor=factor,
        generation=generation,
        pair=np.array([pair], np.int32),
    )
    return noise.table_normal(np, noise.element_bits(key, np.arange(elements, dtype=np.int32)))


def numpy_noise(config, generation, pair):
    """Flat noise of one pair for the oracle: A (…, out, r), B (…, in, r), products (…, width)."""
    out = {}
    for path, shape in model.leaf_shapes(config).items():
        front = shape[:1] if path.startswith("blocks/") else ()
        layers, counters = int(np.prod(front)), {"generation": generation, "pair": pair}
        if model.is_matrix(path):
            out[path] = tuple(
                table_normals(path, factor, layers * rows * config.rank, **counters).reshape(*front, rows, config.rank)
                for factor, rows in ((noise.FACTOR_A, shape[-2]), (noise.FACTOR_B, shape[-1]))
            )
        else:
            a, b = (table_normals(path, f, layers * shape[-1], **counters).astype(int) for f in (0, 1))
            out[path] = (a * b).reshape(*front, shape[-1])
    return out


def random_parameters(config, seed):
    """Start parameters with random vectors too, so that every leaf matters."""
    leaves = model.flat(model.init_parameters(config, seed))
    generator = np.random.default_rng(seed)
    return {
        path: leaf if model.is_matrix(path) else generator.integers(-40, 41, leaf.shape).astype(np.int8)
        for path, leaf in leaves.items()
    }


@pytest.mark.parametrize(("rank", "sigma_shift"), [(1, 4), (4, 3), (16, 4)])
def test_population_equals_the_oracle_member_by_member(rank, sigma_shift):
    config = model.Config(layers=2, width=16, sigma_shift=sigma_shift, rank=rank)
    leaves = random_parameters(config, 3)
    generator = np.random.default_rng(4)
    lanes = generator.integers(0, 256, (2, 7)).astype(np.uint8)
    lanes[0, 2] = lanes[1, 5] = 0
    state = generator.integers(-127, 128, (2, 2, 4, 16)).astype(np.int8)
    got, new_state = EVALUATE(
        model.nested(model.parameter_leaves(model.nested(leaves))),
        jnp.asarray(state),
        jnp.asarray(lanes),
        config=config,
        seed=jnp.asarray(SEED, jnp.int32),
        generation=jnp.int32(7),
        group_size=4,
        chunk_pairs=2,
    )
    for pair in range(4):
        draws = numpy_noise(config, 7, pair)
        for s, sign in enumerate((1, -1)):
            expected = oracle.forward(
                leaves,
                draws,
                lanes[pair // 2],
                state[:, s, pair],
                sign=sign,
                sigma_shift=sigma_shift,
                rank=rank,
            )
            assert int(got[s, pair]) == expected[1].sum()
            np.testing.assert_array_equal(new_state[:, s, pair], expected[2][-1])


def test_chunking_and_time_blocks_change_nothing(monkeypatch):
    config = model.Config(layers=2, width=16)
    parameters = model.nested(model.parameter_leaves(model.init_parameters(config, 0)))
    lanes = jnp.asarray(np.random.default_rng(0).integers(0, 256, (4, 13)), jnp.uint8)

    def run(chunk_pairs, rows):
        monkeypatch.setattr(model, "BLOCK_ROWS", rows)
        return jax.jit(population.evaluate, static_argnames=("config", "group_size", "chunk_pairs"))(
            parameters,
            model.zero_state(config, 2, 8),
            lanes,
            config=config,
            seed=jnp.asarray(SEED, jnp.int32),
            generation=jnp.int32(0),
            group_size=4,
            chunk_pairs=chunk_pairs,
        )

    one, state = run(8, 4096)
    for chunk_pairs, rows in ((4, 4096), (1, 4096), (8, 1), (2, 16)):
        other, other_state = run(chunk_pairs, rows)
        np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(state, other_state)


def test_a_range_of_pairs_is_the_same_range_of_the_whole():
    """The seam for sharding: `first_pair` gives a device its own members."""
    config = model.Config(layers=1, width=16)
    parameters = model.nested(model.parameter_leaves(model.init_parameters(config, 0)))
    lanes = jnp.asarray(np.random.default_rng(0).integers(0, 256, (4, 6)), jnp.uint8)
    settings = {
        "seed": jnp.asarray(SEED, jnp.int32),
        "generation": jnp.int32(5),
        "group_size": 4,
        "chunk_pairs": 2,
    }
    whole, _ = EVALUATE(parameters, model.zero_state(config, 2, 8), lanes, config=config, **settings)
    part, _ = EVALUATE(
        parameters, model.zero_state(config, 2, 4), lanes, config=config, first_pair=jnp.int32(4), **settings
    )
    np.testing.assert_array_equal(whole[:, 4:], part)


def test_draws_do_not_depend_on_the_chunk():
    config = model.Config(layers=2, width=16, rank=4)
    seed, generation = jnp.asarray(SEED, jnp.int32), jnp.int32(2)
    whole = model.flat(
        perturbation.chunk_factors(config, seed=seed, generation=generation, pairs=jnp.arange(4, dtype=jnp.int32))
    )
    expected = numpy_noise(config, 2, 3)
    for path, leaf in whole.items():
        if model.is_matrix(path):
            for side, oracle_side in zip(leaf, expected[path], strict=True):
                np.testing.assert_array_equal(np.moveaxis(side[..., 3, :, :], -2, -1), oracle_side)
        else:
            np.testing.assert_array_equal(leaf[..., 3, :], expected[path])


def test_start_parameters():
    config = model.Config(layers=2, width=64)
    leaves = model.flat(model.init_parameters(config, 1))
    assert sum(leaf.size for leaf in leaves.values()) == config.parameter_count
    assert model.Config().parameter_count == 4_856_064
    for path, leaf in leaves.items():
        assert leaf.dtype == np.int8 and leaf.shape == model.leaf_shapes(config)[path]
        if model.is_matrix(path):
            assert abs(leaf.astype(float).std() - 16) < 0.5 and leaf.min() > -128
        else:
            assert (leaf == (16 if "norm" in path else 0)).all()


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"width": 32}, "power of 4"),
        ({"width": 4}, "width ≥ 16"),
        ({"rank": 64, "width": 16}, "rank ≤ width"),
        ({"rank": 2}, "power of 4"),
        ({"layers": 0}, "at least one layer"),
        ({"sigma_shift": -1}, "sigma_shift in 0…16"),
    ],
)
def test_bad_shapes_are_refused_in_one_line(settings, text):
    with pytest.raises(UsageError, match=text) as error:
        model.Config(**settings)
    assert str(error.value).startswith("expected ") and "\n" not in str(error.value) and ";" in str(error.value)
