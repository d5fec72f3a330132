"""Means over seeds and environments as numbers: learning curves, their scale against PPO, and speed against OpenES."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float64

from eggroll.rl.comparison.settings import BASELINES, Environment, Setting
from eggroll.runs.report.charts import Curve
from eggroll.runs.report.groups import mean_and_error
from eggroll.runs.report.learning import Learned, Value, forward, mean_of, over_seeds

SHARES = 101
CLEAR = 3.0
"""Standard errors that PPO's improvement must have for a scale without a warning."""
NEARLY = 0.95
"""Share of the largest budget of an environment from which on a curve counts as having had all of it: populations and
episodes come in whole numbers, so that budgets are never quite the same."""

Axis = Literal["steps", "seconds"]


@dataclass(frozen=True)
class Scale:
    """`(return - start) / (end - start)` of PPO: 0 is its untrained policy, 1 is what it ends with."""

    start: float
    end: float

    def of(self, learned: Learned) -> Learned:
        """A learning curve on this scale."""
        span = abs(self.end - self.start)
        error = None if learned.error is None else learned.error / span
        return Learned(self._curve(learned.mean), error, tuple(self._curve(one) for one in learned.seeds))

    def _curve(self, curve: Curve) -> Curve:
        return Curve(curve.at, self.value(curve.value))

    def value(self, value: Value) -> Value:
        """A return on this scale."""
        return (value - self.start) / (self.end - self.start)


@dataclass(frozen=True)
class Ratio:
    """How many generations a setting makes while OpenES makes one: by the medians, and by opposite quartiles."""

    environment: str
    index: int
    median: float
    low: float
    high: float


def learned(setting: Setting, axis: Axis) -> Learned | None:
    """The learning curve of a setting, over the stretch for which every seed has values.

    Returns:
      None where no seed was evaluated at a known place, or the seeds have no stretch in common.
    """
    curves = []
    for trial in setting.trials:
        at = getattr(trial, axis)
        known = ~np.isnan(at)
        if known.any():
            curves.append(forward(at[known], trial.value[known]))
    return over_seeds(curves)


def improvement(setting: Setting) -> tuple[float, float | None] | None:
    """How much the return rose from start to end, and the standard error of that.

    Returns:
      The error over seeds; of one seed that over the episodes of its last evaluation, None without it. None where
      start or end are not known.
    """
    told = [trial for trial in setting.counted if trial.start is not None and trial.final is not None]
    rises = [trial.final - trial.start for trial in told if trial.final is not None and trial.start is not None]
    if not rises:
        return None
    return mean_of(rises), mean_and_error(rises)[1] if len(rises) > 1 else told[0].final_error


def scale_of(environment: Environment) -> tuple[Scale | None, str]:
    """PPO's scale on an environment, and what makes it doubtful; or None, and why there is none."""
    setting = environment.first(*BASELINES)
    if setting is None:
        return None, "no run of PPO"
    rise = improvement(setting)
    if rise is None:
        return None, "the return of PPO is not known at its start and its end"
    if not rise[0] > (rise[1] or 0.0):
        return None, "PPO did not improve by more than its standard error"
    told = [trial for trial in setting.counted if trial.start is not None and trial.final is not None]
    start = mean_of([trial.start for trial in told if trial.start is not None])
    end = mean_of([trial.final for trial in told if trial.final is not None])
    doubts = [] if any(trial.finished for trial in told) else ["PPO has not finished"]
    if rise[1] and rise[0] < CLEAR * rise[1]:
        doubts.append(f"PPO improved by only {rise[0] / rise[1]:.1f} standard errors")
    return Scale(start, end), ", ".join(doubts)


def over_environments(found: Sequence[Environment], index: int) -> tuple[Learned | None, int]:
    """The mean over environments of one label's normalised curve, by the share of the environment's steps.

    Returns:
      The curve, with its standard error over environments, and how many environments are in it.
    """
    curves = []
    for environment in found:
        scale, _ = scale_of(environment)
        setting = next((one for one in environment.settings if one.index == index), None)
        if scale is None or setting is None or (curve := learned(setting, "steps")) is None:
            continue
        ends = [one.mean.at[-1] for other in environment.settings if (one := learned(other, "steps")) is not None]
        budget = float(max(ends))
        end = float(curve.mean.at[-1])
        if budget <= 0:
            continue
        scaled = scale.of(curve).mean
        curves.append(replace(scaled, at=scaled.at / (end if end >= NEARLY * budget else budget)))
    return over_seeds([_even(curve) for curve in curves]), len(curves)


def _even(curve: Curve) -> Curve:
    """At even shares, so that the points of many environments do not add up."""
    shares = np.linspace(0, 1, SHARES)
    shares = shares[(shares >= curve.at[0]) & (shares <= curve.at[-1])]
    return Curve(shares, np.interp(shares, curve.at, curve.value)) if len(shares) else curve


def ratios(environment: Environment) -> list[Ratio]:
    """The speed of each setting of EGGROLL, where OpenES was timed too."""
    base = environment.first("openes")
    if base is None or not len(theirs := times_of(base)):
        return []
    low, middle, high = np.quantile(theirs, (0.25, 0.5, 0.75))
    found = []
    for setting in environment.settings:
        if setting.algorithm == "eggroll" and len(ours := times_of(setting)):
            ours_low, ours_middle, ours_high = np.quantile(ours, (0.25, 0.5, 0.75))
            spread = float(low / ours_high), float(high / ours_low)
            found.append(Ratio(environment.name, setting.index, float(middle / ours_middle), *spread))
    return found


def times_of(setting: Setting) -> Float64[np.ndarray, " generations"]:
    """Seconds of single generations, of all seeds together."""
    return np.concatenate([trial.generation_seconds for trial in setting.trials])
