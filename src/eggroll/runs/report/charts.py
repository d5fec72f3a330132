"""What the curves of a report show, as numbers: which charts there are, and the lines, bands and extremes of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64

from eggroll.runs.report.groups import Group
from eggroll.runs.report.history import Run, number
from eggroll.runs.report.series import Series
from eggroll.runs.report.wording import compact

MOST_CHARTS = 24
POPULATION = ("fitness_mean", "fitness_std", "fitness_min", "fitness_max")
"""Metrics that share one chart."""


@dataclass(frozen=True)
class Curve:
    """A line; `at` are places along the axis of its chart."""

    at: Float64[np.ndarray, " bins"]
    value: Float64[np.ndarray, " bins"]


@dataclass(frozen=True)
class Band:
    """What lies between two lines; NaN where it is not known."""

    at: Float64[np.ndarray, " bins"]
    low: Float64[np.ndarray, " bins"]
    high: Float64[np.ndarray, " bins"]


@dataclass(frozen=True)
class GroupCurves:
    """What one group contributes to a chart.

    Args:
      group: index of the group, which chooses colour and line style.
      mean: the main line; None where no generation has a value of every seed.
      band: around the mean: ±1 standard error over seeds, or ±1 standard deviation of the population.
      extremes: lowest and highest values.
      runs: the single seeds, if there are several.
    """

    group: int
    mean: Curve | None
    band: Band | None = None
    extremes: Band | None = None
    runs: tuple[Curve, ...] = ()


@dataclass(frozen=True)
class Chart:
    """One chart: a metric of all groups.

    Args:
      frame: limits of the value's axis; what lies outside is told in `note`.
      across: what lies along the other axis.
      reference: a value that the curves are to be held against, drawn as a line.
    """

    name: str
    note: str
    curves: tuple[GroupCurves, ...]
    frame: tuple[float, float] | None = None
    across: str = "generation"
    reference: float | None = None


def main_metrics(runs: Sequence[Run]) -> list[str]:
    """What the runs are judged by: what they name so, what was measured before generation 0, else what is rare.

    A run without a summary does not name its validation metrics, but they are absent from most lines.
    """
    found: dict[str, None] = {}
    for run in runs:
        summary = run.summary or {}
        told = (summary.get("main_metric"), run.config.get("main_metric"))
        found |= dict.fromkeys(name for name in told if isinstance(name, str) and name in run.series)
        starts = (name.removeprefix("start_") for name in summary if name.startswith("start_"))
        found |= dict.fromkeys(name for name in starts if number(summary.get(name)) is not None)
    if not found:
        for run in runs:
            counts = {name: int(series.count.sum()) for name, series in run.series.items()}
            found |= dict.fromkeys(name for name, count in counts.items() if 2 * count < run.lines)
    return list(found)


def make_charts(groups: Sequence[Group], runs: Sequence[Run]) -> tuple[Chart, ...]:
    """The charts of a report: main metrics, fitness, the job's other metrics, throughput and seconds, in this order."""
    names = list(dict.fromkeys(name for run in runs for name in run.series))
    main = [name for name in main_metrics(runs) if name in names]
    several = any(len(group.runs) > 1 for group in groups)
    fitness = []
    if "fitness_mean" in names:
        names = [name for name in names if name not in POPULATION]
        fitness = [_metric_chart("fitness_mean", groups)] if several and "fitness_mean" not in main else []
        fitness += [chart for chart in (_population_chart(groups),) if chart.curves]
    rest = [name for name in names if name not in main]
    timings = sorted((name for name in rest if _is_timing(name)), key=lambda name: not name.endswith("_per_second"))
    others = [_metric_chart(name, groups) for name in rest if name not in timings]
    charts = [_metric_chart(name, groups) for name in main] + fitness + others
    return tuple(charts[:MOST_CHARTS] + [_framed(_metric_chart(name, groups)) for name in timings[:MOST_CHARTS]])


def _is_timing(name: str) -> bool:
    return name == "seconds" or name.endswith(("_seconds", "_per_second"))


