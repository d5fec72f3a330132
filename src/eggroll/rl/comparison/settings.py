"""Which trials are compared with which: by environment, then by algorithm and setting, over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from eggroll.rl.comparison.trials import Trial, read_trial
from eggroll.runs.report.groups import Group, grouped, labelled, shortened
from eggroll.runs.report.history import Run

JOBS = ("rl", "marl")
BASELINES = ("ppo", "ippo")


@dataclass(frozen=True)
class Setting:
    """One algorithm with one setting on one environment.

    Args:
      label: the algorithm, and where several settings of it are on the environment, what sets this one apart.
      index: of the label among those of all environments, which chooses colour and dashes.
      trials: one for each seed.
    """

    label: str
    algorithm: str
    index: int
    trials: tuple[Trial, ...]

    @property
    def counted(self) -> tuple[Trial, ...]:
        """The trials whose end is a result: those that finished, or all of them while none has."""
        return tuple(trial for trial in self.trials if trial.finished) or self.trials


@dataclass(frozen=True)
class Environment:
    """What was run on one environment."""

    name: str
    settings: tuple[Setting, ...]

    def first(self, *algorithms: str) -> Setting | None:
        """The first setting of one of these algorithms."""
        return next((one for one in self.settings if one.algorithm in algorithms), None)


def environments(runs: Sequence[Run]) -> tuple[tuple[Environment, ...], tuple[str, ...]]:
    """The environments in order of their names, and the labels of all their settings."""
    ours = [run for run in runs if run.config.get("job") in JOBS]
    found: dict[str, dict[str, list[Group]]] = {}
    for group in grouped(ours):
        environment, algorithm = (_name(group.runs[0].config.get(key)) for key in ("env", "algorithm"))
        found.setdefault(environment, {}).setdefault(algorithm, []).append(group)
    labels = {name: labelled(algorithms) for name, algorithms in found.items()}
    # Sorted, so that an algorithm keeps its colour whichever run is named first: eggroll, openes, ppo.
    every = sorted({label for named in labels.values() for label, _, _ in named})
    order = {label: index for index, label in enumerate(every)}
    return tuple(
        Environment(
            name,
            tuple(
                Setting(label, algorithm, order[label], tuple(read_trial(run) for run in group.runs))
                for label, algorithm, group in sorted(labels[name], key=lambda one: order[one[0]])
            ),
        )
        for name in sorted(found, key=str.casefold)
    ), tuple(every)


def _name(value: object) -> str:
    return shortened(value) if isinstance(value, str) and value else "unknown"
