"""Numbers as a person reads them: short on an axis, exact enough in a table."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float64

_UNITS = ((1e12, 1e12, "T"), (1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k"))


def compact(value: float, digits: int = 3) -> str:
    """A number in at most `digits` digits: 0.25, −8.4, 340k, 1.66M, 1e+60."""
    for least, size, unit in _UNITS:
        if least <= abs(value) < 1e15:
            return compact(value / size, digits) + unit
    text = f"{value:.{digits}g}"
    if "e" in text and 1 <= abs(value) < 1e4:
        text = f"{float(text):g}"
    return text.replace("-", "−")


def tick_labels(values: Float64[np.ndarray, " ticks"]) -> list[str]:
    """Labels of an axis, with as many digits as it takes to be true and to tell them apart."""
    step = float(np.ptp(values)) / max(1, len(values) - 1)
    # What should be 0 is often a rounding error away from it.
    exact = [0.0 if abs(value) < 1e-6 * step else float(value) for value in values]
    for digits in range(1, 17):
        labels = [compact(value, digits) for value in exact]
        if all(_is_close(value, digits, step) for value in exact) and len(set(labels)) == len(labels):
            return labels
    return [f"{value:g}" for value in exact]


def _is_close(value: float, digits: int, step: float) -> bool:
    return abs(float(f"{value:.{digits}g}") - value) <= 0.01 * step


def measured(value: float | None, error: float | None = None) -> str:
    """A measurement with its standard error to two digits, `5.812 ± 0.097`; without an error, to five digits."""
    if value is None:
        return "—"
    if error is None:
        return _plain(value, 5)
    if not error or abs(value) >= 1e15 or error < 1e-12 * abs(value):
        return f"{_plain(value, 5)} ± {_plain(error, 2)}"
    places = max(0, 1 - math.floor(math.log10(error)))
    if places > 12:
        return f"{_plain(value, 5)} ± {_plain(error, 2)}"
    return f"{value:,.{places}f} ± {error:,.{places}f}".replace("-", "−")


def whole(value: float | None) -> str:
    """A count; of a mean of counts one decimal."""
    return "—" if value is None else f"{value:,.1f}".removesuffix(".0")


def _plain(value: float, digits: int) -> str:
    if 1e4 <= abs(value) < 1e15:
        return f"{value:,.0f}".replace("-", "−")
    return f"{value:.{digits}g}".replace("-", "−")


def duration(seconds: float | None) -> str:
    """8.27 s, 4 min 10 s, 1 h 3 min."""
    if seconds is None or not 0 <= seconds < 1e9:
        return "—"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60:,} h {minutes % 60} min"


def size(count: float | None) -> str:
    """Bytes in binary units: 429 MiB."""
    if count is None or not 0 <= count < 1e18:
        return "—"
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:,.1f} TiB"
