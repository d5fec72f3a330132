"""The message model: time and fields are causal, sums of parts agree, draws follow logits, members are dense loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from eggroll.core import EvolutionStrategy
from eggroll.core.adapters import add_lora, merge_lora, with_lora
from eggroll.core.distribution import leaf_paths
from eggroll.core.errors import UsageError
from eggroll.trading import model
from eggroll.trading.model import ModelConfig
from eggroll.trading.tokens import COLUMN, FIELDS, MODELLED, VALUES, decode

CONFIG = ModelConfig(width=8, layers=2, state=8, features=3)
TIME = 6
LIMITS = jnp.array([field.values for field in FIELDS])
advance, step = jax.jit(model.advance), jax.jit(model.step)
log_probabilities = jax.jit(model.log_probabilities)
field_logits = jax.jit(model.field_logits, static_argnums=3)


def stream(seed, time=TIME):
    """Any tokens, and features."""
    one, two = jax.random.split(jax.random.key(seed))
    return jax.random.randint(one, (time, len(FIELDS)), 0, LIMITS[None]), jax.random.normal(two, (time, 3))


@functools.cache
def start():
    return jax.jit(functools.partial(model.init_model, config=CONFIG))(jax.random.key(0))


@functools.cache
def hidden():
    """After each message of the first stream."""
    return advance(start(), model.start_carry(CONFIG), *stream(1))[1]


@functools.partial(jax.jit, static_argnames=("given", "temperature"))
def drawn(params, h, keys, given=(), temperature=1.0, allowed=None):
    """A row for each key; `given` as pairs, which can be hashed."""
    own = functools.partial(model.draw, params, h, given=dict(given), temperature=temperature, allowed=allowed)
    return jax.vmap(lambda key: own(key))(keys)


def changed(rows, name, by=1):
    column = COLUMN[name]
    return rows.at[..., column].set((rows[..., column] + by) % VALUES[name])


def test_the_leaves_are_named_as_documented():
    paths = dict(zip(leaf_paths(start()), jax.tree.leaves(start()), strict=True))
    assert {leaf.dtype for leaf in paths.values()} == {jnp.dtype("float32")}
    kernels = {path: leaf.shape for path, leaf in paths.items() if path.endswith("/kernel")}
    values = sum(VALUES[name] for name in MODELLED)
    assert kernels == {
        "observe/kernel": (3, 8),
        "layers/0/gate/kernel": (8, 8),
        "layers/1/gate/kernel": (8, 8),
        "head/hidden/kernel": (8, 72),
        "head/logits/kernel": (8, values),
    }
    tables = {path for path in paths if "embed/" in path}
    assert tables == {f"embed/{name}" for name in MODELLED} | {f"head/embed/{name}" for name in MODELLED[:-1]}
    assert {path.split("/")[2] for path in paths if path.startswith("layers/")} == {"ssm", "norm", "gate"}


def test_reading_at_once_in_pieces_and_one_by_one_agree():
    tokens, features = stream(1)
    carry, whole = advance(start(), model.start_carry(CONFIG), tokens, features)
    ready = model.prepared(start())
    middle, first = advance(ready, model.start_carry(CONFIG), tokens[:4], features[:4])
    end, second = advance(ready, middle, tokens[4:], features[4:])
    np.testing.assert_allclose(jnp.concatenate([first, second]), whole, atol=1e-5)
    np.testing.assert_allclose(end, carry, atol=1e-5)
    state = model.start_carry(CONFIG)
    for k in range(TIME):
        state, row = step(ready, state, tokens[k], features[k])
        np.testing.assert_allclose(row, whole[k], atol=1e-5)
    np.testing.assert_allclose(state, carry, atol=1e-5)


@pytest.mark.parametrize("name", [field.name for field in FIELDS])
def test_a_message_is_seen_from_its_place_on_and_by_its_modelled_fields(name):
    tokens, features = stream(1)
    other = tokens.at[3].set(changed(tokens[3], name))
    found = advance(start(), model.start_carry(CONFIG), other, features)[1]
    moved = np.asarray((found != hidden()).any(-1))
    assert moved.tolist() == [False] * 3 + [name in MODELLED] * 3


def test_features_are_seen():
    tokens, features = stream(1)
    found = advance(start(), model.start_carry(CONFIG), tokens, features.at[3, 1].add(1))[1]
    assert (found != hidden()).any(-1).tolist() == [False] * 3 + [True] * 3


def test_a_field_is_predicted_from_the_fields_before_it_alone():
    targets, _ = stream(2)
    before = log_probabilities(start(), hidden(), targets)
    assert before.shape == (TIME, len(MODELLED)) and before.dtype == jnp.float32
    for place, name in enumerate(MODELLED):
        after = log_probabilities(start(), hidden(), changed(targets, name))
        np.testing.assert_array_equal(after[:, :place], before[:, :place])
        assert (after[:, place:] != before[:, place:]).any(0).all(), name
    for name in set(VALUES) - set(MODELLED):
        np.testing.assert_array_equal(log_probabilities(start(), hidden(), changed(targets, name)), before)


def test_log_probabilities_are_those_of_the_logits():
    targets, _ = stream(2)
    found = log_probabilities(start(), hidden(), targets)
    for place, name in enumerate(MODELLED):
        logits = field_logits(start(), hidden(), targets, name)
        assert logits.shape == (TIME, VALUES[name])
        own = jax.nn.log_softmax(logits)[jnp.arange(TIME), targets[:, COLUMN[name]]]
        np.testing.assert_allclose(found[:, place], own, rtol=1e-5, atol=1e-5)


def test_draws_are_as_frequent_as_their_probability():
    """Kind and side together, each of their 14 pairs within 5 standard errors."""
    n = 20_000
    rows = np.asarray(drawn(start(), hidden()[0], jax.random.split(jax.random.key(3), n), given=tuple(REST.items())))
    pairs = np.array([[kind, side] for kind in range(7) for side in range(2)])
    targets = jnp.zeros((14, len(FIELDS)), jnp.int32).at[:, :2].set(pairs)
    repeated = jnp.broadcast_to(hidden()[0], (14, CONFIG.width))
    expected = np.exp(log_probabilities(start(), repeated, targets)[:, :2].sum(-1))
    found = np.array([(rows[:, :2] == pair).all(-1).mean() for pair in pairs])
    assert abs(expected.sum() - 1) < 1e-5
    assert (abs(found - expected) < 5 * np.sqrt(expected * (1 - expected) / n)).all()


REST = {name: 0 for name in VALUES if name not in ("kind", "side")}


def test_a_low_temperature_is_the_likeliest():
    keys = jax.random.split(jax.random.key(4), 5)
    coldest = drawn(start(), hidden()[1], keys, temperature=0.0)
    modelled = [COLUMN[name] for name in MODELLED]
    assert (coldest[:, jnp.array(modelled)] == coldest[:1, jnp.array(modelled)]).all()
    for name in MODELLED:
        logits = field_logits(start(), hidden()[1], coldest[0], name)
        assert coldest[0, COLUMN[name]] == jnp.argmax(logits)
    traced = jax.jit(lambda t: model.draw(start(), hidden()[1], keys[0], temperature=t))(0.0)
    np.testing.assert_array_equal(traced, coldest[0])


def test_what_is_given_stands_and_is_seen():
    keys = jax.random.split(jax.random.key(5), 3)
    row = drawn(start(), hidden()[2], keys, given=(("kind", 3), ("size_odd", 99), ("gap_low2", 5)), temperature=0.0)[0]
    assert row[COLUMN["kind"]] == 3 and row[COLUMN["size_odd"]] == 99 and row[COLUMN["gap_low2"]] == 5
    for name in set(MODELLED) - {"kind", "size_odd"}:
        assert row[COLUMN[name]] == jnp.argmax(field_logits(start(), hidden()[2], row, name))


def test_only_what_is_allowed_is_drawn():
    allowed = {"price_coarse": jnp.arange(256) == 128, "size_lots": jnp.arange(1024) < 3}
    rows = drawn(start(), hidden()[0], jax.random.split(jax.random.key(6), 200), allowed=allowed)
    assert (rows[:, COLUMN["price_coarse"]] == 128).all()
    assert set(rows[:, COLUMN["size_lots"]].tolist()) == {0, 1, 2}


def test_any_draw_is_a_message():
    rows = np.asarray(drawn(start(), hidden()[0], jax.random.split(jax.random.key(6), 200)))
    decode(rows, np.full(200, 5_000_000), 0)
    low = rows[:, COLUMN["gap_low1"] : COLUMN["gap_low4"] + 1]
    assert abs(low.mean(0) - 511.5).max() < 5 * 1024 / np.sqrt(12 * 200) and (np.ptp(low, axis=0) > 900).all()


def test_unknown_fields_and_sizes_are_refused():
    with pytest.raises(UsageError, match=r"expected given fields among kind, .* got 'price'; choose one of these"):
        model.draw(start(), hidden()[0], jax.random.key(0), given={"price": 1})
    with pytest.raises(UsageError, match=r"expected allowed fields among kind, .* got 'gap_low1'"):
        model.draw(start(), hidden()[0], jax.random.key(0), allowed={"gap_low1": jnp.ones(1024, bool)})
    with pytest.raises(UsageError, match="expected layers ≥ 1, got 0"):
        ModelConfig(layers=0)
    with pytest.raises(UsageError, match="expected an even state, got 7"):
        ModelConfig(state=7)


def fitness(params, key, tokens, features):
    """Reads at once and message by message, predicts, and writes a message of which most is given."""
    ready = model.prepared(params)
    carry, seen = model.advance(ready, model.start_carry(CONFIG), tokens[:-1], features[:-1])
    score = model.log_probabilities(ready, seen, tokens[1:]).mean()
    row = model.draw(ready, seen[-1], key, given={**GIVEN, "side": 1}, temperature=0.0)
    _, h = model.step(ready, carry, row, features[-1])
    return score + model.field_logits(ready, h, row, "price_fine")[:4].sum() + row[COLUMN["kind"]]


GIVEN = {name: 1 for name in VALUES if name not in ("kind", "size_lots")}
written_out = jax.jit(fitness)
KEY = jax.random.key(9)


def assert_members(es, state, own, dense):
    """The fitness of each member is that of its parameters written out."""
    found = es.evaluate(state, own, *stream(1))[1].fitness
    expected = [written_out(dense(es.perturbed(state, member)), KEY, *stream(1)) for member in range(4)]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert np.ptp(expected) > 1e-3


def test_gradients_reach_every_leaf():
    grads = jax.jit(jax.grad(fitness))(start(), KEY, *stream(1))
    for path, leaf in zip(leaf_paths(grads), jax.tree.leaves(grads), strict=True):
        assert jnp.isfinite(leaf).all() and leaf.any(), path


def test_members_of_a_population_are_those_of_a_dense_loop():
    """All leaves evolve, those of the state spaces too, and none is materialised."""
    es = EvolutionStrategy(optax.sgd(0.1), population_size=4, sigma=0.1, rank=1)
    assert_members(es, es.init(start(), seed=1), fitness, lambda params: params)


def test_members_with_adapters_are_those_of_a_dense_loop():
    params = add_lora(start(), jax.random.key(1), targets="*/kernel", rank=3)
    params["lora"] = jax.tree.map(lambda x: x + 0.1, params["lora"])
    es = EvolutionStrategy(optax.sgd(0.1), population_size=4, sigma=0.1, rank=1, trainable="lora/*")
    assert_members(es, es.init(params, seed=1), with_lora(fitness), merge_lora)
