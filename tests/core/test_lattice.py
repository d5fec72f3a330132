"""int8 leaves that members perturb: against matrices written out in float64, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from eggroll.core import EvolutionStrategy, LowRank
from eggroll.core.lowrank import LowRankArray, apply_perturbed
from eggroll.core.state import State, seed_words

generator = np.random.default_rng(0)
W = jnp.asarray(generator.integers(-127, 128, (3, 5, 4)), jnp.int8)
SCALE = jnp.asarray(generator.uniform(0.01, 0.02, (3, 5)), jnp.float32)
X = jnp.asarray(generator.normal(size=(6, 4)), jnp.float32)
PARAMS = {"scale": SCALE, "w": W}


def dense(w):
    """The value in float64, whatever its dtypes."""
    a, b = (np.asarray(side, np.float64) for side in (w.a, w.b))
    return np.asarray(w.base, np.float64) + float(w.scale) * np.einsum("smk,snk->smn", a, b)


def low_rank(rank=2):
    a, b = (jnp.asarray(generator.integers(-16, 17, (3, n, rank)), jnp.int8) for n in (5, 4))
    return LowRankArray(W, a, b, jnp.float32(0.03), "src", "w")


def floats(w, x):
    return jnp.einsum("pk,snk->spn", x, w.astype(x.dtype))


def scanned(w, x):
    """Layer by layer, each a float product."""
    return lax.scan(lambda carry, layer: (carry, x @ layer.T.astype(x.dtype)), 0, w)[1]


def integers(w, x):
    """int8 × int8 → int32, then floats."""
    q = jnp.rint(x * 40).astype(jnp.int8)
    layers = [lax.dot_general(q, w[k], (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32) for k in range(3)]
    return jnp.stack([layer.astype(jnp.float32) for layer in layers])


@pytest.mark.parametrize("model", [floats, scanned, integers])
def test_a_product_is_that_of_the_matrix_written_out(model):
    w = low_rank()
    x = np.rint(np.asarray(X) * 40) if model is integers else np.asarray(X, np.float64)
    found = jax.jit(lambda w, x: apply_perturbed(model, w, x))(w, X)
    np.testing.assert_allclose(found, np.einsum("pk,snk->spn", x, dense(w)), rtol=1e-5, atol=1e-3)
    members = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), (w.a, w.b, w.scale))
    moved = lambda a, b, scale: apply_perturbed(model, LowRankArray(w.base, a, b, scale, w.roles, w.leaf), X)
    np.testing.assert_allclose(jax.vmap(moved)(*members)[1], found, rtol=1e-5, atol=1e-3)


def test_a_row_is_that_of_the_matrix_written_out():
    w, rows = low_rank(), jnp.array([4, 0, 4])
    found = apply_perturbed(lambda w: w[1][rows] * SCALE[1][rows][:, None], w)
    np.testing.assert_allclose(found, dense(w)[1][rows] * np.asarray(SCALE[1])[rows][:, None], rtol=1e-5, atol=1e-5)


def strategy(**changed):
    distribution = LowRank(**{"rank": 2, "stacked": {"w": 1}, "lattice": ("w",)} | changed)
    settings = {"population_size": 8, "sigma": 0.4, "trainable": ("w",), "chunk_size": 4}
    return EvolutionStrategy(optax.identity(), distribution=distribution, **settings)


def score(params, key, x):
    return jnp.square(scanned(params["w"], x) * params["scale"][:, None]).mean()


@pytest.mark.parametrize("law", ["popcount", "signs", "table_normal"])
def test_members_move_by_sigma_steps_and_are_evaluated_as_written_out(law):
    es, state = strategy(law=law), State(PARAMS, (), seed_words(3), jnp.int32(5))
    *_, found = es.evaluate(state, score, X)
    members = [es.perturbed(state, member)["w"] for member in range(8)]
    assert {member.dtype for member in members} == {jnp.dtype(jnp.float32)}
    written = [score({"scale": SCALE, "w": member}, None, X) for member in members]
    np.testing.assert_allclose(found.fitness, written, rtol=1e-4)
    shifts = np.stack([member - W.astype(jnp.float32) for member in members])
    np.testing.assert_allclose(shifts[::2], -shifts[1::2], atol=2e-5)
    many = strategy(law=law, rank=4)
    moved = [many.perturbed(state, member)["w"] - W.astype(jnp.float32) for member in range(0, 8, 2)]
    assert 0.25 < float(np.std(moved)) < 0.6


def test_what_cannot_be_a_lattice_is_refused():
    with pytest.raises(ValueError, match="expected float leaves to update, got the lattice leaf 'w' of int8"):
        strategy().init(PARAMS)
    with pytest.raises(ValueError, match="a law of integers for the lattice leaf 'w', got int8"):
        strategy(law="normal").plan(PARAMS)
    with pytest.raises(ValueError, match="expected an int8 matrix"):
        strategy(split={"w": 0}).plan(PARAMS)
    with pytest.raises(ValueError, match="expected float leaves, got int8 in leaf 'w'"):
        strategy(lattice=()).plan(PARAMS)
    with pytest.raises(ValueError, match="expected lattice patterns that match a leaf, got 'v'"):
        strategy(lattice=("v",)).plan(PARAMS)
