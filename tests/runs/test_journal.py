"""journal.py and frames.py byte by byte: what a frame is, who is refused, and that neither needs an engine."""

import json
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest

from eggroll.runs.frames import Frame, JournalError, Kind, decode_weights, encode_weights, pack, payload_bytes, unpack
from eggroll.runs.journal import MAGIC, Journal

HEADER = {"frames": "ternary", "weights": 7, "format": 1}


def test_a_ternary_frame_by_hand():
    """`length | kind | generation | payload | lost, count | crc`, worked out on paper."""
    weights = np.array([-1, 0, 1, 1, -1, 1, 0], np.int8)
    first, second = 0 + 1 * 3 + 2 * 9 + 2 * 27 + 0 * 81, 2 + 1 * 3 + 1 * 9 + 1 * 27 + 1 * 81
    body = struct.pack("<BQ", 1, 5) + bytes([first, second]) + struct.pack("<III", 3, 8, 2)
    body = struct.pack("<I", len(body) + 4) + body
    expected = body + struct.pack("<I", zlib.crc32(body))
    assert encode_weights(Kind.TERNARY, weights) == bytes([first, second])
    assert pack(Frame(Kind.TERNARY, 5, bytes([first, second]), (8, 3))) == expected
    assert unpack(expected) == Frame(Kind.TERNARY, 5, bytes([first, second]), (3, 8))


def test_sizes_that_the_plan_promises(tmp_path):
    """512 members for 300 generations: about 21 kB with everything."""
    with Journal.create(tmp_path / "j", {"frames": "ternary", "weights": 256}) as journal:
        for _ in range(300):
            journal.append(np.zeros(256, np.int8), sync=False)
        assert journal.size == (tmp_path / "j").stat().st_size < 22_500
    assert payload_bytes(Kind.FLOAT16, 256) == 512 and payload_bytes(Kind.FLOAT32, 256) == 1024


def test_rounding_and_clipping():
    weights = np.array([1 / 3, -1e6, 1e6, 6e-8, 0], np.float32)
    half = decode_weights(Kind.FLOAT16, encode_weights(Kind.FLOAT16, weights), 5)
    np.testing.assert_array_equal(half, np.array([1 / 3, -65504, 65504, 6e-8, 0], np.float16).astype(np.float32))
    np.testing.assert_array_equal(decode_weights(Kind.FLOAT32, encode_weights(Kind.FLOAT32, weights), 5), weights)


@pytest.mark.parametrize(
    ("kind", "weights", "text"),
    [
        (Kind.TERNARY, [0, 1, 2], "weights among -1, 0 and 1 for ternary frames, got 2 for pair 2"),
        (Kind.TERNARY, [0, 0.5], "got 0.5 for pair 1"),
        (Kind.TERNARY, [0, np.nan], "got nan for pair 1"),
        (Kind.TERNARY, [256, 0], "got 256 for pair 0"),
        (Kind.TERNARY, np.array([0, -128], np.int8), "got -128 for pair 1"),
        (Kind.FLOAT32, [0, np.nan], "finite weights, got nan for pair 1"),
        (Kind.FLOAT16, [np.inf], "finite weights, got inf for pair 0"),
    ],
)
def test_weights_that_no_frame_holds(kind, weights, text):
    with pytest.raises(JournalError, match=text):
        encode_weights(kind, np.array(weights))


def forged(*frames, magic=MAGIC):
    return magic + b"".join(frames)


def header(**changes):
    return pack(Frame(Kind.HEADER, 0, json.dumps(HEADER | changes).encode()))


def weights(generation, payload=b"\x79\x79", lost=(), kind=Kind.TERNARY):
    return pack(Frame(kind, generation, payload, lost))


def with_crc(data):
    return data + struct.pack("<I", zlib.crc32(data))


