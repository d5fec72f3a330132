"""Jumanji's environments: combinatorial puzzles such as Game2048, Knapsack and Snake."""

from __future__ import annotations

import difflib
import io
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jumanji
import numpy as np
from jaxtyping import Array, Float
from jumanji import specs
from matplotlib.animation import AbstractMovieWriter

from eggroll.core.errors import UsageError
from eggroll.rl.environments._settle import off_screen
from eggroll.rl.environments.base import ActionSpace, Discrete, Environment, MultiDiscrete, Step

_LIMITS = ("time_limit", "num_items", "num_cities")
"""Attributes that bound the steps of an episode: the limit itself, or what is taken one by one."""

_NO_LIMIT = 1000
"""Steps where Jumanji has no limit (Game2048): a random game of 2048 takes about 120, and rejax stops there too."""

_HUGE = 100.0
"""Observed numbers with a bound above this are divided by it."""

_PIXELS = 400
"""Width of a picture."""


def names() -> list[str]:
    """All that Jumanji has registered, such as `Snake-v1`."""
    return sorted(jumanji.registered_environments())


def make(name: str) -> Environment:
    """One of Jumanji's environments, by its registered name (`Game2048-v1`) or without the version (`Game2048`).

    The observation holds every field that Jumanji's has, in its order, flattened: the mask of valid actions too.
    Numbers are as they come (a board of 2048 holds exponents), except those whose declared bound is above 100, which
    are divided by it: of the paper's three, only Snake's step counter. Where Jumanji gives each of several agents a
    reward (Connector, LevelBasedForaging), theirs are summed, and one policy acts for all. `max_steps` is the
    environment's time limit, else the number of items or cities, else 1000; an invalid action is as Jumanji has
    it (it ends Knapsack and Snake, and does nothing in Game2048).

    Raises:
      UsageError: no such environment; its action cannot be expressed; its data cannot be loaded (Sokoban).
    """
    try:
        env = jumanji.make(_registered(name))
    except OSError as error:  # Sokoban loads its levels from a hub
        raise UsageError(f"expected {name} to load its data, got {type(error).__name__}; connect to the net") from None
    space = _space(name, env.action_spec)
    scales = _scales(env.observation_spec)

    def reset(key: Any) -> tuple[Any, Array]:
        state, timestep = env.reset(jax.random.key_data(key))
        return state, _flat(timestep.observation, scales)

    def step(key: Any, state: Any, action: Any) -> Step:
        state, timestep = env.step(state, action)
        reward = jnp.sum(jnp.asarray(timestep.reward, jnp.float32))
        return Step(state, _flat(timestep.observation, scales), reward, timestep.last())

    _, observation = jax.eval_shape(reset, jax.random.key(0))
    return Environment(
        name=name,
        reset=reset,
        step=step,
        observation_size=observation.size,
        action_space=space,
        max_steps=next((int(getattr(env, limit)) for limit in _LIMITS if hasattr(env, limit)), _NO_LIMIT),
        render=_renderer(env),
        seconds_per_step=0.2,
    )


def _registered(name: str) -> str:
    """The registered name: `name` itself, or its only or newest version."""
    known = names()
    versions = [full for full in known if full == name or full.rpartition("-v")[0] == name]
    if versions:
        return versions[-1]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    raise UsageError(f"expected one of Jumanji's environments, got {name!r}; near it: {', '.join(near) or 'none'}")


def _space(name: str, spec: Any) -> ActionSpace:
    if isinstance(spec, specs.DiscreteArray):
        return Discrete(int(spec.num_values))
    if isinstance(spec, specs.MultiDiscreteArray) and len(spec.shape) == 1:
        return MultiDiscrete(tuple(int(n) for n in np.asarray(spec.num_values)))
    raise UsageError(
        f"expected a discrete action, or one row of them, got {type(spec).__name__} of shape {tuple(spec.shape)} in "
        f"{name}; choose another environment"
    )


def _scales(spec: Any) -> list[np.float32]:
    """What each leaf of an observation is divided by, in the order of its leaves."""

    def scale(leaf: Any) -> np.float32:
        bound = np.max(np.abs(np.asarray(getattr(leaf, "maximum", 1), np.float64)))
        return np.float32(bound if _HUGE < bound < np.inf else 1)

    return jax.tree.leaves(jax.tree.map(scale, _fields(spec), is_leaf=lambda node: isinstance(node, specs.Array)))


def _fields(spec: Any) -> Any:
    """A specification as a tree like the observations it describes: same fields, same order."""
    if isinstance(spec, specs.Array):
        return spec
    return [_fields(spec[field]) for field in spec._specs]


def _flat(observation: Any, scales: list[np.float32]) -> Float[Array, " size"]:
    leaves = jax.tree.leaves(observation)
    return jnp.concatenate(
        [jnp.ravel(leaf).astype(jnp.float32) / scale for leaf, scale in zip(leaves, scales, strict=True)]
    )


class _Frames(AbstractMovieWriter):
    """Keeps what Matplotlib would write to a film."""

    def __init__(self) -> None:
        super().__init__()
        self.frames: list[np.ndarray] = []

    @classmethod
    def isAvailable(cls) -> bool:  # noqa: N802 (Matplotlib's name)
        return True

    def setup(self, fig: Any, outfile: Any, dpi: float | None = None) -> None:
        """Not the base's, which wants the folder of `outfile`; `dpi` follows from the width."""
        self.fig = fig
        self.dpi = _PIXELS / fig.get_size_inches()[0]

    def grab_frame(self, **options: Any) -> None:
        buffer = io.BytesIO()
        self.fig.savefig(buffer, format="rgba", dpi=self.dpi)
        pixels = np.frombuffer(buffer.getvalue(), np.uint8).reshape(-1, _PIXELS, 4)
        self.frames.append(pixels[..., :3].copy())

    def finish(self) -> None:
        """Nothing to close."""


def _renderer(env: Any) -> Callable[[Sequence[Any]], list[np.ndarray]]:
    def render(states: Sequence[Any]) -> list[np.ndarray]:
        """Jumanji's own animation."""
        writer = _Frames()
        with off_screen():
            # Snake's leaves out the first state, so that one is given twice
            env.animate([states[0], *states]).save("", writer=writer)
        return writer.frames[-len(states) :]

    return render
