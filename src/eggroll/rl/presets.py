"""Settings for each environment: the paper's table, and a variant of it for two cores and minutes.

Source: arXiv 2511.16652, figures 4a, 12, 14 and 15 (settings of the best run of its search).
"""

from __future__ import annotations

from typing import Any, TypeVar, get_args, get_type_hints

from eggroll.core.errors import UsageError
from eggroll.rl.baselines.settings import ppo_settings
from eggroll.rl.config import BASELINES, SearchConfig
from eggroll.rl.environments.registry import canonical_name

C = TypeVar("C", bound=SearchConfig)


def _row(
    population_size: int,
    rank: int,
    optimizer: str,
    learning_rate: float,
    learning_rate_decay: float,
    sigma: float,
    sigma_decay: float,
    episodes: int,
    marks: str = "",
) -> dict[str, Any]:
    """A row of the table in its order; marks: R for centred ranks, D for deterministic actions."""
    return {
        "population_size": population_size,
        "rank": rank,
        "optimizer": optimizer,
        "learning_rate": learning_rate,
        "learning_rate_decay": learning_rate_decay,
        "sigma": sigma,
        "sigma_decay": sigma_decay,
        "episodes": episodes,
        "shaping": "centred_rank" if "R" in marks else "z_score",
        "deterministic": "D" in marks,
    }


PAPER: dict[str, dict[str, Any]] = {
    "CartPole-v1": _row(2048, 4, "sgd", 0.1, 0.9995, 0.2, 0.999, 1),
    "Pendulum-v1": _row(4096, 4, "adam", 0.01, 0.995, 0.05, 0.995, 1),
    "Ant": _row(2048, 1, "adam", 0.01, 0.9995, 0.05, 0.9995, 1),
    "Humanoid": _row(4096, 1, "adam", 0.1, 1.0, 0.2, 0.9995, 8, "RD"),
    "InvertedDoublePendulum": _row(2048, 2, "adam", 0.1, 1.0, 0.5, 0.995, 1, "RD"),
    "Craftax-Classic-Symbolic": _row(2048, 1, "sgd", 0.01, 0.995, 0.05, 1.0, 4),
    "Craftax-Symbolic": _row(512, 4, "sgd", 0.01, 0.999, 0.05, 0.999, 1, "R"),
    "Game2048": _row(1024, 1, "adamw", 0.1, 1.0, 0.5, 0.9995, 4),
    "Knapsack": _row(1024, 4, "sgd", 0.1, 0.999, 0.05, 1.0, 4, "R"),
    "Snake": _row(4096, 1, "adam", 0.001, 0.9995, 0.05, 0.9995, 8, "R"),
    "l/hard_pinball": _row(2048, 4, "sgd", 0.01, 0.995, 0.05, 0.999, 8, "RD"),
    "m/h17_thrustcontrol_left": _row(512, 4, "sgd", 0.1, 0.9995, 0.5, 1.0, 4, "R"),
    "s/h1_thrust_over_ball": _row(512, 1, "adamw", 0.1, 0.995, 0.5, 0.9995, 1, "R"),
    "DoorKey-8x8": _row(1024, 1, "adamw", 0.01, 0.9995, 0.05, 1.0, 1),
    "Dynamic-Obstacles-6x6-Random": _row(512, 2, "adam", 0.01, 0.999, 0.05, 1.0, 4),
    "FourRooms": _row(2048, 4, "sgd", 0.01, 0.999, 0.05, 0.9995, 4, "R"),
    "MPE_simple_spread_v3": _row(128, 1, "adamw", 0.01, 1.0, 0.5, 1.0, 1),
    "MPE_simple_reference_v3": _row(4096, 1, "adamw", 0.01, 1.0, 0.1, 1.0, 1),
    "MPE_simple_speaker_listener_v4": _row(512, 1, "adamw", 0.01, 1.0, 0.5, 1.0, 1, "R"),
}
"""The paper's rows; settings that the table does not give are the defaults."""
GAMES = {"MPE_simple_spread_v3": 0.7, "MPE_simple_reference_v3": 0.3, "MPE_simple_speaker_listener_v4": 0.7}
"""What is left of sigma at the end of a run. The table just says "decay"; as a factor on each generation 0.3 would
leave nothing after ten."""

