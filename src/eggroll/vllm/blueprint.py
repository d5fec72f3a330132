"""What a model is made of, from its configuration alone: no weight is allocated.

Source of the layers' names: transformers, which builds the model on the meta device.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eggroll.core.errors import UsageError
from eggroll.vllm.leaves import TARGETS, Leaf, matches

_SMALL = ("gate", "router", "shared_expert_gate", "lm_head", "embed_tokens")
"""Matrices that stay as they are without anybody's asking."""
_LAYER = re.compile(r"\.layers\.\d+\.")
EXTRA = 'pip install "eggroll-es[vllm]", or scripts/install-vllm.sh for the CPU'


@dataclass(frozen=True)
class Blueprint:
    """Attributes:
    leaves: that evolve, in the order of the layers.
    frozen: names of all other parameters.
    dtype: of the checkpoint, "float32", "bfloat16" or "float16".
    """

    leaves: tuple[Leaf, ...]
    frozen: tuple[str, ...]
    dtype: str

    @property
    def parameters(self) -> int:
        """How many numbers evolve."""
        return sum(leaf.rows * leaf.columns for leaf in self.leaves)


def blueprint_of(folder: Path, trainable: Sequence[str] = ("*",), frozen: Sequence[str] = ()) -> Blueprint:
    """The blueprint of a checkpoint.

    Args:
      folder: with its `config.json`.
      trainable, frozen: patterns of names; what the latter match stays.
    Raises:
      UsageError: transformers is missing or knows no such architecture, a linear layer is not mapped (it is named), or
        nothing evolves.
    """
    model, dtype = _meta_model(folder)
    leaves: list[Leaf] = []
    for name, module in model.named_modules():
        own = _leaves_of(name, module)
        if own is None and not matches(frozen, f"{name}.weight"):
            raise UsageError(
                f"expected linear layers named {', '.join(TARGETS)}, got {name} ({type(module).__name__}), which is "
                f"not mapped; leave it as it is with --frozen '*.{name.rpartition('.')[2]}.weight'"
            )
        leaves.extend(own or ())
    kept = tuple(leaf for leaf in leaves if matches(trainable, leaf.name) and not matches(frozen, leaf.name))
    if not kept:
        raise UsageError(
            f"expected a model with {', '.join(TARGETS)} of which --trainable and --frozen leave some, got none in "
            f"{folder}; {f'such as {leaves[0].name}' if leaves else 'this architecture is not mapped'}"
        )
    names = {leaf.name for leaf in kept} | {_joined(leaf.name) for leaf in kept}
    return Blueprint(kept, tuple(name for name, _ in model.named_parameters() if name not in names), dtype)


def _joined(name: str) -> str:
    """Of an expert's matrix, the parameter in which transformers joins those of all experts."""
    name = re.sub(r"\.experts\.\d+\.(gate|up)_proj\.weight$", ".experts.gate_up_proj", name)
    return re.sub(r"\.experts\.\d+\.down_proj\.weight$", ".experts.down_proj", name)


def _meta_model(folder: Path) -> tuple[Any, str]:
    try:
        import torch
        import transformers
    except ImportError as error:
        raise UsageError(f"expected the package {error.name}, got none; {EXTRA}") from None
    try:
        config = transformers.AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        why = str(error).strip().splitlines()[:1]
        raise UsageError(
            f"expected a causal language model in {folder}, got {' '.join(why)[:200]}; change it"
        ) from None
    return model, str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")


def _leaves_of(name: str, module: Any) -> list[Leaf] | None:
    """Those of one module; None: a matrix of a layer that is not mapped."""
    if getattr(module, "gate_up_proj", None) is not None and module.gate_up_proj.__class__.__name__ == "Parameter":
        return _experts(name, module)
    weight = getattr(module, "weight", None)
    if weight is None or weight.ndim != 2 or not _LAYER.search(f".{name}"):
        return []
    last = name.rpartition(".")[2]
    if type(module).__name__ == "Linear" and last in TARGETS:
        return [Leaf(f"{name}.weight", *weight.shape)]
    return [] if last in _SMALL else None


def _experts(name: str, module: Any) -> list[Leaf] | None:
    """A mixture's joined experts, (experts, 2 · inner, outer) here and apart in the checkpoint."""
    experts, double, outer = module.gate_up_proj.shape
    inner = double // 2
    if tuple(module.down_proj.shape) != (experts, outer, inner):
        return None
    shapes = {"gate_proj": (inner, outer), "up_proj": (inner, outer), "down_proj": (outer, inner)}
    return [Leaf(f"{name}.{e}.{target}.weight", *shape) for e in range(experts) for target, shape in shapes.items()]
