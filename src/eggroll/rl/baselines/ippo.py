"""Independent PPO for environments of several agents, which share one network. Imports flax.

Each agent learns from its own observation and its own reward as PPO does, the others being part of its environment
(de Witt et al. 2020, arXiv 2011.09533; PPO: Schulman et al. 2017, arXiv 1707.06347). The file reads from top to bottom
as an iteration goes: collect, estimate advantages, learn; in the manner of purejaxrl (Lu et al. 2022).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen
from jaxtyping import Array, Bool, Float, Int

from eggroll.core.errors import UsageError
from eggroll.rl.baselines.base import Baseline, Endless, endless, from_words, to_words
from eggroll.rl.baselines.optimise import adam
from eggroll.rl.baselines.settings import PpoSettings
from eggroll.rl.environments.base import Discrete, Environment

FORBIDDEN = -1e9
"""Logit of an action that an agent has not: its probability is 0 in float32."""


class IppoState(NamedTuple):
    """Between two iterations; all leaves are plain arrays."""

    parameters: Any
    optimiser: Any
    running: Any  # environments within their episodes, each leaf (envs, …)
    observation: Any  # (envs, agents, size) float32
    words: Any  # (2,) uint32: the random key


class Transition(NamedTuple):
    """Steps of all agents; a leading axis of time once they are collected."""

    observation: Any  # (envs, agents, size + agents)
    action: Any  # (envs, agents) int32
    log_probability: Any  # (envs, agents)
    value: Any  # (envs, agents)
    reward: Any  # (envs, agents)
    done: Any  # (envs, agents)
    allowed: Any  # (envs, agents, actions) bool


class ActorCritic(linen.Module):
    """Policy and value networks, alike but apart: (…, inputs) → logits (…, actions), value (…)."""

    actions: int
    hidden: tuple[int, ...]
    activation: str

    @linen.compact
    def __call__(self, inputs: Any) -> tuple[Any, Any]:
        """Apply both."""
        logits = self._layers(inputs, self.actions, last_scale=0.01)
        value = self._layers(inputs, 1, last_scale=1.0)
        return logits, value[..., 0]

    def _layers(self, inputs: Any, outputs: int, last_scale: float) -> Any:
        for units in self.hidden:
            dense = linen.Dense(units, kernel_init=linen.initializers.orthogonal(2**0.5))
            inputs = getattr(linen, self.activation)(dense(inputs))
        return linen.Dense(outputs, kernel_init=linen.initializers.orthogonal(last_scale))(inputs)


def make_ippo(environment: Environment, settings: PpoSettings) -> Baseline:
    """Independent PPO with shared parameters: an agent's number stands one-hot behind its padded observation.

    Its `act` maps (state, typed key, observation (agents, size)) to int32 (agents,).

    Raises:
      UsageError: the environment has one agent only, actions that are not discrete, or the settings ask for
        normalisation, which there is not.
    """
    return _Ippo(environment, settings, _check(environment, settings)).baseline()


def advantages_of(
    reward: Float[Array, "steps *rest"],
    value: Float[Array, "steps *rest"],
    done: Bool[Array, "steps *rest"],
    last_value: Float[Array, "*rest"],
    gamma: float,
    gae_lambda: float,
) -> Float[Array, "steps *rest"]:
    """Generalised advantage estimates: A_t = δ_t + γλ(1 − done_t) A_{t+1}, δ_t = r_t + γ(1 − done_t) v_{t+1} − v_t.

    Source: Schulman et al. 2016, arXiv 1506.02438.
    """

    def back(later: tuple[Any, Any], now: tuple[Any, Any, Any]) -> tuple[tuple[Any, Any], Any]:
        advantage, next_value = later
        reward, value, done = now
        going_on = jnp.where(done, 0.0, gamma)
        advantage = reward + going_on * next_value - value + going_on * gae_lambda * advantage
        return (advantage, value), advantage

    start = (jnp.zeros_like(last_value), last_value)
    return jax.lax.scan(back, start, (reward, value, done), reverse=True)[1]


class _Ippo:
    """The pieces of one algorithm on one environment."""

    def __init__(self, environment: Environment, settings: PpoSettings, actions: int) -> None:
        self.settings = settings
        self.agents = len(environment.agents)
        self.size = environment.observation_size
        self.endless: Endless = endless(environment, settings.reward_scale)
        numbers = environment.actions or (actions,) * self.agents
        self.allowed = jnp.arange(actions)[None, :] < jnp.asarray(numbers)[:, None]  # (agents, actions)
        self.network = ActorCritic(actions, settings.hidden, settings.activation)
        updates = settings.anneal * settings.num_epochs * settings.num_minibatches
        # 1e-5 is JaxMARL's; Adam's own 1e-8 makes large steps of the tiny gradients at the start.
        self.optimiser = adam(settings.learning_rate, settings.max_grad_norm, updates, epsilon=1e-5)
        self.like = jax.eval_shape(self.typed_start, jax.random.key(0))

    def baseline(self) -> Baseline:
        def start(key: Any) -> IppoState:
            return to_words(self.typed_start(key))

        def iterate(state: IppoState) -> IppoState:
            return to_words(self.typed_iterate(from_words(state, self.like)))

        return Baseline(start, iterate, self.act, self.settings.batch)

    def typed_start(self, key: Any) -> IppoState:
        network_key, reset_key, key = jax.random.split(key, 3)
        parameters = self.network.init(network_key, jnp.zeros((1, self.size + self.agents)))
        running, observation = jax.vmap(self.endless.reset)(jax.random.split(reset_key, self.settings.num_envs))
        return IppoState(parameters, self.optimiser.init(parameters), running, observation, key)

    def typed_iterate(self, state: IppoState) -> IppoState:
        state, transitions = jax.lax.scan(self.collect, state, None, self.settings.num_steps)
        _, last_value = self.evaluate(state.parameters, self.inputs(state.observation), self.allowed)
        advantages = advantages_of(
            transitions.reward,
            transitions.value,
            transitions.done,
            last_value,
            self.settings.gamma,
            self.settings.gae_lambda,
        )
        batch = (transitions, advantages, advantages + transitions.value)
        # Every agent's every step is an example of its own: (steps · envs · agents, …).
        examples = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[3:]), batch)
        epoch: Callable[[IppoState, Any], tuple[IppoState, None]] = lambda now, _: (self.epoch(now, examples), None)
        return jax.lax.scan(epoch, state, None, self.settings.num_epochs)[0]

    def act(self, state: IppoState, key: Any, observation: Float[Array, "agents size"]) -> Int[Array, " agents"]:
        logits, _ = self.evaluate(state.parameters, self.inputs(observation), self.allowed)
        return jax.random.categorical(key, logits).astype(jnp.int32)

    def inputs(self, observation: Float[Array, "*envs agents size"]) -> Float[Array, "*envs agents inputs"]:
        names = jnp.broadcast_to(jnp.eye(self.agents), (*observation.shape[:-1], self.agents))
        return jnp.concatenate([observation, names], axis=-1)

    def evaluate(self, parameters: Any, inputs: Any, allowed: Any) -> tuple[Any, Any]:
        """Logits (…, actions), in which actions that an agent has not are forbidden, and values (…)."""
        logits, value = self.network.apply(parameters, inputs)
        return jnp.where(jnp.broadcast_to(allowed, logits.shape), logits, FORBIDDEN), value

    def collect(self, state: IppoState, _: Any) -> tuple[IppoState, Transition]:
        """Make one step in each environment."""
        key, action_key, step_key = jax.random.split(state.words, 3)
        inputs = self.inputs(state.observation)
        logits, value = self.evaluate(state.parameters, inputs, self.allowed)
        action = jax.random.categorical(action_key, logits).astype(jnp.int32)
        step_keys = jax.random.split(step_key, self.settings.num_envs)
        after = jax.vmap(self.endless.step)(step_keys, state.running, action)
        done = jnp.broadcast_to(after.done[:, None], action.shape)
        allowed = jnp.broadcast_to(self.allowed, logits.shape)
        chosen = _log_probability(logits, action)
        transition = Transition(inputs, action, chosen, value, after.reward, done, allowed)
        return state._replace(running=after.state, observation=after.observation, words=key), transition

    def epoch(self, state: IppoState, examples: Any) -> IppoState:
        """Learn from all examples once, in minibatches drawn anew."""
        key, order_key = jax.random.split(state.words)
        order = jax.random.permutation(order_key, self.settings.batch * self.agents)
        order = order.reshape(self.settings.num_minibatches, -1)

        def learn(now: tuple[Any, Any], rows: Any) -> tuple[tuple[Any, Any], None]:
            parameters, optimiser = now
            gradient = jax.grad(self.loss)(parameters, *jax.tree.map(lambda leaf: leaf[rows], examples))
            change, optimiser = self.optimiser.update(gradient, optimiser, parameters)
            return (jax.tree.map(jnp.add, parameters, change), optimiser), None

        (parameters, optimiser), _ = jax.lax.scan(learn, (state.parameters, state.optimiser), order)
        return state._replace(parameters=parameters, optimiser=optimiser, words=key)

    def loss(self, parameters: Any, old: Transition, advantage: Any, target: Any) -> Any:
        """The clipped surrogate, the clipped squared error of values, and the entropy, weighted."""
        clip = self.settings.clip
        logits, value = self.evaluate(parameters, old.observation, old.allowed)
        ratio = jnp.exp(_log_probability(logits, old.action) - old.log_probability)
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        surrogate = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip, 1 + clip) * advantage).mean()
        near = old.value + jnp.clip(value - old.value, -clip, clip)
        error = 0.5 * jnp.maximum((value - target) ** 2, (near - target) ** 2).mean()
        log_probabilities = jax.nn.log_softmax(logits)
        entropy = -(jnp.exp(log_probabilities) * log_probabilities).sum(axis=-1).mean()
        return -surrogate + self.settings.value_coefficient * error - self.settings.entropy * entropy


def _log_probability(logits: Any, action: Any) -> Any:
    return jnp.take_along_axis(jax.nn.log_softmax(logits), action[..., None], axis=-1)[..., 0]


def _check(environment: Environment, settings: PpoSettings) -> int:
    """The number of actions, if IPPO can do this."""
    if not environment.agents:
        raise UsageError(f"expected an environment of several agents for IPPO, got {environment.name}; take PPO for it")
    if not isinstance(environment.action_space, Discrete):
        raise UsageError(
            f"expected discrete actions for IPPO, got {environment.action_space} in {environment.name}; "
            "take an environment of discrete actions"
        )
    if settings.normalize_observations or settings.normalize_rewards:
        raise UsageError(
            "expected no normalize_observations and no normalize_rewards for IPPO, got one; leave it off, scale by hand"
        )
    return environment.action_space.n
