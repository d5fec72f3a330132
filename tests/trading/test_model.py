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
TIME = 14
init_model = jax.jit(model.init_model, static_argnums=1)
advance, step, log_probabilities = jax.jit(model.advance), jax.jit(model.step), jax.jit(model.log_probabilities)
field_logits = jax.jit(model.field_logits, static_argnums=3)


def stream(seed):
    """Any tokens, and features; NumPy arrays, as all here that would compile something for an eager operation."""
    random = np.random.default_rng(seed)
    tokens = random.integers(0, [field.values for field in FIELDS], (TIME, len(FIELDS)), np.int32)
    return tokens, random.standard_normal((TIME, CONFIG.features), np.float32)


@functools.cache
def start():
    return init_model(jax.random.key(0), CONFIG)


def read(params, carry, tokens, features):
    """The carry and the vectors after messages."""
    return jax.tree.map(np.asarray, advance(params, carry, tokens, features))


@functools.cache
def nothing():
    return np.asarray(model.start_carry(CONFIG))


@functools.cache
def hidden():
    """After each message of the first stream."""
    return read(start(), nothing(), *stream(1))[1]


@functools.partial(jax.jit, static_argnames=("given", "coldest"))
def drawn(params, h, keys, given=(), coldest=False, temperature=1.0, allowed=None):
    """A row for each key; `given` as pairs, which can be hashed."""
    settings = {"given": dict(given), "temperature": 0.0 if coldest else temperature, "allowed": allowed}
    return jax.vmap(lambda key: model.draw(params, h, key, **settings))(keys)


def logits_of(name, rows):
    """Of a field, after each message of the first stream, given a row's own fields before it."""
    return np.asarray(field_logits(start(), hidden(), np.broadcast_to(rows, (TIME, len(FIELDS))), name))


def changed(rows, name):
    rows = rows.copy()
    rows[..., COLUMN[name]] = (rows[..., COLUMN[name]] + 1) % VALUES[name]
    return rows


def test_the_leaves_are_named_as_documented():
    paths = dict(zip(leaf_paths(start()), jax.tree.leaves(start()), strict=True))
    assert {leaf.dtype for leaf in paths.values()} == {np.dtype("float32")}
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
    carry, whole = read(start(), nothing(), tokens, features)
    ready, half, state = jax.jit(model.prepared)(start()), TIME // 2, nothing()
    middle, first = read(ready, state, tokens[:half], features[:half])
    end, second = read(ready, middle, tokens[half:], features[half:])
    np.testing.assert_allclose(np.concatenate([first, second]), whole, atol=1e-5)
    np.testing.assert_allclose(end, carry, atol=1e-5)
    for k in range(TIME):
        state, row = step(ready, state, tokens[k], features[k])
        np.testing.assert_allclose(row, whole[k], atol=1e-5)
    np.testing.assert_allclose(state, carry, atol=1e-5)


@pytest.mark.parametrize("name", [field.name for field in FIELDS])
def test_a_message_is_seen_from_its_place_on_and_by_its_modelled_fields(name):
    tokens, features = stream(1)
    tokens[3] = changed(tokens[3], name)
    found = read(start(), nothing(), tokens, features)[1]
    assert (found != hidden()).any(-1).tolist() == [False] * 3 + [name in MODELLED] * (TIME - 3)


def test_features_are_seen():
    tokens, features = stream(1)
    features[3, 1] += 1
    found = read(start(), nothing(), tokens, features)[1]
    assert (found != hidden()).any(-1).tolist() == [False] * 3 + [True] * (TIME - 3)


def test_a_field_is_predicted_from_the_fields_before_it_alone():
    targets, _ = stream(2)
    before = np.asarray(log_probabilities(start(), hidden(), targets))
    assert before.shape == (TIME, len(MODELLED)) and before.dtype == np.float32
    for place, name in enumerate(MODELLED):
        after = np.asarray(log_probabilities(start(), hidden(), changed(targets, name)))
        np.testing.assert_array_equal(after[:, :place], before[:, :place])
        assert (after[:, place:] != before[:, place:]).any(0).all(), name
    for name in set(VALUES) - set(MODELLED):
        np.testing.assert_array_equal(log_probabilities(start(), hidden(), changed(targets, name)), before)


def test_log_probabilities_are_those_of_the_logits():
    targets, _ = stream(2)
    found = log_probabilities(start(), hidden(), targets)
    for place, name in enumerate(MODELLED):
        logits = logits_of(name, targets).astype(np.float64)
        assert logits.shape == (TIME, VALUES[name])
        own = logits[np.arange(TIME), targets[:, COLUMN[name]]] - np.log(np.exp(logits).sum(-1))
        np.testing.assert_allclose(found[:, place], own, rtol=1e-5, atol=1e-5)


