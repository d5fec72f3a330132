"""What eggroll adds to a vLLM worker (`worker_extension_cls`): members as adapters, and the update in place.

Methods take numbers, texts and packed bytes, never tensors, and return (whether it worked, what came of it or why
not): an exception would leave the replies of other ranks in the queue. Importing this module brings in no JAX.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eggroll.vllm.leaves import TARGETS
from eggroll.vllm.mean import Mean, MeanSettings
from eggroll.vllm.slots import slots_of
from eggroll.vllm.step import Step
from eggroll.vllm.streams import join, stream

PATH = "/nonexistent"
"""Of an adapter that is in memory."""


def settle_cpu() -> None:
    """On a CPU, vLLM would pack linear weights into a layout of its own and leave an empty one to update; and it would
    choose Triton for experts wherever there are adapters, though these experts have none."""
    from vllm.model_executor.layers.linear import LinearBase
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    LinearBase._cpu_skip_gemm_dispatch = True
    from vllm.model_executor.layers.fused_moe import unquantized_fused_moe_method as experts

    choose = experts.select_unquantized_moe_backend

    def without_adapters(moe_config: Any) -> Any:
        moe_config.is_lora_enabled = False
        return choose(moe_config=moe_config)

    experts.select_unquantized_moe_backend = without_adapters


settle_cpu()


def answered(method: Callable[..., Any]) -> Callable[..., tuple[bool, Any]]:
    """Return (True, result), or (False, why not)."""

    @functools.wraps(method)
    def wrapped(self: Any, *arguments: Any) -> tuple[bool, Any]:
        try:
            return True, method(self, *arguments)
        except Exception as error:
            return False, f"{type(error).__name__}: {error}"

    return wrapped


class EggrollExtension:
    """Methods of a worker; the names begin with `eggroll_`, since they must not be those of the worker itself."""

    model_runner: Any
    rank: int

    @answered
    def eggroll_prepare(self, settings: str) -> list[list[object]]:
        """Take over weights and adapters. Returns what this rank holds.

        Args:
          settings: `MeanSettings` as JSON.
        """
        values = json.loads(settings)
        manager = self.model_runner.lora_manager._adapter_manager
        own = MeanSettings(**values | {"leaves": tuple(values["leaves"])})
        adapters = manager.lora_slots
        _register(manager, adapters)
        self._eggroll = Mean(own, slots_of(manager), adapters)
        if not self._eggroll.slots:
            raise ValueError(f"expected linear layers named {', '.join(TARGETS)}, got {', '.join(manager.modules)}")
        return [slot.part.as_json() for slot in self._eggroll.slots]

    @answered
    def eggroll_perturb(self, generation: int, sigma: float, first: int, count: int) -> None:
        """Have adapter k + 1 be member `first + k`; see `Mean.perturb`."""
        _check_registered(self.model_runner.lora_manager._adapter_manager)
        self._eggroll.perturb(generation, sigma, first, count)

    @answered
    def eggroll_update(self, step: str, weights: bytes) -> None:
        """Update in place.

        Args:
          step: `Step` as JSON.
          weights: of all pairs, little-endian float32.
        """
        values = torch.from_numpy(np.frombuffer(weights, "<f4").astype(np.float32))
        self._eggroll.update(values, Step(**json.loads(step)))

    @answered
    def eggroll_digest(self) -> int:
        """A number that stands for all bits that this rank holds."""
        return self._eggroll.digest()

    @answered
    def eggroll_save(self, folder: str) -> None:
        """Write this rank's parts into a folder."""
        self._eggroll.save(Path(folder) / f"rank-{self.rank}.safetensors")

    @answered
    def eggroll_load(self, file: str) -> None:
        """Take this rank's parts out of whole leaves in a file."""
        self._eggroll.load(Path(file))

    @answered
    def eggroll_synchronise(self, host: str, ports: list[int], member: int, members: int) -> int:
        """Send (member 0) or take all weights and moments, leaf by leaf, straight from engine to engine.

        Args:
          host, ports: where member 0's ranks wait, a port for each rank.
          member, members: of the engines that meet.
        Returns:
          Bytes that went over.
        """
        group = join(host, ports[self.rank], member, members, self._eggroll.device)
        return stream(self._eggroll, group)


def _register(manager: Any, adapters: int) -> None:
    """Have every slot hold an adapter of zeros for good; members are written into the buffers behind them."""
    from vllm.lora.lora_model import LoRAModel
    from vllm.lora.lora_weights import LoRALayerWeights

    for number in range(1, adapters + 1):
        manager.remove_adapter(number)
        dtype = manager.lora_config.lora_dtype
        name = next(iter(manager.modules))  # a stand-in: what a slot holds is written later
        zeros = LoRALayerWeights(name, 1, 1, torch.zeros(1, 1, dtype=dtype), torch.zeros(1, 1, dtype=dtype))
        model = LoRAModel(number, 1, {f"{name}.eggroll": zeros})
        manager.add_adapter(model)
        manager.activate_adapter(number)
    _check_registered(manager)


def _check_registered(manager: Any) -> None:
    """Whether slot k is still that of adapter k + 1."""
    found = list(manager.lora_index_to_id)
    if found != list(range(1, len(found) + 1)):
        raise RuntimeError(f"expected adapters 1 to {len(found)} in the engine's slots, got {found}; start it anew")
