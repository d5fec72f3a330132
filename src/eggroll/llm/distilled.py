"""`eggroll report` of distillation: teacher, rounded and distilled student, over time (the paper's Figure 6)."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from eggroll.llm.comparison import Setting, settings_of
from eggroll.runs.report.charts import Chart
from eggroll.runs.report.command import Extra
from eggroll.runs.report.groups import mean_and_error
from eggroll.runs.report.history import Run
from eggroll.runs.report.learning import figure, legend, small_multiples
from eggroll.runs.report.markup import Markup, element, join, note
from eggroll.runs.report.tables import swatch, table
from eggroll.runs.report.wording import measured, whole

VALUES = {
    "perplexity": "held-out perplexity",
    "accuracy": "held-out score",
    "kl": "KL(teacher ‖ student), nats a token",
}
_OWN = ("teacher", "tokenizer")
"""What may differ between runs of one setting: each seed has a teacher of its own."""
_MOST_CHARTS = 24
_HEAD = ("task", "student", "seeds", "model", "perplexity", "score", "KL", "gap closed", "generations", "seconds")
_TOLD = (
    "Held-out answers and prompts, mean ± standard error over seeds. A curve begins at the student whose weights are "
    "rounded to the nearest level; the grey line is the teacher. Seconds are those of generations, without validations."
)


def compared(runs: Sequence[Run]) -> Extra:
    """What those of the runs that are of distillation come to."""
    own = [run for run in runs if run.config.get("job") == "distill"]
    settings, labels = settings_of(own, tuple(VALUES), _OWN, _student)
    tasks = dict.fromkeys(setting.task for setting in settings)
    found = [_chart(task, value, [one for one in settings if one.task == task]) for task in tasks for value in VALUES]
    charts = [chart for chart in found if chart is not None][:_MOST_CHARTS]
    drawn: Markup = element("p", "There are no validations to draw yet.")
    if charts:
        figures = [figure(f"distill-{index}", chart, labels) for index, chart in enumerate(charts)]
        drawn = join(legend(labels), element("div", *figures, class_="charts"))
    rows = [row for setting in settings for row in _rows(setting)]
    sections = (
        ("Student against teacher", join(note(_TOLD), drawn)),
        ("Teacher, rounded and distilled", table("Models", _HEAD, rows)),
    )
    return Extra("distill", sections, functools.partial(small_multiples, charts, labels) if charts else None)


def _student(config: dict[str, object]) -> str:
    levels, inputs = config.get("levels"), config.get("inputs")
    name = f"levels ±{levels}" if type(levels) is int else "unknown"
    return f"{name}, inputs ±{inputs}" if inputs and type(inputs) is int else name


def _chart(task: str, value: str, settings: Sequence[Setting]) -> Chart | None:
    curves = [curve.as_curves(one.index) for one in settings if (curve := one.learned(value)) is not None]
    if not curves:
        return None
    teachers = [number for one in settings for number in one.of_summaries(f"teacher_{value}")]
    reference = 0.0 if value == "kl" else float(np.mean(teachers)) if teachers else None
    return Chart(task, VALUES[value], tuple(curves), across="seconds", reference=reference)


def _rows(setting: Setting) -> list[Markup]:
    """One for the teacher, the rounded and the distilled student."""
    label = f"{len(setting.of_summaries('perplexity'))} of {len(setting.runs)}"
    middle = lambda name: float(np.mean(values)) if (values := setting.of_summaries(name)) else None
    rows = []
    for model, prefix in (("teacher", "teacher_"), ("rounded", "start_"), ("distilled", "")):
        told = [_told(setting, f"{prefix}{value}") for value in VALUES]
        end = not prefix
        closed = _told(setting, "gap_closed") if end else ""
        counts = [whole(middle(name)) if end else "" for name in ("generations", "seconds")]
        cells = (label, model, *told, closed, *counts)
        name = element("th", setting.task, scope="row")
        student = element("td", swatch(setting.index), " ", setting.label)
        rows.append(element("tr", name, student, *(element("td", cell) for cell in cells)))
    return rows


def _told(setting: Setting, name: str) -> str:
    values = setting.of_summaries(name)
    if not values:
        return "0" if name == "teacher_kl" else "—"
    return measured(*mean_and_error(values))
