"""Arithmetic intensity of a perturbed layer: operations for each byte moved, and the batch that saturates a chip.

A batch of B members with T rows each goes through a layer of m × n numbers of s bytes; noise of the members is at hand.

| | operations / BT | numbers moved |
|---|---|---|
| inference | `2mn` | `mn + BT(m+n)` |
| Gaussian ES | `2mn` | `B·mn + BT(m+n)` |
| EGGROLL | `2mn + 2r(m+n) + m` | `mn + B·r(m+n) + BT(m+n) + 2BT·r` |
| EGGROLL, redrawn | the same | `mn + BT(m+n) + 2BT·r` |

EGGROLL's are the two low-rank products, their sum with the main one, and the `x·B` that is written and read again. With
s = 2, m = n and T = 1 these are the paper's `Bm/(2B + m)`, `m/(m + 2)` and
`(m + 2r + ½)/(2 + r(2 + 2/m) + m/B)`. "Redrawn" is a kernel that draws the factors itself, and moves none.

Source: arXiv 2511.16652, appendix F.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from eggroll.theory.chips import ITEMSIZE

Numbers = dict[str, Any]


@dataclass(frozen=True)
class Layer:
    """What is counted.

    Args:
      inputs, outputs: n and m.
      tokens: T, rows that each member multiplies.
      dtype: of everything.
    """

    inputs: int
    outputs: int
    tokens: int = 1
    dtype: str = "bfloat16"


@dataclass(frozen=True)
class Count:
    """Operations and bytes as straight lines in the batch: what every member adds, and what is there without any."""

    operations: float
    """A member."""
    bytes_each: float
    """A member."""
    bytes_shared: float
    """Of all together."""

    def intensity(self, batch: int | float) -> float:
        """Operations per byte."""
        return batch * self.operations / (batch * self.bytes_each + self.bytes_shared)

    @property
    def limit(self) -> float:
        """What the intensity tends to as the batch grows."""
        return self.operations / self.bytes_each

    def batch_for(self, intensity: float) -> int | None:
        """The least batch that reaches an intensity; None where none does."""
        spare = self.operations - intensity * self.bytes_each
        return math.ceil(intensity * self.bytes_shared / spare) if spare > 0 else None


def inference(layer: Layer) -> Count:
    """One weight for all."""
    both, numbers, size = layer.inputs + layer.outputs, layer.inputs * layer.outputs, ITEMSIZE[layer.dtype]
    return Count(2.0 * layer.tokens * numbers, float(size * layer.tokens * both), float(size * numbers))


def gaussian(layer: Layer) -> Count:
    """A matrix for each member."""
    plain, own = inference(layer), ITEMSIZE[layer.dtype] * layer.inputs * layer.outputs
    return Count(plain.operations, plain.bytes_each + own, 0.0)


def eggroll(layer: Layer, rank: int, *, redrawn: bool = False) -> Count:
    """One weight for all, and two factors for each member.

    Args:
      redrawn: the factors are drawn where they are used, rather than read.
    """
    plain, both = inference(layer), layer.inputs + layer.outputs
    operations = plain.operations + layer.tokens * (2 * rank * both + layer.outputs)
    numbers = 2 * layer.tokens * rank + (0 if redrawn else rank * both)
    return Count(operations, plain.bytes_each + ITEMSIZE[layer.dtype] * numbers, plain.bytes_shared)


def ways(layer: Layer, ranks: tuple[int, ...]) -> dict[str, Count]:
    """Everything that the table compares, by name."""
    found = {"inference": inference(layer), "Gaussian ES": gaussian(layer)}
    for rank in ranks:
        found[f"rank {rank}"] = eggroll(layer, rank)
        found[f"rank {rank}, redrawn"] = eggroll(layer, rank, redrawn=True)
    return found


def table(layer: Layer, ranks: tuple[int, ...], batch: int, target: float) -> Numbers:
    """Of every way: operations a byte at a batch and at most, the batch that reaches `target`, the share of it now."""
    return {
        name: {
            "operations_per_byte": count.intensity(batch),
            "at_most": count.limit,
            "batch_to_saturate": count.batch_for(target),
            "share_of_peak": min(1.0, count.intensity(batch) / target),
        }
        for name, count in ways(layer, ranks).items()
    }
