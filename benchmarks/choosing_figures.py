"""Figures of what `choosing.py` has measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from choosing_tables import RANK, Points, summary

from eggroll.theory.style import BLACK, finish, looks, new_figure, png, whole_ticks

NAMES = {"digits": "digits", "pendulum": "pendulum"}


def draw(result: dict[str, Any], folder: Path) -> None:
    """One PNG for each question."""
    folder.mkdir(parents=True, exist_ok=True)
    tasks = {name: result[name] for name in NAMES if name in result}
    for name, one in (
        ("sigma-and-rate", sigma_and_rate),
        ("population", population),
        ("rank", rank),
        ("groups", groups),
        ("optimizer", optimizer),
        ("schedule", schedule),
    ):
        (folder / f"{name}.png").write_bytes(png(one(tasks)))


def panels(tasks: dict[str, Any], *, height: float = 3.4, rows: int = 1) -> tuple[Any, Any]:
    """A figure with a column for each task; axes (rows, tasks)."""
    figure = new_figure(len(tasks), rows, width=4.6, height=height)
    return figure, figure.subplots(rows, len(tasks), squeeze=False)


def lines(axis: Any, points: Points, x: str, by: str, label: Callable[[Any], str], only: Iterable[Any] = ()) -> None:
    """Final score against one setting, a line for each value of another."""
    values = list(only) or sorted({point[by] for point in points})
    for value, (colour, mark) in zip(values, looks(), strict=False):
        own = sorted((point for point in points if point[by] == value), key=lambda point: point[x])
        bars(axis, [point[x] for point in own], own, label=label(value), color=colour, marker=mark)


def bars(axis: Any, places: Sequence[Any], points: Points, **look: Any) -> None:
    means, errors = ([point[name] for point in points] for name in ("mean", "standard_error"))
    axis.errorbar(places, means, errors, capsize=2, markersize=4, linewidth=1.2, **look)


def sigma_and_rate(tasks: dict[str, Any]) -> Any:
    """Maps of the final score."""
    figure, axes = panels(tasks, height=3.9)
    for axis, (name, task) in zip(axes[0], tasks.items(), strict=True):
        points = task["sigma and rate"]
        sigmas, rates = (sorted({point[key] for point in points}) for key in ("sigma", "rate"))
        found = np.full((len(sigmas), len(rates)), np.nan)
        for point in points:
            found[sigmas.index(point["sigma"]), rates.index(point["rate"])] = point["mean"]
        axis.imshow(found, origin="lower", aspect="auto", cmap="viridis")
        low, high = np.nanmin(found), np.nanmax(found)
        for (row, column), value in np.ndenumerate(found):
            dark = value < low + 0.6 * (high - low)
            text = f"{value:.2f}" if 0 <= low <= high <= 1 else f"{value:.0f}"
            axis.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if dark else BLACK)
        axis.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates])
        axis.set_yticks(range(len(sigmas)), [f"{sigma:g}" for sigma in sigmas])
        finish(axis, f"{name}: {task['goal']}", "learning rate (Adam)", "σ", legend=None)
        axis.grid(False)
    return figure


def population(tasks: dict[str, Any]) -> Any:
    figure, axes = panels(tasks)
    for axis, (name, task) in zip(axes[0], tasks.items(), strict=True):
        points = task["population"]
        lines(axis, points, "population", "rate", lambda rate: f"{rate:g}")
        axis.set_xscale("log", base=2)
        whole_ticks(axis, sorted({point["population"] for point in points}))
        title = f"{name}: {task['budget']:,} evaluations in all"
        finish(axis, title, "members (fewer generations to the right)", task["goal"], heading="learning rate")
    return figure


def rank(tasks: dict[str, Any]) -> Any:
    """The curves against evaluations, and the same ones against time."""
    figure, axes = panels(tasks, rows=2, height=3.1)
    for column, (name, task) in enumerate(tasks.items()):
        for point, (colour, mark) in zip(task["rank"], looks(), strict=False):
            label = RANK.get(point["rank"], f"rank {point['rank']}")
            done, scores = np.array(point["generations"]), np.array(point["scores"])
            look = {"color": colour, "marker": mark, "label": label}
            curve(axes[0][column], done * point["population"] / 1000, scores, **look)
            curve(axes[1][column], done * task["times"][str(point["rank"])], scores, **look)
        beside(axes[0][column], task["references"])
        axes[1][column].set_xlim(0, 1.05 * max(task["rank"][0]["generations"]))
        title = f"{name}: at equal evaluations"
        finish(axes[0][column], title, "thousand evaluations", task["goal"], legend="lower right")
        finish(axes[1][column], f"{name}: at equal time", "time, in generations of rank 1", task["goal"], legend=None)
    return figure


def curve(axis: Any, places: Any, scores: Any, **look: Any) -> None:
    """Means over the seeds, and at the end the standard error; scores (checkpoints, seeds)."""
    means = scores.mean(1)
    axis.plot(places, means, markersize=3, linewidth=1.2, **look)
    axis.errorbar(places[-1], means[-1], summary(scores[-1])["standard_error"], color=look["color"], capsize=2)


def beside(axis: Any, references: dict[str, Any]) -> None:
    """What other ways end with, as lines across."""
    if references:
        best = max(summary(scores)["mean"] for scores in references["scores"])
        axis.axhline(best, color=BLACK, linewidth=1, linestyle="--", label="backpropagation, at its end")


def groups(tasks: dict[str, Any]) -> Any:
    """Members that share data, and data of a member against members."""
    figure, axes = panels(tasks, rows=2, height=3.1)
    for column, (name, task) in enumerate(tasks.items()):
        (colour, mark), *_ = looks_of(1)
        base = task["base"]
        own = sorted(task["group"], key=lambda point: point["group"])
        bars(axes[0][column], [point["group"] for point in own], own, color=colour, marker=mark)
        title = f"{name}: {base['population']} members in groups"
        finish(axes[0][column], title, "members that share their data", task["goal"], legend=None)
        own = sorted(task["share"], key=lambda point: point["share"])
        bars(axes[1][column], [point["share"] for point in own], own, color=colour, marker=mark)
        what = {"digits": "digits", "pendulum": "episodes"}[name]
        title = f"{name}: as many {what} in a generation"
        finish(axes[1][column], title, f"{what} of a member × members", task["goal"], legend=None)
        for axis, places in zip(axes[:, column], ("group", "share"), strict=True):
            axis.set_xscale("log", base=2)
            whole_ticks(axis, sorted({point[places] for point in task[places]}))
        axes[1][column].set_xticks(
            [point["share"] for point in own], [f"{point['share']} × {point['population']:,}" for point in own]
        )
    return figure


def looks_of(count: int) -> list[tuple[str, str]]:
    return [look for _, look in zip(range(count), looks(), strict=False)]


def optimizer(tasks: dict[str, Any]) -> Any:
    figure, axes = panels(tasks)
    for axis, (name, task) in zip(axes[0], tasks.items(), strict=True):
        sigmas = sorted({point["sigma"] for point in task["optimizer"]})
        adam = [point for point in task["sigma and rate"] if point["sigma"] in sigmas]
        for kind, points, style in (("Adam", adam, "-"), ("SGD", task["optimizer"], "--")):
            for sigma, (colour, mark) in zip(sigmas, looks(), strict=False):
                own = sorted((point for point in points if point["sigma"] == sigma), key=lambda point: point["rate"])
                look = {"label": f"{kind}, σ {sigma:g}", "color": colour, "marker": mark, "linestyle": style}
                bars(axis, [point["rate"] for point in own], own, **look)
        axis.set_xscale("log")
        finish(axis, f"{name}: Adam and SGD", "learning rate", task["goal"])
    return figure


def schedule(tasks: dict[str, Any]) -> Any:
    figure, axes = panels(tasks)
    for axis, (name, task) in zip(axes[0], tasks.items(), strict=True):
        for point, (colour, mark) in zip(task["schedule"], looks(), strict=False):
            look = {"color": colour, "marker": mark, "label": point["schedule"].replace("sigma", "σ")}
            curve(axis, point["generations"], np.array(point["scores"]), **look)
        title = f"{name}: a learning rate of {task['schedule'][0]['rate']:g}"
        finish(axis, title, "generations", task["goal"], heading="each to a tenth")
    return figure
