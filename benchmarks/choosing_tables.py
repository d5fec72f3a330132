"""Tables of what `choosing.py` has measured."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Points = Sequence[dict[str, Any]]
RANK = {0: "full rank (OpenES)"}


def tables(result: dict[str, Any]) -> str:
    """Every study of every task, as Markdown."""
    parts = []
    for name, task in result.items():
        if name == "environment":
            continue
        shown = {
            "sigma and rate": grid(task["sigma and rate"], "sigma", "rate", "σ \\ learning rate, Adam"),
            "SGD": grid(task["optimizer"], "sigma", "rate", "σ \\ learning rate, SGD"),
            "population": grid(task["population"], "population", "rate", "members \\ learning rate, Adam"),
            "members at equal generations": equal_generations(task["population"], task["enough"]),
            "rank": row(task["rank"], "rank", lambda value: RANK.get(value, str(value))),
            "time of a generation": times(task["times"]),
            "group": row(task["group"], "group", str),
            "share": row(task["share"], "share", str),
            "shaping": row(task["shaping"], "shaping", str),
            "schedule": row(task["schedule"], "schedule", str),
            **references(task["references"], task["enough"]),
        }
        enough = f"seeds of {seeds_of(task)} with {told_number(task['enough'])} or more"
        head = f"## {name}: {task['goal']} (in brackets: {enough})"
        parts += [head, *(f"**{title}**\n\n{text}" for title, text in shown.items())]
    return "\n\n".join(parts)


def seeds_of(task: dict[str, Any]) -> int:
    return len(task["rank"][0]["scores"][0])


def equal_generations(points: Points, enough: float) -> str:
    """Each population beside the next smaller one after as many generations, each at its better learning rate."""
    sizes = sorted({point["population"] for point in points})
    lines = ["| generations | members | score | members | score |", "|---|---|---|---|---|"]
    for pair in itertools.pairwise(sizes):
        end = max(point["generations"][-1] for point in points if point["population"] == pair[1])
        cells = (f"{size} | {told(best_at(points, size, end, enough))}" for size in pair)
        lines.append(f"| {end} | {' | '.join(cells)} |")
    return "\n".join(lines)


def best_at(points: Points, size: int, generation: int, enough: float) -> dict[str, float]:
    """Of one population, the best learning rate's score at the last checkpoint up to that generation."""
    found = []
    for point in points:
        if point["population"] == size:
            place = sum(each <= generation for each in point["generations"]) - 1
            found.append(summary(point["scores"][place], enough))
    return max(found, key=lambda values: values["mean"])


def told(point: dict[str, Any] | None) -> str:
    if point is None:
        return "–"
    digits = 3 if abs(point["mean"]) <= 1 else 0
    mean, error = (told_number(round(point[key], digits), digits) for key in ("mean", "standard_error"))
    return f"{mean} ± {error} ({point['reached']})"


def told_number(value: float, digits: int | None = None) -> str:
    """With a real minus sign."""
    return (f"{value:g}" if digits is None else f"{value:.{digits}f}").replace("-", "−")


def grid(points: Points, down: str, across: str, corner: str) -> str:
    rows, columns = (sorted({point[name] for point in points}) for name in (down, across))
    at = {(point[down], point[across]): point for point in points}
    head = f"| {corner} | {' | '.join(f'{value:g}' for value in columns)} |\n|{'---|' * (len(columns) + 1)}"
    body = (f"| {own:g} | {' | '.join(told(at.get((own, value))) for value in columns)} |" for own in rows)
    return "\n".join([head, *body])


def row(points: Points, name: str, label: Callable[[Any], str]) -> str:
    head = " | ".join(label(point[name]) for point in points)
    return f"| {name} | {head} |\n|{'---|' * (len(points) + 1)}\n| score | {' | '.join(map(told, points))} |"


def references(found: dict[str, Any], enough: float) -> dict[str, str]:
    """Backpropagation, and the scores of the seeds that answer so many classes."""
    if not found:
        return {}
    points = [
        {"rate": rate, **summary(scores, enough)} for rate, scores in zip(found["rates"], found["scores"], strict=True)
    ]
    lines = ["| fitness, perturbation | score | seeds by classes never answered |", "|---|---|---|"]
    for name, own in found.items():
        if isinstance(own, dict):
            counts = (f"{own['unanswered'].count(count)} with {count}" for count in sorted(set(own["unanswered"])))
            lines.append(f"| {name} | {told(summary(own['scores'], enough))} | {', '.join(counts)} |")
    title = f"backpropagation: Adam on the cross-entropy, {found['updates']} updates"
    return {title: row(points, "rate", str), "classes never answered": "\n".join(lines)}


def summary(scores: Sequence[float], enough: float = np.inf) -> dict[str, float]:
    """As points have it: mean, standard error, and how many got there."""
    error = float(np.std(scores, ddof=1)) / len(scores) ** 0.5 if len(scores) > 1 else 0.0
    reached = sum(score >= enough for score in scores)
    return {"mean": float(np.mean(scores)), "standard_error": error, "reached": reached}


def times(found: dict[str, float]) -> str:
    head = " | ".join(RANK.get(int(rank), rank) for rank in found)
    values = " | ".join(f"{ratio:.2f}" for ratio in found.values())
    return f"| rank | {head} |\n|{'---|' * (len(found) + 1)}\n| over rank 1 | {values} |"
