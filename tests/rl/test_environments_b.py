"""The adapters of Jumanji, Navix and Kinetix, against the packages' own environments."""

import importlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eggroll.core.errors import UsageError
from eggroll.rl.environments.base import Box, Discrete, Environment, MultiDiscrete

MEMBERS, STEPS = 8, 20


@pytest.fixture(autouse=True)
def unoptimised() -> Iterator[None]:
    """Compile in half the time: what is compiled here runs for milliseconds."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def random_actions(environment: Environment, steps: int) -> np.ndarray:
    """(MEMBERS, steps, …) actions, the same for each environment."""
    random, space = np.random.default_rng(3), environment.action_space
    if isinstance(space, Discrete):
        return random.integers(0, space.n, (MEMBERS, steps)).astype(np.int32)
    if isinstance(space, MultiDiscrete):
        return random.integers(0, space.sizes, (MEMBERS, steps, len(space.sizes))).astype(np.int32)
    return random.uniform(space.low, space.high, (MEMBERS, steps, space.size)).astype(np.float32)


def play(environment: Environment, keys: Any, actions: np.ndarray) -> tuple[Any, ...]:
    """The last states, and (MEMBERS, steps, …) observations, rewards and dones."""

    def episode(key: Any, actions: Any) -> tuple[Any, ...]:
        def one(state: Any, action: Any) -> tuple[Any, ...]:
            step = environment.step(key, state, action)
            return step.state, (step.observation, step.reward, step.done)

        state, first = environment.reset(key)
        state, (observations, rewards, dones) = jax.lax.scan(one, state, actions)
        return state, jnp.concatenate([first[None], observations]), rewards, dones

    return jax.jit(jax.vmap(episode))(keys, actions)


def play_jumanji(name: str, keys: Any, actions: np.ndarray) -> tuple[Any, Any]:
    """Rewards and dones of Jumanji's own environment."""
    import jumanji

    env = jumanji.make(name)

    def episode(raw: Any, actions: Any) -> Any:
        def one(state: Any, action: Any) -> Any:
            state, timestep = env.step(state, action)
            return state, (timestep.reward, timestep.discount == 0)

        return jax.lax.scan(one, env.reset(raw)[0], actions)[1]

    return jax.jit(jax.vmap(episode))(jax.random.key_data(keys), actions)


def play_navix(name: str, keys: Any, actions: np.ndarray) -> tuple[Any, Any]:
    """Rewards and dones of Navix's own environment, which begins anew after an end."""
    import navix

    env = navix.make(name)

    def episode(raw: Any, actions: Any) -> Any:
        def one(timestep: Any, action: Any) -> Any:
            timestep = env.step(timestep, action)
            return timestep, (timestep.reward, timestep.step_type > 0)

        return jax.lax.scan(one, env.reset(raw), actions)[1]

    return jax.jit(jax.vmap(episode))(jax.random.key_data(keys), actions)


def make(name: str) -> Environment:
    """By the one family's module: the other's package may be missing."""
    family = "navix" if name.startswith("Navix") else "jumanji"
    return importlib.import_module(f"eggroll.rl.environments.{family}").make(name)


@pytest.mark.parametrize("name", ["Game2048-v1", "Knapsack-v1", "Snake-v1", "Navix-Dynamic-Obstacles-6x6-Random-v0"])
def test_an_episode_is_that_of_the_package(name: str) -> None:
    pytest.importorskip("navix" if name.startswith("Navix") else "jumanji", reason="the package is not installed")
    environment, keys = make(name), jax.random.split(jax.random.key(5), MEMBERS)
    actions = random_actions(environment, STEPS)
    states, observations, rewards, dones = play(environment, keys, actions)
    assert observations.shape == (MEMBERS, STEPS + 1, environment.observation_size)
    assert observations.dtype == jnp.float32 and bool(jnp.isfinite(observations).all())
    assert all(isinstance(np.asarray(leaf), np.ndarray) for leaf in jax.tree.leaves(states))  # no typed keys in it
    own = (play_navix if name.startswith("Navix") else play_jumanji)(name, keys, actions)
    before_end = np.cumsum(dones, axis=1) - dones == 0
    np.testing.assert_array_equal(np.where(before_end, rewards, 0), np.where(before_end, own[0], 0))
    np.testing.assert_array_equal(before_end & dones, before_end & own[1])
    assert len({row.tobytes() for row in np.asarray(observations[:, -1])}) > 1


def test_same_key_same_episode() -> None:
    pytest.importorskip("jumanji", reason="Jumanji is not installed")
    environment = make("Game2048")
    keys = jax.random.split(jax.random.key(1), MEMBERS).at[1].set(jax.random.split(jax.random.key(1), MEMBERS)[0])
    actions = random_actions(environment, 5).copy()
    actions[1] = actions[0]
    observations = play(environment, keys, actions)[1]
    np.testing.assert_array_equal(observations[0], observations[1])
    assert not np.array_equal(observations[0], observations[2])


