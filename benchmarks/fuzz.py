"""Fuzzes every reader of files that may be hostile: journals, settings, metrics, safetensors and snapshots.

`python benchmarks/fuzz.py` mutates valid files from a fixed seed and prints one JSON line; any exception but ours, any
input of more than a second and any growth of memory beyond the limit makes it end with 1, after a line for each on
standard error. `--only READER INDEX` repeats one input. Snapshots are read in a process of their own, which is started
again where native code brings it down.

`python benchmarks/fuzz.py --atheris SECONDS` lets coverage guide the mutations (`pip install atheris`), so many seconds
for journals and as many for settings.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import random
import re
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

try:
    import atheris
except ImportError:
    atheris = None

GUIDED = "--guided" in sys.argv
with (
    atheris.instrument_imports(include=["eggroll.runs", "eggroll.pretrain.config"])
    if GUIDED
    else (contextlib.nullcontext())
):
    import numpy as np
    import safetensors.numpy

    from eggroll.core.errors import UsageError
    from eggroll.pretrain.config import PretrainConfig, preset
    from eggroll.runs import snapshots
    from eggroll.runs.folder import RunFolder
    from eggroll.runs.frames import FRAME_LIMIT, LENGTH, SMALLEST, Frame, Kind, pack
    from eggroll.runs.going_on import recorded_settings
    from eggroll.runs.journal import HEADER_LIMIT, MAGIC, Journal
    from eggroll.runs.metrics import MetricsFile
    from eggroll.runs.shared_state import pack_shared, unpack_shared
    from eggroll.runs.trees import filled
    from eggroll.runs.weights import load_parameters

INPUTS = {"journal": 50_000, "settings": 40_000, "metrics": 8_000, "safetensors": 10_000, "snapshots": 2_000}
SLOWEST = 1.0
"""Seconds that an input may take; those made by hand, which are large, ten times as long."""
GROWTH = 256
"""MiB that a process may grow by, whatever it reads."""
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""Where to write what is read."""
STUCK = 60
"""Seconds without news after which the process that reads snapshots is stopped."""
SHARED = {"count": np.array(3, np.float32), "mean": np.arange(4, dtype=np.float32)}
SNAPSHOT = {"parameters": {"a": np.arange(84, dtype=np.int8).reshape(4, 21), "b": np.zeros(5, np.float32)}}
OURS = re.compile(r"expected [^\n]+, got [^\n]+; [^\n]+")
EDGES = (0, 1, 2, 4, 17, 127, 128, 255, 2**16, 2**26, 2**31 - 1, 2**31, 2**32 - 1)
TEXTS = ("", "\n", "\x1b[2J", "é", "\ud800", "job", "ternary", "float16", "x" * 5000, "../../x", "auto", "-1", "NaN")


# ── mutations ──


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A few changes of bytes: flipped, inserted, deleted, cut off, doubled, moved."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at = rng.randrange(len(changed) + 1)
        end = min(len(changed), at + rng.choice((1, 1, 2, 4, 8, 21, 64)))
        kind = rng.randrange(8)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(changed):
            changed[at] = rng.choice((0, 1, 127, 128, 242, 243, 255, rng.randrange(256)))
        elif kind == 2:
            changed[at:at] = rng.randbytes(rng.choice((1, 1, 2, 4, 16)))
        elif kind == 3:
            del changed[at:end]
        elif kind == 4:
            del changed[at:]
        elif kind == 5:
            changed[at:at] = changed[at:end]
        elif kind == 6:
            other = rng.randrange(len(changed) + 1)
            changed[other:other] = changed[at:end]
        else:
            word = rng.choice((struct.Struct("<I"), struct.Struct("<Q")))
            changed[at : at + word.size] = word.pack(rng.choice(EDGES))
    return bytes(changed)


def mended(data: bytes) -> bytes:
    """The journal with every crc right, as far as its lengths lead from frame to frame."""
    changed, at = bytearray(data), len(MAGIC)
    while at + LENGTH.size <= len(changed):
        (length,) = LENGTH.unpack_from(changed, at)
        end = at + LENGTH.size + length
        if length < SMALLEST or end > len(changed):
            break
        changed[end - 4 : end] = struct.pack("<I", zlib.crc32(changed[at : end - 4]))
        at = end
    return bytes(changed)


