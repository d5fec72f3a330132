"""`eggroll report` of trading: PnL and its variance over training (the paper's Figure 11), an episode, a flow."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eggroll.runs.report.charts import Chart, Curve, GroupCurves
from eggroll.runs.report.command import Extra
from eggroll.runs.report.groups import Group, grouped, labelled, mean_and_error, shortened
from eggroll.runs.report.history import Run, number
from eggroll.runs.report.learning import figure, forward, legend, over_seeds, read_metrics, small_multiples
from eggroll.runs.report.markup import Markup, element, join, note
from eggroll.runs.report.tables import swatch, table
from eggroll.runs.report.wording import measured
from eggroll.trading.task import MEASURES, QUANTILES

VALUES = {"pnl": "mean PnL of held-out episodes, dollars", "pnl_variance": "variance of their PnL, dollars²"}
FIELDS = ("kind", "side", "gap", "price", "size")
_OWN = ("model",)
"""What may differ between runs of one setting: each seed has a model of its own."""
_WAYS = ("model", "start", "twap")
_MOST_BYTES = 2**24
_MOST_CHARTS = 12
_LEARNED = (
    "Mean over seeds of the mean model on held-out episodes, band ±1 standard error; the grey line is TWAP. PnL counts "
    "in dollars against the price at the first decision, for the whole quantity."
)
_EPISODE = (
    "The first held-out episode of {}: best bid and ask and the model's resting order, in dollars; and the shares that "
    "are left to the model at the end of training, at its start, and to TWAP."
)
_FLOW = (
    "Distribution functions: what share of messages is below. The model writes from held-out books on, each message "
    "going to the book before the next is written. Distance is Kolmogorov and Smirnov's."
)
_ENDS = ("setting", "seeds", "immediate", "TWAP", "start", "end", "over TWAP", "over start", "variance, start → end")


def compared(runs: Sequence[Run]) -> Extra:
    """What those of the runs that are of trading come to."""
    executed = [run for run in runs if run.config.get("job") == "trade-execute"]
    pretrained = [run for run in runs if run.config.get("job") == "trade-pretrain"]
    sections: list[tuple[str, Markup]] = []
    pictures: list[tuple[list[Chart], Sequence[str]]] = []
    for made in (_learned(executed), _episode(executed), _flow(pretrained)):
        if made is not None:
            sections.append(made[0])
            pictures.append(made[1])
    charts, labels = pictures[0] if pictures else ([], ())
    return Extra("trade", tuple(sections), functools.partial(small_multiples, charts, labels) if charts else None)


_Made = tuple[tuple[str, Markup], tuple[list[Chart], Sequence[str]]] | None


def _learned(runs: Sequence[Run]) -> _Made:
    """Curves and ends of execution, by setting."""
    if not runs:
        return None
    groups = labelled({"execution": list(grouped(runs, _OWN))}, _OWN)
    labels = [shortened(label) for label, _, _ in groups]
    charts = []
    for value, told in VALUES.items():
        curves = [_curve(index, group, value) for index, (_, _, group) in enumerate(groups)]
        drawn = tuple(curve for curve in curves if curve is not None)
        twap = [found for run in runs if (found := number((run.summary or {}).get(f"twap_{value}"))) is not None]
        if drawn:
            charts.append(Chart(value, told, drawn, reference=float(np.mean(twap)) if twap else None))
    rows = [_ends(index, label, group) for index, (label, _, group) in enumerate(groups)]
    content = join(note(_LEARNED), _drawn("trade", charts, labels), table("Ways to execute", _ENDS, rows))
    return ("Order execution", content), (charts, labels)


def _curve(index: int, group: Group, value: str) -> GroupCurves | None:
    curves = []
    for run in group.runs:
        lines, _ = read_metrics(run, (value,), value)
        start = number((run.summary or {}).get(f"start_{value}"))
        at = np.array([0.0, *(line["generation"] + 1 for line in lines)])
        values = np.array([np.nan if start is None else start, *(line[value] for line in lines)])
        known = ~np.isnan(values)
        if known.any():
            curves.append(forward(at[known], values[known]))
    learned = over_seeds(curves)
    return None if learned is None else learned.as_curves(index)


def _ends(index: int, label: str, group: Group) -> Markup:
    def told(name: str) -> str:
        values = [found for run in group.runs if (found := number((run.summary or {}).get(name))) is not None]
        if len(values) == 1 and (error := number((group.runs[0].summary or {}).get(f"{name}_error"))) is not None:
            return measured(values[0], error)
        return measured(*mean_and_error(values)) if values else "—"

    finished = sum(run.summary is not None for run in group.runs)
    names = ("immediate_pnl", "twap_pnl", "start_pnl", "pnl", "over_twap", "over_start")
    variance = f"{told('start_pnl_variance')} → {told('pnl_variance')}"
    cells = (f"{finished} of {len(group.runs)}", *(told(name) for name in names), variance)
    head = element("th", swatch(index), " ", label, scope="row")
    return element("tr", head, *(element("td", cell) for cell in cells))


def _episode(runs: Sequence[Run]) -> _Made:
    """Price path, child orders and inventory of one episode."""
    found = next(((run, held) for run in runs if (held := _json(run.path / "episode.json"))), None)
    if found is None or not all(isinstance(found[1].get(way), dict) for way in _WAYS):
        return None
    run, held = found
    ways = {way: {key: _numbers(values) for key, values in held[way].items()} for way in _WAYS}
    model = ways["model"]
    if any(len(own.get(key, ())) < 2 for own in ways.values() for key in ("time", "bid", "ask", "child", "left")):
        return None
    labels = ("bid", "ask", "model's order", "model", "start", "TWAP")
    seconds = model["time"] / 1e9
    lines = (model["bid"], model["ask"], np.where(model["child"] > 0, model["child"], np.nan))
    price = tuple(GroupCurves(k, _line(seconds, line / 10_000)) for k, line in enumerate(lines))
    left = tuple(GroupCurves(3 + k, _line(ways[way]["time"] / 1e9, ways[way]["left"])) for k, way in enumerate(_WAYS))
    charts = [
        Chart("price", "dollars", price, across="seconds"),
        Chart("inventory", "shares left", left, across="seconds"),
    ]
    told = note(_EPISODE.format(shortened(run.path.name)))
    return ("An episode", join(told, _drawn("episode", charts, labels))), (charts, labels)


def _flow(runs: Sequence[Run]) -> _Made:
    """Perplexities, and a model's own flow."""
    if not runs:
        return None
    head = ("run", "nats a message", *FIELDS, "of the sample", *FIELDS, *(f"distance, {name}" for name in MEASURES))
    rows = [_perplexities(run) for run in runs]
    found = next((held for run in runs if (held := _json(run.path / "distributions.json"))), {})
    sources = found.get("quantiles")
    sources = sources if isinstance(sources, dict) else {}
    labels = [shortened(str(name)) for name in sources][:6]
    charts = []
    for measure, told in MEASURES.items():
        own = [_numbers(each.get(measure) if isinstance(each, dict) else None) for each in sources.values()][:6]
        curves = tuple(
            GroupCurves(k, _line(values, QUANTILES)) for k, values in enumerate(own) if len(values) == len(QUANTILES)
        )
        if curves:
            charts.append(Chart(measure, "share below", curves, across=told))
    content = join(note(_FLOW), _drawn("flow", charts, labels), table("Perplexity by field", head, rows))
    return ("A model of messages", content), (charts, labels)


