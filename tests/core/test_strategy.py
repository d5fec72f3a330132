"""The whole algorithm: against a loop over members, and on two problems that must improve."""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from eggroll.core import EvolutionStrategy, FullRank, LowRank, MaterialiseError, per_group
from eggroll.core.fitness import centred_rank

from .oracle import gradient, member_params

PARAMS = {"b": jnp.zeros(3), "w": jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)}
X = jnp.asarray(np.random.default_rng(1).normal(size=(2, 4)), jnp.float32)


def strategy(optimizer=None, **kwargs):
    return EvolutionStrategy(optimizer or optax.sgd(0.1), **({"population_size": 12, "sigma": 0.1} | kwargs))


def score(params, key, x):
    return -jnp.square(jnp.tanh(x @ params["w"]) + params["b"][None] - 0.3).mean()


def close(one, two, tolerance=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), one, two)


@pytest.mark.parametrize(
    ("settings", "oracle"),
    [
        ({}, {}),
        ({"rank": 3, "law": "signs", "chunk_size": 8}, {"rank": 3, "law": "signs"}),
        ({"distribution": FullRank("popcount"), "chunk_size": 2}, {"low_rank": False}),
    ],
)
def test_two_steps_are_those_of_a_loop_over_members(settings, oracle):
    es = strategy(shaping=centred_rank, **settings)
    state = es.init(PARAMS, seed=3)
    params = {path: np.asarray(value, np.float64) for path, value in PARAMS.items()}
    for generation in range(2):
        which = {"sigma": 0.1, "seed": 3, "generation": generation} | oracle
        members = [jax.tree.map(jnp.float32, member_params(params, i, **which)) for i in range(12)]
        fitness = np.array([float(score(p, None, X)) for p in members])
        close(es.perturbed(state, 7), members[7])
        state, info = es.step(state, score, X)
        close(info.fitness, fitness)
        utilities = np.argsort(np.argsort(fitness)) / 11 - 0.5
        ascent = gradient(params, utilities, **which)
        params = {path: value + 0.1 * ascent[path] for path, value in params.items()}
        close(state.params, params)
    assert int(state.generation) == 2


@pytest.mark.parametrize("distribution", [LowRank(2), FullRank()])
def test_chunk_size_does_not_matter(distribution):
    results = []
    for chunk_size in (2, 8, 12):
        es = strategy(distribution=distribution, chunk_size=chunk_size, shaping="centred_rank")
        state, info = es.step(es.init(PARAMS), score, X)
        results.append((info.fitness, state.params))
    close(results[0], results[1])
    close(results[0], results[2])


