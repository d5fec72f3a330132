"""One frame of a journal: bytes to values and back, with every limit checked before memory is taken.

    length u32 | kind u8 | generation u64 | payload | lost u32 … | count of lost u32 | crc32 u32

All little-endian. `length` counts what follows it; the crc is of all before it. The lost members come after the
payload with their count behind them, so that a frame is taken apart from both ends without knowing the population.

This module imports neither JAX nor PyTorch.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np

from eggroll.runs.folder import RunError

FRAME_LIMIT = 64 * 2**20
"""Most bytes of a frame after its length."""
LOST_LIMIT = 2**20
"""Most lost members of a generation: as a tuple so many take 45 MiB."""
LENGTH = struct.Struct("<I")
_HEAD = struct.Struct("<BQ")
_WORD = struct.Struct("<I")
SMALLEST = _HEAD.size + 2 * _WORD.size
OVERHEAD = LENGTH.size + SMALLEST
"""Bytes of a frame without payload and lost members: 21."""
_DIGITS = 5
_POWERS = np.array([1, 3, 9, 27, 81], np.uint8)
_TABLE = (np.arange(3**_DIGITS, dtype=np.int32)[:, None] // _POWERS % 3 - 1).astype(np.int8)


class JournalError(RunError):
    """A journal or a frame of it cannot be used; one line."""


class Kind(IntEnum):
    """What a frame's payload is."""

    HEADER = 0  # JSON
    TERNARY = 1  # −1, 0, 1, five to a byte in base 3
    FLOAT16 = 2
    FLOAT32 = 3
    SHARED = 4  # state that the parameters do not hold, as safetensors


WEIGHTS = {"ternary": Kind.TERNARY, "float16": Kind.FLOAT16, "float32": Kind.FLOAT32}
_DTYPES: dict[Kind, np.dtype[Any]] = {Kind.FLOAT16: np.dtype("<f2"), Kind.FLOAT32: np.dtype("<f4")}


class Frame(NamedTuple):
    """A frame, taken apart."""

    kind: Kind
    generation: int
    payload: bytes
    lost: tuple[int, ...] = ()


def pack(frame: Frame) -> bytes:
    """A frame as the journal holds it.

    Raises:
      JournalError: it is longer than a frame may be, or has more lost members.
    """
    if len(frame.lost) > LOST_LIMIT:
        raise JournalError(
            f"expected at most {LOST_LIMIT:,} lost members, got {len(frame.lost):,} in generation {frame.generation}; "
            "mend the evaluation"
        )
    lost = np.asarray(sorted(frame.lost), "<u4").tobytes()
    length = SMALLEST + len(frame.payload) + len(lost)
    if length > FRAME_LIMIT:
        raise JournalError(
            f"expected frames of at most {FRAME_LIMIT:,} bytes, got {length:,}; use a smaller population or float16 "
            "or ternary frames"
        )
    head = LENGTH.pack(length) + _HEAD.pack(frame.kind, frame.generation)
    body = head + frame.payload + lost + _WORD.pack(len(frame.lost))
    return body + _WORD.pack(zlib.crc32(body))


def pack_generation(
    kind: Kind, generation: int, payload: bytes, lost: Iterable[int] = (), shared: bytes | None = None
) -> bytes:
    """The frames of a generation: its shared state, where there is any, and its weights.

    Raises:
      JournalError: as `pack`.
    """
    before = b"" if shared is None else pack(Frame(Kind.SHARED, generation, shared))
    return before + pack(Frame(kind, generation, payload, tuple(lost)))


def is_whole(data: bytes) -> bool:
    """Whether `data`, length included, ends in the crc of what comes before."""
    return len(data) >= OVERHEAD and zlib.crc32(memoryview(data)[:-4]) == _WORD.unpack(data[-4:])[0]


def unpack(data: bytes) -> Frame:
    """Take a whole frame apart.

    Raises:
      JournalError: its kind is unknown, or its lost members are too many or no ascending list within it.
    """
    number, generation = _HEAD.unpack_from(data, LENGTH.size)
    (count,) = _WORD.unpack_from(data, len(data) - 8)
    start, end = len(data) - 8 - 4 * count, len(data) - 8
    if start < LENGTH.size + _HEAD.size:
        raise JournalError(
            f"expected a frame that holds its {count:,} lost members, got {len(data)} bytes in generation "
            f"{generation}; the journal is damaged or forged"
        )
    if count > LOST_LIMIT:
        raise JournalError(
            f"expected at most {LOST_LIMIT:,} lost members, got {count:,} in generation {generation}; "
            "the journal is damaged or forged"
        )
    lost = np.frombuffer(data[start:end], "<u4")
    if (lost[1:] <= lost[:-1]).any():
        raise JournalError(
            f"expected lost members in ascending order, got another in generation {generation}; "
            "the journal is damaged or forged"
        )
    try:
        kind = Kind(number)
    except ValueError:
        raise JournalError(
            f"expected a frame of kind 0 to {max(Kind)}, got {number} in generation {generation}; "
            "the journal is of a newer version, or forged"
        ) from None
    return Frame(kind, generation, data[LENGTH.size + _HEAD.size : start], tuple(lost.tolist()))


