"""Policies against oracles in NumPy and Flax; actions within their spaces; networks of the user's own."""

import dataclasses
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import eggroll
from eggroll.core.errors import UsageError
from eggroll.rl.environments.base import Box, Discrete, MultiDiscrete
from eggroll.rl.policy import START_STD, decide, load_network, make_policy, make_team_policy, mlp, outputs
from tests.rl.tiny import team, walk

KEY = jax.random.key(0)
INFINITE = float("inf")


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def perturbed(params, seed=1):
    """Every leaf moved, so that biases, scales and a small head count."""
    leaves, tree = jax.tree.flatten(params)
    noise = [np.random.default_rng(seed + k).normal(size=leaf.shape) / 2 for k, leaf in enumerate(leaves)]
    moved = [jnp.asarray(np.asarray(leaf) + own, jnp.float32) for leaf, own in zip(leaves, noise, strict=True)]
    return jax.tree.unflatten(tree, moved)


def network(*sizes):
    return tuple(map(jax.jit, mlp(*sizes)))


# ── the network ──


def oracle(params, x):
    """The MLP in NumPy and float64."""
    x = np.asarray(x, np.float64)
    for k in range(len(params) - 1):
        layer = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params[f"layer_{k}"])
        x = x @ layer["kernel"] + layer["bias"]
        x = (x - x.mean()) / np.sqrt(x.var() + 1e-6)
        x = np.maximum(x * layer["scale"] + layer["offset"], 0)
    return x @ np.asarray(params["head"]["kernel"], np.float64) + np.asarray(params["head"]["bias"], np.float64)


@pytest.mark.parametrize("hidden", [(), (8,), (8, 6, 7)])
def test_mlp_is_that_of_numpy(hidden):
    init, apply = network(5, 3, hidden)
    params, x = perturbed(init(KEY)), normal(9, 5)
    np.testing.assert_allclose(apply(params, x), oracle(params, x), rtol=2e-5, atol=2e-5)


class Dense(nn.Module):
    """The same network of Flax's parts."""

    @nn.compact
    def __call__(self, x):
        for units in (8, 6):
            x = nn.relu(nn.LayerNorm()(nn.Dense(units)(x)))
        return nn.Dense(3)(x)


def test_mlp_is_that_of_flax():
    init, apply = network(5, 3, (8, 6))
    params, x = perturbed(init(KEY)), normal(9, 5)
    theirs = {}
    for k, name in enumerate(("layer_0", "layer_1", "head")):
        theirs[f"Dense_{k}"] = {part: params[name][part] for part in ("kernel", "bias")}
        if name != "head":
            theirs[f"LayerNorm_{k}"] = {"scale": params[name]["scale"], "bias": params[name]["offset"]}
    expected = jax.jit(Dense().apply)({"params": theirs}, x)
    np.testing.assert_allclose(apply(params, x), expected, rtol=1e-5, atol=1e-5)
    assert jax.tree.map(jnp.shape, jax.eval_shape(Dense().init, KEY, x)["params"]) == jax.tree.map(jnp.shape, theirs)


def test_mlp_starts_lecun_normal_with_a_small_head():
    params = jax.jit(mlp(200, 100, (300,))[0])(KEY)
    np.testing.assert_allclose(params["layer_0"]["kernel"].std(), 200**-0.5, rtol=0.02)
    np.testing.assert_allclose(params["head"]["kernel"].std(), 0.01 * 300**-0.5, rtol=0.02)
    assert np.all(params["layer_0"]["scale"] == 1)
    for name in ("bias", "offset"):
        assert not np.any(params["layer_0"][name])
    assert not np.any(params["head"]["bias"])


def test_a_policy_starts_near_even_odds():
    policy = make_policy(walk(), hidden=(8,))
    draw = jax.jit(jax.vmap(lambda key: policy.act(policy.init(KEY), key, normal(2, 4))))
    actions = draw(jax.random.split(KEY, 3000))
    np.testing.assert_allclose(np.bincount(actions, minlength=3) / 3000, 1 / 3, atol=0.04)


# ── decisions ──


def many(space, numbers, count=4000):
    draw = jax.jit(jax.vmap(lambda key: decide(space, False, jnp.asarray(numbers, jnp.float32), key)))
    return np.asarray(draw(jax.random.split(KEY, count)))


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum()


def test_choices_are_drawn_by_their_odds():
    logits = np.array([0.5, -1.0, 1.5, -30.0])
    drawn = many(Discrete(4), logits)
    assert drawn.dtype == np.int32 and drawn.shape == (4000,)
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / 4000, softmax(logits), atol=0.03)


