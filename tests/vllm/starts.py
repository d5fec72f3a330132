"""Weights to begin with."""

from __future__ import annotations

from pathlib import Path

import torch

from eggroll.vllm.blueprint import blueprint_of
from eggroll.vllm.checkpoint import pack_kept, read_leaves
from eggroll.vllm.config import VllmConfig
from eggroll.vllm.learner import as_kept, start_of


def start_kept(config: VllmConfig, folder: Path) -> bytes:
    """Those of a checkpoint, as engines take them."""
    leaves = blueprint_of(folder).leaves
    return pack_kept(as_kept(*start_of(config, read_leaves(folder, leaves, torch.float32))))
