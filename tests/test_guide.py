"""The documentation's code runs and prints what it says; its commands and flags exist; its links lead somewhere."""

from __future__ import annotations

import ast
import json
import re
import sys
from pathlib import Path

import pytest

from eggroll import cli
from tests import guide

RUN = ["README.md", "docs/start.md", "docs/your-model.md", "docs/your-fitness.md", "docs/choosing.md"]
PAGES = [*RUN, "CONTRIBUTING.md", "benchmarks/choosing.md"]
ELSEWHERE = {f"docs/{name}.md" for name in ("pretrain", "journal", "how-it-works", "paper", "coming-from")}
"""Pages that another part of the project brings."""


@pytest.mark.parametrize("page", RUN)
def test_python_of_a_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert any(block.language == "python" for block in guide.blocks(page))
    guide.run(page)


@pytest.mark.parametrize("page", PAGES)
def test_commands_exist(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    targets = set(re.findall(r"^([\w-]+):", (guide.ROOT / "Makefile").read_text(), re.MULTILINE))
    for words in guide.commands(page):
        if words[0] == "make":
            assert targets.issuperset(word for word in words[1:] if "=" not in word), words
        elif words[0] == "python" and words[1:2] and words[1].endswith(".py"):
            assert (guide.ROOT / words[1]).is_file(), words
        elif words[0] == "eggroll":
            check_flags(words[1:], capsys)


def check_flags(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Of one command; a word that follows it may belong to its name, as in `trade execute`."""
    if words[0] in ("--help", "--version"):
        return
    assert words[0] in cli.COMMANDS
    flags = {word.partition("=")[0] for word in words if word.startswith("--")} - {"--help"}
    if not flags:
        return
    name = words[:2] if words[0] in ("trade", "bench", "theory") else words[:1]
    capsys.readouterr()
    assert cli.main([*name, "--help"]) == 0
    told = capsys.readouterr().out
    assert not {flag for flag in flags if not re.search(rf"{flag}\b", told)}, words


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = re.sub(r"^```.*?^```$", "", (guide.ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target or target.startswith("#"):
            continue
        place = (guide.ROOT / page).parent / target.partition("#")[0]
        known = place.resolve().relative_to(guide.ROOT).as_posix()
        assert place.exists() or known in ELSEWHERE, f"{page} links to {target}"


def test_the_output_of_a_page_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guide, "ROOT", tmp_path)
    page = "Some.\n\n```python\na = 3\nprint(a, 0.25)\n```\n\n```text\n{}\n```\n\n```python\nassert a == 3\n```\n"
    for said, holds in (("3 0.25", True), ("3 0.…", True), ("4 0.25", False), ("3", False)):
        (tmp_path / "page.md").write_text(page.format(said))
        if holds:
            guide.run("page.md")
        else:
            with pytest.raises(AssertionError, match=r"page.md:4 prints"):
                guide.run("page.md")


def notebooks() -> list[Path]:
    return sorted((guide.ROOT / "docs/notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)
def test_notebooks_are_light_and_need_what_the_package_brings(path: Path) -> None:
    """They run in `make notebooks`; here: no outputs, and no import but of the package and what it installs."""
    assert path.stat().st_size < 20_000
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert cells and not any(cell["outputs"] or cell["execution_count"] for cell in cells)
    tree = ast.parse("\n".join("".join(cell["source"]) for cell in cells))
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    brought = {"eggroll", "jax", "matplotlib", "numpy", "optax", *sys.stdlib_module_names}
    assert {name.partition(".")[0] for name in names} <= brought
