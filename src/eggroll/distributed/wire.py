"""Messages between a coordinator and its workers: bytes to values and back, lengths checked before memory is taken.

    length u32 | kind u8 | run u64 | generation u64 | body | crc32 u32

All little-endian. `length` counts what follows it; the crc is of all before it. `run` is `run_number` of the journal's
header, which tells job, settings, seed and start parameters: a message of another run is refused, and so is one of a
generation that is not due. A finished generation travels as the very frames that the journal holds (`runs.frames`).

This module imports no JAX.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import struct
import zlib
from collections.abc import Iterator
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np

from eggroll.runs.folder import JSON_LIMIT, RunError, reason, shown
from eggroll.runs.frames import FRAME_LIMIT, Kind, decode_weights, encode_weights, payload_bytes

PROTOCOL = 1
PIECE = 2**20
"""Most bytes of a tree in one message."""
STRANGER_LIMIT = 4096
"""Most bytes of a message from a peer that has not proved itself."""
MESSAGE_LIMIT = FRAME_LIMIT + 2**16
_HEAD = struct.Struct("<IBQQ")
_LENGTH = struct.Struct("<I")
_CRC = struct.Struct("<I")
OVERHEAD = _HEAD.size + _CRC.size
"""Bytes of a message without its body: 25."""
_SPAN = struct.Struct("<II")
_RESULT = struct.Struct("<IIQBHB")
_PIECE_HEAD = struct.Struct("<BIIIQ")
_TALLY_LIMIT = 255
_COLUMNS_LIMIT = 2**16 - 1


class WireError(RunError):
    """A message cannot be used; one line."""


class Message(IntEnum):
    """What a message is; see the functions below for its body."""

    CHALLENGE = 1  # coordinator → worker: a nonce
    HELLO = 2  # worker → coordinator: who it is, and proof that it has the token
    WELCOME = 3  # coordinator → worker: job and settings, and proof likewise
    SYNC = 4  # coordinator → worker: a state of this generation follows, piece by piece, or is the start
    PIECE = 5  # either way: part of a leaf
    FRAME = 6  # coordinator → worker: a finished generation
    REPLAY = 7  # coordinator → worker: a finished generation, for the range that is being rebuilt
    READY = 8  # worker → coordinator: in step, with this fingerprint
    WORK = 9  # coordinator → worker: evaluate a range
    RESULT = 10  # worker → coordinator: what a range gave
    NEED = 11  # worker → coordinator: the carry of a range is not here
    COLLECT = 12  # coordinator → worker: send the carry of a range
    DROP = 13  # coordinator → worker: the carry of a range is another's now; the other way: it is not here
    BYE = 14  # either way: the end, and why


COUNTED = frozenset({Message.FRAME, Message.READY, Message.WORK, Message.RESULT, Message.DROP})
"""What every generation costs; the others carry state."""


class Received(NamedTuple):
    """A message, taken apart."""

    kind: Message
    run: int
    generation: int
    body: bytes


def pack(kind: Message, run: int, generation: int, body: bytes = b"") -> bytes:
    """A message as it travels."""
    length = OVERHEAD - _LENGTH.size + len(body)
    if length > MESSAGE_LIMIT:
        raise WireError(f"expected messages of at most {MESSAGE_LIMIT:,} bytes, got {length:,}; use smaller ranges")
    data = _HEAD.pack(length, kind, run, generation) + body
    return data + _CRC.pack(zlib.crc32(data))


class Inbox:
    """Bytes as they arrive, messages as they become whole; holds no more than one message's limit.

    Attributes:
      limit: most bytes of a message; raised when the peer has proved itself.
    """

    def __init__(self, limit: int = STRANGER_LIMIT) -> None:
        self.limit = limit
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Received]:
        """Add bytes and take out what is whole.

        Raises:
          WireError: a length, a crc or a kind is wrong; the connection cannot be used any more.
        """
        self._buffer += data
        while (message := self._next()) is not None:
            yield message

    def _next(self) -> Received | None:
        if len(self._buffer) < _LENGTH.size:
            return None
        length = _LENGTH.unpack_from(self._buffer)[0]
        if not OVERHEAD - _LENGTH.size <= length <= self.limit:
            raise WireError(f"expected a message of at most {self.limit:,} bytes, got {length:,}; is it our port?")
        end = _LENGTH.size + length
        if len(self._buffer) < end:
            return None
        data = bytes(memoryview(self._buffer)[:end])
        del self._buffer[:end]
        return unpack(data)


def unpack(data: bytes) -> Received:
    """Take a whole message apart.

    Raises:
      WireError: its crc or its kind is wrong.
    """
    if zlib.crc32(memoryview(data)[: -_CRC.size]) != _CRC.unpack_from(data, len(data) - _CRC.size)[0]:
        raise WireError("expected a message that ends in its crc, got another; the connection is damaged")
    _, number, run, generation = _HEAD.unpack_from(data)
    try:
        kind = Message(number)
    except ValueError:
        raise WireError(f"expected a message of kind 1 to {max(Message)}, got {number}; use one version") from None
    return Received(kind, run, generation, data[_HEAD.size : -_CRC.size])


def run_number(header: dict[str, Any]) -> int:
    """What stands for a run in every message: of the journal's header, the machine apart."""
    same = {key: value for key, value in header.items() if key != "environment"}
    digest = hashlib.sha256(json.dumps(same, sort_keys=True).encode()).digest()
    return int.from_bytes(digest[:8], "little")


