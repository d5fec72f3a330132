"""The journal: the weights of every generation, which with the start parameters rebuild the whole run.

`journal.egg` is an 8-byte magic, a header frame, then one frame of weights per generation (see `frames`); a generation
that changes shared state has a frame of that before its weights, and settings that change in the middle of a run have a
header of their own before the generation from which they hold. A frame is on the disk before the update that it feeds.

A reader takes frames up to the first that is short or fails its crc; what follows is a torn tail, and cut by whoever
writes. Anything else that is wrong is refused.

This module imports neither JAX nor PyTorch.
"""

from __future__ import annotations

import contextlib
import json
import os
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from eggroll.runs.folder import JSON_LIMIT, open_plain, reason, replace_file, shown, writing
from eggroll.runs.frames import (
    FRAME_LIMIT,
    LENGTH,
    OVERHEAD,
    SMALLEST,
    WEIGHTS,
    Frame,
    JournalError,
    Kind,
    check_payload,
    decode_checked,
    decode_weights,
    encode_weights,
    is_whole,
    pack,
    pack_generation,
    payload_bytes,
    unpack,
)

MAGIC = b"EGGROLL\x01"
HEADER_LIMIT = JSON_LIMIT
"""Most bytes of all headers of a journal together."""
WEIGHTS_LIMIT = 2**24
"""Most weights of a generation: about as many as a frame of float32 holds."""
_PIECE = 2**20


class Record(NamedTuple):
    """What a journal holds of one generation."""

    weights: np.ndarray  # (weights,) int8 for ternary frames, float32 for others
    lost: tuple[int, ...]  # members that nobody evaluated, ascending
    shared: bytes | None  # new shared state, as safetensors


class Segment(NamedTuple):
    """A header, and the first generation for which it holds."""

    generation: int
    header: dict[str, Any]
    kind: Kind
    weights: int


