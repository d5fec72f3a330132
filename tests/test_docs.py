"""The documentation names everything that is public, nothing that does not exist, and every page can be found."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import os
import re
import shlex
import sys
import types
from pathlib import Path
from typing import Any

import jax
import pytest
import yaml

import eggroll
from eggroll import cli

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("README.md", "CONTRIBUTING.md", "docs/**/*.md", "benchmarks/*.md")
    for path in ROOT.glob(pattern)
)
_FENCE = re.compile(r"^ *(```+)(\w*)[^\n]*\n(.*?)^ *\1 *$", re.MULTILINE | re.DOTALL)
_NESTED = ("trade", "bench", "theory")
"""Commands whose next word belongs to their name."""


def load(name: str) -> types.ModuleType:
    """A script of the site's, by file name."""
    spec = importlib.util.spec_from_file_location(f"scripts_{name}", ROOT / f"scripts/{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def settings() -> dict[str, Any]:
    """mkdocs.yml, without what it calls in Python."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: None)
    loaded: dict[str, Any] = yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)
    return loaded


def entries(nav: Any) -> list[str]:
    """All pages of a navigation."""
    if isinstance(nav, str):
        return [nav]
    return [name for part in (nav.values() if isinstance(nav, dict) else nav) for name in entries(part)]


def documented() -> dict[str, str | None]:
    """What the reference is made of: path of an object → the heading that stands above it, where it is another."""
    text = "\n".join(path.read_text() for path in sorted((ROOT / "docs/reference").glob("*.md")))
    found = re.findall(
        r"^::: ([\w.]+)\n(?: +options:\n(?: +heading_level: \d\n)?(?: +heading: (\S+)\n)?)?", text, re.MULTILINE
    )
    return {path: heading or None for path, heading in found}


# ── the reference ──


@pytest.mark.parametrize("name", [name for name in eggroll.__all__ if not name.startswith("__")])
def test_every_public_name_is_in_the_reference(name: str) -> None:
    value = inspect.unwrap(getattr(eggroll, name))
    assert documented().get(f"{value.__module__}.{value.__qualname__}") == f"eggroll.{name}"
    assert f"`eggroll.{name}`" in (ROOT / "docs/reference/README.md").read_text()


def test_what_the_reference_names_exists_and_says_what_it_is() -> None:
    assert len(documented()) > 40
    for path in documented():
        module, _, name = path.rpartition(".")
        value = getattr(importlib.import_module(module), name)
        assert value.__module__ == module, f"{path} lives in {value.__module__}"
        assert inspect.getdoc(value), path


# ── pages and navigation ──


def test_every_page_is_in_the_navigation_once() -> None:
    site = load("site")
    names = entries(settings()["nav"])
    assert len(names) == len(set(names))
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    pages += [name for name in site.outside_files() if name.endswith(".md")]
    pages += [f"notebooks/{path.stem}.md" for path in (ROOT / "docs/notebooks").glob("*.ipynb")]
    assert not set(pages) - set(names)
    assert not {name for name in names if not site.source_of(name).exists()}


def test_nothing_is_fetched_by_a_reader() -> None:
    """Neither fonts nor scripts nor styles come from elsewhere."""
    assert settings()["theme"]["font"] is False
    for kind in ("extra_css", "extra_javascript"):
        assert not [name for name in settings().get(kind, ()) if "//" in name]
    assert not [name for name in settings()["extra"].get("polyfills", ()) if "//" in name]
    for path in (ROOT / "docs").rglob("*.svg"):
        assert not re.search(r"(?:href|src)=|@import|url\(", path.read_text()), path


def test_links_become_those_of_the_site() -> None:
    site = load("site")
    known = {"index.md", "scaling.md", "fleet.md", "theory/README.md", "benchmarks/README.md", "benchmarks/scaling.png"}

    def turned(text: str, page: str) -> str:
        return site.relinked(text, page, known)

    assert turned("[a](../benchmarks/README.md#killed)", "scaling.md") == "[a](benchmarks/README.md#killed)"
    assert turned("[a](../docs/scaling.md)", "benchmarks/README.md") == "[a](../scaling.md)"
    assert turned("![a](scaling.png)", "benchmarks/README.md") == "![a](scaling.png)"
    assert turned("![a](../benchmarks/scaling.png)", "fleet.md") == "![a](benchmarks/scaling.png)"
    assert turned("[a](docs/theory)", "CHANGELOG.md") == "[a](theory/README.md)"
    assert turned("[a](https://b.c/d) [e](#f)", "fleet.md") == "[a](https://b.c/d) [e](#f)"
    assert turned("see [`x`](../examples/quickstart.py)", "fleet.md") == "see `x`"  # the site has no such file
    assert turned("[a](nowhere.md)", "fleet.md") == "[a](nowhere.md)"  # mkdocs complains


def test_lists_get_the_empty_line_that_markdown_wants() -> None:
    spaced = load("site").spaced_lists
    assert spaced("Two:\n- a\n  b\n- c\n\nd") == "Two:\n\n- a\n  b\n- c\n\nd"
    assert spaced("- a\n\n- b\n\n  c\n- d") == "- a\n\n- b\n\n  c\n- d"
    assert spaced("a\n2015 - b\n| - |") == "a\n2015 - b\n| - |"
    assert spaced("a\n1. b\n2. c") == "a\n\n1. b\n2. c"


def test_diagrams_are_what_their_script_draws() -> None:
    diagrams = load("diagrams")
    files = {path.stem: path.read_text() for path in (ROOT / "docs/diagrams").glob("*.svg")}
    assert files == {name: draw() for name, draw in diagrams.DRAWINGS.items()}


# ── commands ──


def commands(page: str) -> list[list[str]]:
    """The words of every `eggroll` command in a page's shell blocks and in its code within lines."""
    text = (ROOT / page).read_text()
    lines = []
    for fence in _FENCE.finditer(text):
        if fence[2] in ("sh", "bash", "shell", "console"):
            lines += fence[3].replace("\\\n", " ").splitlines()
    lines += re.findall(r"`((?:[\w./-]*/)?eggroll [^`\n]+)`", _FENCE.sub("", text))
    return [words for line in lines for words in in_line(line)]


def in_line(line: str) -> list[list[str]]:
    """The `eggroll` commands of a line of shell, each without what comes before its name."""
    try:
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
        lexer.whitespace_split = True
        words = list(lexer)
    except ValueError:  # a quotation that goes on in the next line
        words = line.split()
    found: list[list[str]] = []
    start, ours = True, False
    for word in words:
        if set(word) <= set(";&|"):
            start = True
        elif start:
            ours = word == "eggroll" or word.endswith("/eggroll")
            start = bool(re.match(r"\w+=", word))
            found += [[]] if ours else []
        elif ours:
            found[-1].append(word)
    return [words for words in found if words]


@functools.cache
def told_by_help(*name: str) -> str:
    """What `eggroll NAME --help` prints; "" where there is no such command."""
    import contextlib
    import io

    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(io.StringIO()):
        status = cli.main([*name, "--help"])
    return output.getvalue() if status == 0 else ""


def unknown_in(words: list[str]) -> list[str]:
    """What of a command there is not: its name, or flags."""
    if words[0].startswith("-"):
        return [word for word in words[:1] if word not in ("--help", "--version")]
    if not re.fullmatch(r"[a-z]+", words[0]):
        return []  # COMMAND, …: a placeholder
    if words[0] not in cli.COMMANDS:
        return words[:1]
    flags = {word.partition("=")[0] for word in words if re.match(r"--[a-z]", word)} - {"--help"}
    nested = words[0] in _NESTED and len(words) > 1 and re.fullmatch(r"[a-z]+", words[1])
    if not flags and not nested:
        return []
    told = told_by_help(*words[: 2 if nested else 1])
    if not told:
        return words[:2]
    return sorted(flag for flag in flags if not re.search(rf"(?<![\w-]){flag}(?![\w-])", told))


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_a_page_exist(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "COLUMNS", "200")
    wrong = {shlex.join(words): unknown for words in commands(page) if (unknown := unknown_in(words))}
    assert not wrong


def test_a_wrong_command_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "COLUMNS", "200")
    line = "A=1 .venv/bin/eggroll sample runs/a --prompt 'a; eggroll b' --bytse 3 && eggroll pretrian # eggroll c --d"
    found = in_line(line)
    assert found == [["sample", "runs/a", "--prompt", "a; eggroll b", "--bytse", "3"], ["pretrian"]]
    assert [unknown_in(words) for words in found] == [["--bytse"], ["pretrian"]]
    assert unknown_in(["trade", "exekute", "--side", "buy"]) == ["trade", "exekute"]
    assert sum(len(commands(page)) for page in PAGES) > 80


# ── code of the comparison with other libraries ──


def test_our_side_of_coming_from_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs/coming-from.md").read_text()
    blocks = [fence[3] for fence in _FENCE.finditer(text) if fence[2] == "python"]
    ours = [block for block in blocks if not re.search(r"evosax|hyperscalees|trl|rewards\.py", block)]
    shared, *sides = [block for block in blocks if block in ours or "import eggroll" in block]
    assert len(sides) == 2
    with jax.numpy_rank_promotion("allow"):
        for side in sides:
            held: dict[str, Any] = {}
            exec(shared, held)
            exec(side.replace("range(60)", "range(2)").replace("=512", "=16, chunk_size=16"), held)
            assert 0 < float(held["info"].fitness_mean) < 1 and int(held["state"].generation) == 2


def test_scripts_of_the_site_need_no_package() -> None:
    """The hooks are read by these tests, where mkdocs is not installed."""
    before = set(sys.modules)
    load("site")
    assert not {name for name in set(sys.modules) - before if name.startswith("mkdocs")}
