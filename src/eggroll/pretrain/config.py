"""Settings of `eggroll pretrain`, and its presets."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from eggroll.core.errors import UsageError
from eggroll.integer.model import Config
from eggroll.integer.update import alpha_at
from eggroll.runs.settings import RunSettings, check_at_least

MOST_PARAMETERS = 2**33
"""Eight gibibytes of int8; a width out of a forged journal would ask for any amount."""
MOST_MEMBERS = 2**26
"""At rank 1; see `integer.update.update`."""


@dataclass(frozen=True)
class PretrainConfig(RunSettings):
    """Pretrain a byte-level language model in pure int8, without gradients."""

    preset: str = "demo"
    """Where the other defaults come from: demo (minutes on two cores), paper, or tiny (seconds)."""
    data: tuple[str, ...] = ()
    """Files, folders, globs (.txt .py .md .jsonl .npy) or hf:NAME; none: the Python standard library's sources."""
    start_from: str = ""
    """Parameters to start from: a run, a snapshot or a .safetensors file; none: fresh ones."""
    seed: int = 0
    """Seed of start parameters and noise, in [0, 2**64)."""
    layers: int = 1
    """Blocks of the model."""
    width: int = 16
    """Units of the residual stream, a power of 4."""
    population_size: int = 4096
    """Members of the population, all devices together; even."""
    group_size: int = 8
    """Members that read the same bytes; even, divides the population size."""
    seq_len: int = 32
    """Bytes that a member reads in one generation."""
    generations: int = 2800
    """Updates to make."""
    rank: int = 1
    """Rank of a perturbation, a power of 4."""
    sigma_shift: int = 3
    """Perturbation size: a standard deviation of 2^-N, in units of 1.0 (16 weight steps)."""
    alpha: float = 4.0
    """Fraction of weights that chance alone would move; above 1 it decays from 1 as 1/((2^alpha - 1) t/decay + 1)."""
    decay: float = 8000.0
    """Generations in which that decay runs its course."""
    chunk_size: int | Literal["auto"] = "auto"
    """Members evaluated at once; changes speed and memory, no result."""
    devices: int | Literal["auto"] = "auto"
    """Devices that share the population, of all processes together; changes speed, no result."""
    update: Literal["auto", "redraw", "reduce", "rows"] = "auto"
    """How devices share the update: each draws all noise, sums its own members, or updates its own rows."""
    validation_bytes: int = 262_144
    """Most bytes held out for validation, in whole documents."""
    validate_every: int = 400
    """Generations between validations."""
    snapshot_every: int = 200
    """Generations between snapshots; a killed run goes through those since the newest again."""
    sample_bytes: int = 160
    """Bytes of sample text to note at each validation; 0: none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        count = self.model().parameter_count
        if count > MOST_PARAMETERS:
            raise UsageError(
                f"expected a model of at most {MOST_PARAMETERS:,} parameters, got {count:,} with "
                f"--layers {self.layers} and --width {self.width}; lower one of these"
            )
        if self.alpha > 64:
            raise UsageError(f"expected --alpha of at most 64, got {self.alpha}; the default is 4")
        alpha_at(0, self.alpha, self.decay)
        for name in ("seq_len", "generations", "validate_every", "population_size", "group_size"):
            check_at_least(name, getattr(self, name), 1)
        check_at_least("sample_bytes", self.sample_bytes, 0)
        self._check_population()
        if not 0 <= self.seed < 2**64:
            raise UsageError(f"expected --seed in [0, 2**64), got {self.seed}; choose another seed")

    def _check_population(self) -> None:
        for name in ("population_size", "group_size"):
            value = getattr(self, name)
            if value % 2:
                flag = "--" + name.replace("_", "-")
                raise UsageError(
                    f"expected an even {flag}, since members come in pairs, got {value}; use {value - 1} or {value + 1}"
                )
        if self.population_size > MOST_MEMBERS // self.rank:
            raise UsageError(
                f"expected --population-size of at most {MOST_MEMBERS // self.rank:,} at rank {self.rank}, whose sums "
                f"are exact, got {self.population_size}; lower it"
            )
        if self.population_size % self.group_size:
            raise UsageError(
                f"expected --group-size to divide --population-size {self.population_size}, got {self.group_size}; "
                "powers of 2 do"
            )
        if self.chunk_size != "auto" and (self.chunk_size < 2 or self.population_size % self.chunk_size):
            raise UsageError(
                f"expected --chunk-size auto or an even divisor of --population-size {self.population_size}, "
                f"got {self.chunk_size}; choose auto"
            )
        if self.devices != "auto" and (self.devices < 1 or self.population_size // 2 % self.devices):
            raise UsageError(
                f"expected --devices auto or a divisor of the {self.population_size // 2} pairs of the population, got "
                f"{self.devices}; choose auto"
            )
        if self.chunk_size != "auto" and self.chunk_size % 2:
            raise UsageError(f"expected an even --chunk-size, got {self.chunk_size}; choose auto")

    def model(self) -> Config:
        """The model that these settings describe."""
        return Config(self.layers, self.width, self.sigma_shift, self.rank)

    def as_json(self) -> dict[str, Any]:
        """For `config.json` and the journal."""
        return super().as_json() | {"job": "pretrain"}


def preset(name: str) -> PretrainConfig:
    """The settings of a preset.

    Raises:
      UsageError: there is no such preset.
    """
    if name not in PRESETS:
        raise UsageError(f"expected --preset among {', '.join(PRESETS)}, got {name!r}; choose one of these")
    return dataclasses.replace(PRESETS[name], preset=name)


PRESETS = {
    "demo": PretrainConfig(),  # chosen by measurement; what was tried is in benchmarks/README.md
    "paper": PretrainConfig(
        layers=6,
        width=256,
        population_size=2**20,
        group_size=512,
        seq_len=100,
        generations=1000,
        sigma_shift=4,
        decay=1000.0,
        validation_bytes=1_000_000,
        validate_every=50,
        snapshot_every=50,
    ),
    "tiny": PretrainConfig(
        width=16,
        population_size=256,
        group_size=16,
        seq_len=16,
        generations=30,
        sigma_shift=4,
        decay=30.0,
        validation_bytes=8192,
        validate_every=10,
        snapshot_every=10,
    ),
}
