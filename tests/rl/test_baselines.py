"""PPO and IPPO: they improve, their state keeps its structure, and each piece does what a plain loop says."""

import dataclasses
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eggroll.core.errors import UsageError
from eggroll.rl.environments.base import Box, Discrete, Environment, MultiDiscrete, Step

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of gymnax, rejax and JaxMARL, while they are imported
    from eggroll.rl.baselines.base import Running, endless, from_words, to_words
    from eggroll.rl.baselines.ippo import advantages_of, make_ippo
    from eggroll.rl.baselines.ppo import GymnaxFace, make_ppo
    from eggroll.rl.baselines.settings import PpoSettings, ppo_settings
    from tests.rl.small_environments import cartpole, pendulum, speaker_listener

# Compiling takes most of the time here.
quick = partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)
TINY = PpoSettings(num_envs=4, num_steps=8, num_epochs=2, num_minibatches=2, hidden=(8,))


@pytest.fixture(autouse=True)
def third_parties() -> Iterator[None]:
    """Let rejax broadcast ranks, and others warn of what they will drop."""
    with warnings.catch_warnings(), jax.numpy_rank_promotion("allow"):
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def counter(ends_at: int = 1000, max_steps: int = 5, agents: int = 0, **others: Any) -> Environment:
    """Counts its steps from a random tenth; reward is the count, or with agents the number of the action chosen."""

    def observe(count: Any) -> Any:
        return jnp.full((agents, 3) if agents else (3,), count)

    def reset(key: Any) -> tuple[Any, Any]:
        count = jnp.floor(10 * jax.random.uniform(key)) / 10
        return {"count": count, "key": key}, observe(count)

    def step(key: Any, state: Any, action: Any) -> Step:
        count = state["count"] + 1
        reward = action.astype(jnp.float32) if agents else count
        return Step({"count": count, "key": key}, observe(count), reward, count >= ends_at)

    names = tuple(f"agent {number}" for number in range(agents))
    fields: dict[str, Any] = {"action_space": Discrete(4), "agents": names} | others
    return Environment("counter", reset, step, 3, max_steps=max_steps, **fields)


def episode_returns(environment: Environment, act: Any, state: Any, episodes: int = 64) -> np.ndarray:
    """(episodes,) mean return of the agents."""

    def one(key: Any) -> Any:
        reset_key, key = jax.random.split(key)

        def step(now: Any, step_key: Any) -> Any:
            inner, observation, alive, total = now
            act_key, step_key = jax.random.split(step_key)
            after = environment.step(step_key, inner, act(state, act_key, observation))
            total = total + jnp.where(alive, after.reward.mean(), 0.0)
            return (after.state, after.observation, alive & ~after.done, total), None

        first = (*environment.reset(reset_key), jnp.array(True), jnp.zeros(()))
        return jax.lax.scan(step, first, jax.random.split(key, environment.max_steps))[0][-1]

    return np.asarray(quick(jax.vmap(one))(jax.random.split(jax.random.key(9), episodes)))


def standard_error(before: np.ndarray, after: np.ndarray) -> float:
    return float(np.hypot(before.std(), after.std()) / np.sqrt(before.size))


def assert_near(one: Any, other: Any) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one, other)


def test_ppo_improves_on_cartpole() -> None:
    settings = dataclasses.replace(ppo_settings("CartPole-v1"), hidden=(32, 32), num_envs=10)
    baseline = make_ppo(cartpole(), settings)
    start = quick(baseline.start)(jax.random.key(1))
    end = quick(lambda state: jax.lax.fori_loop(0, 25, lambda _, now: baseline.iterate(now), state))(start)
    before, after = (episode_returns(cartpole(), baseline.act, state) for state in (start, end))
    assert baseline.steps == 1000
    assert after.mean() > 2.5 * before.mean() + 3 * standard_error(before, after)


def test_ppo_on_continuous_actions_stays_within_bounds() -> None:
    settings = dataclasses.replace(TINY, normalize_observations=True, normalize_rewards=True)
    baseline = make_ppo(pendulum(), settings)
    state = quick(lambda key: baseline.iterate(baseline.start(key)))(jax.random.key(1))
    keys = jax.random.split(jax.random.key(2), 200)
    actions = jax.vmap(baseline.act, (None, 0, None))(state, keys, jnp.array([1.0, 0.0, 3.0]))
    assert actions.shape == (200, 1)
    assert actions.dtype == jnp.float32
    assert float(jnp.abs(actions).max()) == 2.0  # σ is 1 at the start, so some were cut
    assert len(np.unique(actions)) > 50


