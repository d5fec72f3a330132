"""`layerwise=True`: the same updates, with the memory of one leaf's gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eggroll

RNG = np.random.default_rng(0)
PARAMS = {f"w{k}": jnp.asarray(RNG.normal(size=(6, 4)), jnp.float32) for k in range(3)} | {"b": jnp.zeros(4)}


def score(params, key, x):
    h = x @ params["w0"] + (x @ params["w1"]) * (x @ params["w2"])
    return -jnp.square(jnp.tanh(h) + params["b"][None] - 0.3).mean()


def strategy(optimizer, layerwise, **kwargs):
    return eggroll.EvolutionStrategy(
        optimizer, **{"population_size": 12, "sigma": 0.1, "layerwise": layerwise, "rank": 2} | kwargs
    )


def close(one, two):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, two)


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.adamw(0.01, weight_decay=0.1),
        optax.multi_transform(
            {"b": optax.sgd(0.3), "w": optax.adam(0.01)}, lambda params: {name: name[0] for name in params}
        ),
    ],
)
def test_it_is_the_update_of_all_leaves_at_once(optimizer):
    """Labels by path find their leaf; frozen leaves stay; nothing is compiled again."""
    x = jnp.ones((2, 6))
    results = []
    for layerwise in (False, True):
        es = strategy(optimizer, layerwise, frozen="w2")
        state = es.init(PARAMS)
        for _ in range(3):
            state, info = es.step(state, score, x)
        weights, _, evaluation = es.evaluate(state, score, x)
        results.append((state.params, info, es.update(state, weights).params))
        close(es.tell(state, evaluation.fitness)[0].params, results[-1][2])
    close(*results)
    np.testing.assert_array_equal(results[1][0]["w2"], PARAMS["w2"])
    assert len(state.opt_state) == 3 and es._apply_leaf._cache_size() == 3


def test_what_looks_across_leaves_sees_one():
    """Clipping by the global norm then bounds each leaf's own norm."""
    es = strategy(optax.chain(optax.clip_by_global_norm(1e-3), optax.sgd(1.0)), True)
    state = es.init(PARAMS)
    moved = es.update(state, jnp.arange(6.0)).params
    norms = [float(jnp.linalg.norm(moved[name] - PARAMS[name])) for name in PARAMS]
    np.testing.assert_allclose(norms, 1e-3, rtol=1e-3)


def test_memory_is_that_of_one_gradient():
    """Two arrays of the largest leaf's size (gradient and sum), its noise, and the new leaf; all at once needs more."""
    params = {f"w{k}": jnp.zeros((512, 512)) for k in range(12)}
    leaf = 4 * 512 * 512
    needed = {}
    for layerwise in (False, True):
        es = strategy(optax.sgd(0.1), layerwise, chunk_size=2)
        state, weights = es.init(params), jnp.zeros(6)
        if layerwise:
            own = state._replace(params=params["w3"], opt_state=state.opt_state[3])
            lowered = es._apply_leaf.lower(
                own, weights, plan=es.plan(params), index=3, tree=jax.tree.structure(params), layout=None
            )
        else:
            lowered = es._apply.lower(state, weights, layout=None)
        size = lowered.compile().memory_analysis()
        needed[layerwise] = size.temp_size_in_bytes + size.output_size_in_bytes
    new = 12 * leaf
    assert needed[True] < 4 * leaf < needed[False] - new
