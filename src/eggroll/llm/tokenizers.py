"""Tokenizers behind one face: bytes, RWKV's World vocabulary, and Hugging Face's."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from eggroll.core.errors import UsageError
from eggroll.llm.world import WorldTokenizer


@runtime_checkable
class Tokenizer(Protocol):
    """What turns text into tokens and back.

    Attributes:
      size: tokens it knows; every token is below.
      end: the token that ends a completion.
    """

    size: int
    end: int

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, none added."""
        ...

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of tokens; never raises on tokens below `size`."""
        ...


class ByteTokenizer:
    """A byte is a token; token 0 ends a text, as a byte 0 does in no text."""

    size = 256
    end = 0

    def encode(self, text: str) -> list[int]:
        """UTF-8; a lone surrogate, and a byte 0, become "?"."""
        return list(text.replace("\0", "?").encode("utf-8", "replace"))

    def decode(self, tokens: Iterable[int]) -> str:
        """Bytes that are no UTF-8 become U+FFFD; ends stand for nothing."""
        return bytes(token for token in map(int, tokens) if 0 < token < 256).decode("utf-8", "replace")


class HuggingFaceTokenizer:
    """A `tokenizer.json` of the package tokenizers.

    Args:
      path: the file.
      end: name of the token that ends a text; default the first known one of the usual names.
    Raises:
      UsageError: the package is missing, the file is none, or it has no such token.
    """

    _ENDS = ("<|endoftext|>", "</s>", "<|im_end|>", "<|end_of_text|>", "<eos>", "[SEP]")

    def __init__(self, path: str | Path, end: str = "") -> None:
        try:
            import tokenizers
        except ModuleNotFoundError:
            raise UsageError(
                f'expected the package tokenizers to read {path}, got none; pip install "eggroll-es[llm]"'
            ) from None
        try:
            self._own: Any = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the package raises bare Exception
            raise UsageError(f"expected a tokenizer.json at {path}, got {str(error)[:100]}; name such a file") from None
        self.size = int(self._own.get_vocab_size(with_added_tokens=True))
        found = [self._own.token_to_id(name) for name in ([end] if end else self._ENDS)]
        known = [token for token in found if token is not None]
        if not known:
            raise UsageError(f"expected a token that ends a text in {path}, got none of {end or self._ENDS}; name one")
        self.end = int(known[0])

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, without those that mark its start."""
        clean = text.encode("utf-8", "replace").decode("utf-8")
        return list(self._own.encode(clean, add_special_tokens=False).ids)

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of tokens, special ones left out."""
        return str(self._own.decode([int(token) for token in tokens], skip_special_tokens=True))


def load_tokenizer(name: str, model: Path, vocabulary: int) -> Tokenizer:
    """The tokenizer for a model.

    Args:
      name: "bytes"; a file of RWKV's vocabulary (.txt); a tokenizer.json; or "" for what stands beside the weights, and
        bytes where a model of at most 256 tokens has nothing beside it.
      model: file or folder of the weights.
      vocabulary: of the model, for the check that it has every token.
    Raises:
      UsageError: there is none, it cannot be read, or the model has fewer tokens.
    """
    folder = model if model.is_dir() else model.parent
    path = Path(name) if name not in ("", "bytes") else None
    if path is None and name == "":
        beside = [folder / "tokenizer.json", *sorted(folder.glob("rwkv_vocab*.txt"))]
        path = next((file for file in beside if file.is_file()), None)
        if path is None and vocabulary > ByteTokenizer.size:
            raise UsageError(
                f"expected a tokenizer.json or rwkv_vocab*.txt beside {model}, got none; name one with --tokenizer"
            )
    if path is not None and not path.is_file():
        raise UsageError(f"expected --tokenizer as a file or bytes, got {name}; name a tokenizer.json or vocabulary")
    tokenizer: Tokenizer = ByteTokenizer()
    if path is not None:
        tokenizer = HuggingFaceTokenizer(path) if path.suffix == ".json" else WorldTokenizer.load(path)
    if tokenizer.size > vocabulary:
        raise UsageError(
            f"expected a tokenizer of at most {vocabulary} tokens, as the model has, got {tokenizer.size}; use its own"
        )
    return tokenizer
