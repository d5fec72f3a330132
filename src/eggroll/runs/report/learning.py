"""Learning curves of several seeds as an application's comparison needs them: read, laid over each other, drawn."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from jaxtyping import Float64

from eggroll.runs.report.charts import Band, Chart, Curve, GroupCurves
from eggroll.runs.report.curves import PAPER, draw_chart, line_style, svg
from eggroll.runs.report.history import Run, json_lines, number
from eggroll.runs.report.markup import Markup, drawable, element
from eggroll.runs.report.tables import swatch
from eggroll.runs.report.wording import compact

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_POINTS = 200
COLUMNS = 4
_ROW = 2.5
"""Inches of a row of charts."""
Value = TypeVar("Value", float, np.ndarray)


@dataclass(frozen=True)
class Learned:
    """A value along an axis: the mean over seeds, its standard error where there are several, and each seed."""

    mean: Curve
    error: Float64[np.ndarray, " points"] | None
    seeds: tuple[Curve, ...]

    def as_curves(self, index: int) -> GroupCurves:
        """For a chart; `index` chooses colour and dashes."""
        band = None
        if self.error is not None:
            band = Band(self.mean.at, self.mean.value - self.error, self.mean.value + self.error)
        return GroupCurves(index, self.mean, band, None, self.seeds)


def mean_of(values: Sequence[Value]) -> Value:
    """The mean, added up in order, so that a curve's last point and the mean of the finals are the same bits."""
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total / len(values)


def read_metrics(run: Run, names: Sequence[str], value: str) -> tuple[list[dict[str, float]], int]:
    """What is known of each generation, in their order, NaN for the rest; and how many of `value` were no number.

    Read once more, since those in `Run` are thinned, so that sums over them would be blurred. A run that was killed may
    have gone through a generation again: what is told last counts.
    """
    found: dict[int, dict[str, float]] = {}
    not_finite: dict[int, bool] = {}
    for line in json_lines(run.path / "metrics.jsonl", []):
        generation = line.get("generation")
        if type(generation) is not int or not 0 <= generation < 2**53:
            continue
        kept = found.setdefault(generation, {"generation": float(generation)} | dict.fromkeys(names, np.nan))
        # Replaying a journal is no training: its seconds would pass for those of a generation.
        told = {name: number(line.get(name)) for name in names if name != "seconds" or not line.get("replayed")}
        kept |= {name: known for name, known in told.items() if known is not None}
        if value in line:
            not_finite[generation] = told[value] is None
    return [found[generation] for generation in sorted(found)], sum(not_finite.values())


def elapsed(seconds: Float64[np.ndarray, " lines"]) -> Float64[np.ndarray, " lines"]:
    """Seconds since the start; a generation whose own are not known (it was replayed) counts as the median."""
    if np.isnan(seconds).all():
        return seconds
    return np.cumsum(np.where(np.isnan(seconds), np.nanmedian(seconds), seconds))


def forward(at: Float64[np.ndarray, " n"], value: Float64[np.ndarray, " n"]) -> Curve:
    """The curve without steps back, which no count makes; of evaluations at one place the last counts."""
    ahead = at >= np.maximum.accumulate(at)
    at, value = at[ahead], value[ahead]
    last = np.append(at[1:] != at[:-1], True)
    return Curve(at[last], value[last])


def over_seeds(curves: Sequence[Curve]) -> Learned | None:
    """Mean ± standard error of curves on a common grid, by linear interpolation between their points.

    The grid holds every point of every curve in the common stretch; where these are too many, `MOST_POINTS` at even
    distances.
    """
    if not curves:
        return None
    first, last = max(float(curve.at[0]) for curve in curves), min(float(curve.at[-1]) for curve in curves)
    grid = np.unique(np.concatenate([curve.at for curve in curves]))
    grid = grid[(grid >= first) & (grid <= last)]
    if not len(grid):
        return None
    if len(grid) > MOST_POINTS:
        grid = np.linspace(first, last, MOST_POINTS)
    values = [np.interp(grid, curve.at, curve.value) for curve in curves]
    error = np.std(values, axis=0, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else None
    several = tuple(Curve(grid, value) for value in values) if len(values) > 1 else ()
    return Learned(Curve(grid, mean_of(values)), error, several)


def legend(labels: Sequence[str]) -> Markup:
    """Which colour is whose, on the page."""
    rows = [element("li", swatch(index), " ", label) for index, label in enumerate(labels)]
    return element("ul", *rows, class_="legend")


def figure(prefix: str, chart: Chart, labels: Sequence[str]) -> Markup:
    """A chart with its caption, and its ends in words for those who do not see it."""
    caption = element("figcaption", element("b", chart.name), " ", chart.note)
    lines = [(labels[one.group], one.mean.value) for one in chart.curves if one.mean is not None]
    ends = "; ".join(f"{label} from {compact(value[0])} to {compact(value[-1])}" for label, value in lines[:20])
    return element("figure", caption, svg(chart, prefix, f"{chart.name}: {chart.note} over {chart.across}: {ends}"))


def small_multiples(
    charts: Sequence[Chart], labels: Sequence[str], below: float = 0.0, draw: Callable[[Axes], None] | None = None
) -> bytes:
    """Charts side by side on white, with a legend above, as the bytes of a PNG.

    Args:
      below: inches of a last row that `draw` fills; 0: there is none.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    columns = max(1, min(COLUMNS, len(charts)))
    heights = [_ROW] * math.ceil(len(charts) / columns) + ([below] if below else [])
    out = io.BytesIO()
    with mpl.rc_context({"font.size": 9}):
        layout = ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.08)
        whole = Figure(figsize=(max(7.0, 3.4 * columns), sum(heights) + 0.4), layout=layout)
        grid = whole.add_gridspec(len(heights), columns, height_ratios=heights)
        for place, chart in enumerate(charts):
            _draw(whole.add_subplot(grid[place // columns, place % columns]), chart)
        if below and draw is not None:
            draw(whole.add_subplot(grid[-1, :]))
        _keys(whole, labels)
        whole.savefig(out, format="png", dpi=110, metadata={"Software": None})
    return out.getvalue()


def _draw(axes: Axes, chart: Chart) -> None:
    draw_chart(axes, chart, PAPER)
    axes.set_title(drawable(chart.name, longest=28), fontsize=9.5, loc="left", parse_math=False)
    axes.set_xlabel(chart.across, fontsize=8)
    told = "\n".join(textwrap.wrap(drawable(chart.note, longest=120), 32))
    axes.set_ylabel(told, fontsize=7.5, parse_math=False)


def _keys(whole: Figure, labels: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    keys = [Line2D([], [], **line_style(index, PAPER), linewidth=1.8) for index in range(len(labels))]
    names = [drawable(label, longest=60) for label in labels]
    columns = max(1, min(len(names), 6))
    drawn = whole.legend(keys, names, loc="outside upper left", frameon=False, handlelength=4, ncols=columns)
    for text in drawn.get_texts():
        text.set_parse_math(False)