class Journal:
    """A journal on the disk: `create` or `open` it, read any generation's `record`, `append` the next.

    Attributes:
      path: of the file.
      segments: its headers in order; the first is of generation 0.
      generations: how many have their weights in it.
      torn: bytes behind the last whole frame that `open` found, and cut if it opened to write.
    """

    def __init__(self, path: Path, file: int) -> None:
        self.path, self._file = path, file
        self.segments: list[Segment] = []
        self._starts = array("Q")  # offset of each generation's shared state, or where it has none of its weights
        self._half: int | None = None  # offset of shared state whose weights are to come
        self._end, self._largest, self._headers, self.torn = len(MAGIC), 0, 0, 0

    # ── opening ──

    @classmethod
    def create(cls, path: Path, header: dict[str, Any]) -> Journal:
        """A new journal, whole with its header or not there at all.

        Args:
          header: JSON; `frames` ("ternary", "float16" or "float32") and `weights` (how many a generation) count here.
        Raises:
          RunError: it cannot be written.
        """
        frame = pack(_header_frame(header, 0))
        _segment(Frame(Kind.HEADER, 0, frame), header)
        replace_file(path, [MAGIC, frame])
        return cls.open(path, writable=True)

    @classmethod
    def open(cls, path: Path, *, writable: bool = False) -> Journal:
        """Read the journal's headers and find its generations; memory for one frame at a time.

        Args:
          writable: cut a torn tail and allow `append`. A tail that holds more than one frame could is kept beside the
            journal, as `NAME.tail-GENERATION`.
        Raises:
          JournalError: there is none, it is of another version, or a whole frame is wrong.
        """
        try:
            file = open_plain(path, os.O_RDWR if writable else os.O_RDONLY)
        except OSError as error:
            raise JournalError(
                f"expected a journal that can be {'written' if writable else 'read'}, got {path}: {error.strerror}; "
                "give the folder of a run, or a journal"
            ) from None
        journal = cls(path, file)
        try:
            journal._scan()
            if writable and journal.torn:
                journal._cut()
        except BaseException:
            journal.close()
            raise
        return journal

    def _scan(self) -> None:
        size = os.fstat(self._file).st_size
        magic = self._read(len(MAGIC), 0)
        if magic != MAGIC:
            known = magic[:-1] == MAGIC[:-1]
            got = f"version {magic[-1]}" if known and len(magic) == len(MAGIC) else f"{magic!r}"
            raise JournalError(f"expected a journal of version {MAGIC[-1]}, got {got} in {self.path}; use another file")
        whole = self._end
        while (kind := self._take(size)) is not None:
            if kind is not Kind.SHARED:  # alone it is half a generation
                whole = self._end
        self._end, self.torn = whole, size - whole
        self._half = None
        if not self.segments:
            raise JournalError(f"expected a header in {self.path}, got none that is whole; use another file")

    def _take(self, size: int) -> Kind | None:
        """Take the next frame into the index and return its kind; None where it is short or fails its crc."""
        data = self._next(size)
        if data is None:
            return None
        frame = unpack(data)
        self._note(frame)
        self._end += len(data)
        if frame.kind is not Kind.HEADER:
            self._largest = max(self._largest, len(data))
        return frame.kind

    def _next(self, size: int) -> bytes | None:
        """The next frame, or None where it is short or fails its crc."""
        prefix = self._read(LENGTH.size, self._end)
        if len(prefix) < LENGTH.size:
            return None
        (length,) = LENGTH.unpack(prefix)
        if length < SMALLEST or self._end + LENGTH.size + length > size:
            return None
        if length > FRAME_LIMIT:
            raise JournalError(
                f"expected frames of at most {FRAME_LIMIT:,} bytes, got {length:,} in {self.path}; "
                "the journal is damaged or forged"
            )
        data = self._read(LENGTH.size + length, self._end)
        return data if is_whole(data) else None

    def _note(self, frame: Frame) -> None:
        """Take a frame into the index, if it is one that may come next."""
        expected, fits = f"generation {self.generations}", True
        if not self.segments:
            expected, fits = "a header", frame.kind is Kind.HEADER
        elif self._half is not None:
            expected, fits = f"weights of {expected}", frame.kind not in (Kind.HEADER, Kind.SHARED)
        if frame.generation != self.generations or not fits:
            got = f"a {frame.kind.name.lower()} frame of generation {frame.generation}"
            raise JournalError(f"expected {expected} next, got {got} in {self.path}; the journal is damaged or forged")
        if frame.kind is Kind.HEADER:
            self._check_headers(frame)
            self._add(_segment(frame, _parse_header(frame.payload)), frame)
        elif frame.kind is Kind.SHARED:
            self._half = self._end
        else:
            self._check_weights(frame)
            self._starts.append(self._end if self._half is None else self._half)
            self._half = None

    def _check_headers(self, frame: Frame) -> None:
        """Before this one is parsed; all stay in memory."""
        size = self._headers + len(frame.payload)
        if size > HEADER_LIMIT:
            raise JournalError(
                f"expected headers of at most {HEADER_LIMIT:,} bytes together, got {size:,} in {self.path}; "
                "use another journal"
            )

    def _add(self, segment: Segment, frame: Frame) -> None:
        self.segments.append(segment)
        self._headers += len(frame.payload)

    def _check_weights(self, frame: Frame) -> None:
        segment = self.segments[-1]
        if frame.kind is not segment.kind:
            raise JournalError(
                f"expected {segment.kind.name.lower()} frames as the header says, got {frame.kind.name.lower()} in "
                f"generation {frame.generation}; the journal is damaged or forged"
            )
        check_payload(frame.kind, frame.payload, segment.weights)
        if frame.lost and frame.lost[-1] >= 2 * segment.weights:
            raise JournalError(
                f"expected lost members below {2 * segment.weights}, got {frame.lost[-1]}; "
                "the journal is damaged or forged"
            )

    def _cut(self) -> None:
        segment = self.segments[-1]
        if self.torn > (self._largest or OVERHEAD + payload_bytes(segment.kind, segment.weights)):
            tail = self.path.with_name(f"{self.path.name}.tail-{self.generations}")
            replace_file(tail, self._pieces(self._end, self._end + self.torn))
        with writing(self.path):
            os.ftruncate(self._file, self._end)
            os.fsync(self._file)

    # ── reading ──

    @property
    def generations(self) -> int:
        """How many generations have their weights in it."""
        return len(self._starts)

    @property
    def header(self) -> dict[str, Any]:
        """The newest header."""
        return self.segments[-1].header

    @property
    def size(self) -> int:
        """Bytes up to the end of the last whole frame."""
        return self._end

    def segment_of(self, generation: int) -> Segment:
        """The header that holds for a generation."""
        return self.segments[bisect_right(self.segments, generation, key=lambda s: s.generation) - 1]

    def record(self, generation: int) -> Record:
        """What it holds of a generation.

        Raises:
          JournalError: it does not reach so far, or was changed on the disk since it was opened.
        """
        if not 0 <= generation < self.generations:
            raise JournalError(
                f"expected a generation in [0, {self.generations}) of {self.path}, got {generation}; choose another"
            )
        at, shared = self._starts[generation], None
        frame = self._frame_at(at)
        if frame.kind is Kind.SHARED:
            shared = frame.payload
            frame = self._frame_at(at + OVERHEAD + len(shared) + 4 * len(frame.lost))
        weights = decode_weights(frame.kind, frame.payload, self.segment_of(generation).weights)
        return Record(weights, frame.lost, shared)

    def _frame_at(self, offset: int) -> Frame:
        prefix = self._read(LENGTH.size, offset)
        length = LENGTH.unpack(prefix)[0] if len(prefix) == LENGTH.size else 0
        data = self._read(LENGTH.size + min(length, FRAME_LIMIT), offset)
        if not is_whole(data):
            raise JournalError(f"expected the journal {self.path} as it was opened, got another; do not change it")
        return unpack(data)

    def _read(self, count: int, offset: int) -> bytes:
        try:
            return os.pread(self._file, count, offset)
        except OSError as error:
            raise JournalError(f"expected to read {self.path}, got {error.strerror}; use another file") from None

    def _pieces(self, start: int, end: int) -> Iterator[bytes]:
        return (self._read(min(_PIECE, end - at), at) for at in range(start, end, _PIECE))

    # ── writing ──

    def append(
        self, weights: np.ndarray, lost: Iterable[int] = (), shared: bytes | None = None, *, sync: bool = True
    ) -> np.ndarray:
        """Put the next generation on the disk; returns the decoded weights, with which to update.

        Args:
          weights: (weights,) numbers; see `encode_weights`.
          lost: members that nobody evaluated; their pairs have weight 0.
          shared: new shared state, as safetensors.
        Raises:
          RunError: it cannot be written; the journal is as it was.
        """
        segment, generation = self.segments[-1], self.generations
        if np.shape(weights) != (segment.weights,):
            raise JournalError(
                f"expected {segment.weights} weights, got shape {np.shape(weights)}; give one for each pair"
            )
        payload = encode_weights(segment.kind, np.asarray(weights))
        start = self._end
        self._write(pack_generation(segment.kind, generation, payload, lost, shared), sync=sync)
        self._starts.append(start)
        return decode_checked(segment.kind, payload, segment.weights)

    def append_header(self, header: dict[str, Any]) -> None:
        """Settings that hold from the next generation on.

        Raises:
          RunError: it cannot be written; the journal is as it was.
        """
        frame = _header_frame(header, self.generations)
        segment = _segment(frame, header)
        self._check_headers(frame)
        self._write(pack(frame))
        self._add(segment, frame)

    def _write(self, data: bytes, *, sync: bool = True) -> None:
        try:
            with writing(self.path):
                written = 0
                while written < len(data):
                    written += os.pwrite(self._file, data[written:], self._end + written)
                if sync:
                    os.fsync(self._file)
        except BaseException:
            with contextlib.suppress(OSError):  # the next reader cuts what is left
                os.ftruncate(self._file, self._end)
            raise
        self._end += len(data)

    def export(self, path: Path, generations: int | None = None) -> None:
        """Write a copy that ends after so many generations (default all), whole or not at all.

        Raises:
          RunError: the path exists, or cannot be written.
        """
        upto = self.generations if generations is None else generations
        end = self._end if upto >= self.generations else self._starts[upto]
        if path.exists():
            raise JournalError(f"expected a file that does not exist yet, got {path}; choose another name")
        replace_file(path, self._pieces(0, end))

    def close(self) -> None:
        """Let the file go."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _header_frame(header: dict[str, Any], generation: int) -> Frame:
    payload = json.dumps(header, allow_nan=False, sort_keys=True).encode()
    if len(payload) > HEADER_LIMIT:
        raise JournalError(f"expected a header of at most {HEADER_LIMIT:,} bytes, got {len(payload):,}; shorten it")
    return Frame(Kind.HEADER, generation, payload)


def _parse_header(payload: bytes) -> dict[str, Any]:
    try:
        header = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise JournalError(f"expected a header in JSON, got {reason(error)}; the journal is forged") from None
    if not isinstance(header, dict):
        raise JournalError(f"expected a header that is an object, got {type(header).__name__}; the journal is forged")
    return header


def _segment(frame: Frame, header: dict[str, Any]) -> Segment:
    name, count = header.get("frames"), header.get("weights")
    if not isinstance(name, str) or name not in WEIGHTS:
        raise JournalError(f"expected frames among {', '.join(WEIGHTS)} in the header, got {shown(name)}; mend it")
    if not isinstance(count, int) or isinstance(count, bool) or not 0 < count <= WEIGHTS_LIMIT:
        raise JournalError(
            f"expected 1 to {WEIGHTS_LIMIT:,} weights a generation in the header, got {shown(count)}; mend it"
        )
    return Segment(frame.generation, header, WEIGHTS[name], count)
