"""Figure `intensity`: operations per byte over batch, width, rank and dtype, and the batch that saturates a chip.

Source: arXiv 2511.16652, appendix F.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from eggroll.theory import style
from eggroll.theory.chips import CHIPS
from eggroll.theory.fitting import Check, at_most, near
from eggroll.theory.intensity import Layer, eggroll, gaussian, inference, table

PAPER_INTENSITY, PAPER_WIDTH = 300.0, 8192
"""Operations a byte that the paper takes an H100 to need, and the width of its layer."""
WIDTHS = (512, 768, 1024, 1280, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384, 24576, 32768)
BATCHES = tuple(2**k for k in range(15))
RANKS_OVER = tuple(range(1, 33))

Numbers = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """What the calculator is asked."""

    layer: Layer = field(default_factory=lambda: Layer(PAPER_WIDTH, PAPER_WIDTH))
    ranks: tuple[int, ...] = (1, 4, 16)
    batch: int = 1024
    chip: str = "h100"
    target: float | None = None
    """Operations per byte in place of the chip's."""

    @property
    def ridge(self) -> float:
        """Operations per byte to reach."""
        return self.target if self.target is not None else CHIPS[self.chip].ridge(self.layer.dtype)


def compute(setting: Setting) -> tuple[Numbers, list[Check]]:
    """The numbers of the figure, and its claims (the paper's, whatever is asked)."""
    layer, target = setting.layer, setting.ridge
    curves = {"inference": inference(layer), "Gaussian ES": gaussian(layer)}
    curves |= {f"rank {rank}": eggroll(layer, rank) for rank in setting.ranks}
    over_width: Numbers = {"inference": [_saturating(width, None, setting) for width in WIDTHS]}
    over_width |= {f"rank {rank}": [_saturating(width, rank, setting) for width in WIDTHS] for rank in setting.ranks}
    chips = {
        name: [eggroll(layer, rank).batch_for(chip.ridge(layer.dtype)) for rank in RANKS_OVER]
        for name, chip in CHIPS.items()
        if layer.dtype in chip.tera
    }
    numbers = {
        "inputs": layer.inputs,
        "outputs": layer.outputs,
        "tokens": layer.tokens,
        "dtype": layer.dtype,
        "batch": setting.batch,
        "chip": None if setting.target is not None else CHIPS[setting.chip].name,
        "operations_per_byte_to_saturate": target,
        "table": table(layer, setting.ranks, setting.batch, target),
        "batches": list(BATCHES),
        "intensity": {name: [count.intensity(batch) for batch in BATCHES] for name, count in curves.items()},
        "widths": list(WIDTHS),
        "saturating_batch_over_width": over_width,
        "ranks": list(RANKS_OVER),
        "saturating_batch_over_rank": chips,
        "dtypes_of": setting.chip,
        "dtypes": _dtypes(setting),
    }
    return numbers, papers_checks()


def papers_checks() -> list[Check]:
    """The paper's numbers: 324 and 352 at 300 operations a byte and width 8192, and Gaussian ES below one."""
    layer = Layer(PAPER_WIDTH, PAPER_WIDTH)
    found = inference(layer).batch_for(PAPER_INTENSITY), eggroll(layer, 1).batch_for(PAPER_INTENSITY)
    return [
        near("the paper's batch of inference at 300 operations a byte", float(found[0] or 0), 324, 0),
        near("the paper's batch of EGGROLL, rank 1", float(found[1] or 0), 352, 0),
        at_most("operations a byte of Gaussian ES, any batch", gaussian(layer).limit, 1.0),
    ]


def _saturating(width: int, rank: int | None, setting: Setting) -> int | None:
    layer = Layer(width, width, setting.layer.tokens, setting.layer.dtype)
    count = inference(layer) if rank is None else eggroll(layer, rank)
    return count.batch_for(setting.ridge)


def _dtypes(setting: Setting) -> Numbers:
    """By dtype that the chip has: its ridge, and the batches of inference and of the lowest rank asked for."""
    found: Numbers = {}
    for dtype in CHIPS[setting.chip].tera:
        layer = Layer(setting.layer.inputs, setting.layer.outputs, setting.layer.tokens, dtype)
        ridge = CHIPS[setting.chip].ridge(dtype)
        found[dtype] = {
            "ridge": ridge,
            "inference": inference(layer).batch_for(ridge),
            f"rank {min(setting.ranks)}": eggroll(layer, min(setting.ranks)).batch_for(ridge),
        }
    return found