def frames_of(data: bytes) -> list[bytes]:
    """The frames of a valid journal."""
    frames, at = [], len(MAGIC)
    while at < len(data):
        end = at + LENGTH.size + LENGTH.unpack_from(data, at)[0]
        frames.append(data[at:end])
        at = end
    return frames


def forged(frame: bytes, rng: random.Random) -> bytes:
    """A frame of another kind, generation, payload or list of lost members, its crc right."""
    kind, generation = struct.unpack_from("<BQ", frame, LENGTH.size)
    payload, count = frame[13:-8], 0
    lost = [rng.choice((*EDGES, rng.randrange(30))) for _ in range(rng.choice((0, 0, 1, 2, 5)))]
    match rng.randrange(6):
        case 0:
            kind = rng.choice((0, 1, 2, 3, 4, 5, 255))
        case 1:
            generation = rng.choice((*EDGES, generation + 1, max(generation - 1, 0), 2**63, 2**64 - 1))
        case 2:
            payload = mutated(payload, rng)
        case 3:
            lost = sorted(set(lost))
            count = rng.choice((0, 0, 1, -1, 2**32 - 1 - len(lost)))
        case 4:
            payload = header_payload(rng)
        case _:
            payload = rng.randbytes(rng.randrange(40))
    tail = struct.pack(f"<{len(lost)}I", *lost) + struct.pack("<I", max(len(lost) + count, 0))
    body = struct.pack("<IBQ", 17 + len(payload) + 4 * len(lost), kind, generation) + payload + tail
    return body + struct.pack("<I", zlib.crc32(body))


def any_json(rng: random.Random, depth: int = 0) -> Any:
    """A value that JSON can hold, or nearly (NaN and infinity)."""
    match rng.randrange(9 if depth < 4 else 6):
        case 0:
            return rng.choice((None, True, False))
        case 1:
            return rng.choice((-1, 1)) * rng.choice((*EDGES, 3, 16, 256, 2**64, 10**299, 10**4299, int("9" * 4300)))
        case 2:
            return rng.choice((0.5, -0.0, 1e308, 5e-324, float("nan"), float("inf"), 64.0, rng.random()))
        case 3 | 4 | 5:
            return rng.choice(TEXTS)
        case 6:
            value: Any = rng.choice(TEXTS)
            for _ in range(rng.choice((1, 2, 50, 400, 900))):
                value = [value] if rng.random() < 0.7 else {"": value}
            return value
        case 7:
            return [any_json(rng, depth + 1) for _ in range(rng.randrange(4))]
        case _:
            return {rng.choice(TEXTS): any_json(rng, depth + 1) for _ in range(rng.randrange(4))}


