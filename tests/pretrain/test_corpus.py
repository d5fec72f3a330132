"""corpus.py against plain Python: what is read, what is held out, and every complaint in one line."""

from __future__ import annotations

import hashlib
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eggroll.pretrain.corpus import Corpus, CorpusError, load_corpus

TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=40)


def split(stream: np.ndarray) -> list[bytes]:
    """The documents of a stream that begins with a 0 byte."""
    content = stream.tobytes()
    assert content[:1] == b"\0"
    return content[1:].split(b"\0")


def message(*arguments: object, **options: object) -> str:
    with pytest.raises(CorpusError) as caught:
        load_corpus(*arguments, **options)  # type: ignore[arg-type]
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    assert text.startswith("expected ") and ", got " in text and "; " in text
    return text


def write_json_lines(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


# What is read


def test_standard_library_is_the_default() -> None:
    corpus = load_corpus()
    total = len(corpus.train) + len(corpus.validation)
    assert corpus.name == f"python-{sys.version.split()[0]}-stdlib"
    assert 5e6 < total < 4e7
    assert 0.04 * total < len(corpus.validation) <= 0.05 * total
    assert corpus.held_out == "documents"
    assert corpus.train_documents == len(split(corpus.train))
    assert corpus.validation_documents == len(split(corpus.validation)) > 10
    assert not any(b"\0" in document for document in split(corpus.train))
    assert corpus.sha256 == hashlib.sha256(corpus.train.tobytes() + corpus.validation.tobytes()).hexdigest()


def test_standard_library_has_the_modules_and_no_tests() -> None:
    corpus = load_corpus(validation_fraction=0.5, validation_bytes=10**9)
    documents = set(split(corpus.train)) | set(split(corpus.validation))
    assert Path(json.__file__).read_bytes() in documents
    assert Path(pytest.__file__).read_bytes() not in documents
    assert load_corpus().sha256 == load_corpus().sha256


def test_folder_is_recursive_sorted_and_leaves_out_the_rest(tmp_path: Path) -> None:
    (tmp_path / "b" / ".hidden").mkdir(parents=True)
    for name in ("b/2.md", "b.txt", "a.py", "c.bin", "b/.hidden/x.txt", ".y.txt", "b/empty.txt"):
        (tmp_path / name).write_text("" if "empty" in name else name * 5)
    corpus = load_corpus(tmp_path)
    documents = [(name * 5).encode() for name in ("a.py", "b.txt", "b/2.md")]
    assert sorted(split(corpus.train) + split(corpus.validation)) == sorted(documents)
    assert split(corpus.train) == [document for document in documents if document in split(corpus.train)]
    assert (corpus.train_documents, corpus.validation_documents, corpus.held_out) == (2, 1, "documents")


def test_several_values_globs_and_kinds(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "b.txt").write_text("second")
    np.save(tmp_path / "c.npy", np.frombuffer(b"third\0fourth", np.uint8))
    lines = write_json_lines(tmp_path / "d.jsonl", ["fif\0th", "", "sixth"])
    lines.write_text(lines.read_text() + "\n")
    values = [str(tmp_path / "*.txt"), tmp_path / "a.txt", tmp_path / "c.npy", str(lines)]
    corpus = load_corpus(values)
    documents = [b"first", b"second", b"third", b"fourth", b"fifth", b"sixth"]
    assert sorted(split(corpus.train) + split(corpus.validation)) == sorted(documents)
    assert corpus.name == ", ".join(map(str, values))


def test_recursive_glob(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "a.md").write_text("one")
    (tmp_path / "deep" / "b.md").write_text("two")
    corpus = load_corpus(str(tmp_path / "**" / "*.md"))
    assert {*split(corpus.train), *split(corpus.validation)} == {b"one", b"two"}


@settings(max_examples=60, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=12), st.sampled_from([0.05, 0.2, 0.5]), st.integers(2, 60))
def test_documents_survive(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], fraction: float, most: int
) -> None:
    path = write_json_lines(tmp_path_factory.mktemp("data") / "x.jsonl", texts)
    documents = [text.encode() for text in texts if text]
    if sum(map(len, documents)) < 2:
        assert "too little" in message(path, validation_fraction=fraction, validation_bytes=most)
        return
    corpus = load_corpus(path, validation_fraction=fraction, validation_bytes=most)
    train, held = split(corpus.train), split(corpus.validation)
    assert len(corpus.validation) <= most
    if corpus.held_out == "documents":
        assert sorted(train + held) == sorted(documents)
        rest = iter(documents)
        assert all(document in rest for document in train)  # in order
        assert len(corpus.validation) <= len(corpus.train)
    else:
        joined = b"".join(b"\0" + document for document in documents)
        glued = corpus.train.tobytes() + corpus.validation.tobytes()
        assert joined in (glued, corpus.train.tobytes() + corpus.validation.tobytes()[1:])
    assert (corpus.train_documents, corpus.validation_documents) == (len(train), len(held))


