"""Episodes against a loop written out; statistics of observations against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eggroll.rl.environments.base import Box, Discrete
from eggroll.rl.policy import OBSERVATION_LIMIT, make_policy, make_team_policy
from eggroll.rl.rollout import (
    ACT,
    MOVE,
    RESET,
    Statistics,
    Sums,
    merged,
    no_statistics,
    normalised,
    record_episode,
    run_episode,
    run_episodes,
)
from tests.rl.tiny import team, walk

KNOWN = Statistics(jnp.float32(50), jnp.array([0.2, 0.5, 1.0, 0.1]), jnp.array([20.0, 10.0, 0.0, 30.0]))


def actor(environment):
    """A policy with a head of size 1, so that what is seen matters."""
    make = make_policy if not environment.agents else lambda e, hidden: make_team_policy(e, shared=True, hidden=hidden)
    policy = make(environment, hidden=())
    params = jax.tree.map(lambda leaf: leaf * 100, jax.jit(policy.init)(jax.random.key(1)))
    return lambda key, observation: policy.act(params, key, observation)


def looped(environment, act, key, max_steps, statistics=None):
    """(score, steps, observations) of an episode, one call at a time."""
    step, act = jax.jit(environment.step), jax.jit(act)
    state, observation = jax.jit(environment.reset)(jax.random.fold_in(key, RESET))
    rewards, seen = [], []
    for count in range(max_steps):
        seen.append(np.asarray(observation, np.float64))
        if statistics is not None:
            deviation = np.sqrt(np.asarray(statistics.deviations) / float(statistics.seen) + 1e-8)
            scaled = (np.asarray(observation) - np.asarray(statistics.mean)) / deviation
            observation = jnp.asarray(np.clip(scaled, -OBSERVATION_LIMIT, OBSERVATION_LIMIT), jnp.float32)
        own = jax.random.fold_in(key, count + 1)
        action = act(jax.random.fold_in(own, ACT), observation)
        state, observation, reward, done = step(jax.random.fold_in(own, MOVE), state, action)
        rewards.append(np.mean(reward))
        if done:
            break
    return sum(rewards), len(rewards), np.concatenate([np.atleast_2d(each) for each in seen])


ENVIRONMENTS = {
    "choices": (walk(ends_beyond=1.2), None),
    "continuous": (walk(Box((-0.5,), (0.5,)), ends_beyond=1.2), KNOWN),
    "team": (team(), None),
}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_episodes_are_those_of_a_loop(name):
    """Score, length, and the sums of what was seen; side by side they are what each is alone."""
    environment, statistics = ENVIRONMENTS[name]
    act, keys, most = actor(environment), jax.random.split(jax.random.key(5), 6), 9
    run = jax.jit(
        lambda keys: run_episodes(environment, act, keys, max_steps=most, statistics=statistics, observe=True)
    )
    found = run(keys)
    about = 0 if statistics is None else np.asarray(statistics.mean, np.float64)
    for k, key in enumerate(keys):
        score, steps, seen = looped(environment, act, key, most, statistics)
        np.testing.assert_allclose(found.score[k], score, rtol=1e-4, atol=1e-5)
        assert found.steps[k] == steps
        expected = (len(seen), (seen - about).sum(0), ((seen - about) ** 2).sum(0))
        for ours, theirs in zip(found.sums, expected, strict=True):
            np.testing.assert_allclose(ours[k], theirs, rtol=1e-4, atol=1e-4)
    assert len(set(found.steps.tolist())) > 1 or name == "team"


def test_an_episode_alone_is_the_one_among_others():
    environment, act = walk(ends_beyond=1.2), actor(walk())
    keys = jax.random.split(jax.random.key(5), 3)
    together = jax.jit(lambda keys: run_episodes(environment, act, keys, max_steps=12))(keys)
    alone = jax.jit(lambda key: run_episode(environment, act, key, max_steps=12))
    for k, key in enumerate(keys):
        one = alone(key)
        assert one.sums is None and one.steps == together.steps[k]
        np.testing.assert_allclose(one.score, together.score[k], rtol=1e-6)


def test_max_steps_ends_an_episode():
    environment = walk(ends_beyond=1e9)
    for most in (1, 5):
        episode = run_episode(environment, lambda key, seen: jnp.int32(1), jax.random.key(0), max_steps=most)
        assert episode.steps == most


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_a_recorded_episode_is_the_one_that_is_run(name):
    environment, statistics = ENVIRONMENTS[name]
    act = actor(environment)
    run = jax.jit(lambda key: run_episode(environment, act, key, max_steps=9, statistics=statistics))
    for key in jax.random.split(jax.random.key(8), 2):
        episode = run(key)
        states, score = record_episode(environment, act, key, max_steps=9, statistics=statistics)
        assert len(states) == int(episode.steps) + 1
        assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(states))
        assert score == pytest.approx(float(episode.score), rel=1e-5, abs=1e-6)


def test_agents_score_is_their_mean():
    environment = team()
    seen, rewards = [], []
    state, _ = environment.reset(jax.random.fold_in(jax.random.key(0), RESET))
    for count in range(3):
        own = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), count + 1), MOVE)
        state, _, reward, _ = environment.step(own, state, jnp.array([2, 1]))
        rewards.append(np.asarray(reward).mean())
        seen.append(state)
    act = lambda key, observation: jnp.array([2, 1])
    assert run_episode(environment, act, jax.random.key(0), max_steps=3).score == pytest.approx(sum(rewards), rel=1e-5)


# ── statistics ──


def sums_of(statistics, rows):
    centred = rows - np.asarray(statistics.mean)
    return Sums(jnp.float32(len(rows)), *(jnp.asarray(x, jnp.float32) for x in (centred.sum(0), (centred**2).sum(0))))


def test_statistics_are_those_of_everything_seen():
    """Also where the mean is far from zero, and a generation sees nothing."""
    draw = np.random.default_rng(0)
    statistics, seen = no_statistics(3), np.zeros((0, 3))
    for count in (1, 40, 0, 7, 500):
        rows = draw.normal(size=(count, 3)) * [0.1, 2.0, 30.0] + [100.0, -3.0, 0.0]
        statistics = merged(statistics, sums_of(statistics, rows))
        seen = np.concatenate([seen, rows])
    assert statistics.seen == len(seen)
    np.testing.assert_allclose(statistics.mean, seen.mean(0), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(statistics.deviations / statistics.seen, seen.var(0), rtol=2e-2)


def test_statistics_of_episodes_of_several_generations():
    environment = walk(ends_beyond=1.2)
    act = actor(environment)
    run = jax.jit(lambda keys, known: run_episodes(environment, act, keys, max_steps=9, statistics=known, observe=True))
    statistics, seen = no_statistics(4), []
    for generation in range(3):
        keys = jax.random.split(jax.random.key(generation), 3)
        sums = jax.tree.map(lambda leaf: leaf.sum(0), run(keys, statistics).sums)
        known = statistics if generation else None
        seen += [looped(environment, act, key, 9, known)[2] for key in keys]
        statistics = merged(statistics, sums)
    rows = np.concatenate(seen)
    assert statistics.seen == len(rows)
    np.testing.assert_allclose(statistics.mean, rows.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(statistics.deviations, ((rows - rows.mean(0)) ** 2).sum(0), rtol=1e-3, atol=1e-4)


def test_normalised_observations():
    seen = np.array([[0.5, -1.0, 1.0, 99.0], [0.2, 0.5, 2.0, -99.0]], np.float32)
    got = normalised(KNOWN, jnp.asarray(seen))
    deviation = np.sqrt(np.asarray(KNOWN.deviations) / 50 + 1e-8)
    expected = np.clip((seen - np.asarray(KNOWN.mean)) / deviation, -OBSERVATION_LIMIT, OBSERVATION_LIMIT)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    assert got[0, 3] == OBSERVATION_LIMIT and got[1, 3] == -OBSERVATION_LIMIT and got[1, 2] == OBSERVATION_LIMIT
    np.testing.assert_array_equal(normalised(None, jnp.asarray(seen)), seen)
    for count in (0, 1):  # which say nothing of a deviation
        few = KNOWN._replace(seen=jnp.float32(count))
        np.testing.assert_array_equal(normalised(few, jnp.asarray(1e6 * seen)), 1e6 * seen)


def test_a_walker_of_three_choices_is_what_these_tests_take_it_for():
    assert walk().action_space == Discrete(3)
