"""Settings of `eggroll rl` and `eggroll marl`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from eggroll.core.errors import UsageError
from eggroll.runs.evolution import EvolutionSettings
from eggroll.runs.settings import check_at_least, expect

BASELINES = ("ppo", "ippo")


@dataclass(frozen=True)
class SearchConfig(EvolutionSettings):
    """What both commands have."""

    preset: Literal["small", "paper"] = "small"
    """Where the other defaults come from: small (two cores, minutes) or paper (the table of arXiv 2511.16652)."""
    seed: int = 0
    """Seed of start parameters, noise and episodes, in [0, 2**64)."""
    seeds: int = 1
    """Runs to make, with seeds from --seed on; they share one program, and the run folder holds a folder for each."""
    rank: int = 1
    """Rank of a perturbation; a matrix with a smaller side gets full-rank noise. OpenES has full rank everywhere."""
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    """Optimiser that takes the estimated gradient."""
    learning_rate: float = 0.01
    """Step size; for SGD in the units that --rate-units says."""
    rate_units: Literal["paper", "plain"] = "paper"
    """paper: SGD's step size is times sigma^2 sqrt(population size), as the paper's tables mean it; plain: as it is."""
    sigma: float = 0.1
    """Standard deviation of a perturbation, in weight units."""
    shaping: Literal["z_score", "centred_rank"] = "z_score"
    """How returns become utilities: standard scores or ranks, over the population."""
    deterministic: bool = False
    """Take the likeliest action (or the mean) instead of drawing one."""
    episodes: int = 1
    """Episodes of a member in a generation; its fitness is their mean return."""
    episode_length: int = 0
    """Most steps of an episode; 0: the environment's own limit."""
    common_random_numbers: Literal["generation", "pair"] = "generation"
    """Who meets the same episodes: all members of a generation, or just the two of a pair."""
    target: float | None = None
    """Mean return of the mean policy at which the run ends; none: it makes all generations."""
    validation_episodes: int = 64
    """Episodes of a validation of the mean policy, the same ones each time."""
    num_envs: int = 64
    """Most environments that a baseline steps side by side in the preset small; paper: as published."""
    tune: int = 0
    """Make so many short runs with settings drawn at random from the paper's ranges, and tell which is best."""
    render: Path | None = None
    """Write an episode of the mean policy at the end, a .gif or .html file; none: do not."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("seeds", "episodes", "validation_episodes", "num_envs"):
            check_at_least(name, getattr(self, name), 1)
        for name in ("episode_length", "tune"):
            check_at_least(name, getattr(self, name), 0)
        expect(0 <= self.seed < 2**64 - self.seeds, "seed", "in [0, 2**64)", self.seed)
        expect(not (self.tune and self.seeds > 1), "tune", "with --seeds 1", f"--seeds {self.seeds}")
        if self.render is not None and self.render.suffix.lower() not in (".gif", ".html"):
            raise UsageError(f"expected --render to end in .gif or .html, got {self.render}; name such a file")
        if self.coordinator:
            raise UsageError(
                f"expected eggroll {self.job} in one process, got --coordinator; use --ray or --listen instead"
            )
        if self.is_fleet and (self.seeds > 1 or self.is_baseline):
            raise UsageError(
                "expected --ray or --listen with eggroll or openes and --seeds 1, got another; leave the workers out"
            )

    @property
    def algorithm_name(self) -> str:
        """What learns."""
        return str(getattr(self, "algorithm", "eggroll"))

    @property
    def is_baseline(self) -> bool:
        """Whether it follows a gradient."""
        return self.algorithm_name in BASELINES

    @property
    def job(self) -> str:
        """Name of the command."""
        raise NotImplementedError

    def as_json(self) -> dict[str, Any]:
        """For `config.json` and the journal."""
        return super().as_json() | {"job": self.job}


@dataclass(frozen=True)
class RlConfig(SearchConfig):
    """Train a policy in an environment: by EGGROLL, by OpenES (full-rank noise), or by PPO as a baseline."""

    env: str = "CartPole-v1"
    """Environment: one of the paper's sixteen by its short name, or FAMILY/NAME."""
    algorithm: Literal["eggroll", "openes", "ppo"] = "eggroll"
    """What learns."""
    policy: str = ""
    """A network of your own as module:name (Flax, Equinox or two functions, see docs/rl.md); none: an MLP."""
    hidden: tuple[int, ...] = (256, 256, 256)
    """Units of the MLP's hidden layers, each with LayerNorm and ReLU."""
    normalize_observations: bool = False
    """Shift and scale observations by their running mean and deviation over the whole population."""

    def __post_init__(self) -> None:
        super().__post_init__()
        expect(all(units >= 1 for units in self.hidden), "hidden", "of at least one unit a layer", self.hidden)

    @property
    def job(self) -> str:
        """Name of the command."""
        return "rl"


@dataclass(frozen=True)
class MarlConfig(SearchConfig):
    """Train a team of agents in a game: by EGGROLL, by OpenES (full-rank noise), or by IPPO as a baseline."""

    env: str = "MPE_simple_spread_v3"
    """Game: MPE_simple_spread_v3, MPE_simple_reference_v3 or MPE_simple_speaker_listener_v4."""
    algorithm: Literal["eggroll", "openes", "ippo"] = "eggroll"
    """What learns."""
    parameters: Literal["shared", "own"] = "shared"
    """Whether agents share parameters (and are told who they are) or each has its own."""
    hidden: tuple[int, ...] = (64, 64, 64)
    """Units of the MLP's hidden layers, each with LayerNorm and ReLU."""

    @property
    def job(self) -> str:
        """Name of the command."""
        return "marl"


def for_seed(config: Any, index: int) -> Any:
    """The settings of one of the seeds."""
    return dataclasses.replace(config, seed=config.seed + index, seeds=1)
