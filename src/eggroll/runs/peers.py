"""Several processes that make one run: what the loop asks of the others, and a process that is alone.

All processes go through the same generations. Process 0 alone has the run folder; what the others need of it, it tells
them. How bytes get from one to another is `distributed/`'s business.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from eggroll.runs.folder import RunError, shown
from eggroll.runs.job import Job

_OWN = ("log_every", "track")
"""Settings that each process may have as it likes: process 0 alone uses them."""
_LONG = 200
"""Characters of a fact beyond which its hash is compared."""


@runtime_checkable
class Peers(Protocol):
    """The processes of a run. Every process calls the same methods in the same order.

    Attributes:
      process: which one this is, from 0.
      count: how many there are.
    """

    process: int
    count: int

    def broadcast(self, data: bytes = b"") -> bytes:
        """The bytes that process 0 gives, at every process; what the others give is passed over."""
        ...

    def exchange(self, data: bytes) -> Sequence[bytes]:
        """What every process gives, in their order, at every process."""
        ...


class Alone:
    """A process without others."""

    process, count = 0, 1

    def broadcast(self, data: bytes = b"") -> bytes:
        """The same bytes."""
        return data

    def exchange(self, data: bytes) -> Sequence[bytes]:
        """The same bytes."""
        return [data]


def told(peers: Peers, value: Any = None) -> Any:
    """What process 0 gives, a value that JSON has, at every process."""
    if peers.count == 1:
        return value
    return json.loads(peers.broadcast(json.dumps(value).encode() if peers.process == 0 else b""))


def check_alike(peers: Peers, job: Job[Any]) -> None:
    """Refuse processes with different settings, start parameters or data, before anything is written.

    Raises:
      RunError: the first difference, and at which process.
    """
    if peers.count == 1:
        return
    everybody = [json.loads(each) for each in peers.exchange(json.dumps(_facts(job)).encode())]
    for process, facts in enumerate(everybody):
        for name in [*everybody[0], *facts]:
            ours, other = everybody[0].get(name), facts.get(name)
            if ours != other:
                raise RunError(
                    f"expected the same {name} at every process, got {shown(ours)} at process 0 and {shown(other)} at "
                    f"process {process}; start all with the same settings and data"
                )


def _facts(job: Job[Any]) -> dict[str, str]:
    """What must be alike, in words that are short."""
    header = job.header({})
    config = {name: value for name, value in header["config"].items() if name not in _OWN}
    facts = {
        **config,
        "data": job.data,
        "start parameters": header["start_sha256"],
        "optimizer state": header["optimizer_state"],
        **{f"strategy {name}": value for name, value in header["strategy"].items() if name not in config},
        "frames": header["frames"],
    }
    return {name: _short(json.dumps(value, sort_keys=True)) for name, value in facts.items()}


def _short(text: str) -> str:
    return text if len(text) <= _LONG else f"SHA-256 {hashlib.sha256(text.encode()).hexdigest()[:16]}…"


def agreed_to_stop(peers: Peers, stop: bool, generation: int, weights: np.ndarray | None) -> bool:
    """Whether any process was asked to stop; also sees to it that all updated with the same weights.

    Raises:
      RunError: they did not; the frame of process 0 is in the journal, and the snapshots are from before.
    """
    if peers.count == 1:
        return stop
    own = 0 if weights is None else zlib.crc32(weights.tobytes())
    everybody = peers.exchange(bytes([stop]) + own.to_bytes(4, "little"))
    odd = next((process for process, each in enumerate(everybody) if each[1:] != everybody[0][1:]), None)
    if odd is not None:
        raise RunError(
            f"expected the same weights at every process after generation {generation}, got others at process {odd} "
            "than at process 0; the machines compute differently: use processors and versions of one kind"
        )
    return any(each[0] for each in everybody)
