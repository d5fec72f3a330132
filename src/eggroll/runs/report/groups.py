"""Which runs belong together: those that differ in nothing but the seed are one setting, measured several times."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eggroll.runs.report.history import Run

ABSENT = "—"
_NOT_SETTINGS = ("run_dir", "started", "started_at", "start_time", "created", "created_at", "date", "time", "timestamp")
_DEEPEST = 8
_LONGEST = 160
_MOST_NAMED = 3


@dataclass(frozen=True)
class Group:
    """Runs that differ in the seed alone, in the order given; `letter` names the group on the page."""

    letter: str
    label: str
    runs: tuple[Run, ...]


def settings(config: dict[str, Any]) -> dict[str, str]:
    """A configuration as rows of text, nested names joined by dots; where and when the run was made is no setting."""
    rows = _flat(config, "", 0)
    return {name: value for name, value in rows.items() if name not in _NOT_SETTINGS}


def _flat(config: dict[str, Any], prefix: str, depth: int) -> dict[str, str]:
    rows: dict[str, str] = {}
    for name, value in config.items():
        if isinstance(value, dict) and value and depth < _DEEPEST:
            rows |= _flat(value, f"{prefix}{name}.", depth + 1)
        else:
            rows[prefix + name] = _shown(value)
    return rows


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, sort_keys=True, ensure_ascii=False)
    except (ValueError, RecursionError):  # an int of more digits than Python writes, or lists in lists without end
        return "…"


def shortened(text: str) -> str:
    """Text that fits a cell of a table."""
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def differences(configs: Sequence[dict[str, str]]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Settings that differ, with one value for each run, and those that are common to all."""
    names = dict.fromkeys(name for config in configs for name in config)
    rows = {name: [config.get(name, ABSENT) for config in configs] for name in names}
    differing = {name: values for name, values in rows.items() if len(set(values)) > 1}
    return differing, {name: values[0] for name, values in rows.items() if name not in differing}


def grouped(runs: Sequence[Run], ignored: Sequence[str] = ()) -> tuple[Group, ...]:
    """Runs by setting, in order of appearance.

    Args:
      ignored: settings that may differ in a group, beside the seed.

    A second run of one setting and one seed is a group of its own: counted as another seed, a repetition would make
    the standard error too small.
    """
    found: list[tuple[dict[str, str], dict[str | None, Run]]] = []
    for run in runs:
        rest = settings(run.config)
        seed = rest.pop("seed", None)
        rest = {name: value for name, value in rest.items() if name not in ignored}
        home = next((seeds for key, seeds in found if key == rest and seed not in seeds), None)
        if home is None or seed is None:
            found.append((rest, {seed: run}))
        else:
            home[seed] = run
    differing, _ = differences([rest for rest, _ in found])
    return tuple(
        Group(_letter(index), _label(index, differing, tuple(seeds.values())), tuple(seeds.values()))
        for index, (_, seeds) in enumerate(found)
    )


def labelled(kinds: dict[str, list[Group]], ignored: Sequence[str] = ()) -> list[tuple[str, str, Group]]:
    """Label, kind and group of all groups, which stand by their kind; the labels differ.

    A label is the kind, and where there are several groups of it what sets this one apart.

    Args:
      ignored: as for `grouped`.
    """
    found: dict[str, tuple[str, str, Group]] = {}
    for kind, groups in kinds.items():
        common = dict.fromkeys(("seed", *ignored), "")
        differing, _ = differences([settings(group.runs[0].config) | common for group in groups])
        told = len(differing) <= _MOST_NAMED
        for place, group in enumerate(groups):
            named = [f"{name} {values[place]}" for name, values in differing.items()] if told else []
            label = base = shortened(", ".join((kind, *named)))
            repeat = 1
            while label in found:
                label = f"{base} ({(repeat := repeat + 1)})"
            found[label] = label, kind, group
    return list(found.values())


def _label(index: int, differing: dict[str, list[str]], runs: tuple[Run, ...]) -> str:
    """The settings that set a group apart, as long as they are few; else the names of its runs."""
    if differing and len(differing) <= 3:
        label = ", ".join(f"{name} {values[index]}" for name, values in differing.items())
    else:
        label = runs[0].name + (f" and {len(runs) - 1} more" if len(runs) > 1 else "")
    return shortened(label)


def seeds(group: Group) -> str:
    """How many seeds, and which: `n = 3, seeds 0, 1, 2`."""
    names = [seed for run in group.runs if (seed := settings(run.config).get("seed")) is not None]
    listed = ", ".join(shortened(name) for name in names[:12]) + (", …" if len(names) > 12 else "")
    return f"n = {len(group.runs)}" + (f", seed{'s' * (len(names) > 1)} {listed}" if names else "")


def _letter(index: int) -> str:
    """A, B, … Z, AA, AB, …"""
    head, tail = divmod(index, 26)
    return (_letter(head - 1) if head else "") + chr(ord("A") + tail)


def mean_and_error(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean and its standard error, √(variance / n) with n - 1 in the variance; no error for fewer than two."""
    if not values:
        return None, None
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None
    return float(np.mean(values)), error
