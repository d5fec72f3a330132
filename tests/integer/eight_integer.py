"""The integer path on 8 devices: the bits of one; `test_mesh.py` runs this in a process that has as many."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from eggroll.core.mesh import device_mesh, gathered
from eggroll.integer import model, population, update

SEED = jnp.array([5, -6], jnp.int32)
PATHS = ("blocks/W1",)
PAIRS = 1030  # two blocks at rank 1, five at rank 4, and no multiple of 4 or 8
WAYS = ("redraw", "reduce", "rows")


def start(rank):
    config = model.Config(layers=2, width=16, rank=rank)
    leaves = model.flat(model.init_parameters(config, 0))
    signs = np.random.default_rng(rank).integers(-1, 2, PAIRS).astype(np.int8)
    return config, {path: jnp.asarray(leaves[path]) for path in PATHS}, signs


@functools.cache
def alone(rank):
    config, leaves, signs = start(rank)
    new = functools.partial(update.new_leaves, config=config, seed=SEED, generation=jnp.int32(3))
    return jax.tree.map(np.asarray, jax.jit(new)(leaves, jnp.asarray(signs), np.int32(4000)))


@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize("devices", [1, 2, 4, 8])
@pytest.mark.parametrize("way", WAYS)
def test_each_way_updates_to_the_bits_of_one_device(devices, way, rank):
    config, leaves, signs = start(rank)
    mesh = device_mesh(devices)
    new = jax.jit(functools.partial(update.new_leaves_on, mesh, way, config=config))
    got = new(leaves, jnp.asarray(signs), np.int32(4000), seed=SEED, generation=jnp.int32(3))
    jax.tree.map(np.testing.assert_array_equal, got, alone(rank))
    assert any((alone(rank)[path] != leaves[path]).any() for path in PATHS)
    if way == "rows":  # a device has its own rows and no others
        assert got["blocks/W1"].addressable_shards[0].data.shape == (2, 64 // devices, 16)


def test_moved_weights_are_counted_once_and_all_leaves_come_back_whole():
    config, _, signs = start(1)
    parameters = model.init_parameters(config, 0)
    whole = functools.partial(update.update, config=config, seed=SEED, generation=jnp.int32(3))
    old = jax.jit(whole)(parameters, jnp.asarray(signs), jnp.int32(4000))
    for way in ("reduce", "rows"):
        run = jax.jit(functools.partial(whole, mesh=device_mesh(8), way=way))
        new = run(parameters, jnp.asarray(signs), jnp.int32(4000))
        jax.tree.map(np.testing.assert_array_equal, old, new)
        assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(new))


@pytest.mark.parametrize(("rank", "numbers"), [(1, (8,)), (4, (2,))])
def test_members_evaluate_to_the_bits_of_one_device(rank, numbers):
    config = model.Config(layers=1, width=16, rank=rank)
    random = np.random.default_rng(0)
    parameters = model.init_parameters(config, 0)
    state = random.integers(-127, 128, (1, 2, 16, 16)).astype(np.int8)
    lanes = random.integers(0, 256, (8, 5)).astype(np.uint8)
    settings = {"seed": SEED, "generation": jnp.int32(2), "group_size": 4, "chunk_pairs": 2}
    expected = jax.jit(functools.partial(population.evaluate, config=config, **settings))(parameters, state, lanes)
    for devices in numbers:
        mesh = device_mesh(devices)
        run = jax.jit(functools.partial(population.evaluate_on, mesh, config=config, **settings))
        got = run(parameters, jax.device_put(state, NamedSharding(mesh, P(None, None, mesh.axis_names))), lanes)
        jax.tree.map(np.testing.assert_array_equal, got, expected)
        assert got[1].addressable_shards[0].data.shape == (1, 2, 16 // devices, 16)
        np.testing.assert_array_equal(gathered(mesh, got[1]), expected[1])


def test_words_of_many_devices_add_up_beyond_32_bits():
    """Each device's low word is just short of running over, and the sum is past the limit."""
    from eggroll.integer import sums

    def share(values):
        words = jax.lax.fori_loop(0, 2**15, lambda _, w: sums.add_to(w, values[0]), sums.zero_words((3,)))
        return sums.collect(jax.lax.psum(sums.settled(words), "members"))

    mesh = device_mesh(8)
    values = np.tile(np.array([[65535, -1, 511]], np.int32), (8, 1))
    got = jax.jit(jax.shard_map(share, mesh=mesh, in_specs=P("members"), out_specs=P(), check_vma=False))(values)
    np.testing.assert_array_equal(got, [2**27 - 1, -(2**18), 511 * 2**18])
