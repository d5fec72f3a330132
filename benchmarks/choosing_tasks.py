"""The two tasks on which `choosing.py` measures settings: both learn in seconds, one from data, one from episodes.

- digits: scikit-learn's 8×8 handwritten digits, an MLP 64→64→10, fitness the share of a minibatch that is right (which
  has no gradient); score: accuracy on 397 digits that no member saw.
- pendulum: the swing-up of Gym's Pendulum-v1 (its equations are written out here), a policy 3→16→16→1, fitness the
  return of an episode of 200 steps from a random start; score: mean return of the mean policy over 64 such starts.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

import eggroll

TRAIN, CLASSES = 1400, 10
STEPS, STARTS = 200, 64
SEEDS = 16
"""Seeds 0 … 15 have an order of the digits."""
FIRST, DATA, TEST = 1, 2, 3
"""Which of a seed's random numbers."""


class Setting(NamedTuple):
    """One point of a study."""

    population: int  # members
    rank: int  # of a perturbation; 0: full rank
    group: int  # members that share data
    share: int  # digits, or episodes, of a member in a generation
    optimizer: str  # adam or sgd
    shaping: str
    sigma: float  # weight units
    rate: float  # step size
    schedule: str = "constant"


class Task(NamedTuple):
    """What is learned, and the settings around which studies are made."""

    name: str
    base: Setting
    budget: int  # evaluations of members in a run
    goal: str  # what the score is
    init: Callable[[Any], Any]  # seed → parameters
    fitness: Callable[..., Any]  # of one member
    data: Callable[[Any, Any, Setting], tuple[Any, ...]]  # (seed, generation, setting) → arguments of fitness
    score: Callable[[Any, Any], Any]  # (seed, parameters) → number


def layer(key: Any, rows: int, columns: int) -> dict[str, Any]:
    """Weights of unit gain, and a bias of zeros."""
    return {"kernel": jax.random.normal(key, (columns, rows)) / math.sqrt(columns), "bias": jnp.zeros(rows)}


def network(sizes: tuple[int, ...], seed: Any) -> list[dict[str, Any]]:
    """Layers of those widths, from the seed's own start."""
    keys = jax.random.split(stream(seed, FIRST), len(sizes) - 1)
    return [layer(key, rows, columns) for key, columns, rows in zip(keys, sizes[:-1], sizes[1:], strict=True)]


def outputs(params: list[dict[str, Any]], x: Any) -> Any:
    """An MLP with ReLU between its layers; x (…, inputs)."""
    for place, own in enumerate(params):
        x = (jax.nn.relu(x) if place else x) @ own["kernel"]
        x = x + jnp.broadcast_to(own["bias"], x.shape)
    return x


def stream(seed: Any, purpose: int) -> Any:
    """A key for one purpose of a seed, which may be traced."""
    return jax.random.fold_in(jax.random.key(seed), purpose)


def distribution(setting: Setting, params: Any) -> eggroll.LowRank | eggroll.FullRank:
    """Low rank where a matrix has room for more than it; elsewhere elementwise noise, as `eggroll rl` does."""
    if not setting.rank:
        return eggroll.FullRank()
    narrow = {
        f"{place}/kernel": 0 for place, own in enumerate(params) if min(own["kernel"].shape) < max(setting.rank, 2)
    }
    return eggroll.LowRank(rank=setting.rank, split=narrow)


# ── digits ──


@functools.cache
def images() -> tuple[np.ndarray, np.ndarray]:
    """Images (1797, 64) in [0, 1], and labels (1797,)."""
    image, label = load_digits(return_X_y=True)
    return (image / 16).astype(np.float32), label.astype(np.int32)


@functools.cache
def orders() -> np.ndarray:
    """(SEEDS, digits): shuffled for each seed; the first `TRAIN` are trained on."""
    return np.stack([np.random.default_rng(seed).permutation(len(images()[1])) for seed in range(SEEDS)])


def shuffled(seed: Any) -> Any:
    """The order of one seed, which may be traced."""
    return jnp.asarray(orders())[seed]


def inputs(places: Any) -> Any:
    """Some digits less the mean digit, within ±2."""
    image = images()[0]
    return jnp.asarray(2 * (image - image.mean(0)))[places]


def right(params: Any, key: Any, x: Any, y: Any) -> Any:
    """Fitness of ONE member: the share that it gets right."""
    return jnp.mean(jnp.argmax(outputs(params, x), axis=-1) == y)


def minibatches(seed: Any, generation: Any, setting: Setting) -> tuple[Any, ...]:
    """Digits for each group of members."""
    key = jax.random.fold_in(stream(seed, DATA), generation)
    drawn = jax.random.randint(key, (setting.population // setting.group, setting.share), 0, TRAIN)
    places = shuffled(seed)[drawn]
    return eggroll.per_group(inputs(places)), eggroll.per_group(jnp.asarray(images()[1])[places])


def held_out_places(seed: Any) -> Any:
    """Digits that no member of that seed sees."""
    return shuffled(seed)[TRAIN:]


def held_out(seed: Any, params: Any) -> Any:
    places = held_out_places(seed)
    return right(params, None, inputs(places), jnp.asarray(images()[1])[places])


# ── pendulum ──


def swing(params: Any, key: Any) -> Any:
    """The return of an episode from a start that the key draws."""
    start = jax.random.uniform(key, (2,), minval=-1.0, maxval=1.0) * jnp.array([jnp.pi, 1.0])

    def step(state: Any, _: Any) -> tuple[Any, Any]:
        angle, speed = state
        seen = jnp.stack([jnp.cos(angle), jnp.sin(angle), speed / 8])
        torque = 2 * jnp.tanh(outputs(params, seen)[0])
        apart = (angle + jnp.pi) % (2 * jnp.pi) - jnp.pi
        cost = apart**2 + 0.1 * speed**2 + 0.001 * torque**2
        speed = jnp.clip(speed + (15 * jnp.sin(angle) + 3 * torque) * 0.05, -8.0, 8.0)
        return (angle + 0.05 * speed, speed), cost

    return -jax.lax.scan(step, (start[0], start[1]), length=STEPS)[1].sum()


def swings(episodes: int, params: Any, key: Any) -> Any:
    """Fitness of ONE member: the mean return of its episodes, whose starts its group shares."""
    return jax.vmap(lambda own: swing(params, own))(jax.random.split(key, episodes)).mean()


@functools.cache
def swings_of(episodes: int) -> Callable[..., Any]:
    """The same function object for the same number, so that it is compiled once."""
    return functools.partial(swings, episodes)


def held_out_return(seed: Any, params: Any) -> Any:
    return jax.vmap(lambda key: swing(params, key))(jax.random.split(stream(seed, TEST), STARTS)).mean()


TASKS: Mapping[str, Task] = {
    "digits": Task(
        "digits",
        Setting(512, 1, 32, 64, "adam", "group_z_score", 0.1, 0.03),
        51_200,
        "held-out accuracy",
        functools.partial(network, (64, 64, 10)),
        right,
        minibatches,
        held_out,
    ),
    "pendulum": Task(
        "pendulum",
        Setting(256, 1, 2, 1, "adam", "z_score", 0.1, 0.1),
        16_384,
        "return of the mean policy",
        functools.partial(network, (3, 16, 16, 1)),
        swings_of(1),
        lambda seed, generation, setting: (),
        held_out_return,
    ),
}


def fitness_of(task: Task, setting: Setting) -> Callable[..., Any]:
    """The fitness of a member with so much data."""
    return swings_of(setting.share) if task.name == "pendulum" else task.fitness
