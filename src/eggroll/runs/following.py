"""The ledgers of several processes: process 0 writes the folder and tells the others what it holds, they follow.

Nothing of a run is on the disks of the others: they may be other machines. Both ends of what is told stand here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from eggroll.runs.folder import RunError, RunFolder
from eggroll.runs.frames import WEIGHTS, decode_weights, encode_weights
from eggroll.runs.job import Job, RunState
from eggroll.runs.journal import Record
from eggroll.runs.ledger import FolderLedger, Ledger
from eggroll.runs.peers import Peers, told
from eggroll.runs.trees import as_arrays, blank, filled


def ledger_of(
    job: Job[Any], folder: RunFolder | None, environment: dict[str, Any], peers: Peers, say: Callable[[str], None]
) -> Ledger:
    """The ledger of this process.

    Args:
      folder: the run's, at process 0; none at the others.
    """
    if peers.process or folder is None:
        return Following(job, peers)
    return (
        FolderLedger(job, folder, environment, say=say)
        if peers.count == 1
        else Leading(job, folder, environment, peers, say)
    )


class Leading(FolderLedger):
    """Process 0 of several: reads the folder for all."""

    def __init__(
        self, job: Job[Any], folder: RunFolder, environment: dict[str, Any], peers: Peers, say: Callable[[str], None]
    ) -> None:
        super().__init__(job, folder, environment, say=say)
        self.peers = peers
        try:
            told(peers, {"generations": self.generations, "next_generation": self.next_generation})
        except BaseException:
            self.close()
            raise

    def standing(self) -> tuple[int, RunState]:
        """Tells generation and, unless it is the start, the state, leaf by leaf."""
        generation, state = super().standing()
        leaves = as_arrays(state) if generation else {}
        told(self.peers, {"generation": generation, "leaves": [_described(*leaf) for leaf in leaves.items()]})
        for leaf in leaves.values():
            self.peers.broadcast(np.ascontiguousarray(leaf).tobytes())
        return generation, state

    def record(self, generation: int) -> Record:
        """Tells what the journal has."""
        record = super().record(generation)
        kind = self.journal.segment_of(generation).kind
        told(self.peers, {"lost": record.lost, "shared": record.shared is not None})
        self.peers.broadcast(encode_weights(kind, record.weights))
        if record.shared is not None:
            self.peers.broadcast(record.shared)
        return record


class Following:
    """Another process: has nothing on the disk, and knows what process 0 tells."""

    def __init__(self, job: Job[Any], peers: Peers) -> None:
        self.job, self.peers = job, peers
        self._kind, self._weights = WEIGHTS[job.learner.frames], job.learner.weights
        standing = told(peers)
        self.generations, self.next_generation = standing["generations"], standing["next_generation"]

    @property
    def facts(self) -> dict[str, Any]:
        """Process 0 has them."""
        return {}

    def standing(self) -> tuple[int, RunState]:
        """Generation and state of process 0."""
        start, head = self.job.start(), told(self.peers)
        if not head["generation"]:
            return 0, start
        expected = as_arrays(jax.tree.map(blank, start))
        if head["leaves"] != [_described(*leaf) for leaf in expected.items()]:
            raise RunError(
                "expected the state that process 0 sends to fit this job's, got other leaves; start all processes with "
                "the same settings"
            )
        leaves = {
            path: np.frombuffer(self.peers.broadcast(), leaf.dtype).reshape(leaf.shape)
            for path, leaf in expected.items()
        }
        return head["generation"], filled(start, leaves, "the state of process 0")

    def record(self, generation: int) -> Record:
        """What process 0 reads in its journal."""
        head = told(self.peers)
        weights = decode_weights(self._kind, self.peers.broadcast(), self._weights)
        return Record(weights, tuple(head["lost"]), self.peers.broadcast() if head["shared"] else None)

    def append(self, weights: np.ndarray, lost: tuple[int, ...], shared: bytes | None) -> np.ndarray:
        """What process 0 writes down comes back decoded there; so it does here."""
        self.generations += 1
        return self.decoded(weights, self.generations - 1)

    def decoded(self, weights: np.ndarray, generation: int) -> np.ndarray:
        """As a frame would hold them."""
        return decode_weights(self._kind, encode_weights(self._kind, weights), self._weights)

    def note(self, line: dict[str, Any]) -> None:
        """Process 0 writes it; both count."""
        self.next_generation = line["generation"] + 1

    def sample(self, generation: int, text: str) -> None:
        """Process 0 writes it."""

    def save(self, generation: int, state: RunState, keep: int) -> None:
        """Process 0 does."""

    def finish(self, summary: dict[str, Any]) -> None:
        """Process 0 does."""

    def check_change(self, new: Job[Any], header: dict[str, Any]) -> None:
        """Process 0 does."""

    def change(self, new: Job[Any], header: dict[str, Any]) -> None:
        """Process 0 does."""

    def close(self) -> None:
        """Nothing is open."""


def _described(path: str, leaf: np.ndarray) -> str:
    return json.dumps([path, leaf.dtype.name, list(leaf.shape)])