def test_knapsack_ends_when_full_and_when_an_item_is_taken_twice() -> None:
    pytest.importorskip("jumanji", reason="Jumanji is not installed")
    environment = make("Knapsack")
    step = jax.jit(environment.step)
    state, observation = environment.reset(jax.random.key(0))
    assert environment.max_steps == 50
    once = step(jax.random.key(0), state, jnp.int32(4))
    twice = step(jax.random.key(0), once.state, jnp.int32(4))
    assert not once.done and twice.done and float(twice.reward) == 0
    taken, done = 0, False
    while not done:
        taken += 1
        fits = np.flatnonzero(observation[150:])
        state, observation, _, done = step(jax.random.key(0), state, jnp.int32(fits[0]))
    assert 20 < taken < 50 and not observation[150:].any()


def test_the_step_counter_of_snake_is_scaled() -> None:
    pytest.importorskip("jumanji", reason="Jumanji is not installed")
    environment = make("Snake")
    state, _ = jax.jit(environment.reset)(jax.random.key(0))
    state.step_count = jnp.int32(2999)  # a plain dataclass
    counted = jax.jit(environment.step)(jax.random.key(0), state, jnp.int32(0)).observation
    assert float(counted[720]) == pytest.approx(3000 / 3999)
    assert environment.max_steps == 4000


def test_several_choices_at_once() -> None:
    pytest.importorskip("jumanji", reason="Jumanji is not installed")
    assert make("Cleaner").action_space == MultiDiscrete((4, 4, 4))


def test_navix_cuts_off_after_its_limit() -> None:
    pytest.importorskip("navix", reason="Navix is not installed")
    assert make("Navix-DoorKey-8x8-v0").observation_size == 8 * 8 * 3
    environment = make("Navix-FourRooms-v0")
    assert environment.max_steps == 100 and environment.observation_size == 19 * 19 * 3
    step = jax.jit(environment.step)
    state, _ = jax.jit(environment.reset)(jax.random.key(0))
    before = step(jax.random.key(0), state._replace(time=jnp.int32(98)), jnp.int32(0))
    assert not before.done and step(jax.random.key(0), before.state, jnp.int32(0)).done


@pytest.mark.parametrize("package", ["jumanji", "navix"])
def test_an_unknown_name_is_refused_with_near_ones(package: str) -> None:
    pytest.importorskip(package, reason="the package is not installed")
    wrong, near = {"jumanji": ("Snaek", "Snake-v1"), "navix": ("DoorKee-8x8", "Navix-DoorKey-8x8-v0")}[package]
    family = importlib.import_module(f"eggroll.rl.environments.{package}")
    with pytest.raises(UsageError, match=near) as caught:
        family.make(wrong)
    assert "\n" not in str(caught.value)


def test_an_action_that_cannot_be_expressed_is_refused() -> None:
    pytest.importorskip("jumanji", reason="Jumanji is not installed")
    with pytest.raises(UsageError, match=r"BoundedArray of shape \(2, 2\)"):
        make("SearchAndRescue")


def test_pictures_are_one_a_state() -> None:
    pytest.importorskip("jumanji", reason="Jumanji is not installed")
    environment = make("Snake")
    state = jax.tree.map(np.asarray, environment.reset(jax.random.key(0))[0])
    assert environment.render is not None
    for frames in (environment.render([state]), environment.render([state, state, state])):
        assert all(frame.shape == (400, 400, 3) and frame.dtype == np.uint8 for frame in frames)
    assert len(frames) == 3


def test_a_level_of_kinetix_is_that_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("kinetix", reason="kinetix is not installed")
    from kinetix.environment import ActionType, ObservationType, make_kinetix_env
    from kinetix.util.saving import load_from_json_file

    from eggroll.rl.environments import kinetix

    level, static, parameters = load_from_json_file("s/h1_thrust_over_ball.json")

    def again(key: Any) -> Any:
        return level

    # Kinetix compiles its physics (20 s) once for environments that have the same reset
    monkeypatch.setattr(kinetix, "make_kinetix_env", lambda **own: make_kinetix_env(**{**own, "reset_fn": again}))
    environment, key = kinetix.make("s/h1_thrust_over_ball"), jax.random.key(0)
    assert isinstance(environment.action_space, Box) and environment.max_steps == 256
    kinds = ActionType.CONTINUOUS, ObservationType.SYMBOLIC_FLAT
    own = make_kinetix_env(*kinds, again, parameters, static, auto_reset=False)
    state, observation = environment.reset(key)
    jax.tree.map(np.testing.assert_array_equal, state, level)
    own_observation, own_state = own.get_obs(level), state
    for action in abs(random_actions(environment, 5)[0]):  # a thruster does nothing below 0
        np.testing.assert_array_equal(observation, own_observation)
        assert observation.shape == (environment.observation_size,)
        state, observation, reward, done = environment.step(key, state, action)
        own_observation, own_state, own_reward, own_done, _ = own.step_env(key, own_state, action, parameters)
        assert float(reward) == float(own_reward) and bool(done) == bool(own_done)
    assert float(reward) != 0


def test_the_other_actions_of_kinetix() -> None:
    pytest.importorskip("kinetix", reason="kinetix is not installed")
    from eggroll.rl.environments import kinetix

    assert kinetix.make("s/h1_thrust_over_ball:multi_discrete").action_space == MultiDiscrete((3, 3, 3, 3, 2, 2))
    with pytest.raises(UsageError, match=":multi_discrete"):
        kinetix.make("s/h1_thrust_over_ball:several")
    with pytest.raises(UsageError, match="near it: l/hard_pinball"):
        kinetix.make("l/hard_pinbal")