def rows(numbers: Numbers) -> list[str]:
    """The table as lines of text."""
    place, tokens = numbers["chip"] or "as told", numbers["tokens"]
    ridge = numbers["operations_per_byte_to_saturate"]
    head = (
        f"{numbers['inputs']} × {numbers['outputs']}, {numbers['dtype']}, {tokens} row{'s' * (tokens > 1)} a member; "
        f"{place}: {ridge:.1f} operations a byte"
    )
    at = f"B = {numbers['batch']}"
    lines = [head, f"{'operations a byte':20}{at:>12}{'share':>8}{'at most':>10}{'saturates at':>14}"]
    for name, own in numbers["table"].items():
        batch = "never" if own["batch_to_saturate"] is None else f"B = {own['batch_to_saturate']:,}"
        lines.append(
            f"{name:20}{own['operations_per_byte']:>12.1f}{own['share_of_peak']:>8.1%}{own['at_most']:>10.1f}{batch:>14}"
        )
    return lines


def draw(numbers: Numbers) -> Any:
    """Intensity over the batch, and the saturating batch over width, rank and dtype."""
    figure = style.new_figure(2, 2, width=5.4)
    roof, widths, ranks, dtypes = figure.subplots(2, 2).flat
    target = numbers["operations_per_byte_to_saturate"]
    shape = f"{numbers['inputs']} × {numbers['outputs']}, {numbers['dtype']}"
    for (name, own), (colour, mark) in zip(numbers["intensity"].items(), style.looks(), strict=False):
        roof.loglog(numbers["batches"], own, marker=mark, color=colour, label=name, markersize=4)
    roof.axhline(target, color=style.BLACK, linestyle="--", linewidth=1, label=f"saturated: {target:.0f}")
    style.finish(roof, shape, "batch (members)", "operations per byte", legend="upper left")
    _draw_over(widths, numbers["widths"], numbers["saturating_batch_over_width"], skip=1)
    style.whole_ticks(widths, [512, 1024, 2048, 4096, 8192, 16384, 32768])
    title = f"batch that saturates ({numbers['chip'] or f'{target:.0f} a byte'}; no mark: none does)"
    style.finish(widths, title, "width m = n", "members", legend="upper right")
    named = {CHIPS[name].name: own for name, own in numbers["saturating_batch_over_rank"].items()}
    _draw_over(ranks, numbers["ranks"], named)
    ranks.set_xscale("linear")
    style.finish(ranks, f"batch that saturates: {shape}", "rank r", "members", legend="upper right")
    _draw_dtypes(dtypes, numbers)
    return figure


def _draw_over(axis: Any, places: list[int], curves: Numbers, skip: int = 0) -> None:
    """Batches over something; from the second curve on, colours as if `skip` more had come before."""
    looks = list(itertools.islice(style.looks(), len(curves) + skip))
    for (name, own), (colour, mark) in zip(curves.items(), looks[:1] + looks[1 + skip :], strict=True):
        values = np.array([np.nan if batch is None else batch for batch in own], float)
        axis.loglog(places, values, marker=mark, color=colour, label=name, markersize=4)
    axis.set_yscale("log", base=2)
    axis.yaxis.set_major_formatter(lambda value, place: f"{value:,.0f}")


def _draw_dtypes(axis: Any, numbers: Numbers) -> None:
    kinds = [name for name in next(iter(numbers["dtypes"].values())) if name != "ridge"]
    for kind, colour, shift in zip(kinds, (style.BLUE, style.GREEN), (-0.2, 0.2), strict=True):
        heights = [own[kind] or 0 for own in numbers["dtypes"].values()]
        bars = axis.bar(np.arange(len(heights)) + shift, heights, 0.38, color=colour, label=kind)
        axis.bar_label(bars, labels=[f"{h:,}" if h else "never" for h in heights], padding=2, fontsize=8)
    names = [f"{name}\n{own['ridge']:.0f} a byte" for name, own in numbers["dtypes"].items()]
    axis.set_xticks(np.arange(len(names)), names, fontsize=8)
    axis.margins(y=0.25)
    place = CHIPS[numbers["dtypes_of"]].name
    title = f"batch that saturates the {place}, by dtype"
    style.finish(axis, title, "", "members", legend="upper left", columns=2)
