"""Where in a completion its answer is."""

from __future__ import annotations

READ = 2000
"""Characters at the end of a completion that are searched for an answer."""


def last_tag(text: str, tag: str) -> str | None:
    """What the last <tag>…</tag> holds, stripped, or None."""
    end = text.rfind(f"</{tag}>")
    start = text.rfind(f"<{tag}>", 0, max(end, 0))
    return text[start + len(tag) + 2 : end].strip() if 0 <= start < end else None


def last_boxed(text: str) -> str | None:
    r"""What the last complete \boxed{…} holds, its braces balanced, stripped, or None.

    Where it is never closed, the one before it counts.
    """
    end = len(text)
    for _ in range(READ):
        start = max(text.rfind(r"\boxed{", 0, end), text.rfind(r"\fbox{", 0, end))
        if start < 0:
            return None
        inside = _balanced(text, text.index("{", start) + 1)
        if inside is not None:
            return inside.strip()
        end = start
    return None


def _balanced(text: str, start: int) -> str | None:
    """The text from `start` to the brace that closes the one before it."""
    depth = 1
    for place in range(start, len(text)):
        if text[place - 1] == "\\":  # \{ and \} are signs of their own
            continue
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start:place]
    return None
