"""Rates, noise and episodes of the strategy that settings describe; presets are the paper's table."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from eggroll.core.distribution import FullRank
from eggroll.core.strategy import EvolutionStrategy
from eggroll.rl.config import MarlConfig, RlConfig
from eggroll.rl.environments.registry import environment_names
from eggroll.rl.presets import GAMES, PAPER, settings_for
from eggroll.rl.strategy import distribution_for, episodes, make_fitness, make_strategy, setup
from eggroll.runs.evolution import learning_rate_at, sigma_at
from tests.rl import tiny

PARAMS = {"w": jnp.zeros((3, 4)), "b": jnp.zeros(3)}
SMALL = {"population_size": 8, "chunk_size": 8, "devices": 1}


def sgd(**settings):
    decays = {"sigma": 0.3, "sigma_decay": 0.9, "learning_rate": 0.7, "learning_rate_decay": 0.8}
    return RlConfig(**SMALL, optimizer="sgd", **decays | settings)


@pytest.mark.parametrize("generation", [0, 1, 7, 100])
def test_rate_of_sgd_is_converted_by_sigma_as_it_stands(generation):
    config = sgd()
    sigma = 0.3 * 0.9**generation
    assert float(sigma_at(config, generation)) == pytest.approx(sigma, rel=1e-4)
    expected = 0.7 * 0.8**generation * sigma**2 * math.sqrt(8)
    assert float(learning_rate_at(config, generation)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("settings", [{"optimizer": "adam"}, {"optimizer": "adamw"}, {"rate_units": "plain"}])
def test_other_rates_are_as_they_are(settings):
    config = sgd(**settings) if "optimizer" not in settings else RlConfig(learning_rate=0.7, **settings, **SMALL)
    decay = config.learning_rate_decay
    for generation in (0, 5):
        assert float(learning_rate_at(config, generation)) == pytest.approx(0.7 * decay**generation, rel=1e-5)


@pytest.mark.parametrize(("algorithm", "shaping"), [("eggroll", "z_score"), ("openes", "centred_rank")])
def test_a_step_of_sgd_is_the_papers(algorithm, shaping):
    """lr·(σ/√N)·Σ u_i E_i, with E_i from the members' parameters and u_i in NumPy; two generations, so decays count."""
    config = sgd(algorithm=algorithm, shaping=shaping)
    es = make_strategy(config, PARAMS)
    state = es.init(PARAMS, seed=3)
    for generation in range(2):
        scores = np.random.default_rng(generation).normal(size=8)
        centred = scores - scores.mean()
        utilities = centred / scores.std()
        if shaping == "centred_rank":
            utilities = np.argsort(np.argsort(scores)) / 7 - 0.5
        sigma, rate = 0.3 * 0.9**generation, 0.7 * 0.8**generation
        members = [es.perturbed(state, member) for member in range(8)]
        steps = jax.tree.map(
            lambda mean, *moved, u=utilities, s=sigma, r=rate: (
                r
                * s
                / math.sqrt(8)
                * sum(ui * (np.asarray(m) - np.asarray(mean)) / s for ui, m in zip(u, moved, strict=True))
            ),
            state.params,
            *members,
        )
        new, _ = es.tell(state, scores)
        for name in PARAMS:
            np.testing.assert_allclose(new.params[name] - state.params[name], steps[name], rtol=1e-3, atol=1e-6)
        state = new


def test_adam_steps_by_its_rate():
    es = make_strategy(RlConfig(optimizer="adam", learning_rate=0.05, **SMALL), PARAMS)
    state, _ = es.tell(es.init(PARAMS), np.arange(8.0))
    np.testing.assert_allclose(np.abs(state.params["b"]), 0.05, rtol=1e-3)


# ── noise ──

LEAVES = {"tall": (6, 5), "narrow": (9, 2), "row": (1, 7), "vector": (4,), "scalar": (), "heads": (4, 2, 5)}


def test_leaves_without_room_for_the_rank_get_elementwise_noise():
    params = {name: jnp.zeros(shape) for name, shape in LEAVES.items()}
    es = make_strategy(RlConfig(rank=3, **SMALL), params)
    state = es.init(params)
    ranks = dict(zip(sorted(LEAVES), (leaf.rank for leaf in es.plan(params)), strict=True))
    assert ranks == {"heads": 3, "narrow": 0, "row": 0, "scalar": 0, "tall": 3, "vector": 0}
    moved = jax.tree.map(np.asarray, es.perturbed(state, 0))
    assert np.linalg.matrix_rank(moved["tall"], tol=1e-5) == 3
    assert np.linalg.matrix_rank(moved["heads"].reshape(8, 5), tol=1e-5) == 3
    assert all(np.any(leaf) for leaf in (moved["narrow"], moved["row"], moved["vector"]))


def test_rank_one_leaves_no_matrix_out():
    params = {name: jnp.zeros(shape) for name, shape in LEAVES.items()}
    es = make_strategy(RlConfig(rank=1, **SMALL), params)
    ranks = dict(zip(sorted(LEAVES), (leaf.rank for leaf in es.plan(params)), strict=True))
    assert ranks == {"heads": 1, "narrow": 1, "row": 1, "scalar": 0, "tall": 1, "vector": 0}


