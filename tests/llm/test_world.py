"""The World tokenizer against the package `rwkv`, its file, and tokenizers behind one face."""

import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eggroll.core.errors import UsageError
from eggroll.llm.tokenizers import ByteTokenizer, HuggingFaceTokenizer, load_tokenizer
from eggroll.llm.world import WorldTokenizer

BYTES = {index + 1: bytes([index]) for index in range(256)}
TEXTS = st.text(st.characters(codec="utf-8"), max_size=60) | st.text(max_size=60)


def written(tokens: dict[int, bytes], path: Path) -> Path:
    """A vocabulary in the published file's format, str where the bytes are text."""
    lines = []
    for index, token in tokens.items():
        try:
            literal = repr(token.decode("utf-8"))
        except UnicodeDecodeError:
            literal = repr(token)
        lines.append(f"{index} {literal} {len(token)}\n")
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def published() -> tuple[Any, WorldTokenizer]:
    """The package's tokenizer and ours, of the vocabulary that comes with the package."""
    package = pytest.importorskip("rwkv", reason="needs the package rwkv")
    path = Path(package.__file__).parent / "rwkv_vocab_v20230424.txt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from rwkv.rwkv_tokenizer import TRIE_TOKENIZER
    return TRIE_TOKENIZER(str(path)), WorldTokenizer.load(path)


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(codec="utf-8"), max_size=60))
def test_tokens_are_those_of_the_published_code(published: Any, text: str) -> None:
    theirs, ours = published
    tokens = ours.encode(text)
    assert tokens == theirs.encode(text)
    assert ours.decode(tokens) == text == theirs.decode(tokens)


def test_the_published_vocabulary_is_read_whole(published: Any) -> None:
    ours = published[1]
    assert ours.size == 65_530 and ours.end == 0
    assert ours.encode("Hello, 世界\n") == published[0].encode("Hello, 世界\n")


@settings(max_examples=100)
@given(st.sets(st.binary(min_size=2, max_size=4), max_size=12), st.binary(max_size=40))
def test_the_longest_match_counts(extra: set[bytes], data: bytes) -> None:
    tokens = BYTES | {300 + number: token for number, token in enumerate(sorted(extra))}
    tokenizer, at = WorldTokenizer(tokens), 0
    for index in tokenizer.encode(data):
        longest = max((token for token in tokens.values() if data.startswith(token, at)), key=len)
        assert tokens[index] == longest
        at += len(longest)
    assert at == len(data) and tokenizer.decode_bytes(tokenizer.encode(data)) == data


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("x 'a' 1", "expected `index 'token' bytes` at"),
        ("300 'ab' 3", "expected `index 'token' bytes` at"),
        ("300 __import__('os').getcwd() 1", "expected `index 'token' bytes` at"),
        ("300 [1] 1", "expected `index 'token' bytes` at"),
        ("300 'a' 1", "expected each token once"),
        ("0 'ab' 2", "expected tokens of at least a byte from index 1"),
        ("300 " + "(" * 500 + " 1", "expected `index 'token' bytes` at"),
    ],
)
def test_a_bad_line_is_named_and_never_evaluated(line: str, complaint: str, tmp_path: Path) -> None:
    path = written(BYTES, tmp_path / "vocab.txt")
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(UsageError, match=complaint.replace("`", ".")):
        WorldTokenizer.load(path)


def test_a_vocabulary_needs_every_byte(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="none for 255"):
        WorldTokenizer.load(written({k: v for k, v in BYTES.items() if v != b"\xff"}, tmp_path / "vocab.txt"))
    with pytest.raises(UsageError, match="expected a vocabulary at"):
        WorldTokenizer.load(tmp_path / "none.txt")


@settings(max_examples=100)
@given(TEXTS)
def test_any_text_has_tokens(text: str) -> None:
    for tokenizer in (ByteTokenizer(), WorldTokenizer(BYTES)):
        tokens = tokenizer.encode(text)
        assert all(0 < token < 257 for token in tokens)
        expected = text.encode("utf-8", "replace").decode()
        assert tokenizer.decode(tokens) == (expected.replace("\0", "?") if tokenizer.size == 256 else expected)


def test_hugging_face(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="needs the package tokenizers")
    own = tokenizers.Tokenizer(tokenizers.models.BPE())
    own.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    own.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    own.train_from_iterator(["one two three", "two three four"], trainer)
    own.save(str(tmp_path / "tokenizer.json"))
    ours = load_tokenizer("", tmp_path, 300)
    assert isinstance(ours, HuggingFaceTokenizer) and ours.end == 0
    for text in ("two three, ünï 世界", "", "a\ud800b"):
        assert ours.decode([*ours.encode(text), 0]) == text.encode("utf-8", "replace").decode()
    with pytest.raises(UsageError, match=r"expected a tokenizer of at most 10 tokens"):
        load_tokenizer("", tmp_path, 10)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UsageError, match=r"expected a tokenizer.json at"):
        load_tokenizer("", tmp_path, 300)


def test_what_stands_beside_the_weights_is_found(tmp_path: Path) -> None:
    assert isinstance(load_tokenizer("", tmp_path, 256), ByteTokenizer)
    with pytest.raises(UsageError, match=r"expected a tokenizer.json or rwkv_vocab"):
        load_tokenizer("", tmp_path, 65_536)
    written(BYTES, tmp_path / "rwkv_vocab_v1.txt")
    assert isinstance(load_tokenizer("", tmp_path / "model.safetensors", 300), WorldTokenizer)
    with pytest.raises(UsageError, match=r"expected --tokenizer as a file or bytes, got nothing\.json"):
        load_tokenizer("nothing.json", tmp_path, 300)