def split(data: bytes) -> list[Frame]:
    """Frames that follow each other, as a journal holds them, each checked.

    Raises:
      JournalError: one is not whole, or as `unpack`.
    """
    found, start = [], 0
    while start < len(data):
        prefix = data[start : start + LENGTH.size]
        end = start + LENGTH.size + (LENGTH.unpack(prefix)[0] if len(prefix) == LENGTH.size else FRAME_LIMIT)
        if end > len(data) or not is_whole(data[start:end]):
            raise JournalError("expected whole frames, got one that is short or fails its crc; send it again")
        found.append(unpack(data[start:end]))
        start = end
    return found


def payload_bytes(kind: Kind, count: int) -> int:
    """Bytes of `count` weights."""
    return -(-count // _DIGITS) if kind is Kind.TERNARY else count * _DTYPES[kind].itemsize


def encode_weights(kind: Kind, weights: np.ndarray) -> bytes:
    """Weights as a payload.

    Args:
      weights: (pairs,) −1, 0 or 1 for ternary frames; any finite numbers for the others, which float16 rounds, and
        clips to ±65,504.
    Raises:
      JournalError: a weight is none of these.
    """
    if kind is Kind.TERNARY:
        return _encode_ternary(weights)
    finite = np.isfinite(weights)
    if not finite.all():
        at = int(np.argmin(finite))
        raise JournalError(
            f"expected finite weights, got {weights[at]} for pair {at}; mend the shaping, which makes it of the fitness"
        )
    edge = np.finfo(_DTYPES[kind]).max
    return np.clip(weights, -edge, edge).astype(_DTYPES[kind]).tobytes()


def _encode_ternary(weights: np.ndarray) -> bytes:
    with np.errstate(invalid="ignore"):  # NaN, which is refused below
        signs = weights.astype(np.int8, copy=False)
    digits = signs.view(np.uint8) + np.uint8(1)  # −1 is 255, which wraps to 0
    if digits.max(initial=0) > 2 or (signs is not weights and (signs != weights).any()):
        at = int(np.argmin(np.isin(weights, (-1, 0, 1))))
        raise JournalError(
            f"expected weights among -1, 0 and 1 for ternary frames, got {weights[at]} for pair {at}; "
            "use float32 frames, or the shaping antithetic_sign"
        )
    rows = np.ones((-(-len(digits) // _DIGITS), _DIGITS), np.uint8)
    rows.reshape(-1)[: len(digits)] = digits
    return (rows @ _POWERS).tobytes()  # at most 242


def check_payload(kind: Kind, payload: bytes, count: int) -> None:
    """Refuse what no encoder writes, without the memory that the decoded weights would take.

    Raises:
      JournalError: the payload has another length, or holds such a thing.
    """
    if len(payload) != payload_bytes(kind, count):
        raise JournalError(
            f"expected {payload_bytes(kind, count):,} bytes of {count:,} {kind.name.lower()} weights, got "
            f"{len(payload):,}; the journal is damaged or forged"
        )
    if kind is Kind.TERNARY:
        _check_ternary(np.frombuffer(payload, np.uint8), count)
    elif not np.isfinite(np.frombuffer(payload, _DTYPES[kind])).all():
        raise JournalError("expected finite weights, got NaN or infinity; the journal is damaged or forged")


def _check_ternary(digits: np.ndarray, count: int) -> None:
    if len(digits) and digits.max() >= len(_TABLE):
        raise JournalError(
            f"expected bytes up to {len(_TABLE) - 1} in a ternary frame, got {digits.max()}; "
            "the journal is damaged or forged"
        )
    if count % _DIGITS and _TABLE[digits[-1], count % _DIGITS :].any():
        raise JournalError(
            "expected spare digits of 1 at the end of a ternary frame, got others; the journal is damaged or forged"
        )


def decode_weights(kind: Kind, payload: bytes, count: int) -> np.ndarray:
    """The weights of a payload: (count,) int8 for ternary frames, float32 for the others.

    Raises:
      JournalError: as `check_payload`.
    """
    check_payload(kind, payload, count)
    return decode_checked(kind, payload, count)


def decode_checked(kind: Kind, payload: bytes, count: int) -> np.ndarray:
    """As `decode_weights`, for a payload that was checked or has just been encoded."""
    if kind is Kind.TERNARY:
        return _TABLE.take(np.frombuffer(payload, np.uint8), axis=0).reshape(-1)[:count]
    return np.frombuffer(payload, _DTYPES[kind]).astype(np.float32)
