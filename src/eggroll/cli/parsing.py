"""Flags to a configuration, by tyro; help and complaints are our own, of one line."""

from __future__ import annotations

import contextlib
import difflib
import io
import itertools
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from eggroll.cli.flags import Flag, flags_of
from eggroll.core.errors import UsageError


def asks_for_help(arguments: Sequence[str]) -> bool:
    """Whether `--help` is among them."""
    return bool({"--help", "-h"} & set(arguments))


def parse(kind: Callable[..., Any], command: str, arguments: Sequence[str], **options: Any) -> Any:
    """Flags to a configuration. `--help` is printed, and leaves by SystemExit.

    Args:
      kind: a dataclass.
      command: with its second word, such as "trade execute".
      options: of `tyro.cli`; `default` is an instance, whose values hold where no flag is given.
    Raises:
      UsageError: a flag or a value is wrong.
    """
    default = options.get("default")
    if asks_for_help(arguments):
        from eggroll.cli.help import command_help

        print(command_help(command, kind, default))
        raise SystemExit(0)
    import tyro

    flags, box = flags_of(kind, default), io.StringIO()
    given = _without_nothing(flags, arguments)
    try:
        with contextlib.redirect_stderr(box):
            settings = (tyro.conf.FlagCreatePairsOff,)
            return tyro.cli(kind, args=given, prog=f"eggroll {command}", config=settings, add_help=False, **options)
    except SystemExit:
        raise _usage_error_behind() or UsageError(_complaint(box.getvalue(), flags, command, given)) from None


def nearest(word: str, words: Iterable[str], cutoff: float = 0.6) -> str:
    """ "did you mean …? " where some are near, else nothing; dashes do not count."""
    names = {name.lstrip("-"): name for name in words}
    near = difflib.get_close_matches(word.lstrip("-"), names, n=2, cutoff=cutoff)
    return f"did you mean {' or '.join(names[name] for name in near)}? " if near else ""


def _without_nothing(flags: Sequence[Flag], arguments: Sequence[str]) -> list[str]:
    """`--flag none` as tyro wants it, where the flag may be left without a value."""
    names = {name for flag in flags if flag.may_be_none for name in flag.names}
    given: list[str] = []
    for before, word in zip(["", *arguments], arguments, strict=False):
        name, _, value = word.partition("=")
        if before in names and word == "none":
            word = "None"
        elif name in names and value == "none":
            word = f"{name}=None"
        given.append(word)
    return given


def _usage_error_behind() -> UsageError | None:
    """The complaint of a configuration about its values, which tyro takes for one about a flag."""
    error: BaseException | None = sys.exception()
    while error is not None and not isinstance(error, UsageError):
        error = error.__cause__ or error.__context__
    return error


def _complaint(box: str, flags: Sequence[Flag], command: str, arguments: Sequence[str]) -> str:
    """What tyro says in a box, as the house says it."""
    known, more = {name: flag for flag in flags for name in flag.names}, f"eggroll {command} --help lists them"
    names = [name for name in map(_flag_name, arguments) if name]
    unknown = next((name for name in names if name not in known), None)
    if unknown:
        return f"expected a flag of eggroll {command}, got {unknown}; {nearest(unknown, known, 0.7)}{more}"
    text = _text_of(box)
    if text.startswith("Unrecognized options: "):
        words = text.removeprefix("Unrecognized options: ")
        return f"expected no further word, got {words}; eggroll {command} --help tells its flags"
    wrong = re.search(r"(?:Error parsing |for argument ')(--[\w-]+)", text)
    if wrong and wrong[1] in known:
        got = _last_value(arguments, wrong[1])
        shown = repr(got) if got else "nothing"
        return f"expected {known[wrong[1]].expected}, got {shown}; eggroll {command} --help tells its flags"
    needed = [flag for flag in flags if flag.default is None and not _is_given(flag, names)]
    if "issing" in text[:40] and needed:
        listed = " and ".join(f"{flag.names[0]} ({flag.help.rstrip('.')})" for flag in needed)
        return f"expected {listed}, got none; eggroll {command} --help tells more"
    got = text[:1].lower() + text[1:].rstrip(".")
    return f"expected the flags that eggroll {command} --help tells, got {got or 'others'}; mend the command"


def _flag_name(word: str) -> str:
    """ "--chunk-size" of "--chunk_size=4"; nothing of what is no flag."""
    return word.partition("=")[0].replace("_", "-") if re.match(r"--\w", word) else ""


def _is_given(flag: Flag, names: Sequence[str]) -> bool:
    return bool(set(flag.names) & set(names))


def _last_value(arguments: Sequence[str], name: str) -> str:
    """What follows a flag, the last time that it is given."""
    value = ""
    for word, after in itertools.pairwise([*arguments, ""]):
        if _flag_name(word) == name:
            value = word.partition("=")[2] if "=" in word else after
    return value


def _text_of(box: str) -> str:
    """The text between the title of tyro's box and its first rule."""
    rows = [row.strip("│ ") for row in box.splitlines()[1:]]
    body = itertools.dropwhile(_is_rule, rows)
    return " ".join(itertools.takewhile(lambda row: not _is_rule(row), body))


def _is_rule(row: str) -> bool:
    """Whether it is a line of the box, drawn in Unicode or, where the terminal has none, in hyphens."""
    return not row.strip("─╰╯- ")