@pytest.mark.parametrize("several", [False, True], ids=["ppo", "ippo"])
def test_state_is_plain_keeps_its_structure_and_vmaps_over_seeds(several: bool) -> None:
    environment = counter(agents=2 if several else 0)  # whose state holds a typed key
    baseline, again = ((make_ippo if several else make_ppo)(environment, TINY) for _ in range(2))
    keys = jax.random.split(jax.random.key(3), 2)
    start, iterate = quick(baseline.start), quick(baseline.iterate)
    alone = [iterate(iterate(start(key))) for key in keys]
    assert iterate._cache_size() == 1
    for before, after in zip(jax.tree.leaves(start(keys[0])), jax.tree.leaves(alone[0]), strict=True):
        assert (before.shape, before.dtype) == (after.shape, after.dtype)
        np.asarray(after)  # refuses typed keys
    saved = [jax.tree.map(np.asarray, start(key)) for key in keys]
    both = quick(jax.vmap(again.iterate))  # a baseline made anew goes on from what another one saved
    together = both(both(jax.tree.map(lambda *leaves: np.stack(leaves), *saved)))
    assert_near(together, jax.tree.map(lambda *leaves: jnp.stack(leaves), *alone))
    differ = [not np.array_equal(*pair) for pair in zip(*map(jax.tree.leaves, alone), strict=True)]
    assert any(differ)


@pytest.mark.parametrize("ends_at, max_steps", [(1000, 4), (3, 1000)], ids=["time limit", "done"])
def test_an_endless_environment_is_the_loop_written_out(ends_at: int, max_steps: int) -> None:
    environment = counter(ends_at, max_steps)
    running, observation = endless(environment).reset(jax.random.key(5))
    step = quick(endless(environment, reward_scale=10.0).step)
    state, elapsed = environment.reset(jax.random.key(5))[0], 0
    for time in range(15):
        key = jax.random.key(100 + time)
        step_key, reset_key = jax.random.split(key)
        after = environment.step(step_key, state, jnp.int32(0))
        expected, elapsed = after.observation, elapsed + 1
        state, over = after.state, bool(after.done) or elapsed == max_steps
        if over:
            (state, expected), elapsed = environment.reset(reset_key), 0
        running, observation, reward, done = step(key, running, jnp.int32(0))
        assert isinstance(running, Running)
        assert (bool(done), int(running.elapsed)) == (over, elapsed)
        np.testing.assert_allclose(observation, expected)
        np.testing.assert_allclose(reward, 10 * after.reward, rtol=1e-6)
        assert jnp.array_equal(jax.random.key_data(running.state["key"]), jax.random.key_data(state["key"]))


def test_words_and_keys_are_the_same_tree() -> None:
    tree = {"key": jax.random.split(jax.random.key(0), 3), "count": 2}
    words = to_words(tree)
    assert words["key"].dtype == jnp.uint32
    assert jnp.array_equal(jax.random.key_data(from_words(words, tree)["key"]), words["key"])


def test_several_choices_become_one_among_their_combinations() -> None:
    face = GymnaxFace(counter(action_space=MultiDiscrete((3, 2, 5))))
    assert face.action_space().n == 30
    found = {tuple(int(choice) for choice in face.native_action(jnp.int32(number))) for number in range(30)}
    assert found == {(a, b, c) for a in range(3) for b in range(2) for c in range(5)}
    assert tuple(face.native_action(jnp.int32(5))) == (0, 1, 0)


