"""What the pages of the documentation hold: blocks of Python with what they print, and commands."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import sys
import types
from pathlib import Path
from typing import NamedTuple

import jax

ROOT = Path(__file__).resolve().parents[1]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str
    text: str
    line: int  # of the page, where its text begins
    printed: str | None  # the block ```text that follows a block of Python at once


def blocks(page: str) -> list[Block]:
    """All fenced blocks of a page, a path from the project's root."""
    text = (ROOT / page).read_text()
    found, fences = [], list(_FENCE.finditer(text))
    for fence, after in zip(fences, [*fences[1:], None], strict=False):
        printed = None
        if after is not None and after[1] == "text" and not text[fence.end() : after.start()].strip():
            printed = after[2]
        found.append(Block(fence[1], fence[2], text.count("\n", 0, fence.start(2)) + 1, printed))
    return found


def run(page: str) -> None:
    """Run a page's Python from top to bottom as one module, and compare what it prints with what the page says.

    Raises:
      AssertionError: a block prints something else.
    """
    module = types.ModuleType("guide_" + re.sub(r"\W", "_", page))
    sys.modules[module.__name__] = module  # where Flax and pickling functions look for a class
    try:
        with jax.numpy_rank_promotion("allow"):  # a reader's own code may broadcast
            for block in blocks(page):
                if block.language == "python":
                    _run_block(page, block, module)
    finally:
        del sys.modules[module.__name__]


def _run_block(page: str, block: Block, module: types.ModuleType) -> None:
    code = compile("\n" * (block.line - 1) + block.text, page, "exec")
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(code, module.__dict__)
    if block.printed is not None and not same(block.printed, output.getvalue()):
        raise AssertionError(f"{page}:{block.line} prints\n{output.getvalue()}\nand the page says\n{block.printed}")


def same(said: str, printed: str) -> bool:
    """Whether a page's output is that of its code, however lines are broken; "…" stands for anything."""
    pattern = ".*".join(re.escape(part) for part in " ".join(said.split()).split("…"))
    return re.fullmatch(pattern, " ".join(printed.split())) is not None


def commands(page: str) -> list[list[str]]:
    """The commands of a page's shell blocks as words, with continued lines joined and comments left out."""
    found = []
    for block in blocks(page):
        if block.language in ("sh", "bash", "shell"):
            for line in block.text.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words:
                    found.append(words)
    return found
