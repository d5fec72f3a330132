"""Files that anyone may have written are read, or refused in one line; `benchmarks/fuzz.py` tries many more."""

import contextlib
import json
import os
import re
import shutil
import struct
import zlib

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import example, given, settings
from hypothesis import strategies as st

from eggroll.core.errors import UsageError
from eggroll.pretrain.config import PretrainConfig, preset
from eggroll.runs import frames, journal, snapshots
from eggroll.runs.folder import JSON_LIMIT, RunError, RunFolder
from eggroll.runs.frames import Frame, Kind, decode_weights, encode_weights, pack, unpack
from eggroll.runs.going_on import recorded_settings
from eggroll.runs.journal import MAGIC, Journal
from eggroll.runs.metrics import MetricsFile
from eggroll.runs.shared_state import pack_shared, unpack_shared
from eggroll.runs.weights import load_parameters

few = settings(max_examples=60, deadline=None)
SHARED = {"count": np.array(3, np.float32), "mean": np.arange(4, dtype=np.float32)}
NUMBERS = st.sampled_from([0, 1, 2, 16, 17, 255, 2**26, 2**31, 2**32 - 1, 2**64, -1, 10**4299, int("9" * 4300)])
SCALARS = (
    st.none()
    | st.booleans()
    | NUMBERS
    | st.floats()
    | st.text(max_size=9)
    | st.sampled_from(["\n", "\x1b[2J", "\ud800"])
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@contextlib.contextmanager
def only_ours():
    """Whatever is raised is one printable line of ours."""
    try:
        yield
    except UsageError as error:
        assert re.fullmatch(r"expected [^\n]+, got [^\n]+; [^\n]+", str(error))
        assert str(error).isprintable() and len(str(error)) < 1000


def complaint(act, *arguments, **named):
    with only_ours():
        with pytest.raises(UsageError) as caught:
            act(*arguments, **named)
        raise caught.value
    return str(caught.value)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder for the files of a whole module, since hypothesis runs a test many times."""
    return tmp_path_factory.mktemp("fuzz")


def header(kind="ternary", weights=7):
    return {"job": "pretrain", "frames": kind, "weights": weights, "config": preset("tiny").as_json()}


def filled_journal(place, kind):
    """A journal with lost members, shared state and a change of settings: bytes, and where each generation ends."""
    path, ends = place / f"valid-{kind}", []
    path.unlink(missing_ok=True)
    with Journal.create(path, header(kind)) as made:
        ends.append(made.size)
        for generation in range(4):
            made.append(
                np.arange(7) % 3 - 1, (2, 5) if generation else (), pack_shared(SHARED) if generation % 2 else None
            )
            ends.append(made.size)
            if generation == 1:
                made.append_header(header(kind) | {"more": "é"})
    return path.read_bytes(), ends


@pytest.fixture(scope="module", params=["ternary", "float16", "float32"])
def valid(request, place):
    return filled_journal(place, request.param)


def split(data):
    """The frames of a valid journal."""
    found, at = [], len(MAGIC)
    while at < len(data):
        end = at + 4 + struct.unpack_from("<I", data, at)[0]
        found.append(data[at:end])
        at = end
    return found


def signed(body):
    """A frame of anything, length and crc right."""
    whole = struct.pack("<I", len(body) + 4) + body
    return whole + struct.pack("<I", zlib.crc32(whole))


def read_journal(place, data):
    """Everything that can be read of it; then cut the torn tail and go on."""
    path = place / "journal.egg"
    path.write_bytes(data)
    with only_ours():
        with Journal.open(path) as opened:
            made, torn = opened.generations, opened.torn
            for generation in range(made):
                with contextlib.suppress(RunError), only_ours():
                    unpack_shared(SHARED, opened.record(generation).shared)
        with Journal.open(path, writable=True) as opened:
            assert (opened.generations, path.stat().st_size) == (made, len(data) - torn)
            opened.append(np.zeros(opened.segments[-1].weights, np.int8), (1,), sync=False)
        with Journal.open(path) as opened:
            assert (opened.generations, opened.torn) == (made + 1, 0)
            assert opened.record(made).lost == (1,) and opened.record(made).shared is None


# ── hostile ──


@few
@given(data=st.binary(max_size=200), begins=st.sampled_from([b"", b"{", MAGIC, b"[" * 99_999]))
def test_any_bytes(place, data, begins):
    data = begins + data
    read_journal(place, data)
    (place / "config.json").write_bytes(data)
    (place / "metrics.jsonl").write_bytes(data)
    (place / "a.safetensors").write_bytes(data)
    with only_ours():
        RunFolder.open(place).read_json("config.json")
    with only_ours():
        load_parameters(place / "a.safetensors")
    with only_ours():
        unpack_shared(SHARED, data)
    metrics = MetricsFile.open(place / "metrics.jsonl", 3)
    metrics.close()
    assert metrics.next_generation == 0 and (place / "metrics.jsonl").read_bytes() == b""


@few
@given(draw=st.data())
def test_a_journal_with_changed_frames(place, valid, draw):
    """Each crc is right, so that what changed is read."""
    parts = split(valid[0])
    for _ in range(draw.draw(st.integers(1, 3))):
        at, other = (draw.draw(st.integers(0, len(parts) - 1)) for _ in range(2))
        match draw.draw(st.sampled_from(["body", "random", "swap", "twice", "gone", "flip"])):
            case "body":
                body = bytearray(parts[at][4:-4])
                start = draw.draw(st.integers(0, len(body)))
                body[start : start + draw.draw(st.integers(0, 9))] = draw.draw(st.binary(max_size=9))
                parts[at] = signed(bytes(body))
            case "random":
                kind, generation = draw.draw(st.integers(0, 5)), draw.draw(st.integers(0, 5) | st.just(2**64 - 1))
                lost = draw.draw(st.lists(st.integers(0, 20), max_size=3))
                count = draw.draw(st.just(len(lost)) | st.integers(0, 2**32 - 1))
                payload = draw.draw(st.binary(max_size=20) | JSON.map(lambda value: json.dumps(value).encode()))
                end = struct.pack(f"<{len(lost)}II", *lost, count)
                parts[at] = signed(struct.pack("<BQ", kind, generation) + payload + end)
            case "swap":
                parts[at], parts[other] = parts[other], parts[at]
            case "twice":
                parts.insert(other, parts[at])
            case "gone" if len(parts) > 1:
                del parts[at]
            case _:
                parts[at] = parts[at][:5] + bytes([parts[at][5] ^ 64]) + parts[at][6:]
    read_journal(place, MAGIC + b"".join(parts))


@few
@given(value=JSON, known=st.booleans(), name=st.sampled_from(["frames", "weights", "config", "job"]))
@example(value="a\nb", known=True, name="weights")
def test_any_header(place, value, known, name):
    payload = json.dumps(header() | {name: value} if known else value).encode()
    read_journal(place, MAGIC + pack(Frame(Kind.HEADER, 0, payload)))
    with only_ours():
        recorded_settings(RunFolder(place), PretrainConfig, "pretrain")


@settings(max_examples=100, deadline=None)
@given(value=JSON, name=st.sampled_from([*preset("tiny").as_json(), None]))
@example(value=int("9" * 4300), name="population_size")  # the complaint proposes one more, which has 4,301 digits
@example(value=["\x1b\n"], name="data")
def test_any_settings(tmp_path_factory, value, name):
    folder = tmp_path_factory.mktemp("run")
    config = value if name is None else preset("tiny").as_json() | {name: value}
    (folder / "config.json").write_text(json.dumps(config))
    with only_ours():
        assert recorded_settings(RunFolder.open(folder), PretrainConfig, "pretrain").as_json()[name] == config[name]


@pytest.mark.parametrize("depth", [200, 800, 900, 1000, 100_000])
def test_deep_json(tmp_path, depth):
    """Around the depth that Python parses, in every place."""
    deep = b"[" * depth + b"]" * depth
    (tmp_path / "config.json").write_bytes(b'{"job": "pretrain", "seed": ' + deep + b"}")
    assert complaint(recorded_settings, RunFolder.open(tmp_path), PretrainConfig, "pretrain")
    (tmp_path / "metrics.jsonl").write_bytes(b'{"generation": 0, "x": ' + deep + b"}\n")
    MetricsFile.open(tmp_path / "metrics.jsonl", 3).close()
    read_journal(tmp_path, MAGIC + pack(Frame(Kind.HEADER, 0, b'{"frames": ' + deep + b"}")))
    read_journal(
        tmp_path, MAGIC + pack(Frame(Kind.HEADER, 0, b'{"frames": "ternary", "weights": 1, "config": ' + deep + b"}"))
    )
    with only_ours():
        recorded_settings(RunFolder(tmp_path), PretrainConfig, "pretrain")


@few
@given(data=st.data())
def test_changed_safetensors(place, data):
    whole = bytearray(safetensors.numpy.save(SHARED))
    dtype = data.draw(st.sampled_from([b"F32", b"U8", b"F64", b"BF16", b"F8_E4M3", b"C64", b"\x1b[2J"]))
    shape = data.draw(st.lists(st.sampled_from([0, 1, 4, 2**62, 2**63]), max_size=3))
    text = bytes(whole[8:-20]).replace(b"F32", dtype, 1).replace(b"[4]", json.dumps(shape).encode(), 1)
    path = place / "b.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + whole[-20:])
    with only_ours():
        unpack_shared(SHARED, path.read_bytes())
    with only_ours():
        load_parameters(path)


# ── limits ──


def test_headers_share_one_limit(tmp_path, monkeypatch):
    """All of them are kept."""
    monkeypatch.setattr(journal, "HEADER_LIMIT", 2000)
    first = pack(Frame(Kind.HEADER, 0, json.dumps(header()).encode()))
    (tmp_path / "forged").write_bytes(MAGIC + first * 5)
    assert "headers of at most 2,000 bytes together" in complaint(Journal.open, tmp_path / "forged")
    with Journal.create(tmp_path / "own", header()) as own:
        while len(first) * (len(own.segments) + 1) < 2000:
            own.append_header(header())
        before = own.size
        assert "headers of at most 2,000" in complaint(own.append_header, header() | {"more": "x" * 1000})
        assert own.size == before == (tmp_path / "own").stat().st_size


def test_lost_members_have_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(frames, "LOST_LIMIT", 2)
    assert "at most 2 lost members, got 3 in generation 4" in complaint(pack, Frame(Kind.TERNARY, 4, b"y", (1, 2, 3)))
    forged = signed(struct.pack("<BQ4I", 1, 4, 1, 2, 3, 3))
    assert "at most 2 lost members, got 3 in generation 4" in complaint(unpack, forged)
    assert unpack(pack(Frame(Kind.TERNARY, 4, b"y", (7, 2)))).lost == (2, 7)


def test_shared_state_is_followed_by_its_weights(tmp_path):
    first, shared = pack(Frame(Kind.HEADER, 0, json.dumps(header()).encode())), pack(Frame(Kind.SHARED, 0, b"s"))
    for follows in (first, shared):
        (tmp_path / "forged").write_bytes(MAGIC + first + shared + follows)
        assert "expected weights of generation 0 next" in complaint(Journal.open, tmp_path / "forged")


def test_long_files(tmp_path):
    folder = RunFolder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"x": " " * JSON_LIMIT}))
    assert "more than 4,194,304 bytes" in complaint(folder.read_json, "config.json")
    data = struct.pack("<Q", 2**20 + 1) + b" " * (2**20 + 1)
    (tmp_path / "a.safetensors").write_bytes(data)
    assert "a header of more than 1,048,576 bytes" in complaint(load_parameters, tmp_path / "a.safetensors")
    assert "a header of more than 1,048,576 bytes" in complaint(unpack_shared, SHARED, data)
    (tmp_path / "metrics.jsonl").write_bytes(b'{"generation": 0, "x": "' + b" " * 2**20 + b'"}\n')
    metrics = MetricsFile.open(tmp_path / "metrics.jsonl", 3)
    metrics.close()
    assert metrics.next_generation == 0


def test_pipes_are_not_waited_for(tmp_path):
    for name in ("journal.egg", "config.json", "metrics.jsonl", "a.safetensors"):
        os.mkfifo(tmp_path / name)
    assert "no plain file" in complaint(Journal.open, tmp_path / "journal.egg")
    assert "no plain file" in complaint(Journal.open, tmp_path / "journal.egg", writable=True)
    assert "no plain file" in complaint(RunFolder(tmp_path).read_json, "config.json")
    assert "no plain file" in complaint(MetricsFile.open, tmp_path / "metrics.jsonl", 3)
    assert "no plain file" in complaint(load_parameters, tmp_path / "a.safetensors")


# ── snapshots ──


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory):
    folder = RunFolder(tmp_path_factory.mktemp("run"))
    parameters = {"a": np.arange(84, dtype=np.int8).reshape(4, 21), "b": np.zeros(5, np.float32)}
    snapshots.save(folder, 1, {"parameters": parameters}, keep=1)
    return folder.snapshots / "00000001"


def resign(path):
    """The manifest of files as they now are."""
    (path / snapshots.MANIFEST).write_text(json.dumps(snapshots._hashes(path)))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # tensorstore may be late
@pytest.mark.parametrize("signed", [True, False])
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_a_changed_snapshot(place, snapshot, signed, data):
    path = place / "changed"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(snapshot, path)
    names = [file.relative_to(path) for file in sorted(path.rglob("*")) if file.is_file()]
    file = path / data.draw(st.sampled_from([name for name in names if name.name != snapshots.MANIFEST or not signed]))
    content = bytearray(file.read_bytes())
    start = data.draw(st.integers(0, len(content)))
    content[start : start + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    file.write_bytes(content)
    if signed:
        resign(path)
    with only_ours():
        load_parameters(path)


@pytest.mark.parametrize("change", [{"chunks": [2**40]}, {"chunks": [1], "shape": [2**20]}, {"chunks": [9]}])
def test_chunks_that_tensorstore_would_make_room_for(tmp_path, snapshot, change):
    import tensorstore

    path = tmp_path / "forged"
    shutil.copytree(snapshot, path)
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": f"file://{path}/"}).result()
    described = json.loads(store.read(b"parameters.b/.zarray").result().value)
    store.write(b"parameters.b/.zarray", json.dumps(described | change).encode()).result()
    resign(path)
    assert "got chunks of shape" in complaint(load_parameters, path)


@pytest.mark.parametrize("put", ["pipe", "link", "long JSON"])
def test_what_no_snapshot_holds(tmp_path, snapshot, put):
    path, expected = tmp_path / "forged", "which is no plain file"
    shutil.copytree(snapshot, path)
    if put == "pipe":
        os.mkfifo(path / "d" / "x")
    elif put == "link":
        (path / "d" / "x").symlink_to("/dev/zero")
    else:
        (path / "_x").write_bytes(b" " * (JSON_LIMIT + 1))
        expected = "'_x' of more than 4,194,304 bytes"
    assert expected in complaint(load_parameters, path)


# ── round trips ──


@few
@given(signs=st.lists(st.integers(-1, 1), max_size=40))
def test_ternary_weights(signs):
    payload = encode_weights(Kind.TERNARY, np.array(signs, np.int8))
    assert decode_weights(Kind.TERNARY, payload, len(signs)).tolist() == signs and len(payload) == -(-len(signs) // 5)


@pytest.mark.parametrize(("kind", "width"), [(Kind.FLOAT16, 16), (Kind.FLOAT32, 32)])
@few
@given(data=st.data())
def test_float_weights(kind, width, data):
    values = data.draw(st.lists(st.floats(width=width, allow_nan=False, allow_infinity=False), max_size=40))
    payload = encode_weights(kind, np.array(values, np.float64))
    assert decode_weights(kind, payload, len(values)).tolist() == values and len(payload) == width // 8 * len(values)


@few
@given(
    kind=st.sampled_from(list(Kind)),
    generation=st.integers(0, 2**64 - 1),
    payload=st.binary(max_size=50),
    lost=st.sets(st.integers(0, 2**32 - 1), max_size=5),
)
def test_frames(kind, generation, payload, lost):
    frame = Frame(kind, generation, payload, tuple(sorted(lost)))
    assert frames.is_whole(pack(frame)) and unpack(pack(frame)) == frame


def test_an_exported_journal_is_a_prefix(tmp_path, valid):
    data, ends = valid
    (tmp_path / "journal.egg").write_bytes(data)
    with Journal.open(tmp_path / "journal.egg") as whole:
        for upto in range(whole.generations + 1):
            whole.export(tmp_path / f"{upto}.egg", upto)
            copy = (tmp_path / f"{upto}.egg").read_bytes()
            assert data.startswith(copy) and len(copy) >= ends[upto]
            with Journal.open(tmp_path / f"{upto}.egg") as opened:
                assert (opened.generations, opened.torn) == (upto, 0)


def test_a_journal_cut_at_any_byte_goes_on_to_the_same_bytes(tmp_path):
    first, second = ({"frames": "ternary", "weights": 7, "number": number} for number in (1, 2))
    steps = [((), None), ((2, 5), b"shared"), ((), None), ((1,), b"")]

    def go_on(opened):
        for generation in range(opened.generations, len(steps)):
            if generation == 2 and len(opened.segments) == 1:
                opened.append_header(second)
            lost, shared = steps[generation]
            opened.append(np.arange(7) % 3 - 1, lost, shared, sync=False)
            ends.append(opened.size)

    path, ends = tmp_path / "journal.egg", []
    with Journal.create(path, first) as made:
        start = made.size
        go_on(made)
    data, whole = path.read_bytes(), list(ends)
    for length in range(len(data) + 1):
        path.write_bytes(data[:length])
        if length < start:
            assert complaint(Journal.open, path) and complaint(Journal.open, path, writable=True)
            assert path.read_bytes() == data[:length]
            continue
        with Journal.open(path) as opened:
            generations = opened.generations
            assert generations == sum(end <= length for end in whole) and opened.size + opened.torn == length
        with Journal.open(path, writable=True) as opened:
            assert opened.generations == generations and path.stat().st_size == opened.size
            go_on(opened)
        assert path.read_bytes() == data
