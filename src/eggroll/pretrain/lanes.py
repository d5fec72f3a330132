"""The training stream, cut into lanes: what the members of each data group read in each generation."""

from __future__ import annotations

import operator
from dataclasses import dataclass

import numpy as np

from eggroll.pretrain.corpus import CorpusError


@dataclass(frozen=True, eq=False)
class Lanes:
    """Cut a byte stream into equal contiguous lanes and read every one of them window by window.

    Lane `k` is `stream[k·L : (k+1)·L]` with `L = len(stream) // lanes`; the last `len(stream) mod lanes`
    bytes are never read. Generation `g` reads the lane's bytes `(g·T + j) mod L` for `j = 0 … T`, `T =
    seq_len`: bytes 0…T−1 are the inputs, 1…T the targets, so the last byte of a generation is the first input
    of the next, and every pair of neighbours is trained on once a round. After the lane's last byte comes its
    first, without a mark: a member's carried state just goes on. The state before generation 0 is zero, so a
    lane may begin inside a document.

    Attributes:
      stream: (bytes,) uint8, an array or a memory map; it is never copied.
      lanes: how many lanes, ≥ 1.
      seq_len: bytes a generation reads from each lane, ≥ 1.
    Raises:
      CorpusError: a lane is shorter than `seq_len + 1`, or a number is out of range; one line.
    """

    stream: np.ndarray
    lanes: int
    seq_len: int

    def __post_init__(self) -> None:
        if self.stream.dtype != np.uint8 or self.stream.ndim != 1:
            got = f"{self.stream.dtype} of shape {self.stream.shape}"
            raise CorpusError("a uint8 stream with one axis", got, "pass Corpus.train")
        for name in ("lanes", "seq_len"):
            if getattr(self, name) < 1:
                raise CorpusError(f"{name} of at least 1", str(getattr(self, name)), "choose a larger one")
        if self.lane_length < self.seq_len + 1:
            needed = self.lanes * (self.seq_len + 1)
            raise CorpusError(
                f"at least {needed} training bytes ({self.lanes} lanes of {self.seq_len + 1})",
                f"{len(self.stream)}, a corpus shorter than one window a lane",
                "give more data, a smaller population size, a larger group size or a shorter sequence length",
            )

    @property
    def lane_length(self) -> int:
        """Bytes in each lane, `L`."""
        return len(self.stream) // self.lanes

    def batch(self, generation: int) -> np.ndarray:
        """The bytes of one generation; a pure function of its number, so a resumed run reads the same.

        Args:
          generation: ≥ 0.
        Returns:
          (lanes, seq_len + 1) uint8, a fresh array.
        Raises:
          ValueError: the generation is negative.
        """
        number = operator.index(generation)
        if number < 0:
            raise ValueError(f"expected a generation of at least 0, got {number}; count generations from 0")
        length = self.lane_length
        start = number * self.seq_len % length
        stop = start + self.seq_len + 1
        table = np.asarray(self.stream)[: self.lanes * length].reshape(self.lanes, length)
        return np.concatenate([table[:, start:stop], table[:, : max(0, stop - length)]], axis=1)