# What is held out


def test_one_document_gives_its_tail(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(bytes(range(1, 101)))
    corpus = load_corpus(tmp_path / "a.txt")
    assert corpus.held_out == "tail"
    assert corpus.train.tobytes() == b"\0" + bytes(range(1, 97))
    assert corpus.validation.tobytes() == b"\0" + bytes(range(97, 101))
    assert (corpus.train_documents, corpus.validation_documents) == (1, 1)


def test_large_documents_beside_a_small_one_give_the_tail(tmp_path: Path) -> None:
    path = write_json_lines(tmp_path / "x.jsonl", ["a" * 5000, "b" * 5000, "tiny"])
    corpus = load_corpus(path, validation_bytes=400)
    assert (corpus.held_out, len(corpus.validation), corpus.validation_documents) == ("tail", 400, 2)


def test_few_documents_hold_out_one_of_them(tmp_path: Path) -> None:
    corpus = load_corpus(write_json_lines(tmp_path / "x.jsonl", ["a" * 500, "b" * 500, "c" * 500]))
    assert (corpus.held_out, corpus.train_documents, corpus.validation_documents) == ("documents", 2, 1)


def test_the_split_ignores_names_and_order(tmp_path: Path) -> None:
    texts = [f"document {number}" for number in range(200)]
    one = load_corpus(write_json_lines(tmp_path / "x.jsonl", texts))
    two = load_corpus(write_json_lines(tmp_path / "y.jsonl", texts[::-1]))
    assert sorted(split(one.validation)) == sorted(split(two.validation))
    assert 8 <= one.validation_documents <= 10


def test_equal_documents_stay_together(tmp_path: Path) -> None:
    texts = [f"document {number % 50}" for number in range(100)]
    corpus = load_corpus(write_json_lines(tmp_path / "x.jsonl", texts), validation_fraction=0.2)
    assert len({*split(corpus.train)} & {*split(corpus.validation)}) <= 1  # the last one may not fit twice


# .npy


def test_a_single_npy_stays_a_memory_map(tmp_path: Path) -> None:
    stream = np.frombuffer(b"\0" + b"\0".join([b"%04d" % number for number in range(100)]), np.uint8)
    np.save(tmp_path / "x.npy", stream)
    corpus = load_corpus(tmp_path / "x.npy")
    assert isinstance(corpus.train, np.memmap)
    assert (corpus.held_out, corpus.train_documents, corpus.validation_documents) == ("documents", 95, 5)
    np.testing.assert_array_equal(np.concatenate([corpus.train, corpus.validation]), stream)


def test_an_npy_without_borders_gives_its_tail(tmp_path: Path) -> None:
    stream = (np.arange(1000) % 255 + 1).astype(np.uint8)
    np.save(tmp_path / "x.npy", stream)
    corpus = load_corpus(tmp_path / "x.npy")
    assert (corpus.held_out, len(corpus.validation), corpus.validation[0]) == ("tail", 50, 0)
    np.testing.assert_array_equal(np.concatenate([corpus.train, corpus.validation[1:]]), stream)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(4, np.int8),
        np.zeros((2, 2), np.uint8),
        np.zeros(0, np.uint8),
        np.array([{}], dtype=object),
        np.array(3, np.uint8),
    ],
)
def test_wrong_npy(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "x.npy", array, allow_pickle=True)
    assert "x.npy" in message(tmp_path / "x.npy")


