"""What the curves of a report show, as numbers: which charts there are, and the lines, bands and extremes of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float64, Int64

from eggroll.runs.groups import Group
from eggroll.runs.history import Run, number
from eggroll.runs.series import Series
from eggroll.runs.wording import compact

MOST_CHARTS = 24
_POPULATION = ("fitness_mean", "fitness_std", "fitness_min", "fitness_max")


@dataclass(frozen=True)
class Curve:
    """A polyline; `below` and `above`, where they are there, are the edges of what surrounds it."""

    generation: Float64[np.ndarray, " bins"]
    middle: Float64[np.ndarray, " bins"]
    below: Float64[np.ndarray, " bins"] | None = None
    above: Float64[np.ndarray, " bins"] | None = None


@dataclass(frozen=True)
class GroupCurves:
    """What one group contributes to a chart.

    Args:
      group: index of the group, which chooses colour and line style.
      mean: the main line with its band; None where no generation has a value of every seed.
      extremes: lowest and highest values, thin lines without a middle of their own.
      runs: the single seeds, faint.
    """

    group: int
    mean: Curve | None
    extremes: Curve | None = None
    runs: tuple[Curve, ...] = ()


@dataclass(frozen=True)
class Chart:
    """One chart: a metric of all groups. `frame` limits the axis; what lies outside is told in `note`."""

    name: str
    note: str
    curves: tuple[GroupCurves, ...]
    frame: tuple[float, float] | None = field(default=None)


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
        names = [name for name in names if name not in _POPULATION]
        fitness = [_metric_chart("fitness_mean", groups)] if several else []
        fitness.append(_population_chart(groups))
    rest = [name for name in names if name not in main]
    timings = sorted((name for name in rest if _is_timing(name)), key=lambda name: not name.endswith("_per_second"))
    others = [_metric_chart(name, groups) for name in rest if name not in timings]
    charts = [_metric_chart(name, groups) for name in main] + fitness + others
    return tuple(charts[:MOST_CHARTS] + [_framed(_metric_chart(name, groups)) for name in timings[:MOST_CHARTS]])


def _is_timing(name: str) -> bool:
    return name == "seconds" or name.endswith(("_seconds", "_per_second"))


def _metric_chart(name: str, groups: Sequence[Group]) -> Chart:
    curves = []
    for index, group in enumerate(groups):
        if not (found := _series(group, name)):
            continue
        start, rows = _common(found)
        mean = None
        if len(start):
            middle = rows["mean"].mean(0)
            error = rows["mean"].std(0, ddof=1) / np.sqrt(len(found)) if len(found) > 1 else None
            edges = (None, None) if error is None else (middle - error, middle + error)
            mean = Curve(_middles(start, found[0].width), middle, *edges)
        single = tuple(Curve(one.generation, one.mean) for one in found) if len(found) > 1 else ()
        # Where several generations fell into one point, the mean alone would hide how much they differ.
        extremes = _extremes(start, found[0].width, rows["low"], rows["high"]) if found[0].width > 1 else None
        curves.append(GroupCurves(index, mean, extremes, single))
    return Chart(name, "", tuple(curves))


def _population_chart(groups: Sequence[Group]) -> Chart:
    """Mean, ±1 standard deviation, lowest and highest member; of a group, seeds together."""
    curves = []
    for index, group in enumerate(groups):
        if not (found := _series(group, "fitness_mean")):
            continue
        start, rows = _common(found)
        if not len(start):
            continue
        generation, middle = _middles(start, found[0].width), rows["mean"].mean(0)
        std = _at(start, _series(group, "fitness_std"), found[0].width)
        band = (middle - std["mean"], middle + std["mean"]) if std else (None, None)
        lowest = _at(start, _series(group, "fitness_min"), found[0].width)
        highest = _at(start, _series(group, "fitness_max"), found[0].width)
        extremes = Curve(generation, middle, lowest["low"], highest["high"]) if lowest and highest else None
        curves.append(GroupCurves(index, Curve(generation, middle, *band), extremes))
    return Chart("fitness", "population: mean, ±1 standard deviation, lowest and highest member", tuple(curves))


def _series(group: Group, name: str) -> list[Series]:
    """The metric in all runs of the group that have it, in bins of one width."""
    found = [run.series[name] for run in group.runs if name in run.series]
    width = max((series.width for series in found), default=1)
    return [series.rebinned(width) for series in found]


def _common(
    found: Sequence[Series],
) -> tuple[Int64[np.ndarray, " bins"], dict[str, Float64[np.ndarray, "runs bins"]]]:
    """The bins in which every run has a value, and the values there.

    A mean over fewer seeds would jump where one of them ends.
    """
    start = found[0].start
    for series in found[1:]:
        start = np.intersect1d(start, series.start)
    places = [np.searchsorted(series.start, start) for series in found]
    pick = lambda name: np.stack([getattr(one, name)[at] for one, at in zip(found, places, strict=True)])
    return start, {name: pick(name) for name in ("mean", "low", "high")}


def _at(
    start: Int64[np.ndarray, " bins"], found: Sequence[Series], width: int
) -> dict[str, Float64[np.ndarray, " bins"]] | None:
    """Mean, lowest and highest over seeds at the given bins, NaN where there is none; None without any value."""
    if not found:
        return None
    there, rows = _common([series.rebinned(max(width, series.width)) for series in found])
    known = np.isin(start, there)
    if not known.any():
        return None
    place = np.searchsorted(there, start[known])
    over_seeds = {"mean": rows["mean"].mean(0), "low": rows["low"].min(0), "high": rows["high"].max(0)}
    filled = {name: np.full(len(start), np.nan) for name in over_seeds}
    for name, values in over_seeds.items():
        filled[name][known] = values[place]
    return filled


def _middles(start: Int64[np.ndarray, " bins"], width: int) -> Float64[np.ndarray, " bins"]:
    return start + (width - 1) / 2


def _extremes(
    start: Int64[np.ndarray, " bins"],
    width: int,
    low: Float64[np.ndarray, "runs bins"],
    high: Float64[np.ndarray, "runs bins"],
) -> Curve | None:
    if not len(start):
        return None
    return Curve(_middles(start, width), low.min(0), low.min(0), high.max(0))


def _framed(chart: Chart) -> Chart:
    """Limit the axis of a timing chart: the first generation compiles, and would press all others to the edge."""
    values = np.concatenate([curve.middle for group in chart.curves for curve in group.runs or (group.mean,) if curve])
    low = max(float(values.min()), float(np.quantile(values, 0.1, method="higher")) / 2)
    high = min(float(values.max()), float(np.quantile(values, 0.9, method="lower")) * 2)
    outside = int(np.count_nonzero((values < low) | (values > high)))
    if not outside or not 0 < low < high:
        return chart
    ends = [f"down to {compact(float(values.min()))}"] if values.min() < low else []
    ends += [f"up to {compact(float(values.max()))}"] if values.max() > high else []
    note = f"{outside} point{'s' * (outside > 1)} outside the frame, {' and '.join(ends)}"
    return replace(chart, note=note, frame=(low, high))
