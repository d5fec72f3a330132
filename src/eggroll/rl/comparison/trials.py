"""One training run as the comparison needs it: returns along environment steps and along seconds, and its speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from eggroll.runs.report.history import Run, number
from eggroll.runs.report.learning import elapsed, read_metrics

WARM_UP = 2
"""Lines of metrics whose seconds are no measurement: the first generations compile."""
_METRICS = ("environment_steps", "seconds", "return", "return_error")


@dataclass(frozen=True)
class Trial:
    """A run of one algorithm on one environment with one seed.

    Args:
      steps, seconds: environment steps and wall-clock seconds spent until each evaluation; NaN where not known.
      value: mean return of the policy at each evaluation, the untrained one first where it was evaluated.
      start, final: return before the first and after the last generation; None where it is not known.
      final_error: standard error of `final` over the episodes of its evaluation.
      generation_seconds: seconds of single generations, without those that compile.
      steps_per_second: environment steps in the median of these.
      not_finite: evaluations whose return was no finite number.
    """

    run: Run
    steps: Float64[np.ndarray, " evaluations"]
    seconds: Float64[np.ndarray, " evaluations"]
    value: Float64[np.ndarray, " evaluations"]
    start: float | None
    final: float | None
    final_error: float | None
    generation_seconds: Float64[np.ndarray, " generations"]
    steps_per_second: float | None
    not_finite: int

    @property
    def finished(self) -> bool:
        """Whether the run reached the end of its budget."""
        return self.run.state == "finished"


def read_trial(run: Run) -> Trial:
    """What a run's metrics say."""
    metrics, not_finite = read_metrics(run, _METRICS, "return")
    steps, seconds, value, error = (np.array([line[name] for line in metrics]) for name in _METRICS)
    summary = run.summary or {}
    start = number(summary.get("start_return"))
    evaluated = np.flatnonzero(~np.isnan(value))
    final = float(value[evaluated[-1]]) if len(evaluated) else None
    if "return" in summary:
        final = number(summary["return"])
        not_finite += final is None
        if final is not None and len(value):
            value[-1] = final
    spent = elapsed(seconds)
    times = _times(seconds, summary.get("generation_seconds"))
    known = ~np.isnan(value)
    at_start = [] if start is None else [0.0]
    return Trial(
        run,
        np.append(at_start, steps[known]),
        np.append(at_start, spent[known]),
        np.append([] if start is None else [start], value[known]),
        start,
        final,
        float(error[evaluated[-1]]) if len(evaluated) and error[evaluated[-1]] >= 0 else None,
        times,
        _rate(metrics, times),
        int(not_finite),
    )


def _times(seconds: Float64[np.ndarray, " lines"], measured: object) -> Float64[np.ndarray, " generations"]:
    """Those of a timing run of its own where there are any, else those of training after `WARM_UP`."""
    if isinstance(measured, Sequence) and not isinstance(measured, str):
        times = [value for one in measured if (value := number(one)) is not None and value > 0]
        if times:
            return np.array(times)
    seconds = seconds[WARM_UP:]
    return seconds[seconds > 0]


def _rate(metrics: Sequence[dict[str, float]], times: Float64[np.ndarray, " generations"]) -> float | None:
    """Environment steps of a generation, by the median, in its median time."""
    steps = np.array([line["environment_steps"] for line in metrics])
    generation = np.array([line["generation"] for line in metrics])
    known = ~np.isnan(steps)
    if np.count_nonzero(known) < 2 or not len(times):
        return None
    each = float(np.median(np.diff(steps[known]) / np.diff(generation[known])))
    return each / float(np.median(times)) if each > 0 else None
