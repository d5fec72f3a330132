"""The flags of a command as a person meets them, read off its configuration: a dataclass with a docstring per field."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import textwrap
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

_WORDS = {int: "INT", float: "NUMBER", str: "TEXT", Path: "PATH"}


@dataclass(frozen=True)
class Flag:
    """One flag, or one word without a flag.

    Args:
      field: of the configuration.
      names: "--population-size", and other names of the same; of a word without a flag that to show, "RUN_DIR".
      value: what follows, such as "INT or none"; empty for a switch.
      choices: the words that alone may follow; empty: others too.
      help: one line, with the unit.
      default: as text; None: it has to be given.
      positional: a word without a flag.
      several: any number of values may follow.
      may_be_none: "none" stands for no value.
    """

    field: str
    names: tuple[str, ...]
    value: str
    choices: tuple[str, ...]
    help: str
    default: str | None
    positional: bool
    several: bool
    may_be_none: bool

    @property
    def expected(self) -> str:
        """For a complaint about its value."""
        if self.choices:
            return f"{self.names[0]} among {', '.join(self.choices)}"
        return f"{self.names[0]} {self.value}".strip()


def flags_of(kind: Any, default: Any = None) -> list[Flag]:
    """The flags of a configuration, in the order of its fields.

    Args:
      kind: a dataclass.
      default: an instance whose values are shown as defaults; none: the fields' own.
    """
    hints, notes = typing.get_type_hints(kind, include_extras=True), field_notes(kind)
    return [_flag(field, hints[field.name], notes.get(field.name, ""), default) for field in dataclasses.fields(kind)]


@functools.cache
def field_notes(kind: type) -> dict[str, str]:
    """Field → the string that stands below it, on one line; that of the nearest class which has one."""
    notes: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if dataclasses.is_dataclass(base):
            tree = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
            for above, below in itertools.pairwise(getattr(tree, "body", [])):
                if isinstance(above, ast.AnnAssign) and isinstance(above.target, ast.Name) and _is_text(below):
                    notes[above.target.id] = " ".join(below.value.value.split())
    return notes


def _is_text(node: Any) -> bool:
    """Whether it is a string that stands alone."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _flag(field: dataclasses.Field[Any], hint: Any, note: str, default: Any) -> Flag:
    marks = typing.get_args(hint)[1:] if typing.get_origin(hint) is typing.Annotated else ()
    hint = typing.get_args(hint)[0] if marks else hint
    positional = any(map(_is_positional, marks))
    aliases = [name for mark in marks for name in getattr(mark, "aliases", None) or ()]
    own = field.name.upper() if positional else f"--{field.name.replace('_', '-')}"
    several = typing.get_origin(hint) is tuple
    element = typing.get_args(hint)[0] if several else hint
    options = typing.get_args(element) if _is_union(element) else (element,)
    choices = tuple(str(word) for word in typing.get_args(element)) if typing.get_origin(element) is Literal else ()
    return Flag(
        field=field.name,
        names=(own, *aliases),
        value="" if positional else _value(options, several),
        choices=choices,
        help=note,
        default=_default(field, default),
        positional=positional,
        several=several,
        may_be_none=types.NoneType in options,
    )


def _is_positional(mark: Any) -> bool:
    import tyro

    return bool(mark == typing.get_args(tyro.conf.Positional[int])[1])


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _value(options: tuple[Any, ...], several: bool) -> str:
    """What may follow: "INT", "INT or auto", "refuse|recorded|given", "PATH …" in letters that any terminal has."""
    if options == (bool,):
        return ""
    words = ["none" if option is types.NoneType else _word(option) for option in options]
    return " or ".join(words) + (" ..." if several else "")


def _word(option: Any) -> str:
    if typing.get_origin(option) is Literal:
        return "|".join(map(str, typing.get_args(option)))
    return _WORDS.get(option, "TEXT")


def _default(field: dataclasses.Field[Any], default: Any) -> str | None:
    if default is not None:
        return as_text(getattr(default, field.name))
    if field.default_factory is not dataclasses.MISSING:
        return as_text(field.default_factory())
    return None if field.default is dataclasses.MISSING else as_text(field.default)


def as_text(value: Any) -> str:
    """A default as one would type it; "none" where there is none, "off" of a switch."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return " ".join(map(as_text, value)) or "none"
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    return "none" if value is None else str(value) or "none"