def _metric_chart(name: str, groups: Sequence[Group]) -> Chart:
    """Of several seeds the mean ± standard error, and each of them."""
    curves = []
    for index, group in enumerate(groups):
        if not (found := _series(group, name, _width(group, (name,)))):
            continue
        generation, mean, low, high = _over_seeds(found)
        several = len(found) > 1
        band = None
        if several and len(generation):
            error = mean.std(0, ddof=1) / np.sqrt(len(found))
            band = Band(generation, mean.mean(0) - error, mean.mean(0) + error)
        # Where several generations fell into one point, the mean alone would hide how much they differ.
        extremes = Band(generation, low.min(0), high.max(0)) if found[0].width > 1 and len(generation) else None
        line = Curve(generation, mean.mean(0)) if len(generation) else None
        single = tuple(Curve(one.generation, one.mean) for one in found) if several else ()
        curves.append(GroupCurves(index, line, band, extremes, single))
    return Chart(name, "", tuple(curves))


def _population_chart(groups: Sequence[Group]) -> Chart:
    """Mean, ±1 standard deviation, lowest and highest member; of a group, seeds together."""
    curves = []
    for index, group in enumerate(groups):
        width = _width(group, POPULATION)
        if not (found := _series(group, "fitness_mean", width)):
            continue
        generation, values, *_ = _over_seeds(found)
        if not len(generation):
            continue
        mean = values.mean(0)
        std, lowest, highest = (_at(generation, _series(group, name, width)) for name in POPULATION[1:])
        band = Band(generation, mean - std[0], mean + std[0])
        curves.append(
            GroupCurves(index, Curve(generation, mean), band, Band(generation, lowest[1], highest[2])),
        )
    return Chart("fitness", "mean of the population, ±1 standard deviation, lowest and highest", tuple(curves))


def _width(group: Group, names: Sequence[str]) -> int:
    """The narrowest bins that all these metrics of all runs of the group can be brought to."""
    return max((run.series[name].width for run in group.runs for name in names if name in run.series), default=1)


def _series(group: Group, name: str, width: int) -> list[Series]:
    return [run.series[name].rebinned(width) for run in group.runs if name in run.series]


def _over_seeds(
    found: Sequence[Series],
) -> tuple[
    Float64[np.ndarray, " bins"],
    Float64[np.ndarray, "runs bins"],
    Float64[np.ndarray, "runs bins"],
    Float64[np.ndarray, "runs bins"],
]:
    """The generations at which every run has a value, and there the mean, lowest and highest of every run.

    A mean over fewer seeds would jump where one of them ends.
    """
    start = found[0].start
    for series in found[1:]:
        start = np.intersect1d(start, series.start)
    places = [np.searchsorted(series.start, start) for series in found]
    mean, low, high = (
        np.stack([getattr(series, name)[at] for series, at in zip(found, places, strict=True)])
        for name in ("mean", "low", "high")
    )
    return start + (found[0].width - 1) / 2, mean, low, high


def _at(generation: Float64[np.ndarray, " bins"], found: Sequence[Series]) -> Float64[np.ndarray, "3 bins"]:
    """Mean, lowest and highest over seeds at these generations, NaN where not every seed has a value."""
    filled = np.full((3, len(generation)), np.nan)
    if found:
        there, mean, low, high = _over_seeds(found)
        _, ours, theirs = np.intersect1d(generation, there, return_indices=True)
        filled[:, ours] = np.stack([mean.mean(0), low.min(0), high.max(0)])[:, theirs]
    return filled


def _framed(chart: Chart) -> Chart:
    """Limit the axis of a timing chart: the first generation compiles, and would press all others to the edge."""
    values = np.concatenate([curve.value for group in chart.curves for curve in group.runs or (group.mean,) if curve])
    low = max(float(values.min()), float(np.quantile(values, 0.1, method="higher")) / 2)
    high = min(float(values.max()), float(np.quantile(values, 0.9, method="lower")) * 2)
    outside = int(np.count_nonzero((values < low) | (values > high)))
    if not outside or not 0 < low < high:
        return chart
    ends = [f"down to {compact(float(values.min()))}"] if values.min() < low else []
    ends += [f"up to {compact(float(values.max()))}"] if values.max() > high else []
    note = f"{outside} point{'s' * (outside > 1)} outside the frame, {' and '.join(ends)}"
    return replace(chart, note=note, frame=(low, high))
