"""HTML that is safe by construction: whatever is not `Markup` already is escaped when it enters an element."""

from __future__ import annotations

import html
import re
import unicodedata
from typing import Any

_VOID = ("meta",)
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


class Markup(str):
    """Text that is HTML. Only `element`, `join` and drawings made here become it."""


def clean(text: str) -> str:
    """Text without what no page can hold: control characters and lone surrogates become U+FFFD."""
    return _UNPRINTABLE.sub("\ufffd", text)


def join(*parts: Any) -> Markup:
    """Parts one after the other; what is no markup is escaped, and None is nothing."""
    return Markup("".join(_escaped(part) for part in parts if part is not None))


def element(tag: str, *children: Any, **attributes: Any) -> Markup:
    """An element.

    Args:
      children: markup, or anything else, which is escaped.
      attributes: without those that are None; `class_` and `aria_label` lose a trailing and turn an inner underscore.
    """
    given = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(clean(str(value)))}"'
        for name, value in attributes.items()
        if value is not None
    )
    if tag in _VOID:
        return Markup(f"<{tag}{given}>")
    return Markup(f"<{tag}{given}>{join(*children)}</{tag}>")


def note(*text: Any) -> Markup:
    """A paragraph in small print."""
    return element("p", *text, class_="note")


def _escaped(part: Any) -> str:
    return part if isinstance(part, Markup) else html.escape(clean(str(part)))


def drawable(text: str, *, longest: int = 60) -> str:
    """Text for a picture: what matplotlib's own font lacks becomes a question mark, and long text is cut."""
    kept = "".join(_drawn(character) for character in text)
    return kept if len(kept) <= longest else kept[: longest - 1] + "…"


def _drawn(character: str) -> str:
    if character in "\n—…±" or (" " <= character < "\u0250" and unicodedata.category(character)[0] in "LNPSZ"):
        return character
    return character if "\u0391" <= character <= "\u03c9" and character.isalpha() else "?"
