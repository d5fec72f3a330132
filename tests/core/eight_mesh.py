"""Laws of a strategy on 8 devices; `test_mesh.py` runs them in a process that has as many."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import eggroll
from eggroll.core.draws import noise_bytes
from eggroll.core.mesh import device_mesh, gathered, local_copy, place

RNG = np.random.default_rng(0)
PARAMS = {
    "b": jnp.zeros(6),
    "layers": jnp.asarray(RNG.normal(size=(4, 8, 8)) / 4, jnp.float32),
    "s": jnp.float32(1.0),
    "w": jnp.asarray(RNG.normal(size=(6, 8)) / 4, jnp.float32),
}
SHARDED = {"w": P("model"), "layers": P(None, None, "model")}
X = jnp.asarray(RNG.normal(size=(4, 5, 8)), jnp.float32)
CASES = [(8, 1, {}, "reduce"), (8, 1, {}, "rows"), *((4, 2, SHARDED, way) for way in ("redraw", "reduce", "rows"))]
DISTRIBUTION = eggroll.LowRank(2, stacked={"layers": 1})


def score(params, key, carry, x):
    h = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, params["layers"])[0] @ params["w"].T + params["b"][None]
    return (h * params["s"]).std() + 0.01 * jax.random.normal(key) + carry.sum() / 1000, carry + 1, h[0]


def on(mesh, specs, params=PARAMS):
    return {name: place(mesh, value, specs[name]) if name in specs else value for name, value in params.items()}


def strategy(mesh=None, optimizer=None, **kwargs):
    settings = {"population_size": 32, "sigma": 0.1, "group_size": 8, "chunk_size": 2, "shaping": "centred_rank"}
    return eggroll.EvolutionStrategy(
        optimizer or optax.adam(0.01), **settings | {"distribution": DISTRIBUTION, "mesh": mesh} | kwargs
    )


def trained(es, params):
    state, carry = es.init(params, seed=1), jnp.arange(64.0).reshape(32, 2)
    start = state
    for _ in range(3):
        state, info, carry, aux = es.step(state, score, eggroll.per_group(X), carry=carry, has_aux=True)
    return start, state, info, carry, aux


@functools.cache
def alone():
    return trained(strategy(), PARAMS)[1:]


def close(one, two, tolerance=2e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), one, two)


def specs_of(state):
    return [leaf.sharding.spec for leaf in jax.tree.leaves(state)]


@pytest.mark.parametrize(("members", "model", "specs", "update"), CASES)
def test_results_are_those_of_one_device_and_nothing_is_compiled_again(members, model, specs, update):
    mesh = device_mesh(members, model)
    es = strategy(mesh, update=update)
    start, *results = trained(es, on(mesh, specs))
    close(results, list(alone()))
    assert es._step._cache_size() == 1
    assert specs_of(start) == specs_of(results[0])
    state = results[0]
    for name in PARAMS:
        assert state.params[name].sharding.spec == state.opt_state[0].mu[name].sharding.spec == specs.get(name, P())
    assert results[2].sharding.spec == P("members")


def test_layer_by_layer_on_a_mesh():
    mesh = device_mesh(4, 2)
    es = strategy(mesh, layerwise=True)
    start, *results = trained(es, on(mesh, SHARDED))
    close(jax.tree.leaves(results[0].params), jax.tree.leaves(alone()[0].params))
    assert specs_of(start) == specs_of(results[0]) and es._apply_leaf._cache_size() == len(PARAMS)


@pytest.mark.parametrize("groups", [4, 3])
def test_groups_are_shared_out_where_they_divide(groups):
    """With 4 groups on 4 devices each holds one; 3 groups go to all."""
    members, args = 8 * groups, eggroll.per_group(jnp.concatenate([X, X])[:groups])
    settings = {"population_size": members, "optimizer": optax.sgd(0.1)}
    carry = jnp.zeros((members, 2))
    mesh = device_mesh(4, devices=jax.devices()[:4])
    one, other = (
        strategy(m, **settings).step(strategy(m, **settings).init(PARAMS), score, args, carry=carry, has_aux=True)
        for m in (None, mesh)
    )
    close(one[1:], other[1:])
    es = strategy(mesh, **settings)
    (placed,), _ = es._placement.inputs((args,), None, es._setting(members // 2))
    assert placed.value.sharding.num_devices == (4 if groups == 4 else 1)


def test_halves_of_a_step_and_members_asked_for():
    mesh = device_mesh(4, 2)
    es, one = strategy(mesh, chunk_size="auto", group_size=32), strategy(group_size=32)
    state, known = es.init(on(mesh, SHARDED)), one.init(PARAMS)
    carry = jnp.zeros((32, 2))
    weights, info, evaluation = es.evaluate(state, score, X[0], carry=carry, has_aux=True)
    assert weights.sharding.is_fully_replicated and evaluation.fitness.sharding.is_fully_replicated
    expected = one.evaluate(known, score, X[0], carry=carry, has_aux=True)
    close((weights, info, evaluation), expected)
    updated, told = es.update(state, weights), es.tell(state, evaluation.fitness)[0]
    close(updated, told)
    close(updated, one.update(known, expected[0]))
    assert specs_of(updated) == specs_of(told) == specs_of(state)
    jax.tree.map(np.testing.assert_array_equal, es.perturbed(state, 5), one.perturbed(known, 5))
    asked = [members._replace(key=jax.random.key_data(members.key)) for members in (es.ask(state), one.ask(known))]
    jax.tree.map(np.testing.assert_array_equal, *asked)
    assert es.chunk_size == 8 and es.with_chunk_size(4).mesh is mesh


def test_a_loaded_state_goes_back_to_where_it_lay():
    mesh = device_mesh(4, 2)
    es = strategy(mesh)
    state = es.init(on(mesh, SHARDED))
    loaded = jax.tree.map(np.asarray, state)
    weights = jnp.arange(16.0)
    new, same = es.update(state, weights), es.update(loaded, weights)
    assert specs_of(new) == specs_of(same) and es._apply._cache_size() == 1
    jax.tree.map(np.testing.assert_array_equal, new, same)
    whole = gathered(mesh, new)
    assert all(spec == P() for spec in specs_of(whole))
    assert all(len(leaf.devices()) == 1 for leaf in jax.tree.leaves(local_copy(whole)))
    jax.tree.map(np.testing.assert_array_equal, local_copy(whole), new)


BIG = {"v": jnp.zeros(4096), "w": jnp.zeros((96, 40))}


def big_score(params, key, x):
    return jnp.tanh(params["w"] @ x).sum() + params["v"].sum()


@functools.cache
def compiled(update, sharded, chunk_size=2):
    """A step on 4 × 2 devices, and the bytes of a device's share of the noise of its population."""
    mesh, settings = device_mesh(4, 2), {"population_size": 32768, "group_size": 32768, "distribution": None}
    es = strategy(mesh, optax.sgd(0.1), update=update, chunk_size=chunk_size, **settings)
    state = es.init(on(mesh, {"w": P("model"), "v": P("model")} if sharded else {}, BIG))
    _, layout = es._placement.state(state)
    lowered = es._step.lower(state, (jnp.ones(40),), None, fitness=big_score, has_aux=False, layout=layout)
    return lowered.compile(), 16384 * noise_bytes(es.plan(BIG)) // 8


