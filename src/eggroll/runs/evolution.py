"""Settings of the jobs whose population surrounds a mean model, and their schedules."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from eggroll.runs.settings import RunSettings, check_at_least, expect

if TYPE_CHECKING:
    from jax.sharding import Mesh


@dataclass(frozen=True)
class PopulationSettings(RunSettings):
    """What these jobs have in common; a job gives its own defaults to some."""

    seed: int = 0
    """Seed of start parameters, noise and data, in [0, 2**64)."""
    population_size: int = 256
    """Members of the population, even."""
    rank: int = 1
    """Rank of a perturbation."""
    sigma: float = 0.02
    """Standard deviation of a perturbation, in weight units."""
    sigma_decay: float = 1.0
    """Factor on sigma for each generation, in (0, 1]."""
    generations: int = 100
    """Updates to make; of an algorithm that follows a gradient, iterations."""
    max_seconds: float = 0.0
    """Seconds of training, without compilation and validations, after which the run ends; 0: no limit."""
    target: float | None = None
    """Result of a validation at which the run ends; none: it makes all generations."""
    validate_every: int = 10
    """Generations between validations of the mean."""
    chunk_size: int | Literal["auto"] = "auto"
    """Members evaluated at once; changes speed and memory, results only by rounding."""
    devices: int | Literal["auto"] = "auto"
    """Devices that share the population, of all processes together; changes results only by rounding."""
    update: Literal["auto", "redraw", "reduce", "rows"] = "auto"
    """How devices share the update: each draws all noise, sums its own members, or updates its own rows."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rank", "generations", "validate_every"):
            check_at_least(name, getattr(self, name), 1)
        expect(0 < self.sigma < math.inf, "sigma", "> 0 and finite", self.sigma)
        expect(0 < self.sigma_decay <= 1, "sigma_decay", "in (0, 1]", self.sigma_decay)
        expect(0 <= self.max_seconds < math.inf, "max_seconds", "of at least 0", self.max_seconds)
        expect(self.target is None or math.isfinite(self.target), "target", "as a number", self.target)
        expect(0 <= self.seed < 2**64, "seed", "in [0, 2**64)", self.seed)
        self._check_members()

    def _check_members(self) -> None:
        size, chunk, devices = self.population_size, self.chunk_size, self.devices
        expect(size >= 2 and size % 2 == 0, "population_size", "even, since members come in pairs", size)
        expect(size < 2**31, "population_size", "below 2**31, as members are numbered in int32", size)
        expect(chunk == "auto" or (chunk >= 2 and chunk % 2 == 0), "chunk_size", "auto or even", chunk)
        shares = devices == "auto" or (devices >= 1 and size // 2 % devices == 0)
        expect(shares, "devices", f"auto or a divisor of the {size // 2} pairs", devices)


@dataclass(frozen=True)
class GroupSettings(PopulationSettings):
    """Of those whose members have data in common, group by group."""

    group_size: int = 0
    """Members that have the same prompts, even; 0: all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        size, group = self.population_size, self.group
        fits = group >= 2 and group % 2 == 0 and size % group == 0
        expect(fits, "group_size", f"even and a divisor of population size {size}", group)

    @property
    def group(self) -> int:
        """Members that have the same prompts."""
        return self.group_size or self.population_size

    @property
    def groups(self) -> int:
        """How many sets of prompts a generation has."""
        return self.population_size // self.group


@dataclass(frozen=True)
class EvolutionSettings(PopulationSettings):
    """Of those that evolve float weights by an optimiser."""

    optimizer: str = "adam"
    """Optimiser that takes the estimated gradient."""
    learning_rate: float = 0.001
    """Step size at generation 0."""
    rate_units: Literal["paper", "plain"] = "plain"
    """paper: SGD's step size is times sigma^2 sqrt(population size), as the paper's tables mean it; plain: as it is."""
    learning_rate_decay: float = 1.0
    """Factor on the step size for each generation, in (0, 1]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        expect(0 < self.learning_rate < math.inf, "learning_rate", "> 0 and finite", self.learning_rate)
        decay = self.learning_rate_decay
        expect(0 < decay <= 1, "learning_rate_decay", "in (0, 1]", decay)


def sigma_at(config: PopulationSettings, generation: Any) -> Any:
    """The perturbation's size in a generation, () float32."""
    return config.sigma * _power(config.sigma_decay, generation)


def learning_rate_at(config: EvolutionSettings, generation: Any) -> Any:
    """The step size that optax gets in a generation, () float32.

    The paper's code steps by lr·(σ/√N)·Σ u_i E_i, where ours estimates 1/(N·σ)·Σ u_i E_i: its rate for SGD is lr·σ²·√N
    of ours, with σ as it stands in that generation. Adam does not care.
    """
    rate = config.learning_rate * _power(config.learning_rate_decay, generation)
    if config.optimizer == "sgd" and config.rate_units == "paper":
        rate = rate * sigma_at(config, generation) ** 2 * math.sqrt(config.population_size)
    return rate


def mesh_of(config: PopulationSettings, most: int | None = None) -> Mesh | None:
    """The devices that share the population; none: one does everything.

    Args:
      most: of the devices there are, where settings leave it open; none: all.
    Raises:
      UsageError: there are not as many.
    """
    import jax

    from eggroll.core.mesh import device_mesh, largest_divisor

    count = config.devices
    if count == "auto":
        count = largest_divisor(config.population_size // 2, jax.device_count() if most is None else most)
    present = jax.device_count()
    expect(count <= present, "devices", f"of at most {present}, as many as there are, or auto", count)
    return device_mesh(count) if count > 1 else None


def _power(factor: float, generation: Any) -> Any:
    import jax.numpy as jnp

    return factor ** jnp.asarray(generation, jnp.float32)
