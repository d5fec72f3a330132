"""The comparison as one PNG: all environments together, each alone, and the bars of speed."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from eggroll.rl.comparison.charts import draw_ratios
from eggroll.rl.comparison.curves import Ratio
from eggroll.runs.report.charts import Chart
from eggroll.runs.report.curves import PAPER, draw_chart, line_style
from eggroll.runs.report.markup import drawable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 4
_ROW, _BAR_ROW = 2.5, 0.24
"""Inches of a row of charts, and of an environment's bars."""


def picture(charts: Sequence[Chart], found: Sequence[Ratio], labels: Sequence[str]) -> bytes:
    """Small multiples, on white, with a legend above; bytes of a PNG."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    columns = max(1, min(COLUMNS, len(charts)))
    heights = [_ROW] * math.ceil(len(charts) / columns)
    if found:
        heights.append(0.9 + _BAR_ROW * len({ratio.environment for ratio in found}))
    out = io.BytesIO()
    with mpl.rc_context({"font.size": 9}):
        layout = ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.08)
        figure = Figure(figsize=(max(7.0, 3.4 * columns), sum(heights) + 0.4), layout=layout)
        grid = figure.add_gridspec(len(heights), columns, height_ratios=heights)
        for place, chart in enumerate(charts):
            _draw(figure.add_subplot(grid[place // columns, place % columns]), chart)
        if found:
            bars = figure.add_subplot(grid[-1, :])
            draw_ratios(bars, found, PAPER, longest=40)
            bars.set_title("Time per generation: EGGROLL against OpenES", fontsize=10, loc="left")
        _legend(figure, labels)
        figure.savefig(out, format="png", dpi=110, metadata={"Software": None})
    return out.getvalue()


def _draw(axes: Axes, chart: Chart) -> None:
    draw_chart(axes, chart, PAPER)
    axes.set_title(drawable(chart.name, longest=28), fontsize=9.5, loc="left", parse_math=False)
    axes.set_xlabel(chart.across, fontsize=8)
    told = "\n".join(textwrap.wrap(drawable(chart.note, longest=120), 32))
    axes.set_ylabel(told, fontsize=7.5, parse_math=False)


def _legend(figure: Figure, labels: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    keys = [Line2D([], [], **line_style(index, PAPER), linewidth=1.8) for index in range(len(labels))]
    names = [drawable(label, longest=60) for label in labels]
    columns = max(1, min(len(names), 6))
    legend = figure.legend(keys, names, loc="outside upper left", frameon=False, handlelength=4, ncols=columns)
    for text in legend.get_texts():
        text.set_parse_math(False)
