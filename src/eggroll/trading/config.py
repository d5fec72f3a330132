"""Settings of `eggroll trade pretrain` and `eggroll trade execute`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from eggroll.runs.evolution import EvolutionSettings, PopulationSettings
from eggroll.runs.settings import check_at_least, expect
from eggroll.trading.task import Task


@dataclass(frozen=True)
class MarketSettings:
    """Whose messages there are."""

    data: str = ""
    """Folder of LOBSTER files (*message*.csv and *orderbook*.csv), the last fifth of each held out; none: generated."""
    calibration: str = ""
    """Numbers of the generated market, from eggroll trade calibrate; none: those of the built-in one."""


@dataclass(frozen=True)
class PretrainConfig(PopulationSettings, MarketSettings):
    """Learn the messages of a limit order book, by cross-entropy and its gradient."""

    job: Literal["trade-pretrain"] = "trade-pretrain"
    """Name of the job, recorded."""
    population_size: int = 2
    """Not used: a gradient has no population."""
    generations: int = 1000
    """Steps of Adam."""
    learning_rate: float = 0.003
    """Largest step size; it rises for a twentieth of the steps and falls along a cosine."""
    batch: int = 16
    """Stretches of messages in a step."""
    length: int = 256
    """Messages of a stretch."""
    width: int = 64
    """Units of the model's residual stream."""
    layers: int = 4
    """S5 layers of the model."""
    state: int = 64
    """Numbers of each layer's state, even; conjugate pairs count as two."""
    markets: int = 64
    """Generated days to learn from."""
    market_messages: int = 8192
    """Messages of a generated day."""
    held_out: int = 8
    """Generated days held out."""
    sample: str = ""
    """LOBSTER message file whose perplexity is told apart, its order-book file beside it; none: not."""
    validate_every: int = 100
    """Steps between validations."""
    snapshot_every: int = 250
    """Steps between snapshots."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("batch", "width", "layers", "markets", "held_out"):
            check_at_least(name, getattr(self, name), 1)
        check_at_least("length", self.length, 2)
        check_at_least("market_messages", self.market_messages, self.length + 1)
        expect(self.state >= 2 and self.state % 2 == 0, "state", "even", self.state)
        expect(0 < self.learning_rate < 1, "learning_rate", "in (0, 1)", self.learning_rate)
        expect(not self.is_fleet and not self.coordinator, "ray", "left out: a gradient runs in one process", "workers")


@dataclass(frozen=True)
class ExecuteConfig(EvolutionSettings, MarketSettings):
    """Fine-tune a model of messages to execute an order, by EGGROLL."""

    job: Literal["trade-execute"] = "trade-execute"
    """Name of the job, recorded."""
    model: str = ""
    """Run folder of eggroll trade pretrain, or its weights; needed."""
    side: Literal["sell", "buy"] = "sell"
    """What is to be done with the quantity."""
    quantity: int = 400
    """Shares to trade within the horizon."""
    decisions: int = 16
    """Times that the model may replace its order within the horizon."""
    interval: int = 16
    """Messages of others between two decisions."""
    temperature: float = 1.0
    """Temperature of the draw of price and size; 0: the likeliest, which few perturbations change."""
    episodes: int = 8
    """Episodes of a member in a generation, the same ones for all."""
    risk_aversion: float = 1.0
    """Dollars of mean PnL that a dollar of its deviation over a member's episodes outweighs; 0: each episode counts by
    the rank of its PnL."""
    lora_rank: int = 4
    """Rank of the adapters on the model's projections, which alone evolve."""
    lora_alpha: float = 16.0
    """What the adapters add is times this over their rank."""
    population_size: int = 256
    """Members of the population, even."""
    generations: int = 60
    """Updates to make."""
    sigma: float = 0.1
    """Standard deviation of a perturbation, in weight units of the adapters."""
    optimizer: Literal["sgd", "adam"] = "adam"
    """Optimiser that takes the estimated gradient."""
    learning_rate: float = 0.02
    """Step size; for SGD in the units that --rate-units says."""
    learning_rate_decay: float = 0.95
    """Factor on the step size for each generation, in (0, 1]; without it the draws of price and size become certain."""
    rate_units: Literal["paper", "plain"] = "paper"
    """paper: SGD's step size is times sigma^2 sqrt(population size), as the paper's tables mean it; plain: as it is."""
    markets: int = 256
    """Order books that training episodes begin with, and as many again held out."""
    validation_episodes: int = 256
    """Held-out episodes that the mean and the plain ways are compared on."""
    validate_every: int = 10
    """Generations between validations of the mean."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("quantity", "decisions", "interval", "episodes", "lora_rank", "markets"):
            check_at_least(name, getattr(self, name), 1)
        check_at_least("validation_episodes", self.validation_episodes, 2)
        expect(0 <= self.risk_aversion < 1e6, "risk_aversion", "of at least 0", self.risk_aversion)
        expect(not self.risk_aversion or self.episodes > 1, "episodes", "of at least 2 with --risk-aversion", 1)
        expect(0 < self.lora_alpha < 1e6, "lora_alpha", "> 0", self.lora_alpha)
        expect(self.quantity <= 100_000, "quantity", "of at most 100,000 shares", self.quantity)
        expect(self.episodes <= self.markets, "episodes", f"of at most {self.markets} markets", self.episodes)
        expect(0 <= self.temperature < 100, "temperature", "in [0, 100)", self.temperature)
        expect(bool(self.model), "model", "as the run folder of eggroll trade pretrain", "none")
        expect(not self.coordinator, "coordinator", "left out; use --ray or --listen", self.coordinator)

    @property
    def lora_scale(self) -> float:
        """Factor of what the adapters add."""
        return self.lora_alpha / self.lora_rank

    @property
    def task(self) -> Task:
        """What is to be done."""
        return Task(self.side, self.quantity, self.decisions, self.interval)


@dataclass(frozen=True)
class GenerateConfig:
    """Write days of a generated market in LOBSTER's format."""

    out: Path
    """Folder for message and order-book files in LOBSTER's format."""
    days: int = 1
    """Files of each kind."""
    messages: int = 10_000
    """Messages of a day."""
    levels: int = 10
    """Levels of the order book on each side, at most 50."""
    seed: int = 0
    """Seed of the first day, in [0, 2**32)."""
    calibration: str = ""
    """Numbers of the market, from eggroll trade calibrate; none: those of the built-in one."""
    price: int = 5_850_000
    """Price at which the market opens, in 1/10,000 dollar."""

    def __post_init__(self) -> None:
        for name in ("days", "messages", "levels"):
            check_at_least(name, getattr(self, name), 1)
        expect(self.levels <= 50, "levels", "of at most 50", self.levels)
        expect(0 <= self.seed < 2**32 - self.days, "seed", "in [0, 2**32)", self.seed)
        expect(1_000_000 <= self.price <= 100_000_000, "price", "of 1,000,000 to 100,000,000", self.price)


@dataclass(frozen=True)
class CalibrateConfig:
    """Measure a day of LOBSTER's for the generated market."""

    messages: Path
    """LOBSTER message file; its order-book file, of ten levels or more, stands beside it."""
    out: Path
    """File for the numbers, JSON."""
    rounds: int = 16
    """Simulations by which spread and depth are brought to the record's."""

    def __post_init__(self) -> None:
        check_at_least("rounds", self.rounds, 0)