def test_ask_and_tell_equal_step():
    es = strategy(optax.adam(0.01), group_size=4)
    state = other = es.init(PARAMS, seed=1)

    def noisy(params, key, x):
        return score(params, key, x) + 0.1 * jax.random.normal(key)

    for _ in range(2):
        members = es.ask(other)
        fitness = [noisy(es.perturbed(other, i), members.key[i], X) for i in range(12)]
        other, told = es.tell(other, fitness)
        state, info = es.step(state, noisy, X)
        close((other, told.fitness_mean), (state, info.fitness_mean), 1e-4)
    assert members.member.tolist() == list(range(12)) and members.sign.tolist() == [1, -1] * 6
    assert (
        members.pair.tolist() == [i // 2 for i in range(12)] and members.group.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    )
    assert members.generation == 1


def every_size(jaxpr):
    sizes = [v.aval.size for e in jaxpr.eqns for v in e.outvars if hasattr(v.aval, "size")]
    return sizes + [size for inner in jax.extend.core.subjaxprs(jaxpr) for size in every_size(inner)]


@pytest.mark.parametrize(("distribution", "formed"), [(LowRank(2), False), (FullRank(), True)])
def test_a_step_forms_no_dense_matrix_of_a_member(distribution, formed):
    """Nothing in a whole step is as large as a matrix for each pair; full rank shows the walk sees it."""
    x, es = jnp.ones((1, 24)), strategy(distribution=distribution)
    state = es.init({"w": jnp.ones((24, 24))})
    jaxpr = jax.make_jaxpr(lambda s: es.step(s, lambda p, k: jnp.tanh(x @ p["w"]).sum()))(state)
    assert (max(every_size(jaxpr.jaxpr)) >= 6 * 24 * 24) == formed


@pytest.mark.parametrize("optimizer", [optax.sgd(0.1, momentum=0.9), optax.adamw(optax.linear_schedule(0.1, 0, 10))])
def test_nothing_is_compiled_again(optimizer):
    traces = []

    def counting(params, key, carry, x):
        traces.append(None)
        return score(params, key, x), carry * jnp.float32(1)

    params = {"b": np.zeros(3), "w": jnp.asarray(PARAMS["w"], jnp.bfloat16), "s": 1.5}
    es = strategy(optimizer, sigma=optax.exponential_decay(0.1, 1, 0.9), chunk_size=4)
    state = es.init(params)
    carry = jnp.full(12, 1.0)
    assert carry.weak_type
    state, info, carry = es.step(state, counting, X.astype(jnp.bfloat16), carry=carry)
    count = len(traces)
    with jax.no_tracing():
        for _ in range(3):
            state, info, carry = es.step(state, counting, X.astype(jnp.bfloat16), carry=carry)
    assert len(traces) == count == 1
    assert es._step._cache_size() == 1
    assert float(info.sigma) == pytest.approx(0.1 * 0.9**3)
    assert state.params["w"].dtype == jnp.bfloat16 and jax.tree.structure(state.params) == jax.tree.structure(params)


def test_info():
    es = strategy()
    fitness = np.array([0.0, 1, 2, 3, np.nan, 5, 6, 7, 8, np.inf, 10, 11], np.float32)
    state, info = es.tell(es.init(PARAMS), fitness)
    finite = fitness[np.isfinite(fitness)]
    assert int(info.nan_count) == 1 and info.fitness.shape == (12,) and int(info.generation) == 0
    stats = (info.fitness_mean, info.fitness_max, info.fitness_min, info.fitness_std)
    close(stats, (finite.mean(), finite.max(), finite.min(), finite.std()))
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(state.params))


def test_equal_fitness_changes_nothing():
    es = strategy()
    state, _ = es.tell(es.init(PARAMS), np.ones(12))
    jax.tree.map(np.testing.assert_array_equal, state.params, PARAMS)


def test_a_sigma_that_reaches_zero_keeps_the_parameters():
    es = strategy(sigma=optax.linear_schedule(0.1, 0, 2))
    state = es.init(PARAMS)
    for _ in range(2):
        state, info = es.step(state, score, X)
    last, info = es.step(state, score, X)
    assert float(info.sigma) == 0
    jax.tree.map(np.testing.assert_array_equal, last.params, state.params)
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(last.params))


MIXED = {
    "bias": jnp.ones(5),
    "heads": jnp.ones((2, 3, 4)),
    "norm": jnp.ones(4, jnp.bfloat16),
    "scale": 2.0,
    "table": jnp.arange(3),
    "w": jnp.ones((4, 3)),
    "x": jnp.ones((4, 3), jnp.float16),
}


@pytest.mark.parametrize("distribution", [LowRank(2, split={"heads": 2}), FullRank("normal")])
def test_every_leaf_is_perturbed_or_named_as_frozen(distribution):
    es = strategy(distribution=distribution, frozen=("table",), sigma=0.05)
    state = es.init(MIXED)
    members = [es.perturbed(state, i) for i in range(12)]
    for leaf, mean, *values in zip(es.plan(MIXED), *map(jax.tree.leaves, (state.params, *members)), strict=True):
        moved = np.any([np.asarray(value != mean) for value in values], axis=0)
        assert not moved.any() if leaf.path == "table" else moved.all(), leaf.path


def test_noise_that_rounding_swallows_is_refused():
    """One test for elementwise noise under 32 bits: half of the unit in the last place of its largest value."""
    match = (
        "expected sigma ≥ 0.00391 for the elementwise noise of the bfloat16 leaf 'norm', got 0.0039, which its "
        "rounding swallows; keep it in float32, freeze it, or raise sigma"
    )
    norm = {"norm": jnp.array([0.1, -1.5], jnp.bfloat16), "w": jnp.ones((4, 3), jnp.bfloat16)}
    for sigma in (0.0039, optax.constant_schedule(0.0039)):
        with pytest.raises(ValueError, match=match):
            strategy(sigma=sigma).init(norm)
    with pytest.raises(ValueError, match="float16 leaf 'x'"):
        strategy(sigma=2e-4, distribution=FullRank(), frozen=("norm", "table")).init(MIXED)
    strategy(sigma=0.0039, frozen=("norm",)).init(norm)
    strategy(sigma=0.00391).init(norm)
    strategy(sigma=1e-6).init({"norm": jnp.ones(2), "zero": jnp.zeros(3, jnp.bfloat16)})
    jax.eval_shape(lambda p: strategy(sigma=1e-6).init(p), norm)  # values that are not known are not judged


