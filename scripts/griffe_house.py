"""For the API reference: docstrings as they are written here, read as griffe reads them."""

from __future__ import annotations

import io
import re
import tokenize
from typing import Any

import griffe

_SECTION = re.compile(r"(?<!\n)\n(?=(?:Args|Attributes|Returns|Raises):\n)")


class House(griffe.Extension):
    """Takes sections that follow each other without an empty line, and comments behind fields.

    `name: Array  # (members,) float32` in a class becomes "Attributes: name: (members,) float32".
    """

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called by griffe for each thing that it finds."""
        if obj.docstring is not None:
            obj.docstring.value = spaced(obj.docstring.value)

    def on_class_members(self, *, cls: griffe.Class, **_: Any) -> None:
        """Called by griffe for each class when its members are known."""
        said = {name: comment_of(source_line(field)) for name, field in cls.attributes.items()}
        if cls.docstring is None or not any(said.values()) or "Attributes:" in cls.docstring.value:
            return
        listed = "\n".join(f"  {name}: {comment or '–'}" for name, comment in said.items())
        cls.docstring.value += f"\n\nAttributes:\n{listed}"


def spaced(docstring: str) -> str:
    """A docstring with an empty line before each of its sections."""
    return _SECTION.sub("\n\n", docstring)


def source_line(field: griffe.Attribute) -> str:
    """The first line of a field's definition; "" where it has none."""
    return "" if field.lineno is None else field.lines_collection[field.filepath][field.lineno - 1]


def comment_of(line: str) -> str:
    """The comment at the end of a line of Python, without its sign; "" where there is none."""
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(line.strip() + "\n").readline))
    except (tokenize.TokenError, IndentationError):
        return ""
    return next((token.string.lstrip("# ").strip() for token in tokens if token.type == tokenize.COMMENT), "")