def needed(step):
    return step.memory_analysis().temp_size_in_bytes + step.memory_analysis().output_size_in_bytes


@pytest.mark.parametrize(("update", "sharded"), [("redraw", False), ("reduce", True), ("rows", True)])
def test_no_device_holds_the_noise_of_its_share_of_the_population(update, sharded):
    """All that a device needs beside its arguments stays below a quarter of that; an evaluation in one piece does not,
    so the bound would find one."""
    step, share = compiled(update, sharded)
    assert needed(step) < share / 4
    if update == "reduce":
        assert needed(compiled(update, sharded, chunk_size=32768)[0]) > share / 4


def test_a_sharded_matrix_is_never_whole_on_a_device():
    """Neither as weights nor as gradient; and "redraw", which forms it, shows that the search would find it."""
    found = [
        set(re.findall(r"f32\[96,40\]|f32\[4096\]", compiled(*case)[0].as_text()))
        for case in (("rows", True), ("redraw", False))
    ]
    assert found == [set(), {"f32[96,40]", "f32[4096]"}]


def test_rows_draw_their_own_rows_alone():
    """Elementwise noise of a block of 1/8: the update of 64 pairs at a time needs an eighth of what "redraw" needs."""
    sizes = {}
    for update in ("redraw", "rows"):
        es = strategy(device_mesh(8), update=update, population_size=1024, optimizer=optax.sgd(0.1), distribution=None)
        state = es.init({"v": jnp.zeros(2**15)})
        state, layout = es._placement.state(state)
        lowered = es._apply.lower(state, jnp.zeros(512), layout=layout)
        sizes[update] = lowered.compile().memory_analysis().temp_size_in_bytes
    assert sizes["rows"] < sizes["redraw"] / 4
