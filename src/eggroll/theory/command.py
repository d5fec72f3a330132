"""`eggroll theory FIGURE|all`: draw figures with their numbers and say whether each claim holds."""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eggroll.core.errors import UsageError
from eggroll.runs.environment import environment
from eggroll.runs.folder import fresh_folder, put_whole
from eggroll.theory import style
from eggroll.theory.chips import CHIPS, ITEMSIZE
from eggroll.theory.fitting import Check
from eggroll.theory.intensity import Layer
from eggroll.theory.roofline import Setting, rows

FIGURES = {
    "score": "density and score of one entry of a perturbation, by rank",
    "rank": "the update tends to that of Gaussian ES as 1/r",
    "edgeworth": "the expansion to order 1/r, and what it leaves",
    "linearisation": "when the update tends to the gradient as the dimension grows",
    "spectrum": "the averaged update has full rank",
    "variance": "variance of the estimate by rank and law, for each unit of compute",
    "intensity": "operations per byte, and the batch that saturates a chip: a calculator, with flags of its own",
}
"""Name → what it shows; each but the last is a module with `compute(seed, quick)` and `draw(numbers)`."""


@dataclass(frozen=True)
class TheoryConfig:
    """Draw a figure of the theory, or all, each with its numbers as JSON."""

    out: Path | None = None
    """Folder for FIGURE.png and FIGURE.json, which must not exist there; none: a fresh name under runs/."""
    seed: int = 0
    """Seed of fitness functions and draws, at least 0."""
    quick: bool = False
    """Fewer samples: rougher figures, in a fraction of the time."""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UsageError(f"expected --seed of at least 0, got {self.seed}; give a natural number")


@dataclass(frozen=True)
class IntensityConfig:
    """Count operations and bytes of a perturbed layer, and say what saturates a chip."""

    width: int = 8192
    """Numbers that go in, and come out too unless --outputs says otherwise."""
    outputs: int = 0
    """Numbers that come out of the layer; 0: as many as go in."""
    batch: int = 1024
    """Members in a batch."""
    rank: tuple[int, ...] = (1, 4, 16)
    """Ranks of the perturbation."""
    tokens: int = 1
    """Rows that each member multiplies."""
    dtype: str = "bfloat16"
    """Number format of weights, inputs and noise: float32 (TF32), bfloat16, float16, float8 or int8."""
    chip: str = "h100"
    """Chip whose peak and bandwidth count: a100, h100, h200, b200, mi300x, v5e or v6e."""
    intensity: float = 0.0
    """Operations a byte that saturate, in place of the chip's (the paper's: 300); 0: the chip's."""
    out: Path | None = None
    """Folder for intensity.png and intensity.json, which must not exist there; none: a fresh name under runs/."""

    def __post_init__(self) -> None:
        for name, value, least in (("width", self.width, 1), ("outputs", self.outputs, 0), ("batch", self.batch, 1)):
            if value < least:
                raise UsageError(f"expected --{name} of at least {least}, got {value}; give more")
        if self.tokens < 1 or not self.rank or min(self.rank) < 1:
            got = f"{self.tokens} and {self.rank}"
            raise UsageError(f"expected --tokens and --rank of at least 1, got {got}; give positive numbers")
        if not 0 <= self.intensity < float("inf"):
            raise UsageError(f"expected --intensity of at least 0, got {self.intensity}; 0 takes the chip's")
        if self.dtype not in ITEMSIZE:
            raise UsageError(f"expected --dtype among {', '.join(ITEMSIZE)}, got {self.dtype!r}; choose one of these")
        if self.chip not in CHIPS:
            raise UsageError(f"expected --chip among {', '.join(CHIPS)}, got {self.chip!r}; choose one of these")
        CHIPS[self.chip].peak(self.dtype)

    def setting(self) -> Setting:
        """As the figure takes it."""
        layer = Layer(self.width, self.outputs or self.width, self.tokens, self.dtype)
        return Setting(layer, tuple(dict.fromkeys(self.rank)), self.batch, self.chip, self.intensity or None)


Computed = tuple[dict[str, Any], list[Check]]


def draw_figures(names: Sequence[str], config: TheoryConfig, *, report: Callable[[str], None]) -> dict[str, Any]:
    """Draw some figures; returns the summary: the folder, and of every figure whether its claims hold, and seconds."""
    folder = _folder_for(config.out, names)

    def compute(name: str) -> Computed:
        if name == "intensity":
            return _module(name).compute(Setting())
        return _module(name).compute(config.seed, config.quick)

    return _drawn(names, folder, compute, report)


def calculate(config: IntensityConfig, *, report: Callable[[str], None]) -> dict[str, Any]:
    """The table of `eggroll theory intensity`, its figure and its numbers; returns the summary with the table."""
    folder, setting = _folder_for(config.out, ["intensity"]), config.setting()
    numbers, checks = _module("intensity").compute(setting)
    for line in rows(numbers):
        report(line)
    summary = _drawn(["intensity"], folder, lambda name: (numbers, checks), report)
    kept = ("inputs", "outputs", "tokens", "dtype", "batch", "chip", "operations_per_byte_to_saturate", "table")
    return summary | {name: numbers[name] for name in kept}


def _module(name: str) -> Any:
    return importlib.import_module(f"eggroll.theory.{'roofline' if name == 'intensity' else name}")


def _drawn(
    names: Sequence[str], folder: Path, compute: Callable[[str], Computed], report: Callable[[str], None]
) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    machine = environment()
    for name in names:
        start = time.perf_counter()
        numbers, checks = compute(name)
        wrong = [check for check in checks if not check.holds]
        seconds = round(time.perf_counter() - start, 2)
        own = {"figure": name, "shows": FIGURES[name], "environment": machine, "seconds": seconds}
        whole = own | {"checks": [check.as_json() for check in checks], "numbers": numbers}
        _write(folder / f"{name}.json", (json.dumps(whole, indent=1) + "\n").encode())
        _write(folder / f"{name}.png", style.png(_module(name).draw(numbers)))
        report(f"{name}: {len(checks) - len(wrong)} of {len(checks)} checks hold, {seconds:.0f} s")
        for check in wrong:
            report(f"  does not hold: {check.claim}: {check.value:.4g}, expected {check.low:.4g} to {check.high:.4g}")
        figures[name] = {"checks": len(checks), "hold": len(checks) - len(wrong), "seconds": seconds}
    report(f"figures and numbers in {folder}")
    return {
        "job": "theory",
        "out": str(folder),
        "holds": all(own["checks"] == own["hold"] for own in figures.values()),
        "figures": figures,
    }


def _folder_for(out: Path | None, names: Sequence[str]) -> Path:
    """The folder, made if it is not there, without any of the files that are to come.

    Raises:
      UsageError: it cannot be made, or has one of them.
    """
    folder = out if out is not None else fresh_folder("theory")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"expected --out, a folder that can be made, got {folder}: {error.strerror}; name another"
        ) from None
    for path in (folder / f"{name}.{kind}" for name in names for kind in ("png", "json")):
        if path.exists() or path.is_symlink():
            raise UsageError(f"expected no {path.name} in --out {folder}, got one; name another folder, or remove it")
    return folder


def _write(path: Path, data: bytes) -> None:
    try:
        put_whole(path, [data])
    except OSError as error:
        raise UsageError(
            f"expected to write {path}, got {error.strerror or error}; mend that, then run it again"
        ) from None
