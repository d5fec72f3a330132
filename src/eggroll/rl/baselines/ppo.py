"""PPO, as rejax has it, on an environment of ours. Imports rejax.

What is not rejax's here: an optimiser that clips the gradient's global norm and may anneal, and a state of plain
arrays. rejax's own train state is of a class made anew at each start, so that no two have one structure.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.training.train_state import TrainState
from gymnax.environments import spaces
from rejax.algos.ppo import PPO

from eggroll.core.errors import UsageError
from eggroll.rl.baselines.base import Baseline, endless, from_words, to_words
from eggroll.rl.baselines.optimise import adam
from eggroll.rl.baselines.settings import PpoSettings
from eggroll.rl.environments.base import Box, Discrete, Environment, MultiDiscrete

MOST_ACTIONS = 4096
"""Largest number of combinations that a space of several choices may have as one choice."""


class FaceParameters(NamedTuple):
    """What rejax wants to know beside an environment."""

    max_steps_in_episode: int


class GymnaxFace:
    """An `Environment` with the methods that rejax calls: it begins episodes anew by itself and ends them in time.

    Several choices (MultiDiscrete) become a single one among their combinations, the last choice fastest.
    rejax 0.1 wants the five values of gymnax's older `step`; those of gymnax 1.0 are six.
    """

    def __init__(self, environment: Environment, reward_scale: float = 1.0) -> None:
        self._environment = environment
        self._endless = endless(environment, reward_scale)

    def __deepcopy__(self, memo: Any) -> GymnaxFace:
        # `create` copies its settings deeply, the environment among them, which may hold anything.
        return self

    @property
    def default_params(self) -> FaceParameters:
        """The length of an episode."""
        return FaceParameters(self._environment.max_steps)

    def reset(self, key: Any, params: Any = None) -> tuple[Any, Any]:
        """key → (observation, state)."""
        state, observation = self._endless.reset(key)
        return observation, state

    def step(self, key: Any, state: Any, action: Any, params: Any = None) -> tuple[Any, Any, Any, Any, dict]:
        """(key, state, action) → (observation, state, reward, done, nothing)."""
        after = self._endless.step(key, state, self.native_action(action))
        return after.observation, after.state, after.reward, after.done, {}

    def native_action(self, action: Any) -> Any:
        """The environment's action for one of rejax's policy."""
        space = self._environment.action_space
        if isinstance(space, MultiDiscrete):
            return jnp.stack(jnp.unravel_index(action, space.sizes)).astype(jnp.int32)
        if isinstance(space, Box):
            return jnp.reshape(action, (space.size,))
        return action.astype(jnp.int32)

    def observation_space(self, params: Any = None) -> Any:
        """Any floats."""
        return spaces.Box(-jnp.inf, jnp.inf, (self._environment.observation_size,))

    def action_space(self, params: Any = None) -> Any:
        """The space as gymnax has it."""
        space = self._environment.action_space
        if isinstance(space, Box):
            return spaces.Box(np.asarray(space.low, np.float32), np.asarray(space.high, np.float32), (space.size,))
        return spaces.Discrete(space.n if isinstance(space, Discrete) else math.prod(space.sizes))


def make_ppo(environment: Environment, settings: PpoSettings) -> Baseline:
    """Proximal policy optimisation on an environment of one agent.

    Its state is a flat dict: the place of an array in rejax's train state → the array.

    Raises:
      UsageError: the environment has several agents, or an action space that no policy of rejax fits.
    Sources: Schulman et al. 2017 (arXiv 1707.06347); rejax, https://github.com/keraJLi/rejax.
    """
    _check(environment)
    face = GymnaxFace(environment, settings.reward_scale)
    algorithm = _algorithm(face, settings)

    def start_rejax(key: Any) -> Any:
        return _mended(algorithm.init_state(key), settings)

    like = jax.eval_shape(start_rejax, jax.random.key(0))
    places, structure = jax.tree.flatten_with_path(like)
    names = [jax.tree_util.keystr(place) for place, _ in places]

    def to_plain(train_state: Any) -> dict[str, Any]:
        return dict(zip(names, to_words(jax.tree.leaves(train_state)), strict=True))

    def to_rejax(state: dict[str, Any]) -> Any:
        leaves = from_words([state[name] for name in names], [leaf for _, leaf in places])
        return jax.tree.unflatten(structure, leaves)

    def start(key: Any) -> dict[str, Any]:
        return to_plain(start_rejax(key))

    def iterate(state: dict[str, Any]) -> dict[str, Any]:
        return to_plain(algorithm.train_iteration(to_rejax(state)))

    def act(state: dict[str, Any], key: Any, observation: Any) -> Any:
        return face.native_action(algorithm.make_act(to_rejax(state))(observation, key))

    return Baseline(start, iterate, act, settings.batch)


def _algorithm(face: GymnaxFace, settings: PpoSettings) -> PPO:
    return PPO.create(
        env=face,
        agent_kwargs={"activation": settings.activation, "hidden_layer_sizes": settings.hidden},
        num_envs=settings.num_envs,
        num_steps=settings.num_steps,
        num_epochs=settings.num_epochs,
        num_minibatches=settings.num_minibatches,
        gamma=settings.gamma,
        gae_lambda=settings.gae_lambda,
        clip_eps=settings.clip,
        ent_coef=settings.entropy,
        vf_coef=settings.value_coefficient,
        normalize_observations=settings.normalize_observations,
        normalize_rewards=settings.normalize_rewards,
        reward_normalization_discount=settings.gamma,
    )


def _mended(train_state: Any, settings: PpoSettings) -> Any:
    """rejax's train state at the start, with the optimiser that `settings` mean.

    rejax's own `max_grad_norm` bounds each number of a gradient (`optax.clip`), which no publication means by a norm,
    and its learning rate is constant. Its mean and variance of rewards start as integers and become floats.
    """
    optimiser = adam(
        settings.learning_rate,
        settings.max_grad_norm,
        updates=settings.anneal * settings.num_epochs * settings.num_minibatches,
    )
    actor, critic = (
        TrainState.create(apply_fn=(), params=made.params, tx=optimiser)
        for made in (train_state.actor_ts, train_state.critic_ts)
    )
    rewards = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), train_state.rew_rms_state)
    return train_state.replace(actor_ts=actor, critic_ts=critic, rew_rms_state=rewards)


def _check(environment: Environment) -> None:
    if environment.agents:
        raise UsageError(
            f"expected an environment of one agent for PPO, got {environment.name} of {len(environment.agents)}; "
            "take IPPO for it"
        )
    space = environment.action_space
    if isinstance(space, MultiDiscrete) and math.prod(space.sizes) > MOST_ACTIONS:
        raise UsageError(
            f"expected at most {MOST_ACTIONS} combinations of choices for PPO, got {math.prod(space.sizes)} in "
            f"{environment.name}; take an environment of fewer actions"
        )
