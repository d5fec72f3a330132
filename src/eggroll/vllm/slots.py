"""Where a rank of the engine holds its parts of the leaves: in fused weights, and in the buffers of its adapters.

vLLM joins q, k and v, and gate and up, into one matrix each, and shares rows or columns out among ranks: of q to each
its heads, of k and v to each its heads or, where there are fewer heads than ranks, the same one to several.

Source: vLLM 0.32, `model_executor/layers/linear.py` and `lora/layers`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from eggroll.vllm.leaves import TARGETS, Leaf, Part


class Slot(NamedTuple):
    """A part of a leaf in this rank.

    Attributes:
      part: which rows and columns.
      weight: (rows, columns), a view of the engine's own weights.
      a: (adapters, rank at most, columns), a view of what vLLM calls A; the house's Bᵀ.
      b: (adapters, rows, rank at most), a view of what vLLM calls B; the house's A.
    """

    part: Part
    weight: torch.Tensor
    a: torch.Tensor
    b: torch.Tensor


def slots_of(manager: Any) -> list[Slot]:
    """The parts that this rank holds, in the order of the layers.

    Args:
      manager: of adapters, `LoRAModelManager`.
    """
    found: list[Slot] = []
    for name, module in manager.modules.items():
        if hasattr(module, "w13_lora_a_stacked"):
            found.extend(_experts(name, module))
        elif hasattr(module, "lora_a_stacked") and hasattr(getattr(module, "base_layer", None), "input_size"):
            found.extend(_linear(manager.packed_modules.get(name, [name]), module))
    return found


def _linear(names: list[str], module: Any) -> Iterator[Slot]:
    base = module.base_layer
    weight, at = base.weight.data, 0
    if len(names) != len(module.lora_a_stacked):
        return  # fused in the checkpoint too
    for number, (name, (whole, first, rows)) in enumerate(zip(names, _rows(base, len(names)), strict=True)):
        first_column, columns = _columns(base)
        if name.rpartition(".")[2] in TARGETS:
            part = Part(Leaf(f"{name}.weight", whole, base.input_size), first, rows, first_column, columns)
            a, b = module.lora_a_stacked[number][:, 0], module.lora_b_stacked[number][:, 0]
            yield Slot(part, weight[at : at + rows, :columns], a[:, :, :columns], b[:, :rows])
        at += rows


def _rows(base: Any, count: int) -> list[tuple[int, int, int]]:
    """Of each joined matrix: rows in all, the first that this rank has, and how many."""
    rank, size = base.tp_rank, base.tp_size
    if hasattr(base, "num_kv_head_replicas"):
        sizes = [base.head_size, base.head_size, base.v_head_size]
        own = [base.num_heads, base.num_kv_heads, base.num_kv_heads]
        heads = [base.total_num_heads, base.total_num_kv_heads, base.total_num_kv_heads]
        shard = [rank, *[rank // base.num_kv_head_replicas] * 2]
        return [(h * s, k * n * s, n * s) for h, s, k, n in zip(heads, sizes, shard, own, strict=True)]
    if _by_column(base) or not hasattr(base, "output_size_per_partition"):
        return [(base.output_size, 0, base.output_size)]
    wholes = list(base.output_sizes) if count > 1 else [base.output_size]
    return [(whole, rank * (whole // size), whole // size) for whole in wholes]


def _by_column(base: Any) -> bool:
    """Whether the inputs are shared out among the ranks."""
    return type(base).__name__.startswith("RowParallel")


def _columns(base: Any) -> tuple[int, int]:
    if not _by_column(base):
        return 0, base.input_size
    own = base.input_size_per_partition
    return base.tp_rank * own, own


def _experts(name: str, module: Any) -> Iterator[Slot]:
    """Of a mixture: (experts, 2 · inner, outer) and (experts, outer, inner), inner shared out among the ranks."""
    routed = module.base_layer.routed_experts
    w13, w2 = routed.w13_weight.data, routed.w2_weight.data
    inner, outer = module.intermediate_size_per_partition, module.hidden_size
    whole, first = inner * module.tp_size, inner * module.tp_rank
    first_expert = module.ep_rank * module.local_num_experts if module.use_ep else 0
    a13, b13 = module.w13_lora_a_stacked, module.w13_lora_b_stacked
    a2, b2 = module.w2_lora_a_stacked[0], module.w2_lora_b_stacked[0]
    for expert in range(module.local_num_experts):
        own = f"{name}.{first_expert + expert}"
        for half, target in enumerate(("gate_proj", "up_proj")):
            part = Part(Leaf(f"{own}.{target}.weight", whole, outer), first, inner, 0, outer)
            weight = w13[expert, half * inner : (half + 1) * inner]
            yield Slot(part, weight, a13[half][:, expert], b13[half][:, expert])
        part = Part(Leaf(f"{own}.down_proj.weight", outer, whole), 0, outer, first, inner)
        yield Slot(part, w2[expert], a2[:, expert], b2[:, expert])
