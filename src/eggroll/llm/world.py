"""The World tokenizer of RWKV: longest match in a vocabulary of byte strings, from the published file's format.

A line of the file is `index 'token' bytes`, the token a Python literal of str or bytes. It is parsed, never evaluated.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from eggroll.core.errors import UsageError

END = 0
"""The token that ends a text; it stands for no bytes."""


class WorldTokenizer:
    """Bytes to tokens by longest match, and back.

    Args:
      tokens: index → its bytes, none empty; all 256 single bytes must be there, so that any text has tokens.
    Raises:
      UsageError: an index is 0 or below, two tokens are alike, or a byte is missing.
    """

    end = END

    def __init__(self, tokens: dict[int, bytes]) -> None:
        self._bytes = dict(tokens)
        self._root: dict[int | None, Any] = {}
        for index, token in tokens.items():
            self._add(index, token)
        missing = [byte for byte in range(256) if None not in self._root.get(byte, {})]
        if missing:
            raise UsageError(f"expected all 256 single bytes in the vocabulary, got none for {missing[0]}; use another")
        self.size = max(tokens) + 1

    def _add(self, index: int, token: bytes) -> None:
        if index <= END or not token:
            raise UsageError(f"expected tokens of at least a byte from index 1 on, got {token!r} at {index}; mend it")
        node = self._root
        for byte in token:
            node = node.setdefault(byte, {})
        if None in node:
            raise UsageError(f"expected each token once, got {token!r} at {node[None]} and {index}; mend the file")
        node[None] = index

    @classmethod
    def load(cls, path: str | Path) -> WorldTokenizer:
        """Read a vocabulary file.

        Raises:
          UsageError: it cannot be read, or a line is not as it should be; the line is named.
        """
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"expected a vocabulary at {path}, got {error}; name RWKV's vocabulary file") from None
        tokens: dict[int, bytes] = {}
        for number, line in enumerate(lines, 1):
            index, token = _entry(line, f"{path}:{number}")
            tokens[index] = token
        return cls(tokens)

    def encode(self, text: str | bytes) -> list[int]:
        """The tokens of a text; what UTF-8 cannot write (a lone surrogate) becomes "?"."""
        data = text.encode("utf-8", "replace") if isinstance(text, str) else text
        found, at = [], 0
        while at < len(data):
            node, longest, stop = self._root, END, at
            for place in range(at, len(data)):
                node = node.get(data[place], {})
                if not node:
                    break
                if None in node:
                    longest, stop = node[None], place + 1
            found.append(longest)
            at = stop
        return found

    def decode_bytes(self, tokens: Iterable[int]) -> bytes:
        """The bytes of tokens; unknown ones, and the end, stand for none."""
        return b"".join(self._bytes.get(int(token), b"") for token in tokens)

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of tokens; bytes that are no UTF-8 become U+FFFD."""
        return self.decode_bytes(tokens).decode("utf-8", "replace")


def _entry(line: str, place: str) -> tuple[int, bytes]:
    index, _, rest = line.partition(" ")
    literal, _, count = rest.rpartition(" ")
    try:
        value = ast.literal_eval(literal)
        token = value.encode("utf-8") if isinstance(value, str) else value
        if not isinstance(token, bytes) or len(token) != int(count):
            raise ValueError
        return int(index), token
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise UsageError(f"expected `index 'token' bytes` at {place}, got {line[:60]!r}; mend the file") from None