def changed_json(value: dict[str, Any], rng: random.Random) -> bytes:
    """The object with some of its values, at any depth, others; now and then its text changed as well."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.choice((1, 1, 2, 4))):
        inner = value
        while True:
            key = rng.choice(list(inner) or [""])
            if not isinstance(inner.get(key), dict) or rng.random() < 0.2:
                break
            inner = inner[key]
        match rng.randrange(4):
            case 0:
                inner.pop(key, None)
            case 1 if isinstance(inner.get(key), int | float):
                inner[key] = rng.choice((-1, 0, 1, 2, 3, 16, 17, inner[key] + 1, -inner[key], inner[key] * 2))
            case _:
                inner[key] = any_json(rng)
    with contextlib.suppress(RecursionError, ValueError):  # too deep, or doubled to more digits than Python writes
        text = json.dumps(value, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
        return text if rng.random() < 0.7 else mutated(text, rng)
    return b"[" * 100_000


def header_payload(rng: random.Random) -> bytes:
    """A header that is nearly right."""
    return changed_json(header("ternary", 10), rng)


def mutated_journal(data: bytes, rng: random.Random) -> bytes:
    """A journal with changed bytes, with right or wrong crcs; or with forged, swapped, doubled or missing frames."""
    match rng.randrange(5):
        case 0:
            return mutated(data, rng)
        case 1:
            return mended(mutated(data, rng))
        case 2:
            first = frames_of(data)[0]
            payload = changed_json(json.loads(first[13:-8]), rng)
            return data[: len(MAGIC)] + pack(Frame(Kind.HEADER, 0, payload)) + data[len(MAGIC) + len(first) :]
    frames = frames_of(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at, other = rng.randrange(len(frames)), rng.randrange(len(frames))
        match rng.randrange(5):
            case 0 | 1:
                frames[at] = forged(frames[at], rng)
            case 2:
                frames[at], frames[other] = frames[other], frames[at]
            case 3:
                frames.insert(other, frames[at])
            case _ if len(frames) > 1:
                del frames[at]
    return MAGIC + b"".join(frames) + (rng.randbytes(rng.randrange(300)) if rng.random() < 0.2 else b"")


# ── readers, each of bytes on the disk, in a folder of its own ──


def header(frames: str, weights: int) -> dict[str, Any]:
    """Of a small pretraining run."""
    config = preset("tiny").as_json()
    return {"format": 1, "job": "pretrain", "config": config, "frames": frames, "weights": weights, "start_sha256": {}}


def valid_journals(folder: Path) -> list[bytes]:
    """One of each kind, with lost members, shared state and settings that change midway."""
    found = []
    for name in ("ternary", "float16", "float32"):
        path = folder / f"valid-{name}"
        with Journal.create(path, header(name, 10)) as journal:
            for generation in range(6):
                shared = pack_shared(SHARED) if generation % 2 else None
                journal.append(np.arange(10) % 3 - 1, (0, generation + 2), shared, sync=False)
                if generation == 3:
                    journal.append_header(header(name, 10) | {"job": "again"})
        found.append(path.read_bytes())
        path.unlink()
    return found


def read_journal(folder: Path, data: bytes) -> None:
    """Open, read every generation, cut the torn tail and go on."""
    path = folder / "journal.egg"
    path.write_bytes(data)
    with Journal.open(path) as journal:
        made, torn = journal.generations, journal.torn
        for generation in range(made):
            record = journal.record(generation)
            assert len(record.weights) == journal.segment_of(generation).weights
            with contextlib.suppress(UsageError):
                unpack_shared(SHARED, record.shared)
            del record
    with Journal.open(path, writable=True) as journal:
        assert (journal.generations, journal.torn, path.stat().st_size) == (made, torn, len(data) - torn)
        if journal.segments[-1].weights > 2**20:  # writing takes memory of its own
            return
        journal.append(np.zeros(journal.segments[-1].weights), (1,), sync=False)
    with Journal.open(path) as journal:
        assert (journal.generations, journal.torn) == (made + 1, 0)
        record = journal.record(made)
        assert record.lost == (1,) and record.shared is None
    for tail in folder.glob("*.tail-*"):
        assert tail.read_bytes() == data[-torn:]
        tail.unlink()


def read_settings(folder: Path, data: bytes) -> None:
    """As `config.json` and, where it starts like an object, as the settings in a journal's header."""
    run, path = RunFolder(folder), folder / "journal.egg"
    path.unlink(missing_ok=True)
    (folder / "config.json").write_bytes(data)
    failure = None
    try:
        recorded_settings(RunFolder.open(folder), PretrainConfig, "pretrain")
    except UsageError as error:
        failure = error
    whole = b'{"frames": "ternary", "weights": 10, "config": ' + data + b"}"
    if len(whole) <= HEADER_LIMIT:
        path.write_bytes(MAGIC + pack(Frame(Kind.HEADER, 0, whole)))
        recorded_settings(run, PretrainConfig, "pretrain")
    if failure is not None:
        raise failure


