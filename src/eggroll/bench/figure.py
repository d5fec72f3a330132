"""The figure of `eggroll bench speed`: relative speed of every way, one panel for each layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

COLOURS = {"at hand": "tab:blue", "redrawn": "tab:cyan"}


def draw(result: dict[str, Any], path: Path) -> None:
    """Write the bars as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = result["layers"]
    figure = Figure(figsize=(4.2 * len(rows) + 2.4, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(rows), sharey=True, squeeze=False)[0]
    for axis, row in zip(axes, rows, strict=True):
        bars = {name: value for name, value in row["relative_speed"].items() if not name.endswith("update")}
        colours = [COLOURS.get(name.rsplit(", ", 1)[-1], "tab:orange") for name in bars]
        places = axis.barh(list(bars), list(bars.values()), color=colours)
        axis.bar_label(places, fmt="%.3g", padding=3, fontsize=8)
        axis.set_xlim(0, 1.18 * max(bars.values()))
        axis.set_title(f"width {row['width']}, {row['tokens']} token{'s' * (row['tokens'] > 1)} a member", fontsize=10)
        axis.set_xlabel("speed, plain inference = 100")
    axes[0].invert_yaxis()
    place, config = result["environment"], result["config"]
    device = place["processor"] if place["device"].startswith("cpu") else place["device"]
    figure.suptitle(f"{device}, {config['dtype']}, batch {config['batch']}, {config['law']} noise", fontsize=11)
    figure.savefig(path, dpi=120, metadata={"Software": None})
