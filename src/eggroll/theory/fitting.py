"""Power laws fitted to numbers, and the checks that a figure's claim comes to."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

Number = int | float


@dataclass(frozen=True)
class PowerLaw:
    """`y = factor · x^exponent`, by least squares in logarithms."""

    exponent: float
    factor: float
    error: float
    """Standard error of the exponent: from the errors of the numbers where they are given, else from the residuals."""

    def __call__(self, x: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
        """The law at other places."""
        return self.factor * x**self.exponent


def power_law(
    x: Float64[np.ndarray, " n"], y: Float64[np.ndarray, " n"], errors: Float64[np.ndarray, " n"] | None = None
) -> PowerLaw:
    """Fit a power law to at least three numbers.

    Args:
      x, y: > 0.
      errors: standard errors of y; equal relative errors without.
    """
    logs_x, logs_y = np.log(x), np.log(y)
    weight = np.ones_like(logs_x) if errors is None else (y / errors) ** 2
    centre = np.average(logs_x, weights=weight)
    spread = np.sum(weight * (logs_x - centre) ** 2)
    exponent = float(np.sum(weight * (logs_x - centre) * logs_y) / spread)
    offset = float(np.average(logs_y - exponent * logs_x, weights=weight))
    residual = logs_y - offset - exponent * logs_x
    scatter = 1.0 if errors is not None else float(np.sum(weight * residual**2)) / (len(x) - 2)
    return PowerLaw(exponent, math.exp(offset), math.sqrt(scatter / float(spread)))


@dataclass(frozen=True)
class Check:
    """A claim as a number and the interval that it must lie in."""

    claim: str
    value: float
    low: float
    high: float

    @property
    def holds(self) -> bool:
        """Whether it does."""
        return self.low <= self.value <= self.high

    def as_json(self) -> dict[str, Any]:
        """With whether it holds; an end that is infinite is left out, since JSON has no infinity."""
        ends = {name: value for name, value in asdict(self).items() if name == "claim" or math.isfinite(value)}
        return ends | {"holds": self.holds}


def near(claim: str, value: Number, wanted: Number, within: Number) -> Check:
    """That a number is `wanted ± within`."""
    return Check(claim, float(value), float(wanted - within), float(wanted + within))


def at_most(claim: str, value: Number, limit: Number) -> Check:
    """That a number is no more than `limit`."""
    return Check(claim, float(value), -math.inf, float(limit))


def at_least(claim: str, value: Number, limit: Number) -> Check:
    """That a number is no less than `limit`."""
    return Check(claim, float(value), float(limit), math.inf)