def test_settings_are_fixed_at_construction():
    es = strategy()
    for name, value in {"sigma": 0.5, "population_size": 24, "shaping": "centred_rank", "rank": 2}.items():
        match = f"expected settings fixed at construction, got a new {name}; build a new EvolutionStrategy"
        with pytest.raises(AttributeError, match=match):
            setattr(es, name, value)
    state, _ = strategy(sigma=0.5).step(es.init(PARAMS), score, X)
    assert int(state.generation) == 1


def test_frozen_leaves_stay_even_under_weight_decay():
    params = PARAMS | {"table": jnp.arange(4)}
    es = strategy(optax.adamw(0.1, weight_decay=0.5), frozen=("table", "b"))
    state, _ = es.step(es.init(params | {"b": jnp.ones(3)}), score, X)
    np.testing.assert_array_equal(state.params["table"], params["table"])
    np.testing.assert_array_equal(state.params["b"], jnp.ones(3))
    assert not np.allclose(state.params["w"], params["w"])


@pytest.mark.parametrize("trainable", ["w", ("w",), lambda path, leaf: leaf.ndim == 2])
def test_only_trainable_leaves_evolve(trainable):
    params = PARAMS | {"table": jnp.arange(4)}
    es = strategy(optax.adamw(0.1, weight_decay=0.5), trainable=trainable)
    state, info = es.step(es.init(params), score, X)
    assert not np.allclose(state.params["w"], params["w"])
    for name in ("b", "table"):
        np.testing.assert_array_equal(state.params[name], params[name])
    frozen = strategy(optax.adamw(0.1, weight_decay=0.5), frozen=["b", "table"])
    close(info.fitness, frozen.step(frozen.init(params), score, X)[1].fitness)


def test_trainable_patterns_must_match_and_leave_something():
    with pytest.raises(
        ValueError, match=r"expected trainable patterns that match a leaf, got 'x\*'; the leaves are b, w"
    ):
        strategy(trainable="x*").init(PARAMS)
    with pytest.raises(ValueError, match="expected at least one leaf to train, got 2 leaves, all frozen"):
        strategy(trainable=lambda path, leaf: False).init(PARAMS)


@pytest.mark.parametrize("kind", [LowRank, FullRank])
def test_a_leaf_may_have_a_law_of_its_own(kind):
    distribution = kind(law="popcount", laws={"w": "signs"})
    es = strategy(distribution=distribution)
    member = es.perturbed(es.init(PARAMS, seed=3), 5)
    low_rank = None if isinstance(distribution, LowRank) else False
    which = {"sigma": 0.1, "seed": 3, "generation": 0, "low_rank": low_rank}
    for path, law in {"w": "signs", "b": "popcount"}.items():
        close(member[path], member_params(PARAMS, 5, law=law, **which)[path])


