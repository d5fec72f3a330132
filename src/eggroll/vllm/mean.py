"""The mean in one rank of an engine: its parts of the leaves, perturbed through adapters and updated in place."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch

from eggroll.core import noise
from eggroll.vllm.draws import Settings, draw_factors, stream_keys
from eggroll.vllm.slots import Slot
from eggroll.vllm.step import Held, Precision, Step, update


class MeanSettings(NamedTuple):
    """What a rank must know of a run.

    Attributes:
      seed, rank, law: of the noise.
      optimizer: "sgd" or "adam".
      precision: of 16-bit weights, "master" or "stochastic".
      leaves: names of those that evolve.
    """

    seed: int
    rank: int
    law: str
    optimizer: str
    precision: Precision
    leaves: tuple[str, ...]

    @property
    def noise(self) -> Settings:
        """What draws depend on."""
        return Settings(self.seed, self.rank, self.law)


class Mean:
    """What a rank holds.

    Args:
      slots: of this rank, `slots_of`.
      adapters: how many members the engine's buffers take.
    """

    def __init__(self, settings: MeanSettings, slots: Sequence[Slot], adapters: int) -> None:
        self._settings, self._adapters = settings, adapters
        self.slots = [slot for slot in slots if slot.part.leaf.name in frozenset(settings.leaves)]
        self.held = [Held.of(slot.part, slot.weight, settings.optimizer, settings.precision) for slot in self.slots]

    @property
    def device(self) -> torch.device:
        """Of the weights."""
        return self.slots[0].weight.device

    # ── members ──

    @torch.inference_mode()
    def perturb(self, generation: int, sigma: float, first: int, count: int) -> None:
        """Have adapter k be member `first + k`, all parts of it drawn here.

        Args:
          generation: whose noise it is.
          sigma: weight units; 0 makes every adapter the mean itself.
          first, count: members; an even first one.
        """
        if first % 2 or not 0 < count <= self._adapters:
            raise ValueError(f"expected 1 to {self._adapters} members from an even one, got {count} from {first}")
        member = torch.arange(first, first + count, dtype=torch.int32, device=self.device)
        pairs = torch.arange(first // 2, (first + count + 1) // 2, dtype=torch.int32, device=self.device)
        sign, own = 1 - 2 * (member % 2).to(torch.float32), (member // 2 - first // 2).to(torch.int64)
        factors = [noise.FACTOR_A, noise.FACTOR_B]
        parts = [slot.part for slot in self.slots]
        scale = (sign * (sigma / math.sqrt(self._settings.rank)))[:, None, None]
        rank = self._settings.rank
        for slot, keys in zip(
            self.slots, stream_keys(self._settings.noise, parts, factors, generation, pairs), strict=True
        ):
            a, b = draw_factors(self._settings.noise, slot.part, keys)
            slot.b[:count, :, :rank].copy_(a[own] * scale)
            slot.a[:count, :rank].copy_(b[own].transpose(1, 2))

    # ── updates ──

    @torch.inference_mode()
    def update(self, weights: torch.Tensor, step: Step) -> None:
        """Move every leaf, layer by layer."""
        weights = weights.to(self.device)
        for held in self.held:
            update(held, self._settings.noise, weights, step)

    # ── what is kept ──

    @torch.inference_mode()
    def each(self, function: Callable[[torch.Tensor], Any]) -> None:
        """Apply a function to everything that updates depend on, in one order at all ranks and engines."""
        for held in self.held:
            for value in held.kept.values():
                own = value if value.is_contiguous() else value.contiguous()
                function(own)
                if own is not value:
                    value.copy_(own)
            held.settle()

    @torch.inference_mode()
    def digest(self) -> int:
        """A number that another engine's same rank has too, where all bits are the same."""
        total = 0

        def add(value: torch.Tensor) -> None:
            nonlocal total
            wide = value.view(torch.int16 if value.element_size() == 2 else torch.int32).reshape(-1).to(torch.int32)
            index = torch.arange(wide.numel(), dtype=torch.int32, device=wide.device)
            mixed = noise.element_bits((wide, torch.full_like(wide, noise.signed(total))), index)
            total = (total * 31 + int(mixed.to(torch.int64).sum())) % 2**61

        self.each(add)
        return total

    @torch.inference_mode()
    def save(self, path: Path) -> None:
        """Write this rank's parts to a safetensors file; `read_parts` joins those of all ranks."""
        tensors = {
            f"{kind}/{held.part.leaf.name}": value.to("cpu", copy=True).contiguous()
            for held in self.held
            for kind, value in held.kept.items()
        }
        safetensors.torch.save_file(tensors, path)

    @torch.inference_mode()
    def load(self, path: Path) -> None:
        """Take this rank's parts out of whole leaves, "weight/NAME" and moments alike."""
        with safetensors.safe_open(path, "pt") as file:
            for held in self.held:
                part = held.part
                rows = slice(part.first_row, part.first_row + part.rows)
                columns = slice(part.first_column, part.first_column + part.columns)
                for kind, value in held.kept.items():
                    value.copy_(file.get_slice(f"{kind}/{part.leaf.name}")[rows, columns])
                held.settle()
