"""Charts drawn with matplotlib: one inline SVG each for a page that is light or dark, or all of them as one PNG."""

from __future__ import annotations

import io
import itertools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from eggroll.runs.report.charts import Chart, Curve, GroupCurves
from eggroll.runs.report.groups import Group, seeds
from eggroll.runs.report.markup import Markup, drawable, element
from eggroll.runs.report.wording import compact, tick_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT = 380, 230
"""Size of a chart in pixels, at which its text has 11 of them."""
DASHES: tuple[tuple[float, ...], ...] = ((), (6.0, 2.4), (1.6, 2.0), (8.0, 2.0, 1.6, 2.0))
LIGHT = ("#0067a5", "#c04a00", "#007d5a", "#a03a7a", "#806300")
"""Okabe and Ito's hues, darkened to a contrast of at least 4.5 against white; DARK, lightened against black."""
DARK = ("#5cb8f0", "#ff9255", "#35cc9c", "#ec9fcb", "#f0dc4a")
_PNG_COLUMNS = 3


@dataclass(frozen=True)
class Ink:
    """Colours of a drawing."""

    text: str
    grid: str
    series: tuple[str, ...]


# Colours that nothing else has: they are replaced by what the page's style sheet says.
_SENTINELS = Ink("#010101", "#020202", tuple(f"#0300{index:02x}" for index in range(len(LIGHT))))
PAPER = Ink("#222222", "#dddddd", LIGHT)
"""Of a picture on white."""


def dashes(index: int) -> tuple[float, ...]:
    """Line style of a group, in line widths; 20 groups pass before colour and style both come again."""
    return DASHES[index % len(DASHES)]


def colour(index: int) -> str:
    """Colour of a group, as a variable of the page's style sheet."""
    return f"var(--series-{index % len(LIGHT)})"


def svg(chart: Chart, prefix: str, label: str) -> Markup:
    """One chart as inline SVG without a reference to anything outside.

    Args:
      prefix: what its ids begin with; must differ between the charts of a page.
      label: said in its place by a screen reader.
    """

    def draw(axes: Axes, ink: Ink) -> None:
        draw_chart(axes, chart, ink)
        axes.set_xlabel(chart.across, color=ink.text, labelpad=2)

    return drawing(draw, prefix, label)


def drawing(
    draw: Callable[[Axes, Ink], None], prefix: str, label: str, *, height: int = HEIGHT, left: int = 50
) -> Markup:
    """Whatever `draw` puts on axes, as inline SVG like that of `svg`.

    Args:
      height: of the drawing, in pixels of which it is `WIDTH` wide.
      left: pixels for what stands left of the axes.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    out = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "eggroll", "font.size": 11}):
        figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)
        axes = figure.add_axes((left / WIDTH, 40 / height, (WIDTH - left - 12) / WIDTH, (height - 48) / height))
        draw(axes, _SENTINELS)
        figure.savefig(out, format="svg", transparent=True)
    return _inline(out.getvalue(), prefix, label, height)


def png(charts: Sequence[Chart], groups: Sequence[Group], title: str) -> bytes:
    """All charts in one figure, on white, with a legend."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.lines import Line2D

    rows = max(1, math.ceil(len(charts) / _PNG_COLUMNS))
    out = io.BytesIO()
    with mpl.rc_context({"font.size": 9}):
        height = 2.9 * rows + 0.4 + 0.22 * len(groups)
        layout = ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1)
        figure = Figure(figsize=(4.2 * _PNG_COLUMNS, height), layout=layout)
        figure.suptitle(drawable(title, longest=110), fontsize=12, parse_math=False)
        for axes, chart in itertools.zip_longest(np.ravel(figure.subplots(rows, _PNG_COLUMNS)), charts):
            if chart is None:
                axes.set_visible(False)
                continue
            draw_chart(axes, chart, PAPER)
            axes.set_title(drawable(chart.name, longest=44), fontsize=10, loc="left", parse_math=False)
            axes.set_xlabel(drawable("\n".join((chart.across, chart.note)), longest=90), fontsize=8, parse_math=False)
        keys = [Line2D([], [], **line_style(index, PAPER), linewidth=1.6) for index in range(len(groups))]
        names = [drawable(f"{group.letter}  {group.label} ({seeds(group)})", longest=110) for group in groups]
        legend = figure.legend(keys, names, loc="outside lower left", frameon=False, handlelength=4)
        for text in legend.get_texts():
            text.set_parse_math(False)
        figure.savefig(out, format="png", dpi=110, metadata={"Software": None})
    return out.getvalue()


