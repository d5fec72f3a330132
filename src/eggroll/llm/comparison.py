"""`eggroll report` of fine-tuning: algorithms compared on each task against wall-clock time (the paper's Figure 4b)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from eggroll.llm.config import learner_named
from eggroll.runs.report.charts import Chart
from eggroll.runs.report.command import Extra
from eggroll.runs.report.groups import Group, grouped, labelled, mean_and_error, shortened
from eggroll.runs.report.history import Run, number
from eggroll.runs.report.learning import (
    Learned,
    elapsed,
    figure,
    forward,
    legend,
    over_seeds,
    read_metrics,
    small_multiples,
)
from eggroll.runs.report.markup import Markup, element, join, note
from eggroll.runs.report.tables import swatch, table
from eggroll.runs.report.wording import measured, size, whole

MOST_TASKS = 16
VALUES = {"accuracy": "held-out accuracy", "distinct_right": "distinct right answers to a prompt"}
_START = ("model", "tokenizer")
"""What may differ between runs of one setting: each seed has a start of its own."""
_HEAD = ("task", "algorithm", "seeds", "start", "end", "gain", "generations", "seconds", "peak memory")
_TOLD = (
    "Accuracy on held-out prompts, mean ± standard error over seeds; lines are means, bands ±1 standard error, faint "
    "lines single seeds. Seconds are those of generations, without validations. Runs that differ in their start model "
    "alone count as seeds of one setting."
)


@dataclass(frozen=True)
class Setting:
    """One algorithm with one setting on one task, and its runs with what they told of each generation."""

    task: str
    label: str
    index: int
    runs: tuple[Run, ...]
    metrics: tuple[list[dict[str, float]], ...]

    def learned(self, value: str) -> Learned | None:
        """Mean over seeds of a metric, along seconds; None where there is none."""
        curves = []
        for run, lines in zip(self.runs, self.metrics, strict=True):
            seconds, values = (np.array([line[name] for line in lines]) for name in ("seconds", value))
            start = number((run.summary or {}).get(f"start_{value}"))
            at, values = np.append(0.0, elapsed(seconds)), np.append(np.nan if start is None else start, values)
            known = ~np.isnan(values) & ~np.isnan(at)
            if known.any():
                curves.append(forward(at[known], values[known]))
        return over_seeds(curves)

    def of_summaries(self, name: str) -> list[float]:
        """What the runs' summaries say, those that say it."""
        told = [number((run.summary or {}).get(name)) for run in self.runs]
        return [value for value in told if value is not None]


def compared(runs: Sequence[Run]) -> Extra:
    """The comparison of those of the runs that are of fine-tuning."""
    settings, labels = settings_of([run for run in runs if run.config.get("job") == "finetune"])
    tasks = list(dict.fromkeys(setting.task for setting in settings))
    charts = [
        chart
        for task in tasks[:MOST_TASKS]
        for value in VALUES
        if (chart := _chart(task, value, [one for one in settings if one.task == task])) is not None
    ]
    drawn: Markup = element("p", "There are no validations to draw yet.")
    if charts:
        figures = [figure(f"llm-{index}", chart, labels) for index, chart in enumerate(charts)]
        drawn = join(legend(labels), element("div", *figures, class_="charts"))
    rows = [_row(setting) for setting in settings]
    sections = (
        ("Held-out accuracy against wall-clock time", join(note(_TOLD), drawn)),
        ("Algorithms and tasks", table("Tasks and algorithms", _HEAD, rows)),
    )
    return Extra("finetune", sections, functools.partial(small_multiples, charts, labels) if charts else None)


def settings_of(
    runs: Sequence[Run],
    values: Sequence[str] = tuple(VALUES),
    start: Sequence[str] = _START,
    kind: Callable[[dict[str, object]], str] | None = None,
) -> tuple[tuple[Setting, ...], tuple[str, ...]]:
    """The runs by task and setting, and the labels of all settings, which choose colours.

    Args:
      values: metrics of a validation, the main one first.
      start: settings that may differ between the seeds of one setting.
      kind: of a run, by its settings; none: the algorithm.
    """
    found: dict[str, dict[str, list[Group]]] = {}
    kind = kind or _algorithm
    for group in grouped(runs, start):
        config = group.runs[0].config
        task = " ".join(str(config.get(name, "")) for name in ("task", "task_options") if config.get(name) != "{}")
        found.setdefault(shortened(task), {}).setdefault(kind(config), []).append(group)
    named = {task: labelled(algorithms, start) for task, algorithms in found.items()}
    order = sorted({label for each in named.values() for label, _, _ in each})
    return tuple(
        Setting(task, label, order.index(label), group.runs, tuple(_metrics(run, values) for run in group.runs))
        for task, each in named.items()
        for label, _, group in sorted(each, key=lambda one: one[0])
    ), tuple(order)


def _metrics(run: Run, values: Sequence[str]) -> list[dict[str, float]]:
    lines, _ = read_metrics(run, ("seconds", *values), values[0])
    return lines


def _algorithm(config: dict[str, object]) -> str:
    told = config.get("algorithm")
    return shortened(learner_named(told, str(config.get("model")))) if isinstance(told, str) and told else "unknown"


def _chart(task: str, value: str, settings: Sequence[Setting]) -> Chart | None:
    curves = [curve.as_curves(one.index) for one in settings if (curve := one.learned(value)) is not None]
    return Chart(task, VALUES[value], tuple(curves), across="seconds") if curves else None


def _row(setting: Setting) -> Markup:
    start, end = setting.of_summaries("start_accuracy"), setting.of_summaries("accuracy")
    gains = [last - first for first, last in zip(start, end, strict=False)] if len(start) == len(end) else []
    middle = lambda name: float(np.mean(values)) if (values := setting.of_summaries(name)) else None
    peak = setting.of_summaries("peak_memory_bytes")
    cells = (
        f"{len(end)} of {len(setting.runs)}",
        *(measured(*mean_and_error(values)) if values else "—" for values in (start, end, gains)),
        whole(middle("generations")),
        whole(middle("seconds")),
        size(max(peak) if peak else None),
    )
    label = element("td", swatch(setting.index), " ", setting.label)
    name = element("th", setting.task, scope="row")
    return element("tr", name, label, *(element("td", cell) for cell in cells))
