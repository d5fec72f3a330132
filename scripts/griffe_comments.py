"""For the API reference: a comment behind a field is its description, as the sources write shapes and dtypes."""

from __future__ import annotations

import io
import tokenize
from typing import Any

import griffe


class Comments(griffe.Extension):
    """Reads `name: Array  # (members,) float32` as a field with a docstring."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """Called by griffe for each attribute that it finds."""
        if attr.docstring is not None or attr.lineno is None or not isinstance(attr.parent, griffe.Class):
            return
        line = attr.lines_collection[attr.filepath][attr.lineno - 1]
        said = comment_of(line)
        if said:
            attr.docstring = griffe.Docstring(said, lineno=attr.lineno, parent=attr)


def comment_of(line: str) -> str:
    """The comment at the end of a line of Python, without its sign; "" where there is none."""
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(line.strip() + "\n").readline))
    except (tokenize.TokenError, IndentationError):
        return ""
    return next((token.string.lstrip("# ").strip() for token in tokens if token.type == tokenize.COMMENT), "")