def test_openes_is_full_rank_noise():
    config = RlConfig(algorithm="openes", sigma=0.2, **SMALL)
    assert isinstance(distribution_for(config, PARAMS), FullRank)
    ours = make_strategy(config, PARAMS)
    plain = EvolutionStrategy(optax.sgd(1.0), population_size=8, sigma=0.2, distribution=FullRank())
    for member in (0, 5):
        one, other = (es.perturbed(es.init(PARAMS, seed=4), member) for es in (ours, plain))
        jax.tree.map(np.testing.assert_array_equal, one, other)


# ── episodes ──


def keys_of(config):
    """The words of the episode key that each member gets, (members, 2), in two generations."""

    def fitness(params, key):
        return params["b"].sum(), jax.random.key_data(key)

    es = make_strategy(config, PARAMS)
    state = es.init(PARAMS, seed=2)
    both = [state, state._replace(generation=jnp.int32(1))]
    return [np.asarray(es.evaluate(each, fitness, has_aux=True)[2].aux) for each in both]


def test_members_meet_the_same_episodes_by_generation_or_by_pair():
    first, second = keys_of(RlConfig(**SMALL))
    assert len(np.unique(first, axis=0)) == len(np.unique(second, axis=0)) == 1
    assert np.any(first != second)
    for keys in keys_of(RlConfig(common_random_numbers="pair", **SMALL)):
        assert len(np.unique(keys, axis=0)) == 4
        np.testing.assert_array_equal(keys[::2], keys[1::2])


def test_fitness_is_the_mean_return_of_several_episodes(monkeypatch):
    monkeypatch.setattr("eggroll.rl.strategy.make", tiny.make)
    config = RlConfig(hidden=(), episodes=3, episode_length=7, normalize_observations=True, **SMALL)
    made = setup(config)
    assert made.max_steps == 7
    params, key = made.policy.init(jax.random.key(0)), jax.random.key(1)
    score, aux = jax.jit(make_fitness(config, made))(params, key)
    one = make_fitness(RlConfig(hidden=(), episode_length=7, **SMALL), made)
    singly = jax.jit(lambda keys: episodes(made, made.policy.act, params, keys, None))(jax.random.split(key, 3))
    assert score == pytest.approx(float(singly.score.mean()), rel=1e-5)
    assert aux.steps == singly.steps.sum() == aux.sums.seen
    assert jax.eval_shape(one, params, key)[1].sums is None


# ── presets ──


def table(shared):
    """Environment → its row of the paper's table."""
    text = (shared / "spec" / "paper-settings.md").read_text()
    rows = re.findall(r"^\| (.+?) \| (\d+)/(\d)/(\w+)/([^| ]+?)((?: RT)?(?: D)?) \|", text, re.MULTILINE)
    found = {}
    for name, population, rank, optimizer, numbers, marks in rows:
        rate, rate_decay, sigma, sigma_decay, episodes = map(float, numbers.split("/"))
        found[name.split(" ", 1)[1] if not name.startswith("Craftax-") else name] = {
            "population_size": int(population), "rank": int(rank), "optimizer": optimizer,
            "learning_rate": rate, "learning_rate_decay": rate_decay, "sigma": sigma, "sigma_decay": sigma_decay,
            "episodes": int(episodes), "shaping": "centred_rank" if "RT" in marks else "z_score",
            "deterministic": "D" in marks.split(),
        }  # fmt: skip
    return found


def test_presets_are_the_papers_table(shared):
    known = table(shared)
    assert set(known) == set(environment_names())
    for name, row in known.items():
        config = settings_for(RlConfig, name, "paper", "eggroll")
        assert {key: getattr(config, key) for key in row} == row, name
        assert config.hidden == (256, 256, 256) and config.rate_units == "paper"


def test_presets_of_the_games(shared):
    text = (shared / "spec" / "paper-settings.md").read_text()
    assert "policy 3×64, rank 1, adamw lr .01" in text
    rows = {"spread": (128, 0.5, 0.7, "z_score"), "reference": (4096, 0.1, 0.3, "z_score")}
    rows |= {"speaker_listener": (512, 0.5, 0.7, "centred_rank")}
    for name in GAMES:
        config = settings_for(MarlConfig, name, "paper", "eggroll")
        population, sigma, left, shaping = rows[re.sub(r"MPE_simple_|_v\d", "", name)]
        assert (config.population_size, config.sigma, config.shaping) == (population, sigma, shaping)
        assert (config.rank, config.optimizer, config.learning_rate) == (1, "adamw", 0.01)
        assert config.hidden == (64, 64, 64)
        assert config.sigma_decay**config.generations == pytest.approx(left)


@pytest.mark.parametrize("preset", ["small", "paper"])
@pytest.mark.parametrize("algorithm", ["eggroll", "openes", "ppo"])
def test_every_preset_is_a_setting(preset, algorithm):
    for name in [*PAPER, "gymnax/Acrobot-v1"]:
        if not name.startswith("MPE"):
            config = settings_for(RlConfig, name, preset, algorithm)
            assert (config.env, config.preset, config.algorithm) == (name, preset, algorithm)
