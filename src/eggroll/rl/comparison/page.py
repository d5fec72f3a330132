"""What the report of reinforcement learning shows before everything else: the sections of its page and its picture."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

from eggroll.rl.comparison.charts import draw_ratios, normalised_chart, overall_chart, return_chart
from eggroll.rl.comparison.curves import Axis, Ratio, ratios, scale_of
from eggroll.rl.comparison.picture import picture
from eggroll.rl.comparison.settings import BASELINES, Environment, environments
from eggroll.rl.comparison.table import results
from eggroll.runs.report.charts import Chart
from eggroll.runs.report.command import Extra
from eggroll.runs.report.curves import drawing
from eggroll.runs.report.groups import shortened
from eggroll.runs.report.history import Run
from eggroll.runs.report.learning import figure, legend
from eggroll.runs.report.markup import Markup, element, join, note
from eggroll.runs.report.wording import compact

MOST_ENVIRONMENTS = 32
"""Environments with charts; the table has all of them."""
_BARS_LEFT, _BAR_ROW = 132, 20
"""Pixels for the names beside the bars, and of the bars of one environment."""
_SCALE = (
    "Normalised return: 0 is the return of PPO's untrained policy, 1 what PPO ended with. Lines are means over seeds, "
    "bands ±1 standard error, faint lines single seeds. All environments: the mean over those that are normalised, "
    "± standard error over environments, by the share of an environment's steps; a line ends where one of its "
    "environments has no value of every seed."
)
_SPEED = (
    "Median time of a generation of OpenES divided by that of EGGROLL: above 1 EGGROLL is faster. Whiskers: from the "
    "lower quartile of one against the upper of the other to the reverse."
)


def compared(runs: Sequence[Run]) -> Extra:
    """The comparison of those of the runs that are of reinforcement learning."""
    found, labels = environments(runs)
    shown = found[:MOST_ENVIRONMENTS]
    keys = legend(labels)
    overall = overall_chart(found, labels)
    normalised = [chart for one in shown if (chart := normalised_chart(one)) is not None]
    speed = [ratio for one in found for ratio in ratios(one)]
    charts = [overall, *normalised] if overall is not None else normalised
    sections = [
        ("Return relative to PPO", _relative(found, overall, normalised, labels)),
        ("Speed relative to OpenES", _speed(speed, labels, keys)),
        ("Algorithms and environments", join(results(found), _notes(found))),
        ("Return against environment steps", join(keys, _charts(shown, "steps", labels))),
        ("Return against wall-clock time", join(keys, _charts(shown, "seconds", labels))),
    ]
    draw = functools.partial(picture, charts, speed, labels) if charts or speed else None
    return Extra("rl", tuple(sections), draw)


def _relative(
    found: Sequence[Environment], overall: Chart | None, normalised: Sequence[Chart], labels: Sequence[str]
) -> Markup:
    """Without any scale the charts would be those of another section again."""
    if overall is not None:
        figures = [figure(f"rl-n{index}", chart, labels) for index, chart in enumerate((overall, *normalised))]
        return join(legend(labels), note(_SCALE), element("div", *figures, class_="charts"))
    reasons: dict[str, list[str]] = {}
    for environment in found:
        scale, why = scale_of(environment)
        if scale is None:
            reasons.setdefault(why, []).append(environment.name)
    rows = [element("li", shortened(", ".join(names)), ": ", why) for why, names in reasons.items()]
    return join(element("p", "No environment can be normalised by PPO."), element("ul", *rows, class_="note"))


def _speed(found: Sequence[Ratio], labels: Sequence[str], keys: Markup) -> Markup:
    if not found:
        return element("p", "There are no times of eggroll and openes on one environment.")
    indices = sorted({ratio.index for ratio in found})
    told = []
    for index in indices:
        logs = [math.log(ratio.median) for ratio in found if ratio.index == index]
        told.append(
            f"{labels[index]} {compact(math.exp(sum(logs) / len(logs)))} × in the geometric mean of {len(logs)}"
        )
    ends = "; ".join(f"{labels[one.index]} on {one.environment} {compact(one.median)}" for one in found[:40])
    drawn = drawing(
        lambda axes, ink: draw_ratios(axes, found, ink),
        "rl-speed",
        f"speed of a generation relative to openes: {ends}",
        height=60 + max(_BAR_ROW, 13 * len(indices)) * len({ratio.environment for ratio in found}),
        left=_BARS_LEFT,
    )
    caption = element("figcaption", element("b", "Speed of a generation"), " ", "; ".join(told))
    return join(keys if len(indices) > 1 else None, note(_SPEED), element("figure", caption, drawn))


def _charts(shown: Sequence[Environment], axis: Axis, labels: Sequence[str]) -> Markup:
    charts = [chart for one in shown if (chart := return_chart(one, axis)) is not None]
    if not charts:
        return element("p", "There are no returns to draw yet.")
    figures = [figure(f"rl-{axis}{index}", chart, labels) for index, chart in enumerate(charts)]
    return element("div", *figures, class_="charts")


def _notes(found: Sequence[Environment]) -> Markup | None:
    """What a reader must know of the runs to read the pictures rightly."""
    rows = []
    for environment in found:
        if sum(setting.algorithm in BASELINES for setting in environment.settings) > 1:
            rows.append(f"{environment.name}: several settings of PPO; the first is the scale")
        if sum(setting.algorithm == "openes" for setting in environment.settings) > 1:
            rows.append(f"{environment.name}: several settings of openes; speed is relative to the first")
        for setting in environment.settings:
            for trial in setting.trials:
                if trial.not_finite:
                    rows.append(f"{shortened(trial.run.name)}: {trial.not_finite:,} returns are no finite number")
    if len(found) > MOST_ENVIRONMENTS:
        rows.append(f"charts are of the first {MOST_ENVIRONMENTS} of {len(found):,} environments")
    return element("ul", *(element("li", row) for row in rows[:100]), class_="note") if rows else None