def _perplexities(run: Run) -> Markup:
    summary, held = run.summary or {}, _json(run.path / "distributions.json")
    distances = held.get("distance") if isinstance(held.get("distance"), dict) else {}
    told: Callable[[Any], str] = lambda value: "—" if (known := number(value)) is None else measured(known)
    cells = [
        told(summary.get(f"{prefix}{name}"))
        for prefix in ("", "sample_")
        for name in ("nats_per_message", *(f"perplexity_{field}" for field in FIELDS))
    ]
    cells += [told(distances.get(measure)) for measure in MEASURES]  # type: ignore[union-attr]
    return element("tr", element("th", run.path.name, scope="row"), *(element("td", cell) for cell in cells))


def _drawn(prefix: str, charts: list[Chart], labels: Sequence[str]) -> Markup:
    if not charts:
        return element("p", "There is nothing to draw yet.")
    figures = [figure(f"{prefix}-{index}", chart, labels) for index, chart in enumerate(charts[:_MOST_CHARTS])]
    return join(legend(labels), element("div", *figures, class_="charts"))


def _line(at: np.ndarray, value: np.ndarray) -> Curve:
    return Curve(np.asarray(at, np.float64), np.asarray(value, np.float64))


def _json(path: Path) -> dict[str, Any]:
    """What a run's own file holds; nothing where it is damaged, absent or too large."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            return {}
        held = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return held if isinstance(held, dict) else {}


def _numbers(values: Any) -> np.ndarray:
    """A list of finite numbers; empty where it is none."""
    if not isinstance(values, list) or len(values) > 100_000:
        return np.zeros(0)
    found = [number(value) for value in values]
    return np.zeros(0) if any(value is None for value in found) else np.array(found, np.float64)
