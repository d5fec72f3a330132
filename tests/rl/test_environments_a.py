"""Laws of gymnax, Brax, Craftax and the particle environments; CartPole and Pendulum against Gymnasium's own."""

import subprocess
import sys

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eggroll.rl.environments.base import Box, Discrete, Environment
from eggroll.rl.environments.registry import make

SPACES = {
    "CartPole-v1": (4, Discrete(2), 500),
    "Pendulum-v1": (3, Box((-2.0,), (2.0,)), 200),
    "InvertedDoublePendulum": (8, Box((-1.0,), (1.0,)), 1000),
    "Ant": (27, Box((-1.0,) * 8, (1.0,) * 8), 1000),
    "MPE_simple_spread_v3": (18, Discrete(5), 25),
    "MPE_simple_reference_v3": (21, Discrete(50), 25),
    "MPE_simple_speaker_listener_v4": (11, Discrete(5), 25),
    "Humanoid": (244, Box((-1.0,) * 17, (1.0,) * 17), 1000),
    "Craftax-Classic-Symbolic": (1345, Discrete(17), 10000),
    "Craftax-Symbolic": (8268, Discrete(43), 100000),
}
RUN = ("CartPole-v1", "Pendulum-v1", "MPE_simple_spread_v3", "MPE_simple_speaker_listener_v4")  # the rest compile long


def sample(environment: Environment, key):
    """A random action."""
    space = environment.action_space
    if environment.agents:
        return jax.random.randint(key, (len(environment.agents),), 0, jnp.asarray(environment.actions))
    if isinstance(space, Discrete):
        return jax.random.randint(key, (), 0, space.n)
    return jax.random.uniform(key, (space.size,), minval=jnp.asarray(space.low), maxval=jnp.asarray(space.high))


def episode(environment: Environment, key, steps: int = 20):
    """(steps, …) observations, rewards and ends of one episode."""

    def step(state, key):
        after = environment.step(key, state, sample(environment, key))
        return after.state, (after.observation, after.reward, after.done)

    return jax.lax.scan(step, environment.reset(key)[0], jax.random.split(key, steps))[1]


@pytest.mark.parametrize("name", SPACES)
def test_spaces_and_length_are_as_declared(name):
    environment = make(name)
    assert (environment.observation_size, environment.action_space, environment.max_steps) == SPACES[name]


@pytest.mark.parametrize("name", RUN)
def test_an_episode_is_finite_and_its_key_decides_it(name):
    environment = make(name)
    run = jax.jit(jax.vmap(lambda key: episode(environment, key)))
    observation, reward, done = run(jax.random.split(jax.random.key(0), 8))
    agents = (len(environment.agents),) if environment.agents else ()
    assert observation.shape == (8, 20, *agents, environment.observation_size)
    assert (reward.shape, done.shape) == ((8, 20, *agents), (8, 20))
    assert (observation.dtype, reward.dtype, done.dtype) == (jnp.float32, jnp.float32, jnp.bool_)
    assert np.isfinite(observation).all() and np.isfinite(reward).all()
    assert (run(jax.random.split(jax.random.key(0), 8))[0] == observation).all()
    assert not (run(jax.random.split(jax.random.key(1), 8))[0] == observation).all()


@pytest.mark.parametrize("name", ["InvertedDoublePendulum", "Craftax-Classic-Symbolic"])
def test_shapes_of_an_episode_without_compiling_it(name):
    environment = make(name)
    observation, reward, done = jax.eval_shape(lambda key: episode(environment, key), jax.random.key(0))
    assert observation.shape == (20, environment.observation_size)
    assert (observation.dtype, reward.dtype, done.dtype) == (jnp.float32, jnp.float32, jnp.bool_)


def test_jaxmarl_prints_nothing_and_leaves_the_streams_alone():
    code = """
import io, sys
out, err = sys.stdout, sys.stderr = io.StringIO(), io.StringIO()
import eggroll.rl.environments.mpe
assert (sys.stdout, sys.stderr, out.getvalue()) == (out, err, "")
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert (ended.returncode, ended.stdout) == (0, ""), ended.stderr


def oracle(name: str, vector: np.ndarray):
    """Gymnasium's environment in that state."""
    environment = gymnasium.make(name).unwrapped
    environment.reset(seed=0)
    environment.state = vector
    return environment


def test_cartpole_agrees_with_gymnasium():
    environment = make("CartPole-v1")
    state, observation = environment.reset(jax.random.key(3))
    other = oracle("CartPole-v1", np.asarray(observation, dtype=np.float64))
    for action in (0, 1, 1, 0, 1):
        state, observation, reward, done = environment.step(jax.random.key(0), state, jnp.int32(action))
        expected, pay, end, *_ = other.step(action)
        np.testing.assert_allclose(observation, expected, atol=1e-5)
        assert (float(reward), bool(done)) == (pay, end)


def test_pendulum_agrees_with_gymnasium():
    environment = make("Pendulum-v1")
    state, _ = environment.reset(jax.random.key(3))
    other = oracle("Pendulum-v1", np.asarray([state.theta, state.theta_dot], dtype=np.float64))
    for action in (0.5, -3.0, 2.0, 1.0):
        state, observation, reward, done = environment.step(jax.random.key(0), state, jnp.float32([action]))
        expected, pay, end, *_ = other.step(np.asarray([action]))
        np.testing.assert_allclose(observation, expected, atol=1e-5)
        assert float(reward) == pytest.approx(pay, abs=1e-5)
        assert bool(done) == end


def test_a_pole_that_falls_ends_the_episode():
    environment = make("CartPole-v1")
    state, ends = environment.reset(jax.random.key(0))[0], []
    for _ in range(15):
        state, _, _, done = environment.step(jax.random.key(0), state, jnp.int32(1))
        ends.append(bool(done))
    assert not ends[0] and ends[-1]


@pytest.mark.parametrize("name", ["CartPole-v1", "gymnax/Breakout-MinAtar", "MPE_simple_reference_v3"])
def test_pictures_of_an_episode_differ(name):
    environment = make(name)
    state, _ = environment.reset(jax.random.key(0))
    states = [state]
    for _ in range(3):
        states.append(environment.step(jax.random.key(1), states[-1], sample(environment, jax.random.key(1))).state)
    frames = environment.render(jax.tree.map(np.asarray, states))
    assert {(frame.dtype, frame.shape[2]) for frame in frames} == {(np.dtype(np.uint8), 3)}
    assert (frames[0] != frames[3]).any()