UNKNOWN: dict[str, Any] = {
    "population_size": 128,
    "rank": 1,
    "optimizer": "adam",
    "learning_rate": 0.02,
    "sigma": 0.1,
    "episodes": 1,
    "generations": 100,
    "common_random_numbers": "pair",
    "learning_rate_decay": 1.0,
    "sigma_decay": 1.0,
}
"""For two cores: few members and short runs, in which nothing has time to decay and SGD at the table's step sizes does
not get anywhere; each pair meets episodes of its own, so that so few members see enough of them. Shaping and the kind
of actions are the row's."""
_NORMAL: dict[str, Any] = {"learning_rate": 0.01, "deterministic": True, "normalize_observations": True}
_KINETIX: dict[str, Any] = {"population_size": 32, "episode_length": 128, "num_envs": 16, "generations": 30}
SMALL: dict[str, dict[str, Any]] = {
    "CartPole-v1": {"learning_rate": 0.03, "population_size": 256, "validate_every": 5, "target": 490.0},
    "Pendulum-v1": _NORMAL | {"population_size": 256, "generations": 250, "target": -200.0},
    "Ant": _NORMAL | {"population_size": 64, "episode_length": 200, "num_envs": 32, "generations": 30},
    "Humanoid": _NORMAL | {"population_size": 32, "episode_length": 200, "num_envs": 16},
    "InvertedDoublePendulum": _NORMAL | {"learning_rate": 0.03, "episode_length": 300, "target": 2500.0},
    "Craftax-Classic-Symbolic": {"population_size": 64, "episode_length": 200, "num_envs": 32, "generations": 30},
    "Craftax-Symbolic": {"population_size": 32, "episode_length": 200, "num_envs": 16, "generations": 30},
    "Knapsack": {"population_size": 512, "deterministic": True},
    "l/hard_pinball": _KINETIX,
    "m/h17_thrustcontrol_left": _KINETIX,
    "s/h1_thrust_over_ball": _KINETIX,
    "MPE_simple_spread_v3": {"learning_rate": 0.003, "generations": 400, "validation_episodes": 512},
    "MPE_simple_reference_v3": {"generations": 300, "validation_episodes": 512},
    "MPE_simple_speaker_listener_v4": {"generations": 300, "validation_episodes": 512},
}
"""What the variant for two cores changes of a row beside; chosen by measurement, see benchmarks/rl.md."""
HEAVY = ("Ant", "Humanoid", "Craftax-Classic-Symbolic", "Craftax-Symbolic", *(name for name in PAPER if "/" in name))
"""Environments that cost more than the policy: OpenES too takes its members there all at once."""
DENSE_CHUNK = 16
"""Members of OpenES elsewhere, whose dense matrices stay in a core's cache."""
LONG: dict[str, Any] = {"generations": 2000, "validate_every": 50, "validation_episodes": 256}
"""The paper's table tells no lengths of runs."""


STEPS = {"small": 500_000, "paper": 20_000_000}
"""Environment steps of a baseline."""


def settings_for(kind: type[C], env: str, preset: str, algorithm: str) -> C:
    """The settings of an environment.

    Args:
      kind: `RlConfig` or `MarlConfig`.
      env: as `environments.registry.make` takes it; one without a row gets the defaults.
      preset: "small" or "paper".
      algorithm: of that command.
    Raises:
      UsageError: there is no such environment, preset or algorithm.
    """
    if preset not in ("small", "paper"):
        raise UsageError(f"expected --preset small or paper, got {preset!r}; choose one of these")
    choices = get_args(get_type_hints(kind).get("algorithm"))
    if algorithm not in choices:
        raise UsageError(f"expected --algorithm among {', '.join(choices)}, got {algorithm!r}; choose one of these")
    name = canonical_name(env)
    row = PAPER.get(name, {})
    chosen = row | LONG if preset == "paper" else row | UNKNOWN | SMALL.get(name, {})
    if preset == "small":
        dense = algorithm == "openes" and name not in HEAVY
        chosen = chosen | {"chunk_size": DENSE_CHUNK if dense else chosen["population_size"]}
    if name in GAMES:
        chosen = chosen | {"sigma_decay": GAMES[name] ** (1 / chosen["generations"])}
    if algorithm in BASELINES:
        chosen = chosen | _iterations(name, preset)
    names: dict[str, Any] = {"env": name, "preset": preset, "algorithm": algorithm}
    return kind(**names, **chosen)


def _iterations(name: str, preset: str) -> dict[str, Any]:
    """As many iterations of a baseline as its steps come to."""
    settings = ppo_settings(name)
    settings = settings if preset == "paper" else settings.small(SearchConfig().num_envs)
    count = max(1, STEPS[preset] // settings.batch)
    return {"generations": count, "validate_every": max(1, count // 20)}