@pytest.mark.parametrize("settings", [{}, {"chunk_size": 4}])
def test_a_perturbation_lives_as_many_generations_as_noise_reuse_says(settings):
    es = strategy(optax.sgd(0.0), noise_reuse=3, **settings)
    state, seen = es.init(PARAMS, seed=2), []
    for generation in range(6):
        close(es.perturbed(state, 3)["w"], member_params(PARAMS, 3, sigma=0.1, seed=2, generation=generation // 3)["w"])
        state, info = es.step(state, score, X)
        seen.append(np.asarray(info.fitness))
    for generation in (1, 2, 4, 5):
        np.testing.assert_array_equal(seen[generation], seen[generation // 3 * 3])
    assert not np.allclose(seen[0], seen[3])


def test_the_update_uses_the_reused_noise():
    es, once = strategy(noise_reuse=2), strategy()
    fitness = np.arange(12.0)
    start = es.init(PARAMS, seed=2)
    later = start._replace(generation=jnp.int32(1))
    close(es.tell(later, fitness)[0].params, once.tell(start, fitness)[0].params)
    assert not np.allclose(once.tell(later, fitness)[0].params["w"], es.tell(later, fitness)[0].params["w"])


def test_carry_and_aux_are_returned_in_that_order():
    es = strategy(group_size=6)
    state = es.init(PARAMS)
    parts = per_group(jnp.stack([X, 2 * X]))

    def both(params, key, own, x):
        return score(params, key, x), own + 1, {"x": x[0, 0]}

    state, _, carry, aux = es.step(state, both, parts, carry=jnp.zeros(12), has_aux=True)
    assert carry.tolist() == [1.0] * 12
    close(aux["x"], jnp.repeat(jnp.array([X[0, 0], 2 * X[0, 0]]), 6))
    state, _info, carry = es.step(state, lambda *a: both(*a)[:2], parts, carry=carry)
    assert carry.tolist() == [2.0] * 12
    state, _info, aux = es.step(state, lambda p, k, x: (score(p, k, x), x.sum()), X, has_aux=True)
    assert aux.shape == (12,)


def test_per_prompt_scores_can_be_told():
    es = strategy(shaping="per_prompt")
    scores = np.random.default_rng(0).normal(size=(12, 5))
    _state, info = es.tell(es.init(PARAMS), scores)
    close(info.fitness, scores.mean(1).astype(np.float32))


def test_runs_over_seeds_with_vmap():
    es = strategy()
    states = [es.init(PARAMS, seed=s) for s in (0, 1)]
    together, _ = jax.vmap(lambda s: es.step(s, score, X))(jax.tree.map(lambda *x: jnp.stack(x), *states))
    for i, state in enumerate(states):
        close(jax.tree.map(lambda x, i=i: x[i], together.params), es.step(state, score, X)[0].params, 1e-4)


def test_improves_on_a_quadratic():
    target = jnp.asarray(np.random.default_rng(2).normal(size=(6, 5)), jnp.float32)
    probe = jnp.eye(6)

    def fitness(params, key):
        return -jnp.square(probe @ params["w"] - target).sum()

    es = strategy(optax.sgd(optax.linear_schedule(0.01, 0.0, 120)), population_size=64, sigma=0.05)
    state, first = es.step(es.init({"w": jnp.zeros((6, 5))}), fitness)
    for _ in range(120):
        state, info = es.step(state, fitness)
    assert float(info.fitness_mean) > 0.02 * float(first.fitness_mean)


def test_improves_a_flax_classifier():
    rng = np.random.default_rng(0)
    label = np.arange(60) % 3
    x = jnp.asarray(rng.normal(size=(60, 4)) + 2 * np.eye(3, 4)[label], jnp.float32)
    model = nn.Sequential([nn.Dense(8), nn.tanh, nn.Dense(3)])

    def accuracy(params, key, x, label):
        return (model.apply(params, x).argmax(-1) == label).mean()  # has no gradient

    es = strategy(optax.adam(0.05), population_size=64, sigma=0.1)
    state = es.init(model.init(jax.random.key(0), x))
    before = accuracy(state.params, None, x, label)
    for _ in range(30):
        state, _ = es.step(state, accuracy, x, jnp.asarray(label))
    assert accuracy(state.params, None, x, label) > max(0.85, before + 0.1)


def test_materialising_is_refused_then_allowed():
    def decayed(params, key, x):
        return score(params, key, x) - jnp.square(params["w"]).sum()

    es = strategy()
    with pytest.raises(MaterialiseError, match=r"leaf 'w' low-rank, got square .*allow_materialise=\(\"w\",\)"):
        es.step(es.init(PARAMS), decayed, X)
    es = strategy(allow_materialise=("w",))
    _state, info = es.step(es.init(PARAMS), decayed, X)
    fresh = es.init(PARAMS)
    close(info.fitness, [decayed(es.perturbed(fresh, i), None, X) for i in range(12)])


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"population_size": 7}, "expected an even population_size ≥ 2, got 7; .*choose 8"),
        ({"population_size": 0}, "expected an even population_size ≥ 2, got 0"),
        ({"rank": 0}, "expected rank ≥ 1, got 0"),
        ({"sigma": 0.0}, "expected sigma > 0, got 0.0"),
        ({"sigma": optax.constant_schedule(-1.0)}, "expected sigma > 0, got -1.0"),
        ({"group_size": 3}, "expected an even group_size ≥ 2, got 3"),
        ({"group_size": 8}, "expected a group_size that divides population_size 12, got 8"),
        ({"chunk_size": 5}, "expected an even chunk_size ≥ 2, got 5"),
        ({"noise_reuse": 0}, "expected noise_reuse ≥ 1, got 0"),
        ({"law": "cauchy"}, "expected a noise law among"),
        ({"shaping": "best"}, "expected a shaping among"),
        ({"rank": 2, "distribution": LowRank()}, "expected rank and law inside the distribution"),
    ],
)
def test_settings_are_validated(kwargs, match):
    with pytest.raises(ValueError, match=match) as error:
        strategy(**kwargs)
    assert "\n" not in str(error.value)


