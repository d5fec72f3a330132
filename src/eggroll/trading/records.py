"""Days without downloads: `eggroll trade generate` and `eggroll trade calibrate`."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from eggroll.core.errors import UsageError
from eggroll.trading.calibration import Calibration, calibrated, settled, shape_of
from eggroll.trading.config import CalibrateConfig, GenerateConfig
from eggroll.trading.data import calibration_of, generated_day, read_pair
from eggroll.trading.lobster import Day, write_book, write_messages
from eggroll.trading.messages import DELETE, EXECUTE, HIDDEN, LIMIT

_NAMED = {"limit": LIMIT, "delete": DELETE, "execute": EXECUTE, "hidden": HIDDEN}
_QUANTILES = (0.1, 0.5, 0.9)


def generate(config: GenerateConfig) -> dict[str, Any]:
    """Write generated days in LOBSTER's format.

    Returns:
      What was written, and what the first day looks like; see `look_of`.
    Raises:
      UsageError: the folder has such files, or the calibration is none.
    """
    taken = sorted(config.out.glob("*message*.csv")) if config.out.is_dir() else []
    if taken or config.out.is_file():
        raise UsageError(f"expected --out as a folder without days, got {config.out}; name another")
    flow = calibration_of(config.calibration).flow()
    config.out.mkdir(parents=True, exist_ok=True)
    look: dict[str, Any] = {}
    for number in range(config.days):
        seed = config.seed + number
        day = generated_day(flow, jax.random.key(seed), config.messages, config.levels, config.price)
        write_messages(config.out / f"generated_{seed}_message_{config.levels}.csv", day.messages)
        write_book(config.out / f"generated_{seed}_orderbook_{config.levels}.csv", day.rows)
        look = look or look_of(day)
    return {"out": str(config.out), "days": config.days, "messages": config.days * config.messages, **look}


def calibrate(config: CalibrateConfig) -> dict[str, Any]:
    """Find the numbers of a recorded market, and write them.

    Returns:
      The record's look, that of the market made of its numbers, and where these are.
    Raises:
      UsageError: the record cannot be read, or has too few messages or levels.
    """
    day = read_pair(config.messages)
    calibration = of_day(day, config.rounds)
    if not config.out.parent.is_dir():
        raise UsageError(f"expected a folder for {config.out}, got none at {config.out.parent}; make it")
    calibration.write(config.out)
    made = generated_day(calibration.flow(), jax.random.key(0), 20_000, 10)
    return {"out": str(config.out), "record": look_of(day), "market": look_of(made)}


def of_day(day: Day, rounds: int = 16) -> Calibration:
    """The numbers of a recorded day.

    Raises:
      UsageError: it has too few messages or levels.
    """
    if day.rows.shape[1] < 10:
        raise UsageError(f"expected an order book of at least 10 levels, got {day.rows.shape[1]}; give a deeper one")
    return settled(calibrated(day.messages, day.rows), shape_of(day.messages, day.rows), rounds)


def look_of(day: Day) -> dict[str, Any]:
    """What a day looks like: rates, kinds, spread, depth.

    Returns:
      messages a second; gap_seconds and spread_ticks at the quantiles 0.1, 0.5 and 0.9; shares of kinds; shares at the
      best price; and, of ten levels or more, what `calibration.Shape` has.
    """
    seconds = np.diff(day.messages.time) / 1e9
    spread = (day.rows[:, 0, 0] - day.rows[:, 0, 2]) / 100
    size = day.rows[:, :10, 1::2]
    found = {
        "messages_a_second": round(float(1 / seconds.mean()), 2),
        "gap_seconds": [float(f"{value:.3g}") for value in np.quantile(seconds, _QUANTILES)],
        "spread_ticks": [float(value) for value in np.quantile(spread, _QUANTILES)],
        "kinds": {name: round(float((day.messages.kind == kind).mean()), 3) for name, kind in _NAMED.items()},
        "best_size": round(float(size[:, 0].mean()), 1),
    }
    if day.rows.shape[1] < 10:
        return found
    shape = shape_of(day.messages, day.rows)
    return found | {f"mean_{name}": round(float(value), 2) for name, value in shape._asdict().items()}
