"""Settings drawn at random from the ranges that the paper searched, and settings as a command."""

from __future__ import annotations

import dataclasses
import shlex
from typing import Any

import numpy as np

from eggroll.rl.config import SearchConfig
from eggroll.rl.presets import settings_for
from eggroll.runs.settings import NOT_RECORDED

RANGES: dict[str, tuple[Any, ...]] = {
    "rank": (1, 2, 4),
    "learning_rate": (1e-3, 1e-2, 1e-1),
    "learning_rate_decay": (0.995, 0.999, 0.9995, 1.0),
    "sigma": (0.05, 0.2, 0.5),
    "sigma_decay": (0.995, 0.999, 0.9995, 1.0),
    "optimizer": ("sgd", "adam", "adamw"),
    "shaping": ("z_score", "centred_rank"),
    "deterministic": (False, True),
    "episodes": (1, 4, 8),
    "population_size": (512, 1024, 2048, 4096),
}
"""Setting → what it is drawn from; arXiv 2511.16652, the search behind figures 4a, 14 and 15."""


def draw(config: SearchConfig, trial: int) -> dict[str, Any]:
    """The settings of a trial: a function of the seed and its number, however many trials there are.

    The population is as given but in the preset paper, and the rank under OpenES, which has none.
    """
    bits = np.random.PCG64(np.random.SeedSequence(config.seed, spawn_key=(trial,)))
    generator = np.random.Generator(bits)
    drawn = {name: choices[int(generator.integers(len(choices)))] for name, choices in RANGES.items()}
    if config.preset != "paper":
        drawn["population_size"] = config.population_size
    if config.algorithm_name == "openes":
        drawn["rank"] = config.rank
    return drawn


def drawn_of(config: SearchConfig) -> dict[str, Any]:
    """The settings that a draw decides on, as `config` has them."""
    return {name: getattr(config, name) for name in RANGES}


def command_line(config: SearchConfig) -> str:
    """`eggroll rl …` that makes the run of these settings again, in a fresh folder."""
    chosen = {name: str(getattr(config, name)) for name in ("env", "preset", "algorithm")}
    usual = settings_for(type(config), **chosen)
    words = ["eggroll", config.job, *(word for name, value in chosen.items() for word in _flag(name, value))]
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), field.name
        told = value != getattr(usual, name) or (name in RANGES and not isinstance(value, bool))
        if told and name not in (*NOT_RECORDED, *chosen):
            words += _flag(name, value)
    return shlex.join(words)


def _flag(name: str, value: Any) -> list[str]:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    if isinstance(value, tuple):
        return [f"--{flag}", *map(str, value)]
    return [f"--{flag}", str(value)]


def in_words(settings: dict[str, Any]) -> str:
    """What was drawn, for a line."""
    rate, sigma = (f"{settings[name]:g} × {settings[f'{name}_decay']:g}^t" for name in ("learning_rate", "sigma"))
    actions = "likeliest actions" if settings["deterministic"] else "drawn actions"
    return (
        f"{settings['optimizer']} {rate}, sigma {sigma}, rank {settings['rank']}, {settings['shaping']}, {actions}, "
        f"{settings['episodes']} episodes, population {settings['population_size']:,}"
    )