def test_archive_and_zeros_under_the_name_of_an_npy(tmp_path: Path) -> None:
    with (tmp_path / "x.npy").open("wb") as file:
        np.savez(file, a=np.zeros(3, np.uint8))
    assert "the archive" in message(tmp_path / "x.npy")
    np.save(tmp_path / "x.npy", np.zeros(100, np.uint8))
    assert "too little" in message(tmp_path / "x.npy")


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60), st.sampled_from([".txt", ".jsonl", ".npy", ".md"]), st.booleans())
def test_any_bytes_give_a_corpus_or_a_complaint(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, suffix: str, header: bool
) -> None:
    path = tmp_path_factory.mktemp("data") / f"x{suffix}"
    path.write_bytes(b"\x93NUMPY\x01\x00" * header + content)
    try:
        corpus = load_corpus(path)
    except CorpusError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert isinstance(corpus, Corpus) and corpus.train_documents and corpus.validation_documents


# Complaints


def test_paths_that_name_nothing(tmp_path: Path) -> None:
    assert message("/no/such") == (
        "expected an existing file or folder, got '/no/such'; check the path given to --data"
    )
    assert message(str(tmp_path / "*.txt")) == (
        f"expected files with suffix .txt .py .md .jsonl .npy, got no match of '{tmp_path}/*.txt'; mend the pattern"
    )
    assert message(tmp_path) == (
        f"expected files with suffix .txt .py .md .jsonl .npy, got none in {tmp_path}; name another folder"
    )
    for value in ("~nobody-at-all/x", "a\0b", "a\0*", "a\nb", "x" * 5000, "\udc80", ""):
        message(value or str(tmp_path / "nothing"))
    message([])


def test_files_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(b"abc\xffdef")
    assert message(path) == (
        f"expected UTF-8 text, got invalid start byte at byte 3 of {path}; convert the file to UTF-8 or leave it out"
    )
    path.write_bytes(b"abcd\0")
    assert message(path) == f"expected text, got a 0 byte at byte 4 of {path}; leave the file out: it is binary"
    path.write_bytes(b"")
    assert message(path) == f"expected a file with text in it, got {path}, which is empty; name another file"
    path.write_bytes(b"a")
    assert message(path) == (
        f"expected text to train on and text to hold out, got too little in {path}; give more data"
    )
    (tmp_path / "x.bin").write_bytes(b"abc")
    assert message(tmp_path / "x.bin") == (
        "expected a suffix among .txt .py .md .jsonl .npy, "
        f"got '.bin' in {tmp_path / 'x.bin'}; rename or convert the file"
    )


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.txt"
    path.write_text("abc")

    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert message(path) == (
        f"expected readable data, got {path}: Permission denied; check the path and its permissions"
    )


@pytest.mark.parametrize(
    ("line", "got"),
    [
        (b'{"text": 3}', 'expected a string under "text", got int under it at'),
        (b'{"texts": "a"}', 'expected a string under "text", got no such field at'),
        (b"[1]", "expected a JSON object, got a list at"),
        (b'{"text": "a', "expected a JSON object, got Invalid control character"),
        (b"[" * 10**5, "expected a JSON object, got "),
        (b'{"text": "\\ud800"}', "expected Unicode text, got a lone surrogate at"),
    ],
)
def test_bad_json_line(tmp_path: Path, line: bytes, got: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    text = message(path)
    assert text.startswith(got) and f"{path}:2; " in text


def test_json_lines_that_are_no_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"text": "fine"}\n{"text": "\xff"}\n')
    assert f"invalid start byte at byte 27 of {path}" in message(path)