def test_several_choices_are_drawn_independently():
    logits = np.array([0.5, -1.0, 1.0, 0.0, 1.0])
    drawn = many(MultiDiscrete((2, 3)), logits)
    assert drawn.dtype == np.int32 and drawn.shape == (4000, 2)
    joint = np.zeros((2, 3))
    np.add.at(joint, tuple(drawn.T), 1 / 4000)
    np.testing.assert_allclose(joint, np.outer(softmax(logits[:2]), softmax(logits[2:])), atol=0.03)


def test_the_likeliest_choice_is_taken():
    numbers = normal(3, 9)
    assert decide(Discrete(9), True, numbers, KEY) == np.argmax(numbers)
    chosen = decide(MultiDiscrete((2, 4, 3)), True, numbers, KEY)
    assert chosen.tolist() == [np.argmax(numbers[:2]), np.argmax(numbers[2:6]), np.argmax(numbers[6:])]


BOX = Box((-2.0, 0.0, -INFINITE, 1.0, -INFINITE), (2.0, 1.0, INFINITE, INFINITE, -3.0))


def test_means_are_brought_into_the_range():
    numbers = np.array([0.3, -0.7, 5.0, 6.0, -4.0], np.float32)
    expected = [2 * np.tanh(0.3), 0.5 + 0.5 * np.tanh(-0.7), 5.0, 6.0, -4.0]
    np.testing.assert_allclose(decide(BOX, True, jnp.asarray(numbers), KEY), expected, rtol=1e-6)
    beyond = decide(BOX, True, jnp.array([99.0, -99.0, 99.0, -99.0, 99.0]), KEY)
    np.testing.assert_allclose(beyond, [2.0, 0.0, 99.0, 1.0, -3.0], rtol=1e-6)


def test_continuous_actions_are_normal_about_their_means():
    space = Box((-100.0, -INFINITE), (100.0, INFINITE))
    drawn = many(space, [0.1, 3.0, -2.0, 0.5])
    reach = np.array([100.0, 1.0])
    np.testing.assert_allclose(drawn.mean(0), [100 * np.tanh(0.1), 3.0], atol=0.1 * START_STD * reach.max() / 10 + 0.05)
    np.testing.assert_allclose(drawn.std(0), START_STD * np.exp([-2.0, 0.5]) * reach, rtol=0.05)


numbers_of = st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=10, max_size=10)
sampled = jax.jit(lambda numbers, key: decide(BOX, False, numbers, key))
likeliest = jax.jit(lambda numbers, key: decide(BOX, True, numbers[:5], key))


@settings(deadline=None, max_examples=60)
@given(numbers_of, st.integers(0, 2**31))
def test_bounds_are_kept(numbers, seed):
    for take in (sampled, likeliest):
        action = np.asarray(take(jnp.array(numbers, jnp.float32), jax.random.key(seed)))
        assert action.shape == (5,) and action.dtype == np.float32 and not np.isnan(action).any()
        assert np.all(action >= np.array(BOX.low, np.float32)) and np.all(action <= np.array(BOX.high, np.float32))


def test_how_many_numbers_a_space_takes():
    for space, deterministic, drawn in ((Discrete(4), 4, 4), (MultiDiscrete((2, 3)), 5, 5), (BOX, 5, 10)):
        assert (outputs(space, True), outputs(space, False)) == (deterministic, drawn)


@pytest.mark.parametrize("space", [Discrete(3), Box((-1.0,), (1.0,))])
@pytest.mark.parametrize("deterministic", [True, False])
def test_a_policy_is_its_network_and_a_decision(space, deterministic):
    environment = walk(space)
    policy = make_policy(environment, hidden=(8,), deterministic=deterministic)
    params, x = perturbed(jax.jit(policy.init)(KEY)), normal(3, 4)
    numbers, act = network(4, outputs(space, deterministic), (8,))[1](params, x), jax.jit(policy.act)
    for seed in range(3):
        key = jax.random.key(seed)
        expected = decide(space, deterministic, numbers, key)
        np.testing.assert_allclose(act(params, key, x), expected, rtol=1e-5, atol=1e-6)


# ── networks of the user's own ──

OWN = ["Linen", "linen", "equinox", "pair"]