def line_style(index: int, ink: Ink) -> dict[str, Any]:
    """Colour and dashes of a group, for matplotlib."""
    dash = dashes(index)
    return {"color": ink.series[index % len(ink.series)], "linestyle": (0, dash) if dash else "-"}


def draw_chart(axes: Axes, chart: Chart, ink: Ink) -> None:
    """Lines, bands, grid and ticks of a chart; titles are for the caller."""
    if chart.reference is not None:
        axes.axhline(chart.reference, color=ink.text, linewidth=0.9, alpha=0.6)
    for curves in chart.curves:
        _draw_group(axes, curves, ink)
    axes.margins(x=0.02, y=0.06)
    if chart.frame is not None:
        low, high = chart.frame
        axes.set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low))
    plain_axes(axes, ink, grid="y")
    _set_ticks(axes, whole=chart.across == "generation")


def plain_axes(axes: Axes, ink: Ink, *, grid: Literal["x", "y"]) -> None:
    """A grid across the direction of the values and no frame."""
    axes.grid(axis=grid, color=ink.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(ink.text)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(colors=ink.text)


def _draw_group(axes: Axes, curves: GroupCurves, ink: Ink) -> None:
    style = line_style(curves.group, ink)
    plain = {"color": style["color"], "solid_joinstyle": "round"}
    if (extremes := curves.extremes) is not None:
        for edge in (extremes.low, extremes.high):
            axes.plot(extremes.at, edge, linewidth=0.6, alpha=0.7, **plain)
    for run in curves.runs:
        _line(axes, run, linewidth=0.8, alpha=0.45, **plain)
    if (band := curves.band) is not None:
        axes.fill_between(band.at, band.low, band.high, color=style["color"], alpha=0.2, linewidth=0)
    if curves.mean is not None:
        _line(axes, curves.mean, linewidth=1.6, **style)


def _line(axes: Axes, curve: Curve, **style: Any) -> None:
    """A line of one point would be invisible."""
    if len(curve.at) == 1:
        style |= {"marker": "o", "markersize": 4}
    axes.plot(curve.at, curve.value, **style)


def _set_ticks(axes: Axes, *, whole: bool) -> None:
    from matplotlib.ticker import Formatter, MaxNLocator

    class Compact(Formatter):
        def __call__(self, x: float, pos: int | None = None) -> str:
            return compact(x)

        def format_ticks(self, values: Any) -> list[str]:
            return tick_labels(np.asarray(values, float))

    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=whole, min_n_ticks=1))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(Compact())


def _inline(text: str, prefix: str, label: str, height: int) -> Markup:
    """matplotlib's SVG file as part of a page: no header, no style of its own, ids and colours of the page."""
    body = text[text.index(">", text.index("<svg")) + 1 : text.rindex("</svg>")]
    body = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="', f'id="{prefix}-', body)
    body = re.sub(r'(?:xlink:)?href="#', f'href="#{prefix}-', body)
    body = body.replace("url(#", f"url(#{prefix}-")
    body = body.replace(_SENTINELS.text, "var(--ink)").replace(_SENTINELS.grid, "var(--grid)")
    for index, sentinel in enumerate(_SENTINELS.series):
        body = body.replace(sentinel, colour(index))
    body = re.sub(r"font-family: [^;\"]*;| transform=\"rotate\(-?0 [^\"]*\"", "", body)
    body = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d)\d+", r"\1", path[0]).replace("\n", ""), body)
    body = re.sub(r">\s+<", "><", body)
    inner = Markup(element("title", label) + body)
    return element("svg", inner, viewBox=f"0 0 {WIDTH} {height}", role="img", aria_label=label)
