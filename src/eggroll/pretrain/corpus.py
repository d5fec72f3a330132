"""From a `--data` value to one byte stream for training and one held out.

Text is UTF-8, each document preceded by one 0 byte (the model resets its state there). A 0 byte inside a
document would fake such a border: in a text file it is refused, since the file is no text; in a JSON or
Hugging Face string it is removed. Empty documents are left out.

The held-out part is chosen by document, with no seed: documents in the order of the SHA-256 of their own
bytes, each taken if it still fits into `min(validation_fraction · total, validation_bytes)` bytes. So copies
of a document stay together, and neither paths nor machines matter. If that fills less than half of the room
(few large documents), the first one in that order that fills at least half of it, within `validation_bytes`
and half of the corpus, is held out whole; if there is none (one document, say), the end of the stream is.
`Corpus.held_out` says which it was.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from eggroll.pretrain.documents import (
    CorpusError,
    documents_in,
    files_named,
    hub_splits,
    load_npy,
    standard_library,
)

__all__ = ["Corpus", "CorpusError", "load_corpus"]

_CHUNK = 1 << 24


@dataclass(frozen=True, eq=False)
class Corpus:
    """Training and held-out bytes of one data set.

    Attributes:
      name: what the data is, for a person.
      train: (bytes,) uint8, in memory or, from a single .npy file, a memory map.
      validation: (bytes,) uint8, held out, in memory.
      train_documents, validation_documents: how many documents each has (one that was cut counts in both).
      sha256: of the training bytes followed by the held-out bytes, as 64 hexadecimal digits.
      held_out: "documents" (whole documents), "tail" (the end of the stream: the documents are too few or too
        large) or "split" (the data set's own validation split).
    """

    name: str
    train: np.ndarray
    validation: np.ndarray
    train_documents: int
    validation_documents: int
    sha256: str
    held_out: Literal["documents", "tail", "split"]


@dataclass(frozen=True)
class _Room:
    """How much to hold out: a fraction of the corpus, at most `maximum` bytes, separators included."""

    fraction: float
    maximum: int

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 0.5:
            raise CorpusError("a validation fraction in (0, 0.5]", str(self.fraction), "0.05 is usual")
        if self.maximum < 2:
            raise CorpusError("at least 2 validation bytes", str(self.maximum), "1000000 is usual")

    def bytes_of(self, total: int) -> int:
        return max(2, min(int(self.fraction * total), self.maximum))


def load_corpus(
    data: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    *,
    validation_fraction: float = 0.05,
    validation_bytes: int = 1_000_000,
) -> Corpus:
    """Read documents, join them, hold some out.

    Args:
      data: None for the sources of the running Python's standard library (about 12 MB); else one or several
        of: a file (.txt .py .md: one document; .jsonl: one document a line, in "text"; .npy: 1-D uint8, 0
        between documents), a folder (its files with these suffixes, recursively, hidden ones left out,
        sorted), a glob pattern (its files with these suffixes); or one "hf:NAME", "hf:NAME:CONFIG" or
        "hf:/saved/folder" (Hugging Face `datasets`, column "text", split "train", and "validation" if there
        is one).
      validation_fraction: share of the bytes to hold out, in (0, 0.5].
      validation_bytes: the most bytes to hold out.
    Returns:
      The corpus. A single .npy stays on disk as a memory map, its last documents held out; all else is in
      memory.
    Raises:
      CorpusError: anything that is wrong with the data, in one line.
    """
    room = _Room(validation_fraction, validation_bytes)
    if data is None:
        return _join(f"python-{platform.python_version()}-stdlib", standard_library(), room)
    values = [os.fspath(value) for value in ([data] if isinstance(data, str | os.PathLike) else data)]
    if any(value.startswith("hf:") for value in values):
        if len(values) > 1:
            raise CorpusError("one hf: data set by itself", f"{len(values)} values", "give one --data value")
        return _hugging_face(values[0], room)
    files = list(dict.fromkeys(file for value in values for file in files_named(value)))
    if [file.suffix for file in files] == [".npy"]:
        return _mapped(files[0], room)
    return _join(", ".join(values), (document for file in files for document in documents_in(file)), room)


def _hugging_face(value: str, room: _Room) -> Corpus:
    splits = hub_splits(value)
    if "validation" not in splits:
        return _join(value, splits["train"], room)
    train, _, _ = _stream(splits["train"])
    validation, edges, _ = _stream(splits["validation"])
    whole = int(edges[edges <= room.maximum].max(initial=0)) or room.maximum
    return _corpus(value, train, validation[:whole].copy(), "split")


def _stream(documents: Iterable[bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Join documents, each after a 0 byte.

    Returns:
      The stream (bytes,) uint8; where each document begins and the last one ends (documents + 1,) int64; and
      each one's rank (documents,) uint64: the first eight bytes of its SHA-256.
    """
    buffer, edges, ranks = bytearray(), [0], []
    for document in documents:
        if document:
            buffer += b"\0"
            buffer += document
            edges.append(len(buffer))
            ranks.append(int.from_bytes(hashlib.sha256(document).digest()[:8], "big"))
    return np.frombuffer(buffer, np.uint8), np.array(edges, np.int64), np.array(ranks, np.uint64)


def _join(name: str, documents: Iterable[bytes], room: _Room) -> Corpus:
    stream, edges, ranks = _stream(documents)
    held = _choose(ranks, np.diff(edges), room)
    if not held.size:
        cut = max(0, len(stream) - room.bytes_of(len(stream)) + 1)
        return _corpus(name, stream[:cut], _started(stream[cut:]), "tail")
    validation = np.concatenate([stream[edges[index] : edges[index + 1]] for index in held])
    return _corpus(name, _without(stream, edges, held), validation, "documents")


def _choose(ranks: np.ndarray, sizes: np.ndarray, room: _Room) -> np.ndarray:
    """Indices of the documents to hold out, ascending; none if the tail must do. The rule: see the module."""
    total = int(sizes.sum())
    budget = remaining = room.bytes_of(total)
    order = np.argsort(ranks, kind="stable")
    chosen = []
    for index, size in zip(order.tolist(), sizes[order].tolist(), strict=True):
        if size <= min(remaining, total // 2):
            chosen.append(index)
            remaining -= size
    if budget - remaining < budget / 2:
        whole = (sizes[order] >= budget / 2) & (sizes[order] <= min(room.maximum, total // 2))
        chosen = order[whole][:1].tolist()
    return np.sort(np.array(chosen, np.int64))


def _without(stream: np.ndarray, edges: np.ndarray, held: np.ndarray) -> np.ndarray:
    """The stream without the held-out documents, moved together in place."""
    position = int(edges[held[0]])
    for index, following in zip(held, [*held[1:], len(edges) - 1], strict=True):
        piece = stream[edges[index + 1] : edges[following]]
        stream[position : position + len(piece)] = piece
        position += len(piece)
    return stream[:position]


def _mapped(path: Path, room: _Room) -> Corpus:
    """A single .npy: the last documents are held out, so that nothing of the training part is copied."""
    stream = load_npy(path)
    budget = room.bytes_of(len(stream))
    cut = max(0, len(stream) - budget)
    borders = np.flatnonzero(stream[cut : len(stream) - budget // 2] == 0)
    if borders.size:
        cut += int(borders[0])
        return _corpus(str(path), stream[:cut], np.array(stream[cut:]), "documents")
    return _corpus(str(path), stream[: cut + 1], _started(np.array(stream[cut + 1 :])), "tail")


def _started(stream: np.ndarray) -> np.ndarray:
    """A copy of the stream after a 0 byte, unless it begins with one."""
    return np.concatenate([np.zeros(int(stream[:1].any()), np.uint8), stream])


def _corpus(
    name: str, train: np.ndarray, validation: np.ndarray, held_out: Literal["documents", "tail", "split"]
) -> Corpus:
    documents = _count_documents(train), _count_documents(validation)
    if 0 in documents:
        raise CorpusError("text to train on and text to hold out", f"too little in {name}", "give more data")
    digest = hashlib.sha256(np.ascontiguousarray(train).data)
    digest.update(np.ascontiguousarray(validation).data)
    return Corpus(name, train, validation, *documents, digest.hexdigest(), held_out)


def _count_documents(stream: np.ndarray) -> int:
    """How many runs of bytes other than 0; reads a memory map in pieces."""
    count = int(stream.size > 0 and stream[0] != 0)
    for start in range(0, len(stream) - 1, _CHUNK):
        piece = stream[start : start + _CHUNK + 1]
        count += int(np.count_nonzero((piece[:-1] == 0) & (piece[1:] != 0)))
    return count
