"""What mkdocs does beside its plugins, as a hook named in mkdocs.yml.

Pages are written to be read as files too: their links are relative to the file, wherever in the repository it lies.
Here files outside docs/ (benchmarks, changelog) become pages, links between all of them are turned into the site's,
those to files that the site does not have become plain text, diagrams are put into the page so that they follow its
colours, and notebooks become pages.
"""

from __future__ import annotations

import fnmatch
import json
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = ("CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/*.md", "benchmarks/*.png")
"""Files of the repository that are pages or pictures of the site under the same path."""
NOTEBOOKS = "notebooks/*.ipynb"
_FENCE = re.compile(r"^(```|~~~).*?^\1[ \t]*$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")
_DIAGRAM = re.compile(r"^!\[([^\]]*)\]\(([^()\s]+\.svg)\)$", re.MULTILINE)
_ITEM = re.compile(r" {0,3}(?:[-*+]|1\.) ")


def on_files(files: Any, config: Any) -> Any:
    """Add what lies outside docs/, and a page for each notebook."""
    from mkdocs.structure.files import File

    for name in outside_files():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    for path in sorted((ROOT / "docs").glob(NOTEBOOKS)):
        name = path.relative_to(ROOT / "docs").with_suffix(".md").as_posix()
        files.append(File.generated(config, name, content=notebook_page(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links, lists and diagrams as the site needs them."""
    name = page.file.src_uri
    known = {file.src_uri for file in files}

    def outside_code(text: str) -> str:
        return relinked(spaced_lists(with_diagrams(text, source_of(name).parent)), name, known)

    return "".join(text if code else outside_code(text) for code, text in parts(markdown))


def outside_files() -> list[str]:
    """Paths of the files outside docs/ that the site has."""
    return sorted({path.relative_to(ROOT).as_posix() for pattern in OUTSIDE for path in ROOT.glob(pattern)})


def repository_path(name: str) -> str:
    """Where in the repository the file of a page lies, by its name on the site."""
    return name if any(fnmatch.fnmatchcase(name, pattern) for pattern in OUTSIDE) else f"docs/{name}"


def site_name(path: str) -> str:
    """Name on the site of a file of the repository, whether the site has it or not."""
    return path.removeprefix("docs/")


def source_of(name: str) -> Path:
    """The file behind a page; of a notebook's page, the notebook."""
    path = ROOT / repository_path(name)
    notebook = path.with_suffix(".ipynb")
    return notebook if notebook.exists() and not path.exists() else path


def parts(markdown: str) -> Iterator[tuple[bool, str]]:
    """Cut a page at its fenced code: (whether it is code, text)."""
    end = 0
    for fence in _FENCE.finditer(markdown):
        yield False, markdown[end : fence.start()]
        yield True, fence[0]
        end = fence.end()
    yield False, markdown[end:]


def relinked(text: str, page: str, known: Iterable[str]) -> str:
    """Turn links relative to a page's file into links between pages.

    Args:
      text: of the page, without code.
      page: its name on the site.
      known: names that the site has. Links to files of the repository that it does not have become plain text; one
        that leads nowhere is left for mkdocs to complain about.
    """
    home, known = posixpath.dirname(repository_path(page)), set(known)

    def turned(link: re.Match[str]) -> str:
        picture, words, target = link.groups()
        if re.match(r"[a-z][a-z0-9+.-]*:|#", target):
            return link[0]
        path, _, anchor = target.partition("#")
        path = posixpath.normpath(posixpath.join(home, path))
        names = [site_name(path), site_name(f"{path}/README.md")]
        name = next((each for each in names if each in known), None)
        if name is not None:
            there = posixpath.relpath(name, posixpath.dirname(page) or ".")
            return f"{picture}[{words}]({there}{'#' + anchor if anchor else ''})"
        return words if (ROOT / path).exists() else link[0]

    return _LINK.sub(turned, text)


def spaced_lists(text: str) -> str:
    """Put an empty line between a paragraph and a list, which Markdown on code hosts does without."""
    lines: list[str] = []
    in_list = False
    for line in text.split("\n"):
        item = _ITEM.match(line)
        if item and not in_list and lines and lines[-1].strip():
            lines.append("")
        in_list = bool(item) or (in_list and (not line.strip() or line.startswith("  ") or bool(lines[-1].strip())))
        lines.append(line)
    return "\n".join(lines)


def with_diagrams(text: str, home: Path) -> str:
    """Put drawings into the page itself, where they take its colours."""

    def drawn(image: re.Match[str]) -> str:
        path = home / image[2]
        if not path.exists():
            return image[0]
        drawing = path.read_text(encoding="utf-8").strip()
        return f'<figure class="diagram">{drawing}</figure>'

    return _DIAGRAM.sub(drawn, text)


def notebook_page(path: Path) -> str:
    """A notebook as Markdown: its text, its code and what it printed, with a link to the file."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    show: dict[str, Callable[[dict[str, Any]], str]] = {"markdown": _source, "code": _code}
    shown = [show[cell["cell_type"]](cell) for cell in cells if cell["cell_type"] in show]
    return "\n\n".join([*shown, f"[This page as a notebook]({path.name})", ""])


def _source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def _code(cell: dict[str, Any]) -> str:
    printed = "".join("".join(output.get("text", "")) for output in cell.get("outputs", ()))
    code = f"```python\n{_source(cell)}\n```"
    return f"{code}\n\n```text\n{printed.rstrip()}\n```" if printed else code