def proof(token: bytes, nonce: bytes, who: str) -> str:
    """HMAC-SHA256 of a nonce under the fleet's token: the token itself never travels."""
    return hmac.new(token, who.encode() + nonce, hashlib.sha256).hexdigest()


# ── bodies ──


def pack_json(value: dict[str, Any]) -> bytes:
    """HELLO, WELCOME, BYE."""
    return json.dumps(value, sort_keys=True).encode()


def unpack_json(body: bytes) -> dict[str, Any]:
    """The object again.

    Raises:
      WireError: it is none, or too long.
    """
    try:
        if len(body) > JSON_LIMIT:
            raise ValueError(f"more than {JSON_LIMIT:,} bytes")
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise WireError(f"expected JSON, got {reason(error)}; use one version of eggroll") from None
    if not isinstance(value, dict):
        raise WireError(f"expected a JSON object, got {type(value).__name__}; use one version of eggroll")
    return value


class Span(NamedTuple):
    """A range of pairs."""

    first: int
    pairs: int


def pack_span(span: Span) -> bytes:
    """WORK, NEED, COLLECT, DROP."""
    return _SPAN.pack(*span)


def unpack_span(body: bytes) -> Span:
    """The range again.

    Raises:
      WireError: it is none.
    """
    if len(body) != _SPAN.size:
        raise WireError(f"expected a range of {_SPAN.size} bytes, got {len(body)}; use one version of eggroll")
    return Span(*_SPAN.unpack(body))


class Result(NamedTuple):
    """What a range gave, and the fingerprint of the state with which."""

    span: Span
    fingerprint: int
    values: np.ndarray  # (pairs,) int8 signs, or (pairs, columns) float32 scores
    tally: np.ndarray  # int64 or float64


def pack_result(result: Result) -> bytes:
    """RESULT: signs five to a byte, scores as float32; tallies of integers in as few bytes as they need."""
    values = np.asarray(result.values)
    signs = values.dtype == np.int8
    columns = 0 if signs else values.reshape(len(values), -1).shape[1]
    exact = result.tally.dtype == np.int64
    if len(result.tally) > _TALLY_LIMIT or columns > _COLUMNS_LIMIT:
        raise WireError(f"expected at most {_TALLY_LIMIT} tallies and {_COLUMNS_LIMIT:,} scores a pair; send fewer")
    head = _RESULT.pack(*result.span, result.fingerprint, 2 * signs + exact, columns, len(result.tally))
    payload = encode_weights(Kind.TERNARY, values) if signs else values.astype("<f4").tobytes()
    tally = b"".join(map(_pack_number, result.tally.tolist())) if exact else result.tally.astype("<f8").tobytes()
    return head + payload + tally


