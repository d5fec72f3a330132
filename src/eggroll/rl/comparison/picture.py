"""The comparison as one PNG: all environments together, each alone, and the bars of speed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from eggroll.rl.comparison.charts import draw_ratios
from eggroll.rl.comparison.curves import Ratio
from eggroll.runs.report.charts import Chart
from eggroll.runs.report.curves import PAPER
from eggroll.runs.report.learning import small_multiples

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BAR_ROW = 0.24
"""Inches of an environment's bars."""


def picture(charts: Sequence[Chart], found: Sequence[Ratio], labels: Sequence[str]) -> bytes:
    """Small multiples, on white, with a legend above; bytes of a PNG."""

    def bars(axes: Axes) -> None:
        draw_ratios(axes, found, PAPER, longest=40)
        axes.set_title("Time per generation: EGGROLL against OpenES", fontsize=10, loc="left")

    below = 0.9 + _BAR_ROW * len({ratio.environment for ratio in found}) if found else 0.0
    return small_multiples(charts, labels, below, bars)
