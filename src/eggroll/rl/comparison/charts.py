"""The pictures of a comparison: learning curves as charts of the report, and bars of relative speed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from eggroll.rl.comparison.curves import Axis, Ratio, Scale, learned, over_environments, scale_of
from eggroll.rl.comparison.settings import Environment
from eggroll.runs.report.charts import Chart
from eggroll.runs.report.curves import Ink, line_style, plain_axes
from eggroll.runs.report.learning import Learned
from eggroll.runs.report.markup import drawable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ACROSS: dict[Axis, str] = {"steps": "environment steps", "seconds": "wall-clock seconds"}
LONGEST_NAME = 18
"""Characters of an environment beside its bars on the page."""
_BAR = 0.8


def return_chart(environment: Environment, axis: Axis) -> Chart | None:
    """Returns of all settings on an environment; None while there are none."""
    return _chart(environment, axis, None, "return")


def normalised_chart(environment: Environment) -> Chart | None:
    """The same against environment steps on PPO's scale; without one the returns as they are, and a note why."""
    scale, why = scale_of(environment)
    if scale is None:
        return _chart(environment, "steps", None, f"return, not normalised: {why}")
    return _chart(environment, "steps", scale, "normalised return" + (f"; {why}" if why else ""))


def overall_chart(found: Sequence[Environment], labels: Sequence[str]) -> Chart | None:
    """The mean normalised return over environments by the share of their steps; None where nothing is normalised."""
    curves, counts = [], {}
    for index, label in enumerate(labels):
        curve, count = over_environments(found, index)
        if curve is not None:
            curves.append(Learned(curve.mean, curve.error, ()).as_curves(index))
            counts[label] = count
    if not curves:
        return None
    each = set(counts.values())
    told = f"{each.pop()}" if len(each) == 1 else ", ".join(f"{label} {count}" for label, count in counts.items())
    note = f"mean normalised return; environments: {told}"
    return Chart("All environments", note, tuple(curves), across="share of the environment steps", reference=1.0)


def _chart(environment: Environment, axis: Axis, scale: Scale | None, note: str) -> Chart | None:
    curves = []
    for setting in environment.settings:
        if (curve := learned(setting, axis)) is not None:
            curves.append((scale.of(curve) if scale is not None else curve).as_curves(setting.index))
    if not curves:
        return None
    reference = None if scale is None else 1.0
    return Chart(environment.name, note, tuple(curves), across=ACROSS[axis], reference=reference)


def draw_ratios(axes: Axes, found: Sequence[Ratio], ink: Ink, *, longest: int = LONGEST_NAME) -> None:
    """A bar for each ratio, whiskers over its spread, environments from top to bottom, and a line at 1."""
    names = list(dict.fromkeys(ratio.environment for ratio in found))
    indices = sorted({ratio.index for ratio in found})
    height = _BAR / len(indices)
    for place, index in enumerate(indices):
        ours = [ratio for ratio in found if ratio.index == index]
        at = [names.index(ratio.environment) - _BAR / 2 + (place + 0.5) * height for ratio in ours]
        median = np.array([ratio.median for ratio in ours])
        spread = np.abs(np.array([[ratio.low, ratio.high] for ratio in ours]).T - median[None])
        style = line_style(index, ink)
        axes.barh(at, median, height * 0.9, color=style["color"], alpha=0.35, linewidth=0)
        axes.barh(at, median, height * 0.9, fill=False, edgecolor=style["color"], linestyle=style["linestyle"])
        axes.errorbar(median, at, xerr=spread, fmt="none", ecolor=ink.text, elinewidth=1.1, capsize=2)
    axes.axvline(1, color=ink.text, linewidth=1.1)
    axes.set_xlim(0, 1.06 * max(1.0, *(ratio.high for ratio in found)))
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_yticks(range(len(names)), [drawable(name, longest=longest) for name in names])
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
    axes.set_xlabel("speed of a generation, OpenES = 1", color=ink.text, labelpad=2)
    plain_axes(axes, ink, grid="x")