def unpack_result(body: bytes, pairs: int) -> Result:
    """What a range gave.

    Args:
      pairs: of the whole population; the range must lie within.
    Raises:
      WireError: a length or a number is wrong.
    """
    if len(body) < _RESULT.size:
        raise WireError(f"expected a result of at least {_RESULT.size} bytes, got {len(body)}; use one version")
    first, count, fingerprint, flags, columns, tallies = _RESULT.unpack_from(body)
    if not count or first + count > pairs or flags > 3:
        raise WireError(f"expected a range within {pairs:,} pairs, got {count:,} from {first:,}; use one version")
    signs, exact = bool(flags & 2), bool(flags & 1)
    size = payload_bytes(Kind.TERNARY, count) if signs else 4 * count * columns
    payload, rest = body[_RESULT.size : _RESULT.size + size], body[_RESULT.size + size :]
    if len(payload) != size or (not exact and len(rest) != 8 * tallies):
        raise WireError(f"expected {size:,} bytes of {count:,} pairs and {tallies} tallies, got {len(body):,}")
    if signs:
        values = decode_weights(Kind.TERNARY, payload, count)
    else:
        values = np.frombuffer(payload, "<f4").reshape(count, columns).astype(np.float32)
    tally = np.array(_unpack_numbers(rest, tallies), np.int64) if exact else np.frombuffer(rest, "<f8")
    return Result(Span(first, count), fingerprint, values, tally)


def _pack_number(value: int) -> bytes:
    """Seven bits a byte, lowest first; the sign in the lowest."""
    rest, found = (value << 1) ^ (value >> 63), bytearray()
    while rest > 127:
        found.append(rest & 127 | 128)
        rest >>= 7
    found.append(rest)
    return bytes(found)


def _unpack_numbers(data: bytes, count: int) -> list[int]:
    found, value, shift = [], 0, 0
    for byte in data:
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            found.append((value >> 1) ^ -(value & 1))
            value = shift = 0
        if shift > 63:
            break
    if len(found) != count or shift or any(not -(2**63) <= number < 2**63 for number in found):
        raise WireError(f"expected {count} tallies, got {shown(data[:16])}; use one version of eggroll")
    return found


class Tree(IntEnum):
    """Which tree a piece is part of."""

    PARAMETERS = 0
    OPTIMIZER = 1
    SHARED = 2
    CARRY = 3


class Piece(NamedTuple):
    """Part of a leaf; `span` is of the range whose carry it is, or whose rebuilding it is for; else empty."""

    tree: Tree
    span: Span
    leaf: int
    offset: int
    data: bytes


def pack_piece(piece: Piece) -> bytes:
    """PIECE."""
    return _PIECE_HEAD.pack(piece.tree, *piece.span, piece.leaf, piece.offset) + piece.data


def unpack_piece(body: bytes) -> Piece:
    """The piece again.

    Raises:
      WireError: it is none.
    """
    if not _PIECE_HEAD.size <= len(body) <= _PIECE_HEAD.size + PIECE:
        raise WireError(f"expected a piece of at most {PIECE:,} bytes, got {len(body):,}; use one version of eggroll")
    number, first, pairs, leaf, offset = _PIECE_HEAD.unpack_from(body)
    if number > max(Tree):
        raise WireError(f"expected a tree of 0 to {max(Tree)}, got {number}; use one version of eggroll")
    return Piece(Tree(number), Span(first, pairs), leaf, offset, body[_PIECE_HEAD.size :])