def test_errors_of_init_step_tell_and_perturbed():
    es = strategy()
    with pytest.raises(ValueError, match="expected float leaves, got int32 in leaf 'n'"):
        es.init({"n": jnp.arange(3)})
    with pytest.raises(ValueError, match="expected at least one leaf to train"):
        es.init({})
    with pytest.raises(ValueError, match="expected rank ≤ 3 for leaf 'w'"):
        strategy(rank=4).init(PARAMS)
    state = es.init(PARAMS)
    with pytest.raises(ValueError, match=r"with leaf 'w' float32\[4,3\], got float32\[4,2\]; call init again"):
        es.step(state._replace(params=PARAMS | {"w": jnp.ones((4, 2))}), score, X)
    with pytest.raises(ValueError, match=r"with leaf 'z' absent, got float32\[\]"):
        es.step(state._replace(params=PARAMS | {"z": jnp.float32(1)}), score, X)
    with pytest.raises(ValueError, match=r"expected 12 fitnesses, got shape \(11,\)"):
        es.tell(state, np.zeros(11))
    with pytest.raises(ValueError, match=r"expected a member in \[0, 12\), got 12"):
        es.perturbed(state, 12)
    with pytest.raises(ValueError, match=r"scalar number, got float32\[3\]"):
        es.step(state, lambda p, k: p["b"])
    with pytest.raises(ValueError, match=r"expected utilities of shape \(12,\)"):
        strategy(shaping=lambda f: f[:3]).tell(state, np.zeros(12))


def test_a_changed_tree_is_compared_with_the_nearest_known_one():
    es = strategy()
    state = es.init({"a": PARAMS["w"], "b": jnp.ones(3)})
    es.init({"c": jnp.ones(2)})
    with pytest.raises(ValueError, match=r"with leaf 'b' float32\[3\], got float32\[4\]; call init again"):
        es.tell(state._replace(params={"a": PARAMS["w"], "b": jnp.ones(4)}), np.zeros(12))


def test_a_changed_structure_around_equal_leaves_is_shown():
    es = strategy()
    state = es.init({"a": [jnp.ones(3), jnp.ones(2)]})
    with pytest.raises(
        ValueError, match=r"tree of init, .*'a': \[\*, \*\].*, got .*'a': \(\*, \*\).*; call init"
    ) as error:
        es.tell(state._replace(params={"a": (jnp.ones(3), jnp.ones(2))}), np.zeros(12))
    assert "\n" not in str(error.value) and "absent" not in str(error.value)


@jax.tree_util.register_dataclass
@dataclass
class Module:
    """Like one of Equinox, where the activation is a leaf."""

    activation: Any
    w: Any


def test_a_module_with_functions_among_its_leaves_is_to_be_partitioned():
    model, es = Module(jnp.tanh, PARAMS["w"]), strategy()
    with pytest.raises(ValueError, match=r"got a \w+ in leaf 'activation'; .*eqx.partition\(model, eqx.is_inexact_arr"):
        es.init(model)
    state = es.init(Module(None, model.w))
    with pytest.raises(ValueError, match="with leaf 'activation' absent, got a "):
        es.step(state._replace(params=model), lambda p, k: 0.0)
    _, info = es.step(state, lambda p, k, x: model.activation(x @ p.w).sum(), X)
    assert jnp.isfinite(info.fitness).all()
