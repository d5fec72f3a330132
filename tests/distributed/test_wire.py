"""Messages: what is packed comes back; anything else is refused before memory is taken for it."""

import json
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from eggroll.distributed import wire
from eggroll.distributed.wire import Inbox, Message, Piece, Result, Span, Tree, WireError

INT64 = st.integers(-(2**63), 2**63 - 1)


def one(data, limit=wire.MESSAGE_LIMIT):
    (message,) = Inbox(limit).feed(data)
    return message


@given(st.sampled_from(Message), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.binary(max_size=300))
def test_messages_come_back(kind, run, generation, body):
    data = wire.pack(kind, run, generation, body)
    assert len(data) == wire.OVERHEAD + len(body)
    assert one(data) == (kind, run, generation, body)


@given(st.lists(st.binary(max_size=40), max_size=6), st.data())
def test_messages_come_back_however_they_are_cut(bodies, data):
    stream = b"".join(wire.pack(Message.BYE, 1, 2, body) for body in bodies)
    inbox, found = Inbox(), []
    while stream:
        count = data.draw(st.integers(1, len(stream)))
        found += [message.body for message in inbox.feed(stream[:count])]
        stream = stream[count:]
    assert found == bodies


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_in_one_line_or_waited_for(data):
    try:
        list(Inbox().feed(data))
    except WireError as error:
        assert str(error).startswith("expected") and "\n" not in str(error)


@pytest.mark.parametrize("length", [0, 20, wire.STRANGER_LIMIT + 1, 2**32 - 1])
def test_a_length_is_checked_when_it_is_there(length):
    with pytest.raises(WireError, match="expected a message of at most"):
        list(Inbox().feed(struct.pack("<I", length)))


def test_a_changed_byte_is_noticed():
    data = bytearray(wire.pack(Message.READY, 1, 2, b"12345678"))
    for at in range(4, len(data)):
        changed = data.copy()
        changed[at] ^= 16
        with pytest.raises(WireError, match="crc"):
            one(bytes(changed))


def test_unknown_kinds_are_refused():
    data = struct.pack("<IBQQ", 21, 99, 0, 0)
    with pytest.raises(WireError, match="kind 1 to 14, got 99"):
        one(data + struct.pack("<I", zlib.crc32(data)))


TALLIES = st.one_of(
    st.lists(INT64, max_size=8).map(lambda x: np.array(x, np.int64)),
    hnp.arrays(np.float64, st.integers(0, 8), elements=st.floats(allow_nan=False)),
)
SIGNS = hnp.arrays(np.int8, st.integers(1, 40), elements=st.integers(-1, 1))
SCORES = hnp.arrays(np.float32, st.tuples(st.integers(1, 9), st.integers(1, 6)), elements=st.floats(width=32))


@given(st.one_of(SIGNS, SCORES), TALLIES, st.integers(0, 2**64 - 1), st.integers(0, 50))
def test_results_come_back(values, tally, fingerprint, first):
    result = Result(Span(first, len(values)), fingerprint, values, tally)
    found = wire.unpack_result(wire.pack_result(result), 100)
    assert found[:2] == result[:2] and found.tally.dtype == tally.dtype and found.values.dtype == values.dtype
    np.testing.assert_array_equal(found.values, values)
    np.testing.assert_array_equal(found.tally, tally)


def test_signs_take_a_fifth_of_a_byte_each():
    tally = np.array([2048, -7_000_000, 10**10, -20_000, -100, 30], np.int64)
    result = Result(Span(0, 1024), 1, np.zeros(1024, np.int8), tally)
    assert len(wire.pack_result(result)) <= 205 + 20 + 24


@given(st.binary(max_size=120))
def test_any_result_is_refused_in_one_line(body):
    try:
        wire.unpack_result(body, 30)
    except ValueError as error:
        assert str(error).startswith("expected") and "\n" not in str(error)


@pytest.mark.parametrize(("first", "pairs"), [(0, 0), (0, 101), (100, 1), (2**32 - 1, 2**32 - 1)])
def test_ranges_outside_the_population_are_refused(first, pairs):
    body = struct.pack("<IIQBHB", first, pairs, 0, 3, 0, 0)
    with pytest.raises(WireError, match="a range within 100 pairs"):
        wire.unpack_result(body, 100)


@given(st.sampled_from(Tree), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1), st.binary(max_size=100))
def test_pieces_come_back(tree, leaf, offset, data):
    piece = Piece(tree, Span(3, 4), leaf, offset, data)
    assert wire.unpack_piece(wire.pack_piece(piece)) == piece


@pytest.mark.parametrize("body", [b"", b"\x09" + bytes(20), bytes(21 + 2**20 + 1)])
def test_other_pieces_are_refused(body):
    with pytest.raises(WireError, match="expected a"):
        wire.unpack_piece(body)


@pytest.mark.parametrize("body", [b"[1]", b"{", b"\xff", b"[" * 10**5, b" " * (4 * 2**20 + 1)])
def test_other_json_is_refused(body):
    with pytest.raises(WireError, match=r"expected (a )?JSON"):
        wire.unpack_json(body)


def test_the_run_s_number_tells_settings_seed_and_start_but_no_machine():
    header = {"job": "x", "config": {"seed": 1}, "start_sha256": {"w": "aa"}, "environment": {"device": "cpu"}}
    number = wire.run_number(header)
    assert wire.run_number(header | {"environment": {"device": "gpu"}}) == number
    for other in ({"config": {"seed": 2}}, {"start_sha256": {"w": "ab"}}, {"job": "y"}):
        assert wire.run_number(header | other) != number
    assert json.dumps(number)


def test_a_proof_is_of_one_side_and_one_nonce():
    proofs = {wire.proof(t, n, w) for t in (b"a", b"b") for n in (b"1", b"2") for w in ("worker", "coordinator")}
    assert len(proofs) == 8
