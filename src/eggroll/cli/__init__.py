"""The command `eggroll`: one sub-command per job. Nothing is parsed and no engine is imported before `main`."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Sequence

from eggroll._version import __version__
from eggroll.cli import commands
from eggroll.cli.arguments import ray_named
from eggroll.cli.commands import say
from eggroll.cli.interrupts import interrupts_between_imports
from eggroll.cli.jobs import COMPARISONS, LEARNERS, extras_of
from eggroll.cli.parsing import nearest, parse
from eggroll.core.errors import UsageError

__all__ = ["COMMANDS", "COMPARISONS", "LEARNERS", "extras_of", "main", "parse", "ray_named"]

STATUS_BAD_INPUT = 2
STATUS_INTERRUPTED = 130
STATUS_NOBODY_READS = 141
"""As of a program that a closed pipe ends: 128 and SIGPIPE."""

SECTIONS: dict[str, tuple[str, ...]] = {
    "train": ("pretrain", "rl", "marl", "finetune", "distill", "vllm", "trade"),
    "use a model": ("sample", "chat"),
    "look at runs": ("replay", "report"),
    "this machine, and the theory": ("doctor", "bench", "worker", "theory"),
}
"""How `eggroll --help` arranges the commands."""
_MORE = "eggroll COMMAND --help lists a command's flags; eggroll --version the version"

COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "pretrain": commands.pretrain,
    "sample": commands.sample,
    "rl": commands.rl,
    "marl": commands.marl,
    "finetune": commands.finetune,
    "distill": commands.distill,
    "vllm": commands.vllm,
    "trade": commands.trade,
    "chat": commands.chat,
    "worker": commands.worker,
    "replay": commands.replay,
    "report": commands.report,
    "bench": commands.bench,
    "theory": commands.theory,
    "doctor": commands.doctor,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a sub-command.

    Returns:
      The exit status: 0 done, 1 a claim of the theory or a check of the doctor does not hold, 2 bad input (one line on
      standard error), 130 interrupted, 141 nobody reads what is printed.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    name, function = _chosen(given)
    try:
        with interrupts_between_imports():
            _print_whatever_comes()
            status = function(given[1:])
            sys.stdout.flush()
    except UsageError as error:
        say(f"{name}: {error}")
        return STATUS_BAD_INPUT
    except SystemExit as stop:  # --help
        return _ended_by(name, stop)
    except KeyboardInterrupt:
        say(f"{name}: stopped at once; what a run's journal has is kept, go on with --resume")
        return STATUS_INTERRUPTED
    except Exception as error:
        failed = _failed(name, error)
        if failed is None:
            raise
        return failed
    return status


def _chosen(given: Sequence[str]) -> tuple[str, Callable[[Sequence[str]], int]]:
    """The name to complain under, and what is to be done."""
    first = given[0] if given else ""
    if first in COMMANDS:
        return f"eggroll {first}", COMMANDS[first]
    if first in ("", "-h", "--help", "help"):
        return "eggroll", _help if given else _help_for_nothing
    return "eggroll", _version if first == "--version" else functools.partial(_refuse, first)


def _help(_: Sequence[str]) -> int:
    from eggroll.cli.help import menu

    sections = {
        f"{title}:": [(name, COMMANDS[name].__doc__ or "") for name in names] for title, names in SECTIONS.items()
    }
    print(menu("usage: eggroll COMMAND [flags]", sections, _MORE))
    return 0


def _help_for_nothing(_: Sequence[str]) -> int:
    _help(())
    return STATUS_BAD_INPUT


def _version(_: Sequence[str]) -> int:
    print(__version__)
    return 0


def _refuse(first: str, _: Sequence[str]) -> int:
    raise UsageError(
        f"expected a command among {', '.join(COMMANDS)}, got {first!r}; "
        f"{nearest(first, COMMANDS)}eggroll --help lists them"
    )


def _ended_by(name: str, stop: SystemExit) -> int:
    try:
        sys.stdout.flush()
    except OSError as error:
        failed = _failed(name, error)
        if failed is None:
            raise
        return failed
    return int(stop.code or 0)


def _failed(name: str, error: Exception) -> int | None:
    """One line for what a person can mend, and the exit status; None: only the traceback tells."""
    from eggroll.cli.faults import comes_of_printing, line_for

    if comes_of_printing(error):
        with contextlib.suppress(OSError, ValueError):  # what is left is thrown away, lest Python complain at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return STATUS_NOBODY_READS
    line = line_for(error)
    if line is None:
        return None
    say(f"{name}: {line}")
    return STATUS_BAD_INPUT


def _print_whatever_comes() -> None:
    """Letters that the terminal's encoding lacks become question marks."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")
