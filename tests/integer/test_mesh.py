"""The integer path on several devices, and the memory of its update."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eggroll.integer import model, update
from tests.eight import run_on_eight


def test_the_laws_on_eight_devices():
    run_on_eight("integer/eight_integer.py")


def memory(config, pairs):
    new = functools.partial(update.update, config=config, seed=jnp.zeros(2, jnp.int32), generation=jnp.int32(0))
    shapes = {path: jax.ShapeDtypeStruct(shape, np.int8) for path, shape in model.leaf_shapes(config).items()}
    signs, level = jax.ShapeDtypeStruct((pairs,), np.int8), jax.ShapeDtypeStruct((), np.int32)
    return jax.jit(new).lower(model.nested(shapes), signs, level).compile().memory_analysis().temp_size_in_bytes


def test_an_update_needs_the_memory_of_one_layer():
    """Beside the parameters: words, block sum and new values of one layer's largest matrix (16 bytes an element), and
    one block of its noise; two int32 words for every weight of the model would be more."""
    config = model.Config(layers=24, width=64)
    rows, columns = 4 * 64, 64
    bound = 16 * rows * columns + 16 * (rows + columns) * 1024
    assert memory(config, 2048) < bound < 8 * config.parameter_count


def test_an_update_needs_no_memory_for_the_population():
    """But for the signs themselves: a byte a pair, and as much again where a block is filled up."""
    config = model.Config(layers=1, width=16)
    assert memory(config, 2**20) - memory(config, 2**12) <= 4 * 2**20 < 2**20 * 2 * config.width


@pytest.mark.parametrize("layers", [1, 3])
def test_layers_one_after_the_other_are_the_stack(layers):
    """A leaf of one layer takes no loop, and has the noise of the first of several."""
    signs = np.random.default_rng(0).integers(-1, 2, 40).astype(np.int8)
    config = model.Config(layers=layers, width=16)
    leaf = {"blocks/bf": np.arange(16 * layers, dtype=np.int8).reshape(layers, 16)}
    run = functools.partial(update.new_leaves, seed=jnp.array([1, 2], jnp.int32), generation=jnp.int32(1))
    new = run(jax.tree.map(jnp.asarray, leaf), jnp.asarray(signs), jnp.int32(900), config)
    one = run({"blocks/bf": jnp.asarray(leaf["blocks/bf"][:1])}, jnp.asarray(signs), jnp.int32(900), config)
    np.testing.assert_array_equal(new["blocks/bf"][:1], one["blocks/bf"])
    assert (new["blocks/bf"] != leaf["blocks/bf"]).any()
