"""How the theory's figures look: one palette that colour-blind readers can tell apart, marks beside the colours."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from typing import Any

BLACK, ORANGE, SKY, GREEN, BLUE, RED, PINK, GREY = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
    "#888888",
)
"""The palette of Okabe and Ito, but for its yellow, and a grey."""

SERIES = (BLUE, RED, GREEN, ORANGE, PINK, SKY)
MARKS = ("o", "s", "^", "D", "v", "P")


def looks() -> Iterator[tuple[str, str]]:
    """Colours and marks for series, eight different ones and then again."""
    return itertools.cycle(zip((*SERIES, BLACK, GREY), (*MARKS, "x", "*"), strict=True))


def new_figure(columns: int, rows: int = 1, *, width: float = 5.0, height: float = 4.2) -> Any:
    """An empty figure for so many panels, on a canvas without a screen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def finish(
    axis: Any, title: str, x: str, y: str, *, legend: str | None = "best", heading: str | None = None, columns: int = 1
) -> None:
    """Title, labels, a quiet grid and a legend.

    Args:
      legend: where; None for none.
      heading: of the legend.
      columns: of the legend.
    """
    axis.set_title(title, fontsize=10)
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.grid(True, which="major", color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    if legend:
        axis.legend(loc=legend, title=heading, ncols=columns, fontsize=8, title_fontsize=8, framealpha=0.9)


def whole_ticks(axis: Any, ticks: list[int]) -> None:
    """Plain numbers on a logarithmic x axis."""
    axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axis.minorticks_off()


def png(figure: Any) -> bytes:
    """The picture, the same bytes for the same figure and version."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=120, metadata={"Software": None})
    return buffer.getvalue()
