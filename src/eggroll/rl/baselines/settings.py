"""Settings of PPO and IPPO, and those that were published for known environments."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

from eggroll.core.errors import UsageError

LEAST_MINIBATCH = 256
"""Steps below which `PpoSettings.small` makes no minibatch, unless the published ones are smaller."""


@dataclass(frozen=True)
class PpoSettings:
    """How PPO collects and learns; the defaults are for an environment for which nothing was published."""

    num_envs: int = 64
    """Environments that are stepped side by side."""
    num_steps: int = 128
    """Steps of each environment in an iteration."""
    num_epochs: int = 4
    """Times that the steps of an iteration are learnt from."""
    num_minibatches: int = 8
    """Updates in an epoch; divides num_envs x num_steps."""
    learning_rate: float = 3e-4
    """Adam's step size, in parameter units."""
    gamma: float = 0.99
    """Discount of the reward one step later, in [0, 1]."""
    gae_lambda: float = 0.95
    """Decay of advantage estimates, in [0, 1]: 0 trusts the value network, 1 the returns."""
    clip: float = 0.2
    """How far a probability ratio, and a value in reward units, may move before its gradient is cut; > 0."""
    entropy: float = 0.01
    """Weight of the policy's entropy, in advantage units per nat; at least 0."""
    value_coefficient: float = 0.5
    """Weight of the value's loss."""
    max_grad_norm: float = 0.5
    """Global norm to which a gradient is cut; > 0, may be inf."""
    normalize_observations: bool = False
    """Shift and scale observations by their running mean and standard deviation."""
    normalize_rewards: bool = False
    """Scale rewards by the running standard deviation of returns."""
    reward_scale: float = 1.0
    """Factor on each reward in training; > 0. Returns that are reported do without it."""
    hidden: tuple[int, ...] = (256, 256, 256)
    """Units of the hidden layers, of policy and of value network."""
    activation: Literal["tanh", "relu", "swish"] = "tanh"
    """What follows each hidden layer."""
    anneal: int = 0
    """Iterations in which the learning rate falls linearly to 0, where it stays; 0: it is constant."""

    def __post_init__(self) -> None:
        for name in ("num_envs", "num_steps", "num_epochs", "num_minibatches"):
            _check(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        for name in ("learning_rate", "clip", "max_grad_norm", "reward_scale"):
            _check(getattr(self, name) > 0, name, "above 0", getattr(self, name))
        for name in ("gamma", "gae_lambda"):
            _check(0 <= getattr(self, name) <= 1, name, "in [0, 1]", getattr(self, name))
        for name in ("entropy", "value_coefficient", "anneal"):
            _check(getattr(self, name) >= 0, name, "at least 0", getattr(self, name))
        _check(all(units >= 1 for units in self.hidden), "hidden", "of layers of at least 1 unit", self.hidden)
        _check(self.activation in ("tanh", "relu", "swish"), "activation", "tanh, relu or swish", self.activation)
        if self.batch % self.num_minibatches:
            raise UsageError(
                f"expected num_minibatches to divide num_envs x num_steps = {self.batch}, got {self.num_minibatches}; "
                f"{_divisor(self.batch, self.num_minibatches)} would"
            )

    @property
    def batch(self) -> int:
        """Environment steps of an iteration."""
        return self.num_envs * self.num_steps

    def small(self, most_envs: int) -> PpoSettings:
        """These settings for a computer of few cores: at most `most_envs` environments.

        Each environment still makes `num_steps` steps, so an iteration has fewer steps in all, and `anneal` takes
        accordingly more iterations. A minibatch shrinks first, down to 256 steps (or its published size, if less);
        only then are there fewer minibatches. Everything else stays. Same settings where `most_envs` is no limit.

        Raises:
          UsageError: most_envs is below 1.
        """
        _check(most_envs >= 1, "most_envs", "at least 1", most_envs)
        if self.num_envs <= most_envs:
            return self
        batch = most_envs * self.num_steps
        least = min(LEAST_MINIBATCH, self.batch // self.num_minibatches)
        minibatches = _divisor(batch, min(self.num_minibatches, max(1, batch // least)))
        anneal = math.ceil(self.anneal * self.batch / batch)
        return dataclasses.replace(self, num_envs=most_envs, num_minibatches=minibatches, anneal=anneal)


def ppo_settings(name: str) -> PpoSettings:
    """Settings published for the environment `name`; the defaults of `PpoSettings` where none were.

    Published tables rarely state the hidden layers: three of 256 units then, as the other policies here have.
    """
    return _PUBLISHED.get(name, PpoSettings())


def _check(right: bool, name: str, expected: str, got: object) -> None:
    if not right:
        raise UsageError(f"expected {name} {expected}, got {got}; change that setting")


def _divisor(number: int, most: int) -> int:
    return next(divisor for divisor in range(most, 0, -1) if number % divisor == 0)


# Brax's PPO, notebooks/training.ipynb; what the notebook leaves open are the defaults of brax.training.agents.ppo.
# batch_size x num_minibatches / num_envs unrolls of unroll_length make an iteration: 16 of 5, 16 of 10. It clips no
# gradient. Its policy has 4 x 32 units and its value network 5 x 256, which rejax, with one number for both, cannot.
_BRAX_PENDULUM = PpoSettings(
    num_envs=2048,
    num_steps=80,
    num_epochs=4,
    num_minibatches=32,
    gamma=0.97,
    clip=0.3,
    max_grad_norm=math.inf,
    normalize_observations=True,
    reward_scale=10.0,
    activation="swish",
)
_BRAX_HUMANOID = dataclasses.replace(_BRAX_PENDULUM, num_steps=160, num_epochs=8, entropy=1e-3, reward_scale=0.1)

# Craftax_Baselines (MichaelTMatthews), ppo.py: the defaults of its command line, at 1e9 steps.
_CRAFTAX = PpoSettings(
    num_envs=1024,
    num_steps=64,
    learning_rate=2e-4,
    gae_lambda=0.8,
    max_grad_norm=1.0,
    hidden=(512, 512, 512),
    anneal=15258,
)

# Kinetix (FLAIROx), configs/learning/ppo-base.yaml; 256 steps of an environment are its paper's (arXiv 2410.23208).
_KINETIX = PpoSettings(
    num_envs=2048,
    num_steps=256,
    num_epochs=8,
    num_minibatches=32,
    learning_rate=5e-5,
    gamma=0.995,
    gae_lambda=0.9,
)

# JaxMARL (FLAIROx), baselines/IPPO/config/ippo_ff_mpe.yaml, for all of MPE, at 1e7 steps; layers in ippo_ff_mpe.py.
_MPE = PpoSettings(num_envs=16, num_minibatches=4, learning_rate=2.5e-4, hidden=(64, 64), anneal=4882)

_PUBLISHED = {
    # rejax (keraJLi), configs/gymnax/*.yaml
    "CartPole-v1": PpoSettings(num_envs=5, num_steps=100, num_epochs=5, num_minibatches=5, learning_rate=7.5e-4),
    "Pendulum-v1": PpoSettings(
        num_envs=100,
        num_steps=100,
        num_epochs=10,
        num_minibatches=10,
        learning_rate=1e-3,
        gamma=0.995,
        entropy=0.0,
        max_grad_norm=10.0,
        normalize_observations=True,
        hidden=(64, 64),  # rejax's own, on which it was tuned; three of 256 do much worse
        activation="swish",
    ),
    # rejax, configs/brax/ant.yaml ("tuned")
    "Ant": PpoSettings(
        num_steps=64,
        num_epochs=8,
        num_minibatches=16,
        learning_rate=0.00010838581269344756,
        gamma=0.98,
        gae_lambda=0.8,
        normalize_observations=True,
    ),
    "Humanoid": _BRAX_HUMANOID,
    "InvertedDoublePendulum": _BRAX_PENDULUM,
    "Craftax-Classic-Symbolic": _CRAFTAX,
    "Craftax-Symbolic": _CRAFTAX,
    # Jumanji (InstaDeep), training/configs/env/*.yaml: there is only A2C, of which discount, decay, entropy and step
    # size are kept; the rest is this file's default.
    "Game2048": PpoSettings(learning_rate=2e-4, gamma=0.99),
    "Knapsack": PpoSettings(learning_rate=1e-4, gamma=1.0),
    "Snake": PpoSettings(learning_rate=4e-4, gamma=0.997),
    "l/hard_pinball": _KINETIX,
    "m/h17_thrustcontrol_left": _KINETIX,
    "s/h1_thrust_over_ball": _KINETIX,
    # rejax, configs/navix/*.yaml
    "DoorKey-8x8": PpoSettings(
        num_envs=128,
        num_steps=32,
        num_epochs=2,
        num_minibatches=32,
        gamma=0.95,
        gae_lambda=0.9,
        max_grad_norm=10.0,
        normalize_observations=True,
        activation="swish",
    ),
    "Dynamic-Obstacles-6x6-Random": PpoSettings(
        num_envs=16,
        num_epochs=16,
        gae_lambda=0.99,
        max_grad_norm=5.0,
        normalize_observations=True,
    ),
    "FourRooms": PpoSettings(
        num_envs=128,
        num_steps=32,
        num_epochs=2,
        gae_lambda=0.99,
        max_grad_norm=5.0,
        activation="swish",
    ),
    "MPE_simple_spread_v3": _MPE,
    "MPE_simple_reference_v3": _MPE,
    "MPE_simple_speaker_listener_v4": _MPE,
}
