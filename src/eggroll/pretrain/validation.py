"""Bits per byte of a whole stream, unperturbed and from a zero state, with documents side by side.

A 0 byte resets the state, so a stream cut before its 0 bytes and read row by row gives the very integers of the stream
read in one go. Each row ends on the 0 that follows it in the stream, as the last byte to predict.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from eggroll.integer.model import Config, Parameters, forward, zero_state

SEGMENT = 512
"""Steps of one call; the state goes from one to the next."""


@dataclass(frozen=True)
class Rows:
    """A stream laid out for the model.

    tokens: (time + 1, rows) uint8; counted: (time, rows) bool, which targets are bytes of the stream; time is a
    multiple of SEGMENT.
    """

    tokens: np.ndarray
    counted: np.ndarray


def lay_out(stream: np.ndarray) -> Rows:
    """Pack the documents of a uint8 stream into rows about as long as the longest document, or as a segment."""
    borders = np.flatnonzero(stream[1:] == 0) + 1
    starts = np.concatenate([[0], borders]).astype(np.int64)
    ends = np.concatenate([borders, [len(stream)]]).astype(np.int64)
    lengths = ends - starts
    bins = _balance(lengths, -(-len(stream) // max(int(lengths.max()), SEGMENT)))
    rows = [_row(stream, starts, ends, documents) for documents in bins]
    time = -(-max(len(row) - 1 for row in rows) // SEGMENT) * SEGMENT
    tokens, counted = np.zeros((time + 1, len(rows)), np.uint8), np.zeros((time, len(rows)), bool)
    for column, row in enumerate(rows):
        tokens[: len(row), column] = row
        counted[: len(row) - 1, column] = True
    return Rows(tokens, counted)


def _balance(lengths: np.ndarray, rows: int) -> list[list[int]]:
    """Longest document first into the shortest row; the stream's last document ends its row, since nothing follows."""
    heap: list[tuple[int, int]] = [(0, row) for row in range(rows)]
    bins: list[list[int]] = [[] for _ in range(rows)]
    for document in sorted(range(len(lengths)), key=lambda d: (-lengths[d], d)):
        load, row = heapq.heappop(heap)
        bins[row].append(document)
        heapq.heappush(heap, (load + int(lengths[document]), row))
    return [sorted(documents) for documents in bins if documents]


def _row(stream: np.ndarray, starts: np.ndarray, ends: np.ndarray, documents: list[int]) -> np.ndarray:
    pieces = [stream[starts[d] : ends[d]] for d in documents]
    if ends[documents[-1]] < len(stream):
        pieces.append(np.zeros(1, np.uint8))
    return np.concatenate(pieces)


def make_validator(config: Config, stream: np.ndarray) -> Callable[[Parameters], float]:
    """Compile once; returns parameters → bits per byte over the whole stream (its first byte is only read).

    Args:
      stream: (bytes,) uint8, two bytes or more.
    """
    rows = lay_out(stream)
    width = rows.tokens.shape[1]
    segments = [
        (jnp.asarray(rows.tokens[t : t + SEGMENT + 1]), jnp.asarray(rows.counted[t : t + SEGMENT]))
        for t in range(0, len(rows.counted), SEGMENT)
    ]

    @jax.jit
    def segment(parameters: Parameters, state: Array, tokens: Array, counted: Array) -> tuple[Array, Array]:
        return forward(parameters, None, config, tokens, state, counted)

    def bits_per_byte(parameters: Parameters) -> float:
        state, sums = zero_state(config, 1, width), []
        for tokens, counted in segments:
            likelihood, state = segment(parameters, state, tokens, counted)
            sums.append(likelihood)
        total = sum(int(np.asarray(value, np.int64).sum()) for value in sums)
        return -total / (16 * int(rows.counted.sum()))

    return bits_per_byte