def test_draws_are_as_frequent_as_their_probability():
    """Kind and side together, each of their 14 pairs within 5 standard errors."""
    n, keys = 4_000, jax.random.split(jax.random.key(3), 4_000)
    rest = tuple((name, 0) for name in VALUES if name not in ("kind", "side"))
    rows = np.asarray(drawn(start(), hidden()[0], keys, given=rest))
    pairs = np.array([[kind, side] for kind in range(7) for side in range(2)])
    targets = np.zeros((TIME, len(FIELDS)), np.int32)
    targets[:, :2] = pairs
    repeated = np.broadcast_to(hidden()[0], (TIME, CONFIG.width))
    expected = np.exp(np.asarray(log_probabilities(start(), repeated, targets))[:, :2].sum(-1))
    found = np.array([(rows[:, :2] == pair).all(-1).mean() for pair in pairs])
    assert abs(expected.sum() - 1) < 1e-5
    assert (abs(found - expected) < 5 * np.sqrt(expected * (1 - expected) / n)).all()


KEYS = jax.random.split(jax.random.key(6), 200)


def test_any_draw_is_a_message():
    rows = np.asarray(drawn(start(), hidden()[0], KEYS, temperature=1.0))
    decode(rows, np.full(200, 5_000_000), 0)
    low = rows[:, COLUMN["gap_low1"] : COLUMN["gap_low4"] + 1]
    assert abs(low.mean(0) - 511.5).max() < 5 * 1024 / np.sqrt(12 * 200) and (np.ptp(low, axis=0) > 900).all()


def test_a_temperature_of_zero_is_the_likeliest():
    rows = np.asarray(drawn(start(), hidden()[1], KEYS, temperature=0.0))
    for name in MODELLED:
        assert (rows[:, COLUMN[name]] == logits_of(name, rows[0])[1].argmax()).all()


def test_what_is_given_stands_and_is_seen():
    given = {"kind": 3, "size_odd": 99, "gap_low2": 5}
    row = np.asarray(drawn(start(), hidden()[2], KEYS, given=tuple(given.items()), coldest=True))[0]
    for name in (*MODELLED, "gap_low2"):
        assert row[COLUMN[name]] == (given[name] if name in given else logits_of(name, row)[2].argmax())


def test_only_what_is_allowed_is_drawn():
    allowed = {"price_coarse": np.arange(256) == 128, "size_lots": np.arange(1024) < 3}
    rest = tuple((name, 0) for name in VALUES if name not in allowed)
    rows = np.asarray(drawn(start(), hidden()[0], KEYS, given=rest, allowed=allowed))
    assert (rows[:, COLUMN["price_coarse"]] == 128).all()
    assert set(rows[:, COLUMN["size_lots"]].tolist()) == {0, 1, 2}


def test_unknown_fields_and_sizes_are_refused():
    with pytest.raises(UsageError, match=r"expected given fields among kind, .* got 'price'; choose one of these"):
        model.draw(start(), jnp.zeros(CONFIG.width), jax.random.key(0), given={"price": 1})
    with pytest.raises(UsageError, match=r"expected allowed fields among kind, .* got 'gap_low1'"):
        model.draw(start(), jnp.zeros(CONFIG.width), jax.random.key(0), allowed={"gap_low1": jnp.ones(1024, bool)})
    with pytest.raises(UsageError, match="expected layers ≥ 1, got 0"):
        ModelConfig(layers=0)
    with pytest.raises(UsageError, match="expected an even state, got 7"):
        ModelConfig(state=7)


def fitness(params, key, tokens, features):
    """Reads at once, predicts, writes a message of which most is given, reads it, and predicts again."""
    ready = model.prepared(params)
    carry, seen = model.advance(ready, model.start_carry(CONFIG), tokens, features)
    row = model.draw(ready, seen[-1], key, given={**GIVEN, "side": 1}, temperature=0.0)
    after = model.step(ready, carry, row, features[-1])[1]
    both = jnp.stack([seen[1], after])
    return model.field_logits(ready, both, jnp.stack([tokens[2], row]), "price_fine")[:, :4].sum() + row[COLUMN["kind"]]


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
    @jax.jit
    @jax.grad
    def gradient(params, tokens, features):
        seen = model.advance(params, model.start_carry(CONFIG), tokens, features)[1]
        return model.log_probabilities(params, seen[:-1], tokens[1:]).mean()

    grads = jax.tree.map(np.asarray, gradient(start(), *stream(1)))
    for path, leaf in zip(leaf_paths(grads), jax.tree.leaves(grads), strict=True):
        assert np.isfinite(leaf).all() and leaf.any(), path


def test_members_of_a_population_are_those_of_a_dense_loop():
    """Leaves of all sorts evolve, a whole state space too, and none is materialised."""
    some = ("*/kernel", "layers/1/ssm/*", "norm/*", "embed/kind", "head/embed/price_fine")
    es = EvolutionStrategy(optax.sgd(0.1), population_size=4, sigma=0.1, rank=1, trainable=some)
    assert_members(es, es.init(start(), seed=1), fitness, lambda params: params)


def test_members_with_adapters_are_those_of_a_dense_loop():
    params = add_lora(start(), jax.random.key(1), targets="*/kernel", rank=3)
    params["lora"] = jax.tree.map(lambda x: x + 0.1, params["lora"])
    es = EvolutionStrategy(optax.sgd(0.1), population_size=4, sigma=0.1, rank=1, trainable="lora/*")
    assert_members(es, es.init(params, seed=1), with_lora(fitness), merge_lora)
