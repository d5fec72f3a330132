"""The update of one part of a leaf, in PyTorch and in place: SGD or Adam in float32, whatever the weights are.

A step smaller than half a unit in a 16-bit weight's last place must not vanish: such weights keep a float32 master
copy, or are rounded up or down at random in proportion.

Source of Adam: Kingma and Ba, arXiv 1412.6980; its constants are optax's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch

from eggroll.vllm.draws import Settings, rounding_bits, weighted_noise
from eggroll.vllm.leaves import Part

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
Precision = Literal["master", "stochastic"]
MOMENTS = {"sgd": (), "adam": ("mean", "square")}


class Step(NamedTuple):
    """Of one generation.

    Attributes:
      generation: whose noise and count it is; `noise_generation` is another under noise reuse.
      sigma: of the perturbations, weight units.
      learning_rate: of the optimiser.
      population_size: members, all together.
    """

    generation: int
    noise_generation: int
    sigma: float
    learning_rate: float
    population_size: int


@dataclass
class Held:
    """A part of a leaf with what its updates keep.

    Attributes:
      part: which rows and columns.
      weight: (rows, columns), the model's own or a view of it; changed in place.
      master: (rows, columns) float32; None where `weight` is float32 itself or rounded at random.
      moments: by name, (rows, columns) float32.
    """

    part: Part
    weight: torch.Tensor
    master: torch.Tensor | None = None
    moments: dict[str, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, part: Part, weight: torch.Tensor, optimizer: str, precision: Precision) -> Held:
        """With zeros as moments, and a master copy where one is needed."""
        keeps = precision == "master" and weight.dtype != torch.float32
        if weight.dtype not in (torch.float32, torch.bfloat16) and not keeps:
            raise ValueError(f"expected bfloat16 weights to round at random, got {weight.dtype}; keep master copies")
        zeros = {name: torch.zeros_like(weight, dtype=torch.float32) for name in MOMENTS[optimizer]}
        return cls(part, weight, weight.to(torch.float32, copy=True) if keeps else None, zeros)

    @property
    def kept(self) -> dict[str, torch.Tensor]:
        """Everything that the next update depends on."""
        weight = self.weight if self.master is None else self.master
        return {"weight": weight, **self.moments}

    def settle(self) -> None:
        """After `kept` was written to."""
        if self.master is not None:
            self.weight.copy_(self.master)


def update(held: Held, settings: Settings, weights: torch.Tensor, step: Step) -> None:
    """Move one part by the estimated gradient.

    Args:
      weights: (pairs,) float32, `(u_2p − u_2p+1)/2` of the shaped fitness.
    """
    gradient = weighted_noise(settings, held.part, step.noise_generation, weights)
    gradient.mul_(2 / (step.population_size * step.sigma))
    move = _move(held, gradient, step)
    if held.master is not None:
        held.master.add_(move)
        held.settle()
    elif held.weight.dtype == torch.float32:
        held.weight.add_(move)
    else:
        moved = held.weight.to(torch.float32).add_(move)
        bits = rounding_bits(settings, held.part, step.generation, moved.device)
        held.weight.copy_(round_at_random(moved, bits))


def _move(held: Held, gradient: torch.Tensor, step: Step) -> torch.Tensor:
    """What is added to the weights; uphill."""
    if not held.moments:
        return gradient.mul_(step.learning_rate)
    mean, square = held.moments["mean"], held.moments["square"]
    mean.mul_(BETA1).add_(gradient, alpha=1 - BETA1)
    square.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
    count = step.generation + 1
    scale = math.sqrt(1 - BETA2**count)
    return (mean * (step.learning_rate / (1 - BETA1**count))).div_(square.sqrt().div_(scale).add_(EPSILON))


def round_at_random(values: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """float32 to one of its two neighbours in bfloat16, each as likely as the value is near to it.

    Args:
      bits: int32 of the same shape, random.
    """
    kept = (values.contiguous().view(torch.int32) + (bits & 0xFFFF)) & -65536
    return kept.view(torch.float32).to(torch.bfloat16)