def test_advantages_are_those_of_a_loop() -> None:
    keys = jax.random.split(jax.random.key(6), 4)
    reward, value = (jax.random.normal(key, (9, 2, 3)) for key in keys[:2])
    last, done = jax.random.normal(keys[2], (2, 3)), jax.random.bernoulli(keys[3], 0.3, (9, 2, 3))
    found = quick(advantages_of, static_argnums=(4, 5))(reward, value, done, last, 0.9, 0.8)
    expected, later, next_value = np.zeros((9, 2, 3)), np.zeros((2, 3)), np.asarray(last)
    for time in reversed(range(9)):
        going_on = 1.0 - np.asarray(done[time])
        delta = np.asarray(reward[time]) + 0.9 * going_on * next_value - np.asarray(value[time])
        later = expected[time] = delta + 0.9 * 0.8 * going_on * later
        next_value = np.asarray(value[time])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_ippo_learns_each_agents_own_best_action_and_never_takes_one_that_it_has_not() -> None:
    environment = counter(agents=3, actions=(4, 2, 1))  # reward: the number of the action
    settings = dataclasses.replace(TINY, num_envs=16, num_epochs=4, learning_rate=1e-2, anneal=100)
    baseline = make_ippo(environment, settings)
    start = quick(baseline.start)(jax.random.key(7))
    end = quick(lambda state: jax.lax.fori_loop(0, 30, lambda _, now: baseline.iterate(now), state))(start)
    draw = quick(lambda state, keys: jax.vmap(lambda key: baseline.act(state, key, jnp.ones((3, 3))))(keys))
    before, after = (draw(state, jax.random.split(jax.random.key(8), 500)) for state in (start, end))
    assert before.dtype == jnp.int32
    for actions in (before, after):
        assert np.all(np.asarray(actions) < np.array([4, 2, 1]))
    assert len(np.unique(np.asarray(before[:, 0]))) == 4
    assert np.all(np.asarray(after).mean(axis=0) > np.array([2.8, 0.9, -1]))


def test_ippo_beats_random_agents_that_speak_and_listen() -> None:
    environment = speaker_listener()  # agents of 3 and of 5 actions, of observations of different sizes
    published = ppo_settings(environment.name)
    settings = dataclasses.replace(published, num_steps=64, hidden=(32, 32), learning_rate=2e-3, anneal=0)
    baseline = make_ippo(environment, settings)
    start = quick(baseline.start)(jax.random.key(1))
    end = quick(lambda state: jax.lax.fori_loop(0, 25, lambda _, now: baseline.iterate(now), state))(start)

    def random(state: Any, key: Any, observation: Any) -> Any:
        return jax.random.randint(key, (2,), 0, jnp.array(environment.actions))

    before = episode_returns(environment, random, start, 256)
    after = episode_returns(environment, baseline.act, end, 256)
    assert after.mean() > before.mean() + 3 * standard_error(before, after)


def test_the_learning_rate_falls_to_nothing() -> None:
    baseline = make_ppo(counter(), dataclasses.replace(TINY, anneal=1))
    iterate = quick(baseline.iterate)
    once = iterate(quick(baseline.start)(jax.random.key(1)))
    twice = iterate(once)
    parameters = [name for name in once if ".params" in name]
    assert parameters
    assert all(jnp.array_equal(once[name], twice[name]) for name in parameters)


@pytest.mark.parametrize(
    "make, environment, changes, line",
    [
        (make_ppo, counter(agents=2), {}, "expected an environment of one agent for PPO, got counter of 2"),
        (make_ppo, counter(action_space=MultiDiscrete((9,) * 4)), {}, "at most 4096 combinations .* got 6561"),
        (make_ippo, counter(), {}, "expected an environment of several agents for IPPO"),
        (make_ippo, counter(agents=2, action_space=Box((0.0,), (1.0,))), {}, "expected discrete actions for IPPO"),
        (make_ippo, counter(agents=2), {"normalize_rewards": True}, "no normalize_observations and no"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_a_line(make: Any, environment: Any, changes: Any, line: str) -> None:
    with pytest.raises(UsageError, match=line) as caught:
        make(environment, dataclasses.replace(TINY, **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_envs": 0},
        {"num_minibatches": 7},
        {"clip": 0.0},
        {"gamma": 1.01},
        {"entropy": -1.0},
        {"anneal": -1},
        {"hidden": (8, 0)},
    ],
)
def test_wrong_settings_are_refused_by_name(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"expected {next(iter(changes))} "):
        PpoSettings(**changes)


def test_small_settings_keep_steps_and_have_minibatches_of_a_sensible_size() -> None:
    for name in ("Ant", "Humanoid", "Craftax-Symbolic", "l/hard_pinball", "Pendulum-v1", "DoorKey-8x8", "unheard of"):
        published = ppo_settings(name)
        small = published.small(24)
        assert small.num_envs == 24
        assert small.num_steps == published.num_steps
        assert small.batch % small.num_minibatches == 0
        assert small.batch // small.num_minibatches >= min(256, published.batch // published.num_minibatches)
        assert published.small(10**6) is published
    craftax = ppo_settings("Craftax-Symbolic")
    assert craftax.small(64).anneal * craftax.small(64).batch == craftax.anneal * craftax.batch
    assert ppo_settings("unheard of") == PpoSettings()