def read_metrics(folder: Path, data: bytes) -> None:
    """Open, which cuts, and append."""
    path = folder / "metrics.jsonl"
    path.write_bytes(data)
    metrics = MetricsFile.open(path, 5)
    following = metrics.next_generation
    metrics.append({"generation": following, "bits_per_byte": float("nan")})
    metrics.close()
    again = MetricsFile.open(path, 6)
    again.close()
    assert again.next_generation == following + 1 <= 6


def read_safetensors(folder: Path, data: bytes) -> None:
    """As a file of parameters and as shared state."""
    path = folder / "parameters.safetensors"
    path.write_bytes(data)
    failure = None
    try:
        filled(SHARED, load_parameters(path), str(path))
    except UsageError as error:
        failure = error
    unpack_shared(SHARED, data)
    if failure is not None:
        raise failure


class Reader(NamedTuple):
    """What is read, from what it is mutated, and how."""

    read: Callable[[Path, bytes], None]
    valid: Callable[[Path], list[bytes]]
    mutate: Callable[[bytes, random.Random], bytes]
    large: Callable[[], Iterator[bytes]]


def large_journals() -> Iterator[bytes]:
    """Valid as far as possible, and as dear to read as their limits allow."""

    def journal(frames: str, weights: int, *rest: bytes, **more: Any) -> bytes:
        first = json.dumps(header(frames, weights) | more).encode()
        return MAGIC + pack(Frame(Kind.HEADER, 0, first)) + b"".join(rest)

    def lost(count: int) -> bytes:
        body = struct.pack("<IBQ", 17 + 4 * count, 1, 0) + np.arange(count, dtype="<u4").tobytes()
        body += struct.pack("<I", count)
        return body + struct.pack("<I", zlib.crc32(body))

    dear = dear_json(HEADER_LIMIT - 1000)
    yield journal("ternary", 10, more=dear)
    yield journal("ternary", 10, *[pack(Frame(Kind.HEADER, 0, json.dumps(header("ternary", 10)).encode()))] * 50_000)
    yield journal(
        "ternary", 10, *[pack(Frame(Kind.HEADER, 0, json.dumps(header("ternary", 10) | {"more": dear}).encode()))] * 20
    )
    most = (FRAME_LIMIT - SMALLEST) // 4
    for name, kind, size, count in (("float32", 3, 4, most), ("float16", 2, 2, 2 * most), ("float16", 2, 2, 2**24)):
        yield journal(name, count, *[pack(Frame(Kind(kind), g, bytes(size * count))) for g in range(2)])
    for count in (2**24, 2**26):
        size = -(-count // 5)
        yield journal("ternary", count, *[pack(Frame(Kind.TERNARY, g, bytes([121]) * size)) for g in range(2)])
    for count in (2**20, most):
        yield journal("ternary", 2**24, lost(count))
    shared = pack(Frame(Kind.SHARED, 0, bytes(FRAME_LIMIT - SMALLEST)))
    yield journal("float32", most, shared, pack(Frame(Kind.FLOAT32, 0, bytes(4 * most))))
    yield journal("ternary", 10, shared, shared, pack(Frame(Kind.TERNARY, 0, b"yy")))
    yield journal(
        "ternary", 10, pack(Frame(Kind.SHARED, 0, many_tensors(FRAME_LIMIT - 100))), pack(Frame(Kind.TERNARY, 0, b"yy"))
    )
    yield journal("ternary", 1, *[pack(Frame(Kind.TERNARY, g, b"y")) for g in range(20_000)])
    yield journal("ternary", 10) + struct.pack("<I", FRAME_LIMIT + 1) + bytes(FRAME_LIMIT + 9)


def dear_json(size: int) -> list[Any]:
    """JSON of about so many bytes that takes as much memory as any."""
    return [{"": 0}] * (size // 9)


def many_tensors(size: int) -> bytes:
    """Safetensors that are all header, of about so many bytes."""
    entries, length = [], 2
    for number in range(size):
        entry = f'"{number:x}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'
        length += len(entry) + 1
        if length > size:
            break
        entries.append(entry)
    text = ("{" + ",".join(entries) + "}").encode()
    return struct.pack("<Q", len(text)) + text


def large_settings() -> Iterator[bytes]:
    for size in (HEADER_LIMIT - 100, 64 * 2**20):
        yield json.dumps(preset("tiny").as_json() | {"more": dear_json(size - 2000)}).encode()
    yield b"[" * 2**22


def large_metrics() -> Iterator[bytes]:
    for size in (2**20 - 100, 2**20 + 1, 64 * 2**20):
        yield json.dumps({"generation": 0, "more": dear_json(size - 50)}).encode() + b"\n"
    yield b"".join(b'{"generation": %d}\n' % generation for generation in range(500_000))


def large_safetensors() -> Iterator[bytes]:
    for size in (2**20 - 100, 2**22 - 100, 64 * 2**20):
        yield many_tensors(size)
    text = b'{"a":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}' % (2**62, 2**62)
    yield struct.pack("<Q", len(text)) + text


READERS = {
    "journal": Reader(read_journal, valid_journals, mutated_journal, large_journals),
    "settings": Reader(
        read_settings,
        lambda folder: [json.dumps(preset("tiny").as_json()).encode()],
        lambda data, rng: changed_json(json.loads(data), rng) if rng.random() < 0.8 else mutated(data, rng),
        large_settings,
    ),
    "metrics": Reader(
        read_metrics,
        lambda folder: [b"".join(b'{"generation": %d, "bits_per_byte": 7.5}\n' % g for g in range(8))],
        lambda data, rng: (
            mutated(data, rng) if rng.random() < 0.5 else data[:41] + changed_json({"generation": 1}, rng) + data[40:]
        ),
        large_metrics,
    ),
    "safetensors": Reader(
        read_safetensors,
        lambda folder: [safetensors.numpy.save(SHARED)],
        lambda data, rng: mutated(data, rng) if rng.random() < 0.4 else forged_safetensors(data, rng),
        large_safetensors,
    ),
}


def forged_safetensors(data: bytes, rng: random.Random) -> bytes:
    """Another header, its length right."""
    (length,) = struct.unpack_from("<Q", data)
    entries = json.loads(data[8 : 8 + length])
    for entry in entries.values():
        if rng.random() < 0.3:
            entry["dtype"] = rng.choice(("BF16", "F8_E4M3", "F64", "U8", "BOOL", "C64", "I8", "x"))
        if rng.random() < 0.3:
            entry["shape"] = [rng.choice((*EDGES, 2**62, 2**63, -1)) for _ in range(rng.choice((0, 1, 2, 3, 70)))]
        if rng.random() < 0.2:
            entry["data_offsets"] = [rng.choice((*EDGES, 2**63)), rng.choice((*EDGES, 2**63))]
    text = json.dumps(entries).encode() if rng.random() < 0.6 else changed_json(entries, rng)
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


# ── measuring ──


def memory(field: str) -> int:
    """KiB: VmRSS, or VmHWM, the most since `forget_peak`."""
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if field in line)


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


class Outcome(NamedTuple):
    """What came of one input."""

    label: str
    outcome: str
    faults: list[str]
    seconds: float
    growth: float


class Judge:
    """Reads inputs and says what came of each."""

    def __init__(self) -> None:
        self.baseline = memory("VmRSS")
        forget_peak()

    def take(self, label: str, read: Callable[[], None], limit: float) -> Outcome:
        """Read one input, which may take `limit` seconds."""
        start, faults = time.perf_counter(), []
        try:
            read()
            outcome = "read"
        except UsageError as error:
            text = str(error)
            outcome = re.sub(r"\d[\d,]*|'.*?'|\".*?\"|/\S+", "#", text.split(", got")[0])[:90]
            if not OURS.fullmatch(text) or len(text) > 1000 or not text.isprintable():
                faults.append(f"a complaint of another form: {text[:300]!r}")
        except Exception as error:
            outcome = f"FAULT {type(error).__name__}"
            faults.append(f"{type(error).__name__}: {str(error)[:300]}")
        took, growth = time.perf_counter() - start, (memory("VmHWM") - self.baseline) / 1024
        if took > limit:
            faults.append(f"{took:.1f} s")
        if growth > GROWTH:
            faults.append(f"{growth:.0f} MiB above the baseline")
            forget_peak()
        return Outcome(label, outcome, faults, took, growth)


class Tally:
    """What came of the inputs of one reader."""

    def __init__(self, name: str) -> None:
        self.name, self.outcomes, self.faults, self.inputs = name, Counter[str](), 0, 0
        self.slowest, self.slowest_large, self.largest = (0.0, ""), (0.0, ""), (0.0, "")
        self.start, self.end = time.perf_counter(), 0.0

    def add(self, one: Outcome) -> None:
        """Count it, and say on standard error what is wrong."""
        self.inputs, self.end = self.inputs + 1, time.perf_counter()
        self.outcomes[one.outcome] += 1
        self.faults += bool(one.faults)
        if one.label.startswith("large"):
            self.slowest_large = max(self.slowest_large, (one.seconds, one.label))
        else:
            self.slowest = max(self.slowest, (one.seconds, one.label))
        self.largest = max(self.largest, (one.growth, one.label))
        for what in one.faults:
            print(f"FAULT {self.name} {one.label}: {what}", file=sys.stderr)

    def result(self) -> dict[str, Any]:
        """For the JSON line."""
        return {
            "inputs": self.inputs,
            "faults": self.faults,
            "slowest_ms": round(1000 * self.slowest[0], 1),
            "slowest": self.slowest[1],
            "slowest_large_ms": round(1000 * self.slowest_large[0], 1),
            "growth_mib": round(self.largest[0], 1),
            "seconds": round(self.end - self.start, 1),
            "outcomes": dict(self.outcomes.most_common()),
        }


def fuzz(name: str, count: int, seed: int, only: str | None) -> Tally:
    """All inputs of a reader of bytes."""
    reader, tally = READERS[name], Tally(name)
    with tempfile.TemporaryDirectory(dir=MEMORY) as temporary:
        folder = Path(temporary)
        valid = reader.valid(folder)
        for data in valid:
            reader.read(folder, data)
        judge = Judge()
        for number in range(count):
            if only in (None, str(number)):
                rng = random.Random(f"{seed} {name} {number}")
                data = rng.randbytes(rng.randrange(99)) if number % 50 == 0 else reader.mutate(rng.choice(valid), rng)
                tally.add(judge.take(str(number), lambda data=data: reader.read(folder, data), SLOWEST))
        for number, data in enumerate(reader.large()):
            if only in (None, f"large-{number}"):
                judge = Judge()  # with the input itself in the baseline
                tally.add(judge.take(f"large-{number}", lambda data=data: reader.read(folder, data), 10 * SLOWEST))
    return tally


# ── snapshots ──


def crc32c(data: bytes) -> int:
    """Castagnoli's, which ends every file of a tensorstore database."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def database(path: Path, **config: Any) -> Any:
    """The key-value store in a snapshot."""
    import tensorstore

    return tensorstore.KvStore.open({"driver": "ocdbt", "base": f"file://{path}/", "config": config}).result()


def valid_snapshot(folder: Path) -> Path:
    """A snapshot whose database is not compressed, so that mutations reach what is in it."""
    run = RunFolder(folder)
    snapshots.save(run, 1, SNAPSHOT, keep=1)
    path = folder / "snapshots" / "00000001"
    store = database(path)
    values = {key: store.read(key).result().value for key in store.list().result()}
    for file in [path / "manifest.ocdbt", *(path / "d").iterdir()]:
        file.unlink()
    store = database(path, compression=None)
    for key, value in values.items():
        store.write(key, value).result()
    sign(path)
    return path


def sign(path: Path) -> None:
    """Make the manifest right."""
    (path / snapshots.MANIFEST).write_text(json.dumps(snapshots._hashes(path)))


def mutate_snapshot(path: Path, rng: random.Random) -> None:
    """Change a copy of a snapshot: its files' bytes, its database, its JSON, its manifest, or which files there are."""
    files = [file for file in sorted(path.rglob("*")) if file.is_file() and file.name != snapshots.MANIFEST]
    file, kind = rng.choice(files), rng.randrange(10)
    if kind == 0:
        file.write_bytes(mutated(file.read_bytes(), rng))
        return
    if kind == 1:
        file = path / snapshots.MANIFEST
        file.write_bytes(changed_json(json.loads(file.read_bytes()), rng))
        return
    if kind == 2:
        rng.choice((Path.unlink, lambda old: old.rename(old.with_name("other")), lambda old: old.write_bytes(b"")))(
            file
        )
    elif kind == 3:
        file.write_bytes(mutated(file.read_bytes(), rng))
    elif kind in (4, 5):
        file = path / rng.choice(("_METADATA", "_METADATA", "_CHECKPOINT_METADATA"))
        file.write_bytes(changed_json(json.loads(file.read_bytes()), rng))
    elif kind in (6, 7):
        file = rng.choice([path / "manifest.ocdbt", *sorted((path / "d").iterdir())])
        changed = bytearray(mutated(file.read_bytes()[:-4], rng))
        if rng.random() < 0.8:
            changed[4:12] = struct.pack("<Q", len(changed) + 4)
        file.write_bytes(changed + struct.pack("<I", crc32c(changed)))
    else:
        store = database(path)
        key = rng.choice(sorted(store.list().result()))
        value = store.read(key).result().value
        is_json = key.endswith(b".zarray") and rng.random() < 0.9
        store.write(key, changed_zarr(json.loads(value), rng) if is_json else mutated(value, rng)).result()
    sign(path)


def changed_zarr(value: dict[str, Any], rng: random.Random) -> bytes:
    """The description of an array, of another shape or another kind."""
    match rng.randrange(4):
        case 0:
            value["chunks"] = [rng.choice((0, 1, 3, 2**20, 2**31, 2**40, 2**62)) for _ in value["chunks"]]
        case 1:
            value["shape"] = [rng.choice((0, 1, 3, 2**20, 2**31, 2**40, 2**62)) for _ in value["shape"]]
        case 2:
            value["dtype"] = rng.choice(("<f8", "|b1", "<c16", "bfloat16", "|V99", "<M8[s]", "|O", "|S4", "int4"))
        case _:
            return changed_json(value, rng)
    return json.dumps(value).encode()


def read_snapshots(start: int, count: int, seed: int) -> None:
    """In a process of its own: a line before and after each input."""
    import shutil

    with tempfile.TemporaryDirectory(dir=MEMORY) as temporary:
        folder = Path(temporary)
        valid, target = valid_snapshot(folder), folder / "mutated"

        def read() -> None:
            filled(SNAPSHOT, load_parameters_of(target), str(target))

        def load_parameters_of(path: Path) -> Any:
            return {f"parameters/{name}": leaf for name, leaf in load_parameters(path).items()}

        for _ in range(20):
            shutil.copytree(valid, target)
            read()
            shutil.rmtree(target)
        judge = Judge()
        for number in range(start, count):
            shutil.copytree(valid, target)
            mutate_snapshot(target, random.Random(f"{seed} snapshots {number}"))
            print(json.dumps({"number": number}), flush=True)
            print(json.dumps(judge.take(str(number), read, SLOWEST)._asdict()), flush=True)
            shutil.rmtree(target)


def fuzz_snapshots(count: int, seed: int, only: str | None) -> Tally:
    """Have another process read them, and start it again after an input that brings it down."""
    tally, start = Tally("snapshots"), 0 if only is None else int(only)
    count = count if only is None else start + 1
    while start < count:
        command = [sys.executable, __file__, "--snapshots-from", str(start), "--snapshots-to", str(count)]
        child = subprocess.Popen([*command, "--seed", str(seed)], stdout=subprocess.PIPE, text=True)
        begun, done = start - 1, start - 1
        assert child.stdout is not None
        watch = threading.Timer(STUCK, child.kill)
        watch.start()
        for line in child.stdout:
            watch.cancel()
            watch = threading.Timer(STUCK, child.kill)
            watch.start()
            value = json.loads(line)
            if "number" in value:
                begun = value["number"]
            else:
                done = begun
                tally.add(Outcome(**value))
        watch.cancel()
        status = child.wait()
        if begun == done and done < count - 1:
            raise SystemExit(f"expected a process that reads snapshots, got one that ended with {status}; see above")
        if begun > done:
            tally.add(Outcome(str(begun), f"CRASH {status}", [f"the process ended with {status}"], 0.0, 0.0))
        start = begun + 1
    return tally


# ── guided by coverage ──


def guided(name: str, seconds: int, corpus: Path) -> None:
    """In a process of its own, which this ends."""
    reader = READERS[name]
    with tempfile.TemporaryDirectory(dir=MEMORY) as temporary:
        folder = Path(temporary)
        for number, data in enumerate(reader.valid(folder)):
            for first in (b"\0", b"\1"):
                (corpus / f"{number}{first[0]}").write_bytes(first + data)

        def one(data: bytes) -> None:
            whole = mended(data[1:]) if name == "journal" and data[:1] != b"\0" else data[1:]
            with contextlib.suppress(UsageError):
                reader.read(folder, whole)

        limits = ["-timeout=5", "-rss_limit_mb=2048", "-max_len=6000", f"-artifact_prefix={corpus}/"]
        atheris.Setup([sys.argv[0], str(corpus), f"-max_total_time={seconds}", *limits], one)
        atheris.Fuzz()


def fuzz_guided(seconds: int) -> dict[str, Any]:
    """Journals, then settings: executions, and how the process ended."""
    if atheris is None:
        raise SystemExit(
            "expected atheris for --atheris, got none installed; pip install atheris (Python 3.11 to 3.13)"
        )
    found = {}
    for name in ("journal", "settings"):
        with tempfile.TemporaryDirectory() as corpus:
            command = [sys.executable, __file__, "--guided", name, corpus, "--atheris", str(seconds)]
            child = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=seconds + 120)
            done = re.search(r"Done (\d+) runs in (\d+)", child.stderr)
            covered = re.findall(r"cov: (\d+)", child.stderr)
            if child.returncode or done is None:
                print(child.stderr[-4000:], file=sys.stderr)
            found[name] = {
                "executions": int(done[1]) if done else None,
                "seconds": int(done[2]) if done else None,
                "edges": int(covered[-1]) if covered else None,
                "exit": child.returncode,
            }
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the mutations")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the inputs to try")
    parser.add_argument("--only", nargs=2, metavar=("READER", "INDEX"), help="one input, such as journal 123")
    parser.add_argument("--readers", nargs="+", choices=list(INPUTS), default=list(INPUTS), help="default: all")
    parser.add_argument("--atheris", type=int, metavar="SECONDS", help="let coverage guide, so long for each reader")
    parser.add_argument("--guided", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--snapshots-from", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--snapshots-to", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.guided:
        guided(options.guided[0], options.atheris, Path(options.guided[1]))
    if options.snapshots_from is not None:
        read_snapshots(options.snapshots_from, options.snapshots_to, options.seed)
        return 0
    if options.atheris:
        found = fuzz_guided(options.atheris)
        print(json.dumps(found))
        return int(any(one["exit"] for one in found.values()))
    names, index = (options.readers, None) if options.only is None else ([options.only[0]], options.only[1])
    start, tallies = time.perf_counter(), []
    for name in names:
        count = round(INPUTS[name] * options.scale)
        run = fuzz_snapshots if name == "snapshots" else functools.partial(fuzz, name)
        tallies.append(run(count, options.seed, index))
    result = {
        "inputs": sum(tally.inputs for tally in tallies),
        "faults": sum(tally.faults for tally in tallies),
        "seconds": round(time.perf_counter() - start, 1),
        "seed": options.seed,
        **{tally.name: tally.result() for tally in tallies},
    }
    print(json.dumps(result))
    return int(result["faults"] > 0)


if __name__ == "__main__":
    sys.exit(main())
