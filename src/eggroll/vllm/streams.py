"""Weights from engine to engine, leaf by leaf, without a detour: gloo between CPUs, NCCL between GPUs."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch

from eggroll.vllm.mean import Mean

Broadcast = Callable[[torch.Tensor], Any]
"""Fills a tensor of every member with that of member 0."""
_PATIENCE = timedelta(seconds=300)


def join(host: str, port: int, member: int, members: int, device: torch.device) -> Broadcast:
    """Meet the same rank of other engines.

    Args:
      host, port: where member 0 waits.
    """
    if device.type == "cpu":
        return _gloo(host, port, member, members)
    from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator
    from vllm.distributed.utils import StatelessProcessGroup

    group = StatelessProcessGroup.create(host, port, member, members)
    nccl = PyNcclCommunicator(group, device=device)
    return lambda tensor: nccl.broadcast(tensor, 0)


def _gloo(host: str, port: int, member: int, members: int) -> Broadcast:
    from torch.distributed import BroadcastOptions, PrefixStore, TCPStore
    from torch.distributed.distributed_c10d import ProcessGroupGloo

    store = TCPStore(host, port, members, member == 0, timeout=_PATIENCE)
    group = ProcessGroupGloo(PrefixStore("eggroll", store), member, members, timeout=_PATIENCE)
    options = BroadcastOptions()
    options.rootRank = 0

    def broadcast(tensor: torch.Tensor) -> None:
        group.broadcast([tensor], options).wait()  # type: ignore[attr-defined]

    return broadcast


def stream(mean: Mean, broadcast: Broadcast) -> int:
    """All that updates depend on; returns how many bytes."""
    sent = 0

    def one(value: torch.Tensor) -> None:
        nonlocal sent
        broadcast(value)
        sent += value.numel() * value.element_size()

    mean.each(one)
    return sent