def test_bad_room(tmp_path: Path) -> None:
    assert message(None, validation_fraction=0.0) == (
        "expected a validation fraction in (0, 0.5], got 0.0; 0.05 is usual"
    )
    assert message(None, validation_bytes=1) == "expected at least 2 validation bytes, got 1; 1000000 is usual"


# Hugging Face


def test_saved_data_set(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    texts = [f"row {number}" for number in range(60)]
    rows = datasets.Dataset.from_dict({"text": texts, "other": list(range(60))})
    rows.save_to_disk(str(tmp_path / "one"))
    corpus = load_corpus(f"hf:{tmp_path / 'one'}")
    assert corpus.held_out == "documents"
    assert sorted(split(corpus.train) + split(corpus.validation)) == sorted(text.encode() for text in texts)
    held = datasets.Dataset.from_dict({"text": ["held out", "too"]})
    datasets.DatasetDict({"train": rows, "validation": held}).save_to_disk(str(tmp_path / "two"))
    corpus = load_corpus(f"hf:{tmp_path / 'two'}")
    assert (corpus.held_out, split(corpus.validation)) == ("split", [b"held out", b"too"])
    assert split(corpus.train) == [text.encode() for text in texts]
    corpus = load_corpus(f"hf:{tmp_path / 'two'}", validation_bytes=10)
    assert split(corpus.validation) == [b"held out"]
    assert split(load_corpus(f"hf:{tmp_path / 'two'}", validation_bytes=5).validation) == [b"held"]


class FakeSplit:
    def __init__(self, texts: list[object], column: str = "text") -> None:
        self.texts, self.column_names = texts, [column]

    def select_columns(self, names: list[str]) -> FakeSplit:
        return self

    def iter(self, batch_size: int) -> list[dict[str, list[object]]]:
        return [{"text": self.texts[:1]}, {"text": self.texts[1:]}]


def fake_hub(monkeypatch: pytest.MonkeyPatch, splits: dict[str, FakeSplit]) -> list[tuple[str, ...]]:
    calls: list[tuple[str, ...]] = []

    def load_dataset(*names: str) -> dict[str, FakeSplit]:
        calls.append(names)
        if names[0] == "gone":
            raise FileNotFoundError("no\nsuch data set")
        return splits

    module = types.SimpleNamespace(load_dataset=load_dataset)
    monkeypatch.setitem(sys.modules, "datasets", module)  # type: ignore[arg-type]
    return calls


def test_hub_names(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_hub(monkeypatch, {"train": FakeSplit(["one", "two", "three"])})
    assert load_corpus("hf:org/name").train_documents == 2
    assert load_corpus("hf:org/name:config").name == "hf:org/name:config"
    assert calls == [("org/name",), ("org/name", "config")]
    assert "FileNotFoundError: no such data set; check" in message("hf:gone")
    assert "one hf: data set by itself, got 2 values" in message(["hf:org/name", "x.txt"])


@pytest.mark.parametrize(
    ("splits", "got"),
    [
        ({"test": FakeSplit(["a"])}, 'a split "train" in hf:n, got test'),
        ({"train": FakeSplit(["a"], "content")}, 'a column "text" in hf:n/train, got content'),
        (
            {"train": FakeSplit(["a", None])},
            'a string under "text", got NoneType under it at hf:n/train, row 1',
        ),
    ],
)
def test_hub_data_without_text(monkeypatch: pytest.MonkeyPatch, splits: dict[str, FakeSplit], got: str) -> None:
    fake_hub(monkeypatch, splits)
    assert got in message("hf:n")


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert message("hf:org/name") == (
        'expected the package datasets for hf:org/name, got no such package; run: pip install "eggroll-es[hf]"'
    )
