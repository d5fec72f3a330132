"""What a job hands to the loop, and nothing of what it is about.

An application builds a `Learner` (start parameters and the update: all that replay needs) and, around it, a `Job` (how
members are evaluated, what is measured and how often).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
import numpy as np

from eggroll.runs.frames import WEIGHTS
from eggroll.runs.metrics import Metrics
from eggroll.runs.trees import as_arrays, sha256_by_leaf

if TYPE_CHECKING:
    from eggroll.runs.evolution import PopulationSettings

FORMAT = 1
"""Of the header."""
P = TypeVar("P")
"""Parameters of a job: a pytree of arrays."""


class RunState(NamedTuple):
    """Everything that a run carries from one generation to the next; each a pytree of arrays."""

    parameters: Any
    optimizer: Any = ()  # what the update keeps
    shared: Any = ()  # what the evaluation keeps for all members together, such as observation statistics
    carry: Any = None  # what it keeps for each member; None: nothing, and a replay needs no evaluation


class Evaluated(NamedTuple):
    """What the evaluation of one generation gave."""

    weights: np.ndarray  # one per antithetic pair
    carry: Any
    metrics: Metrics
    shared: Any = ()
    lost: tuple[int, ...] = ()  # members that nobody evaluated


@runtime_checkable
class Evaluator(Protocol):
    """Members → weights: evaluates the whole population of one generation."""

    def __call__(self, state: RunState, generation: int, /) -> Evaluated:
        """May use up the buffers of `state.carry`."""
        ...


@runtime_checkable
class Updater(Protocol):
    """Decoded weights → new parameters."""

    def __call__(self, parameters: Any, optimizer: Any, weights: Any, generation: int, /) -> tuple[Any, Any, Metrics]:
        """Returns the new parameters, the optimiser's new state and metrics of the step."""
        ...


class Part(NamedTuple):
    """What the evaluation of some pairs gave."""

    values: np.ndarray  # (pairs, …) int8 signs, or float32 scores
    tally: np.ndarray  # (numbers,) int64 or float64: what metrics need of them
    carry: Any


class RangeWork(NamedTuple):
    """How any range of the population is evaluated, and what the parts come to; a pure function of its arguments."""

    evaluate: Callable[[RunState, int, int, int], Part]
    """(state with the carry of that range, generation, first pair, pairs); may use up the carry's buffers."""
    combine: Callable[[np.ndarray, Sequence[np.ndarray], RunState, int], Evaluated]
    """(values of all pairs in order, tallies of the ranges in order, state, generation) → weights, metrics, shared."""
    start_carry: Callable[[int, int], Any] | None
    """(first pair, pairs) → carry at generation 0; None: the evaluation keeps nothing for each member."""
    cut: Callable[[Any, int, int], Any] = lambda carry, first, pairs: carry
    """(carry of all members, first pair, pairs) → that of a range."""
    join: Callable[[Sequence[Any]], Any] = lambda carries: None
    """Carries of ranges that tile the population, in order → that of all members, in NumPy."""


@dataclass
class Learner(Generic[P]):
    """What rebuilds a run from its journal.

    Args:
      parameters, optimizer: at generation 0.
      update: decoded weights to new parameters.
      frames: "ternary", "float16" or "float32", what the journal holds of a weight.
      weights: how many a generation has, one per pair.
      settings: JSON for the journal's header: everything of the strategy that the update depends on.
      environment: JSON beside that of `environment.environment`: what the rounding of floats depends on, such as how
        devices share the work. Another one is no other run.
    """

    parameters: P
    optimizer: Any
    update: Updater
    frames: str
    weights: int
    settings: dict[str, Any]
    environment: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.frames not in WEIGHTS:
            raise ValueError(f"expected frames among {', '.join(WEIGHTS)}, got {self.frames!r}; choose one of these")

    @property
    def is_integer(self) -> bool:
        """Whether the same bits are promised on any machine."""
        return all(np.issubdtype(leaf.dtype, np.integer) for leaf in jax.tree.leaves(self.parameters))


@dataclass
class Job(Generic[P]):
    """Everything about a job that the loop needs.

    Args:
      name: sub-command, shown on the bar.
      config: JSON, everything that starts the job again; stands in the journal's header.
      evaluate: the whole population of one generation; generation is also the data position.
      validate: state → metrics, called before generation 0, every `validate_every` and after the last.
      main_metric: the metric that the bar shows.
      units: what throughput counts ("bytes"), and how many of it one generation processes, or the name of the metric
        that tells.
      carry, shared: at generation 0; see `RunState`.
      sample: parameters → text, noted with every validation.
      snapshot_every, snapshots_kept, validate_every: in generations; how many.
      data: hash of what the members see, compared between processes.
      gather: state → the same with all of its carry in this process, before a snapshot; where it is elsewhere.
      target: of the main metric; a validation that reaches it ends the run.
      falls: a lower main metric is a better one.
      most_seconds: of training, validations and the first generation, which compiles, not counted; then the run ends
        after its generation. 0: no limit.
    """

    name: str
    config: dict[str, Any]
    learner: Learner[P]
    evaluate: Evaluator
    validate: Callable[[RunState], Metrics]
    main_metric: str
    units: tuple[str, int | str]
    generations: int
    validate_every: int
    snapshot_every: int
    snapshots_kept: int = 2
    carry: Any = None
    shared: Any = ()
    sample: Callable[[P], str] | None = None
    trackers: tuple[str, ...] = ()
    log_every: int = 0
    data: str = ""
    gather: Callable[[RunState], RunState] | None = None
    target: float | None = None
    most_seconds: float = 0.0
    falls: bool = False

    def start(self) -> RunState:
        """The state at generation 0, in buffers of its own."""
        state = RunState(self.learner.parameters, self.learner.optimizer, self.shared, self.carry)
        return jax.tree.map(lambda leaf: leaf.copy() if hasattr(leaf, "copy") else leaf, state)

    def reaches(self, metrics: Metrics) -> bool:
        """Whether these metrics of a validation are as good as the run is to become."""
        found = metrics.get(self.main_metric)
        if self.target is None or found is None:
            return False
        return found <= self.target if self.falls else found >= self.target

    def header(self, environment: dict[str, Any]) -> dict[str, Any]:
        """What the journal says before its first frame."""
        learner = self.learner
        optimizer = as_arrays(learner.optimizer)
        return {
            "format": FORMAT,
            "job": self.name,
            "config": self.config,
            "strategy": learner.settings,
            "frames": learner.frames,
            "weights": learner.weights,
            "start_sha256": sha256_by_leaf(learner.parameters),
            "optimizer_state": {path: f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in optimizer.items()},
            "environment": environment,
        }


def job_of(config: PopulationSettings, learner: Learner[Any], evaluate: Evaluator, **parts: Any) -> Job[Any]:
    """A job with what the settings say; `parts` are the rest of `Job`."""
    settings = config.as_json()
    return Job(
        name=settings["job"],
        config=settings,
        learner=learner,
        evaluate=evaluate,
        generations=config.generations,
        validate_every=config.validate_every,
        snapshot_every=config.snapshot_every,
        snapshots_kept=config.snapshots_kept,
        trackers=config.track,
        log_every=config.log_every,
        target=config.target,
        most_seconds=config.max_seconds,
        **parts,
    )


def parameter_count(parameters: Any) -> int:
    """Elements of all leaves."""
    return sum(leaf.size for leaf in jax.tree.leaves(parameters))