def test_own_networks_under_the_strategy():
    """Every member acts by its own weights written out, whatever the network is made of."""
    networks = {name: load_network(f"tests.rl.networks:{name}", 4, 3) for name in OWN}
    x = normal(2, 4)
    params = jax.jit(lambda key: {name: init(key) for name, (init, _) in networks.items()})(jax.random.key(3))

    def fitness(params, key):
        numbers = {name: apply(params[name], x) for name, (_, apply) in networks.items()}
        return numbers["pair"][0], numbers

    es = eggroll.EvolutionStrategy(optax.sgd(0.1), population_size=4, sigma=0.2, rank=1)
    state = es.init(params)
    _, _, evaluation = es.evaluate(state, fitness, has_aux=True)
    dense = jax.jit(lambda params: fitness(params, None)[1])
    expected = [dense(es.perturbed(state, member)) for member in range(4)]
    for name, numbers in evaluation.aux.items():
        assert numbers.shape == (4, 3) and np.ptp(numbers, axis=0).min() > 1e-3
        np.testing.assert_allclose(numbers, [each[name] for each in expected], rtol=1e-4, atol=1e-5)


def test_an_equinox_module_is_itself():
    import tests.rl.networks as networks

    init, apply = load_network("tests.rl.networks:equinox", 4, 3)
    key, x = jax.random.key(3), normal(2, 4)
    np.testing.assert_allclose(apply(init(key), x), networks.equinox(4, 3)(key)(x), rtol=1e-6)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(init(key)))


def test_a_policy_of_an_own_network():
    policy = make_policy(walk(), network="tests.rl.networks:pair", deterministic=True)
    params, x = policy.init(KEY), normal(2, 4)
    assert policy.act(params, KEY, x) == np.argmax(x @ params["w"])


@pytest.mark.parametrize("path", [
    "nowhere:net", "tests.rl.networks:none", "tests.rl.networks", ":pair", "", "tests.rl.networks:nothing",
    "tests.rl.networks:three", "tests.rl.networks:number", "tests..rl:x", ".networks:pair", "tests.rl.networks:",
])  # fmt: skip
def test_a_bad_path_is_one_line(path):
    with pytest.raises(UsageError) as caught:
        load_network(path, 4, 3)
    assert re.fullmatch(r"expected --policy [^\n]+, got [^\n]+; [^\n]+", str(caught.value)), caught.value


# ── teams ──


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("deterministic", [True, False])
def test_a_team_takes_no_action_that_an_agent_lacks(shared, deterministic):
    policy = make_team_policy(team(), shared=shared, hidden=(8,), deterministic=deterministic)
    params = perturbed(jax.jit(policy.init)(KEY))
    act = jax.jit(jax.vmap(lambda key, seen: policy.act(params, key, seen)))
    actions = act(jax.random.split(KEY, 500), normal(3, 500, 2, 2))
    assert actions.shape == (500, 2) and actions.dtype == jnp.int32
    assert set(actions[:, 0].tolist()) == {0, 1, 2} and set(actions[:, 1].tolist()) == {0, 1}


def test_shared_parameters_are_told_who_acts():
    policy = make_team_policy(team(), shared=True, hidden=(8,), deterministic=True)
    init, apply = network(4, 3, (8,))
    params, seen = perturbed(init(KEY)), normal(3, 2, 2)
    assert jax.tree.map(jnp.shape, jax.eval_shape(policy.init, KEY)) == jax.tree.map(jnp.shape, params)
    logits = [apply(params, np.concatenate([seen[k], np.eye(2, dtype=np.float32)[k]])) for k in range(2)]
    expected = [int(np.argmax(logits[0])), int(np.argmax(logits[1][:2]))]
    assert jax.jit(policy.act)(params, KEY, seen).tolist() == expected


def test_own_parameters_are_each_agents():
    policy = make_team_policy(team(), shared=False, hidden=(8,), deterministic=True)
    params, seen = jax.jit(policy.init)(KEY), normal(3, 2, 2)
    assert list(params) == ["ant", "bee"]
    assert np.any(params["ant"]["layer_0"]["kernel"] != params["bee"]["layer_0"]["kernel"])
    params, (_, apply) = perturbed(params), network(2, 3, (8,))
    expected = [
        int(np.argmax(apply(params["ant"], seen[0]))),
        int(np.argmax(apply(params["bee"], seen[1])[:2])),
    ]
    assert jax.jit(policy.act)(params, KEY, seen).tolist() == expected


def test_agents_draw_independently():
    """Also where they share parameters and see the same."""
    environment = dataclasses.replace(team(), actions=(3, 3))
    policy = make_team_policy(environment, shared=True, hidden=(8,))
    params = jax.jit(policy.init)(KEY)
    act = jax.jit(jax.vmap(lambda key: policy.act(params, key, jnp.ones((2, 2)))))
    actions = np.asarray(act(jax.random.split(KEY, 2000)))
    assert abs(np.mean(actions[:, 0] == actions[:, 1]) - 1 / 3) < 0.05
