"""Environments of gymnax and JaxMARL as ours, just enough for the tests of the baselines."""

from typing import Any

import gymnax
import jax
import jax.numpy as jnp
import jaxmarl

from eggroll.rl.environments.base import ActionSpace, Box, Discrete, Environment, Step


def of_gymnax(name: str, space: ActionSpace) -> Environment:
    inner, parameters = gymnax.make(name)

    def reset(key: Any) -> tuple[Any, Any]:
        observation, state = inner.reset_env(jax.random.key_data(key), parameters)
        return state, observation

    def step(key: Any, state: Any, action: Any) -> Step:
        observation, state, reward, done, _ = inner.step_env(jax.random.key_data(key), state, action, parameters)
        return Step(state, observation, jnp.asarray(reward, jnp.float32), jnp.asarray(done))

    size = inner.observation_space(parameters).shape[0]
    return Environment(name, reset, step, size, space, parameters.max_steps_in_episode)


def cartpole() -> Environment:
    return of_gymnax("CartPole-v1", Discrete(2))


def pendulum() -> Environment:
    return of_gymnax("Pendulum-v1", Box((-2.0,), (2.0,)))


def of_jaxmarl(name: str) -> Environment:
    inner = jaxmarl.make(name)
    agents = tuple(inner.agents)
    size = max(inner.observation_space(agent).shape[0] for agent in agents)
    actions = tuple(int(inner.action_space(agent).n) for agent in agents)

    def stack(observations: dict[str, Any]) -> Any:
        return jnp.stack([jnp.pad(observations[a], (0, size - observations[a].shape[0])) for a in agents])

    def reset(key: Any) -> tuple[Any, Any]:
        observations, state = inner.reset(jax.random.key_data(key))
        return state, stack(observations)

    def step(key: Any, state: Any, action: Any) -> Step:
        chosen = {agent: action[index] for index, agent in enumerate(agents)}
        observations, state, rewards, done, _ = inner.step_env(jax.random.key_data(key), state, chosen)
        return Step(state, stack(observations), jnp.stack([rewards[a] for a in agents]), done["__all__"])

    return Environment(name, reset, step, size, Discrete(max(actions)), inner.max_steps, agents, actions)


def speaker_listener() -> Environment:
    return of_jaxmarl("MPE_simple_speaker_listener_v4")
