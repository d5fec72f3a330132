"""What the trials of `--tune` came to: their order, and a table of them."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from eggroll.rl.draws import RANGES

TABLE_WIDTH = 140
Row = dict[str, Any]
"""A trial in `tuned.json`: its number, settings, command and status; its returns, or why it failed."""


def best_first(rows: Sequence[Row]) -> list[Row]:
    """Finished trials by return, then the others by number; a return that is no number counts as the worst."""

    def place(row: Row) -> tuple[bool, float]:
        value = row.get("return", math.nan)
        return row["status"] != "finished", math.inf if math.isnan(value) else -value

    return sorted(rows, key=place)


def table(rows: Sequence[Row]) -> list[str]:
    """Lines of a table, the best trial first."""
    drawn = Table(box=None, pad_edge=False)
    for title in ("trial", "return", "start"):
        drawn.add_column(title, justify="right", no_wrap=True)
    for name in RANGES:
        drawn.add_column(name.replace("learning_", "").replace("_size", "").replace("_", " "), no_wrap=True)
    for row in best_first(rows):
        start = f"{row['start_return']:.3f}" if "start_return" in row else ""
        told = returned(row) if row["status"] == "finished" else row["status"]
        values = (row["settings"][name] for name in RANGES)
        cells = ("yes" if value is True else "no" if value is False else str(value) for value in values)
        drawn.add_row(f"{row['trial']:03d}", told, start, *cells)
    console = Console(file=io.StringIO(), width=TABLE_WIDTH, color_system=None)
    with console.capture() as caught:
        console.print(drawn)
    return [line.rstrip() for line in caught.get().splitlines()]


def returned(row: Row) -> str:
    """A trial's return and its standard error."""
    return f"{row['return']:.3f} ± {row['return_error']:.3f}"
