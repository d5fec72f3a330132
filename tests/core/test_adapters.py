"""Adapters: the model starts unchanged, members are those of a dense loop, and only adapters move."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from eggroll.core import EvolutionStrategy, LowRank
from eggroll.core.adapters import add_lora, merge_lora, with_lora


class Model(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(7, 6)(tokens)
        x = x + nn.MultiHeadDotProductAttention(num_heads=2)(x)
        x = nn.tanh(nn.Dense(8)(x))
        return nn.Dense(3)(x)


TOKENS = jnp.array([[0, 3, 6, 1]])
SPLIT = {"*/query/kernel": 1, "*/key/kernel": 1, "*/value/kernel": 1, "*/out/kernel": 2}


def score(params, key, tokens):
    return jnp.square(Model().apply(params, tokens) - 0.5).mean()


@pytest.fixture(scope="module")
def base():
    return Model().init(jax.random.key(0), TOKENS)


@pytest.mark.parametrize("rank", [1, 2])
def test_members_with_adapters_are_those_of_a_dense_loop(base, rank):
    params = add_lora(base, jax.random.key(1), targets=("*/kernel", "*/embedding"), rank=2, split=SPLIT)
    params["lora"] = jax.tree.map(lambda x: x + 0.1, params["lora"])
    es = EvolutionStrategy(optax.sgd(0.1), population_size=6, sigma=0.3, rank=rank, trainable="lora/*")
    state = es.init(params, seed=1)
    new, info = es.step(state, with_lora(score, scale=0.5, split=SPLIT), TOKENS)
    members = [merge_lora(es.perturbed(state, i), scale=0.5, split=SPLIT) for i in range(6)]
    np.testing.assert_allclose(info.fitness, [score(m, None, TOKENS) for m in members], rtol=2e-5)
    jax.tree.map(np.testing.assert_array_equal, new.params["base"], base)
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), new.params["lora"], params["lora"])
    assert all(jax.tree.leaves(changed))


def test_the_model_starts_unchanged_and_merging_adds_the_product(base):
    params = add_lora(base, jax.random.key(1), targets="*/Dense_0/kernel", rank=3)
    assert list(params["lora"]) == ["params.Dense_0.kernel"]
    fitness = with_lora(score, scale=2.0)
    np.testing.assert_allclose(fitness(params, None, TOKENS), score(base, None, TOKENS), rtol=1e-5)
    own = params["lora"]["params.Dense_0.kernel"]
    assert own["a"].shape == (6, 3) and own["b"].shape == (8, 3) and not own["a"].any() and own["b"].any()
    own["a"] = jnp.ones((6, 3))
    merged = merge_lora(params, scale=2.0)["params"]["Dense_0"]["kernel"]
    expected = base["params"]["Dense_0"]["kernel"] + 2 * own["a"] @ own["b"].T
    np.testing.assert_allclose(merged, expected, rtol=1e-6)


def test_layers_that_are_stacked_have_adapters_of_their_own():
    base = {"w": jnp.ones((3, 5, 5)) / 5}

    def model(params, key, x):
        return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, params["w"])[0].mean()

    settings = {"stacked": {"w": 1}}
    params = add_lora(base, jax.random.key(0), targets="w", rank=2, **settings)
    params["lora"]["w"]["a"] += 0.2
    distribution = LowRank(stacked={"lora/*": 1})
    es = EvolutionStrategy(optax.sgd(0.1), population_size=4, sigma=0.2, distribution=distribution, trainable="lora/*")
    state, x = es.init(params), jnp.ones((2, 5))
    _, info = es.step(state, with_lora(model, **settings), x)
    members = [merge_lora(es.perturbed(state, i), **settings) for i in range(4)]
    np.testing.assert_allclose(info.fitness, [model(m, None, x) for m in members], rtol=2e-5)


def test_a_vector_gets_no_adapter(base):
    with pytest.raises(ValueError, match=r"expected matrices as targets of adapters, got leaf 'params/Dense_0/bias'"):
        add_lora(base, jax.random.key(0), targets="*/bias", rank=1)
    with pytest.raises(ValueError, match="expected rank ≤ 3 for leaf 'params/Dense_1/kernel'"):
        add_lora(base, jax.random.key(0), targets="*/Dense_1/kernel", rank=4)
