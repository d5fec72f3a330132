"""What is to be executed, and what is measured of a model's flow: plain values, without an engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

LAG = 100
"""Messages over which the price's moves are measured."""
QUANTILES = np.linspace(0, 1, 101)
MEASURES = {
    "spread": "spread, ticks",
    "gap": "time between messages, log10 of seconds",
    "move": f"move of the mid in {LAG} messages, ticks",
}
"""Of a flow → what it is called."""


@dataclass(frozen=True)
class Task:
    """What is to be done.

    Attributes:
      side: "sell" or "buy".
      quantity: shares.
      decisions: how often an order may be put, each in place of the one before.
      interval: messages of others between two decisions, and before the first, which the trader just reads.
    """

    side: Literal["sell", "buy"] = "sell"
    quantity: int = 400
    decisions: int = 16
    interval: int = 16

    @property
    def direction(self) -> int:
        """+1 to buy, −1 to sell."""
        return 1 if self.side == "buy" else -1

    @property
    def messages(self) -> int:
        """Of others in an episode."""
        return (self.decisions + 1) * self.interval
