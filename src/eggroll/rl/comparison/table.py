"""The table of a comparison: how every algorithm started and ended on every environment, and how fast it was."""

from __future__ import annotations

import numpy as np

from eggroll.rl.comparison.curves import improvement, scale_of, times_of
from eggroll.rl.comparison.settings import Environment, Setting
from eggroll.runs.report.groups import mean_and_error
from eggroll.runs.report.learning import mean_of
from eggroll.runs.report.markup import Markup, element, join, note
from eggroll.runs.report.tables import swatch, table
from eggroll.runs.report.wording import compact, measured

HEAD = (
    "environment",
    "algorithm",
    "start return",
    "final return",
    "seeds",
    "improvement / SE",
    "of PPO's",
    "seconds per generation",
    "steps per second",
)
_TOLD = (
    "Final return: mean ± standard error (SE) over the seeds that finished. Improvement: final minus start return, in "
    "standard errors of this difference over seeds; of one seed, in those of its last evaluation. Of PPO's: 0 is PPO's "
    "start, 1 its end. Seconds: median and quartiles."
)


def results(found: tuple[Environment, ...]) -> Markup:
    """A row for each algorithm on each environment."""
    rows = [
        _row(environment, setting, first=setting is environment.settings[0])
        for environment in found
        for setting in environment.settings
    ]
    return join(table("Environments and algorithms", HEAD, rows), note(_TOLD))


def _row(environment: Environment, setting: Setting, *, first: bool) -> Markup:
    start = [trial.start for trial in setting.counted if trial.start is not None]
    final = [trial.final for trial in setting.counted if trial.final is not None]
    scale, _ = scale_of(environment)
    rates = [trial.steps_per_second for trial in setting.trials if trial.steps_per_second is not None]
    cells = (
        measured(mean_of(start), mean_and_error(start)[1]) if start else "—",
        measured(mean_of(final), _final_error(setting, final)) if final else "—",
        _seeds(setting, len(final)),
        _improvement(setting),
        f"{scale.value(mean_of(final)):.2f}".replace("-", "−") if scale is not None and final else "—",
        _seconds(setting),
        compact(float(np.median(rates))) if rates else "—",
    )
    name = element("th", environment.name if first else "", scope="row")
    label = element("td", swatch(setting.index), " ", setting.label)
    return element("tr", name, label, *(element("td", cell) for cell in cells))


def _final_error(setting: Setting, final: list[float]) -> float | None:
    """Of one seed, what the episodes of its last evaluation leave open."""
    return mean_and_error(final)[1] if len(final) > 1 else setting.counted[0].final_error


def _seeds(setting: Setting, count: int) -> str:
    unfinished = sum(not trial.finished for trial in setting.trials)
    return f"n = {count}" + (f", {unfinished} not finished" if unfinished else "")


def _improvement(setting: Setting) -> str:
    rise = improvement(setting)
    if rise is None or not rise[1]:
        return "—"
    return compact(rise[0] / rise[1])


def _seconds(setting: Setting) -> str:
    times = times_of(setting)
    if not len(times):
        return "—"
    low, middle, high = (compact(float(value)) for value in np.quantile(times, (0.25, 0.5, 0.75)))
    return f"{middle} ({low}–{high})"