HOSTILE = {
    "empty": (b"", "a journal of version 1, got b''"),
    "another file": (b"PK\x03\x04....", "a journal of version 1, got b'PK"),
    "another version": (forged(header(), magic=b"EGGROLL\x02"), "a journal of version 1, got version 2"),
    "no header": (MAGIC, "a header in .*, got none that is whole"),
    "torn header": (forged(header())[:-3], "a header in .*, got none that is whole"),
    "weights before the header": (forged(weights(0)), "a header next, got a ternary frame"),
    "header that is no JSON": (forged(pack(Frame(Kind.HEADER, 0, b"{"))), "a header in JSON"),
    "header of nested lists": (forged(pack(Frame(Kind.HEADER, 0, b"[" * 100_000))), "a header in JSON"),
    "header that is a list": (forged(pack(Frame(Kind.HEADER, 0, b"[]"))), "an object, got list"),
    "header that is long": (forged(pack(Frame(Kind.HEADER, 0, b" " * (2**22 + 1)))), "headers of at most"),
    "unknown frames": (
        forged(header(frames="int4")),
        "frames among .* in the header, got 'int4'",
    ),
    "frames that are a list": (forged(header(frames=[1])), "frames among"),
    "no weights": (forged(header(weights=0)), "1 to .* weights a generation in the header, got 0"),
    "too many weights": (forged(header(weights=2**40)), "weights a generation in the header"),
    "weights that are true": (forged(header(weights=True)), "weights a generation in the header, got True"),
    "generation left out": (forged(header(), weights(1)), "generation 0 next, got a ternary frame of generation 1"),
    "generation twice": (forged(header(), weights(0), weights(0)), "generation 1 next"),
    "kind of another header": (
        forged(header(), weights(0, b"\0" * 14, kind=Kind.FLOAT16)),
        "ternary frames as",
    ),
    "byte above 242": (forged(header(), weights(0, b"\x79\xf3")), "bytes up to 242 in a ternary frame, got 243"),
    "spare digits": (forged(header(), weights(0, b"\x79\x00")), "spare digits of 1"),
    "too short": (forged(header(), weights(0, b"\x79")), "2 bytes of 7 ternary weights, got 1"),
    "lost member that is none": (forged(header(), weights(0, lost=(14,))), "lost members below 14, got 14"),
    "not finite": (
        forged(header(frames="float32"), weights(0, np.full(7, np.nan, "<f4").tobytes(), kind=Kind.FLOAT32)),
        "finite weights, got NaN or infinity",
    ),
    "unknown kind": (forged(header(), with_crc(struct.pack("<IBQI", 17, 9, 0, 0))), "of kind 0 to 4, got 9"),
    "more lost than bytes": (
        forged(header(), with_crc(struct.pack("<IBQI", 17, 1, 0, 2**30))),
        "holds its 1,073,",
    ),
    "lost out of order": (
        forged(header(), with_crc(struct.pack("<IBQ2sIII", 27, 1, 0, b"\x79\x79", 3, 3, 2))),
        "lost members in ascending order",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("writable", [False, True])
def test_hostile_journals(tmp_path, name, writable):
    data, text = HOSTILE[name]
    path = tmp_path / "journal.egg"
    path.write_bytes(data)
    with pytest.raises(JournalError, match=f"^expected [^\\n]*{text}[^\\n]*; [^\\n]+$"):
        Journal.open(path, writable=writable)
    assert path.read_bytes() == data and list(tmp_path.iterdir()) == [path]


def test_lengths_are_checked_before_memory_is_taken(tmp_path):
    path = tmp_path / "journal.egg"
    path.write_bytes(forged(header()) + struct.pack("<I", 2**31))
    with path.open("r+b") as file:
        file.truncate(2**31 + 2**20)  # sparse
    with pytest.raises(JournalError, match="frames of at most 67,108,864 bytes, got 2,147,483,648"):
        Journal.open(path)


def test_settings_that_change_midway(tmp_path):
    path = tmp_path / "journal.egg"
    with Journal.create(path, HEADER | {"sigma": 1}) as journal:
        journal.append(np.ones(7, np.int8))
        journal.append_header(HEADER | {"sigma": 2, "weights": 3, "frames": "float32"})
        journal.append(np.array([1.5, 0, -2], np.float32), lost=(1, 0), shared=b"s")
    with Journal.open(path) as journal:
        assert journal.generations == 2 and journal.header["sigma"] == 2
        assert [s.generation for s in journal.segments] == [0, 1]
        assert journal.segment_of(0).header["sigma"] == 1 and journal.segment_of(5).header["sigma"] == 2
        assert journal.record(0).weights.tolist() == [1] * 7 and journal.record(0).shared is None
        record = journal.record(1)
        assert (record.weights.tolist(), record.lost, record.shared) == ([1.5, 0, -2], (0, 1), b"s")
        with pytest.raises(JournalError, match=r"a generation in \[0, 2\) of .*, got 2"):
            journal.record(2)
        journal.export(tmp_path / "copy.egg", 1)
        with pytest.raises(JournalError, match="does not exist yet"):
            journal.export(tmp_path / "copy.egg")
    with Journal.open(tmp_path / "copy.egg") as copy:
        assert copy.generations == 1


def test_half_a_generation_is_none(tmp_path):
    """Shared state whose weights did not get to the disk is cut with them."""
    path = tmp_path / "journal.egg"
    with Journal.create(path, HEADER) as journal:
        journal.append(np.ones(7, np.int8), shared=b"a")
        size = journal.size
        journal.append(np.ones(7, np.int8), shared=b"b")
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)
    with Journal.open(path, writable=True) as journal:
        assert journal.generations == 1 and path.stat().st_size == journal.size == size
        journal.append(np.ones(7, np.int8), shared=b"c")
        assert journal.record(1).shared == b"c" and journal.record(0).shared == b"a"


def test_an_append_that_fails_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "journal.egg"
    with Journal.create(path, HEADER) as journal:
        journal.append(np.ones(7, np.int8))
        before = path.read_bytes()
        monkeypatch.setattr(os, "fsync", lambda file: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            journal.append(np.ones(7, np.int8))
        assert path.read_bytes() == before and journal.generations == 1
        with pytest.raises(JournalError, match="expected 7 weights, got shape"):
            journal.append(np.ones(6, np.int8))
        with pytest.raises(JournalError, match="frames of at most"):
            journal.append(np.ones(7, np.int8), shared=b"\0" * 2**26)
        assert path.read_bytes() == before


def test_no_engine_is_imported():
    check = "import sys, eggroll.runs.journal; print(sorted({'jax', 'torch', 'optax', 'orbax'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert done.stdout == "[]\n", done
