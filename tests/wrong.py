"""Wrong use, as `errors.md` lists it: where it happens, and what is seen of it.

    python -m tests.wrong bare|python [PLACE] < CASES

runs many cases in one process of their own, as a reader's: "bare" commands where no package of an extra can be
imported, "python" what one types into Python; JSON in, JSON out.
"""

import contextlib
import io
import json
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any, NamedTuple

LIST = Path(__file__).with_name("errors.md")
EXTRAS = (  # noqa: SIM905 (a list would take 20 lines)
    "brax craftax datasets flax gymnax jaxmarl jumanji math_verify mujoco navix ray reasoning_gym rejax tensorboardX "
    "tokenizers torch transformers vllm wandb"
).split()


class Case(NamedTuple):
    """One entry of the list."""

    section: str
    done: str
    typed: str
    seen: str  # … stands for whatever the machine puts there

    def fits(self, text: str) -> bool:
        """Whether what is seen is what the list says, and no more."""
        return re.fullmatch(".*".join(map(re.escape, self.seen.split("…"))), text.strip()) is not None


def cases(*sections: str) -> list[Case]:
    """The entries of some sections, in order."""
    found, section = [], ""
    pattern = r"^## (?P<section>.+)$|^(?P<done>[^#`\n].*):\n\n```\w+\n(?:\$|>>>) (?P<typed>.+)\n(?P<seen>.+)\n```$"
    for match in re.finditer(pattern, LIST.read_text(encoding="utf-8"), re.MULTILINE):
        section = match["section"] or section
        if match["done"]:
            found.append(Case(section, match["done"], match["typed"], match["seen"]))
    return [case for case in found if case.section in sections] if sections else found


def lay_out(place: Path) -> None:
    """Files and folders of which each is wrong for something."""
    from eggroll.pretrain.config import preset
    from eggroll.runs.journal import Journal

    for name in ("folder", "torn", "other", "begun", "damaged"):
        (place / name).mkdir()
    for name in ("text.txt", "text", "text.safetensors", "text.pth", "text.json"):
        (place / name).write_text("the hen lays an egg, the egg rolls. " * 800)
    for name, text in (("short.txt", "a few words"), ("empty.txt", ""), ("empty.egg", "")):
        (place / name).write_text(text)
    (place / "binary.txt").write_bytes(b"abc\0def\xff")
    config = preset("tiny").as_json()
    (place / "torn/config.json").write_text(json.dumps(config)[:40])
    (place / "other/config.json").write_text(json.dumps(config | {"job": "rl"}))
    (place / "begun/config.json").write_text(json.dumps(config))
    (place / "damaged/config.json").write_text(json.dumps(config | {"width": "wide"}))
    Journal.create(place / "unknown.egg", {"job": "knitting", "frames": "ternary", "weights": 2, "format": 1}).close()
    data = (place / "unknown.egg").read_bytes()
    (place / "newer.egg").write_bytes(data[:7] + b"\x02" + data[8:])


class Without:
    """A finder that finds no package of an extra."""

    def __init__(self, finder: Any) -> None:
        self.finder = finder

    def __getattr__(self, name: str) -> Any:
        return getattr(self.finder, name)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """What the other finds, if it may."""
        return None if name.partition(".")[0] in EXTRAS else self.finder.find_spec(name, path, target)


def command(words: str) -> str:
    """What a command says, in this process; what is printed to standard output is not."""
    from eggroll import cli

    said, printed = io.StringIO(), io.TextIOWrapper(io.BytesIO())
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(printed):
        status = cli.main(shlex.split(words.removeprefix("eggroll ")))
    return said.getvalue() if status == 2 else f"status {status}: {said.getvalue()}"


def in_python(line: str, names: dict[str, object]) -> str:
    """What Python says of a line, as its last line of a traceback."""
    try:
        exec(line, names)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def main() -> None:
    """Run the cases of standard input."""
    kind, typed = sys.argv[1], json.load(sys.stdin)
    if kind == "bare":
        sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
        seen = [command(words) for words in typed]
    else:
        names: dict[str, object] = {}
        exec(re.search(r"^```python\n(.*?)^```", LIST.read_text(), re.MULTILINE | re.DOTALL)[1], names)
        seen = [in_python(line, names) for line in typed]
    sys.stdout.write(json.dumps(seen) + "\n")


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    main()
