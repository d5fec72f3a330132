"""The text of `--help`: flags in groups, no line longer than the screen."""

from __future__ import annotations

import inspect
import shutil
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from eggroll.cli.flags import Flag, flags_of
from eggroll.cli.groups import grouped

_NARROWEST, _WIDEST = 40, 120
_COLUMN = 26
"""Where the text beside a flag begins."""
_BOUND = "\N{NO-BREAK SPACE}"


def screen_width() -> int:
    """Columns of the screen, or what the environment variable COLUMNS says; never more than one reads with ease."""
    return max(_NARROWEST, min(shutil.get_terminal_size().columns, _WIDEST))


def command_help(command: str, kind: Any, default: Any = None, width: int | None = None) -> str:
    """What `eggroll COMMAND --help` prints.

    Args:
      command: with its second word, such as "trade execute".
      kind: its configuration.
      default: an instance whose values are shown as defaults; none: the fields' own.
      width: columns; none: those of the screen.
    """
    width, flags = width or screen_width(), flags_of(kind, default)
    words = [flag for flag in flags if flag.positional]
    usage = " ".join(["usage: eggroll", command, *(_word(flag) for flag in words), "[flags]"])
    about = inspect.cleandoc(kind.__doc__ or "").split("\n\n")[0]
    parts = [_wrapped(usage, width, after="  "), _wrapped(about, width)]
    if words:
        parts.append("\n".join(_row(_word(flag), flag.help, width) for flag in words))
    for name, own in grouped(command, flags).items():
        rows = [_row(_flag_and_value(flag), f"{flag.help} {_default(flag)}", width) for flag in own]
        parts.append("\n".join([f"{name}:", *rows]))
    return "\n\n".join(parts)


def menu(
    usage: str, sections: Mapping[str, Iterable[tuple[str, str]]], more: str = "", width: int | None = None
) -> str:
    """A list of names with what each is, in sections; one without a title has an empty one. It is to fit one screen."""
    width = width or screen_width()
    column = 4 + max(len(name) for rows in sections.values() for name, _ in rows)
    rows: list[str] = []
    for title, entries in sections.items():
        rows += [*([title] if title else []), *(_row(name, text, width, column) for name, text in entries)]
    parts = [_wrapped(usage, width, after="  "), "\n".join(rows), _wrapped(more, width)]
    return "\n\n".join(part for part in parts if part)


def _word(flag: Flag) -> str:
    return f"{flag.names[0]} ..." if flag.several else flag.names[0]


def _flag_and_value(flag: Flag) -> str:
    return " ".join([", ".join(flag.names), flag.value]).strip()


def _default(flag: Flag) -> str:
    """Kept on one line where it is short."""
    text = "(needed)" if flag.default is None else f"(default: {flag.default})"
    return text.replace(" ", _BOUND) if len(text) < _COLUMN else text


def _wrapped(text: str, width: int, indent: str = "", after: str = "") -> str:
    """Filled lines, the first under `indent`, further ones under `after` beside it."""
    lines = textwrap.fill(text, width, initial_indent=indent, subsequent_indent=indent + after, break_on_hyphens=False)
    return lines.replace(_BOUND, " ")


def _row(name: str, text: str, width: int, column: int = _COLUMN) -> str:
    """A name and its text beside it, or below where the name is too long."""
    indent = " " * min(column, width // 2)
    first, lines = f"  {name}", _wrapped(text, width, indent)
    if len(first) + 2 > len(indent):
        return _wrapped(name, width, "  ", after="  ") + "\n" + lines
    return first + lines[len(first) :]
