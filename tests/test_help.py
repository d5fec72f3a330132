"""`--help` of every command: it fits the screen, and every flag stands in a group with its text and its default."""

import dataclasses
import functools
import re

import pytest

from eggroll import cli
from eggroll.cli import help as help_module
from eggroll.cli.flags import flags_of
from eggroll.cli.groups import GROUPS, group_of, is_shown
from eggroll.runs.settings import NOT_RECORDED

SECOND = {
    "trade": ("pretrain", "execute", "generate", "calibrate"),
    "bench": ("speed",),
    "theory": ("score", "all", "intensity"),
}
NEEDED = {
    "sample": ["run"],
    "distill": ["--teacher", "run"],
    "vllm": ["--model", "folder"],
    "trade execute": ["--model", "run"],
    "trade generate": ["--out", "folder"],
    "trade calibrate": ["--out", "file", "--messages", "file"],
    "chat": ["run"],
    "worker": ["127.0.0.1:1"],
    "replay": ["run"],
    "report": ["run"],
}
COMMANDS = [f"{name} {word}".strip() for name in cli.COMMANDS for word in SECOND.get(name, ("",))]


@functools.cache
def kind_of(command):
    """The configuration of a command, and the defaults that its help shows."""
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(help_module, "command_help", lambda command, *shown: found.append(shown) or "")
        assert cli.main([*command.split(), "--help"]) == 0
    return found[0]


def rows_of(text):
    """Group → its rows, each a flag with everything said of it, on one line."""
    groups = {}
    for line in text.splitlines():
        if line.rstrip(":") in GROUPS and line.endswith(":"):
            groups[name := line.rstrip(":")] = []
        elif groups and line.startswith("  --"):
            groups[name].append(line)
        elif groups and line.strip():
            groups[name][-1] += line
    return {name: [" ".join(row.split()) for row in rows] for name, rows in groups.items()}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_is_grouped_and_told(command):
    kind, default = kind_of(command)
    flags = {flag.field: flag for flag in flags_of(kind, default)}
    rows = rows_of(help_module.command_help(command, kind, default, width=80))
    assert list(rows) == [name for name in GROUPS if name in rows]  # in this order
    for field, flag in flags.items():
        assert flag.help.endswith("."), field
        if flag.positional or not is_shown(command, flag):
            continue
        group = group_of(command, field)
        assert group in GROUPS, f"{field} has no group: add it to the table in cli/groups.py"
        row = next(row for row in rows[group] if re.match(rf"{flag.names[0]}(?![\w-])", row))
        assert flag.help in row and re.search(r"\((default: .+|needed)\)$", row)
    shown = [flag for flag in flags.values() if not flag.positional and is_shown(command, flag)]
    assert sum(map(len, rows.values())) == len(shown)


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("command", COMMANDS)
def test_no_line_is_longer_than_the_screen(command, width):
    text = help_module.command_help(command, *kind_of(command), width=width)
    assert max(map(len, text.splitlines())) <= width
    said = re.sub(r"'\{.*?\}'|default: \{\}", "", " ".join(text.split()))  # JSON alone has braces
    assert not re.search(r"None|[{}]|\[\[", said)


@pytest.mark.parametrize("words", ["", "trade", "bench", "theory"])
@pytest.mark.parametrize("columns", [80, 120])
def test_menus_fit_one_screen(words, columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    assert cli.main([*words.split(), "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= columns


def test_the_screen_is_what_columns_says(capsys, monkeypatch):
    longest = []
    for columns in ("80", "120"):
        monkeypatch.setenv("COLUMNS", columns)
        cli.main(["worker", "-h"])
        longest.append(max(map(len, capsys.readouterr().out.splitlines())))
    assert longest[0] <= 80 < longest[1] <= 120


def test_every_command_is_in_a_section():
    assert sorted(name for names in cli.SECTIONS.values() for name in names) == sorted(cli.COMMANDS)


def test_settings_of_a_class_stand_together():
    """What says where a run goes, and on which machines, is in the same place in every job."""
    for command in ("rl", "marl", "finetune", "trade execute"):
        groups = {flag.field: group_of(command, flag.field) for flag in flags_of(*kind_of(command))}
        assert {groups[name] for name in NOT_RECORDED if name in groups} <= {"run", "hardware", "algorithm"}
        assert groups["sigma"] == groups["population_size"] == groups["learning_rate"] == "algorithm"


def test_no_flag_is_listed_twice():
    from eggroll.cli import groups

    names = " ".join(groups._TABLE.values()).split()
    assert len(names) == len(set(names))


def test_defaults_are_those_of_the_preset(capsys):
    assert cli.main(["pretrain", "--preset", "paper", "--help"]) == 0
    rows = {row.split()[0]: row for own in rows_of(capsys.readouterr().out).values() for row in own}
    wanted = {"preset": "paper", "layers": "6", "width": "256", "population-size": "1048576", "target": None}
    for name, value in wanted.items():
        assert value is None or rows[f"--{name}"].endswith(f"(default: {value})")


@dataclasses.dataclass(frozen=True)
class Base:
    """Whatever."""

    kept: int | None = None
    """Of the base."""
    told: tuple[float, ...] = (0.5, 30.0)
    """Of the base,
    over two lines."""


@dataclasses.dataclass(frozen=True)
class Derived(Base):
    told: tuple[float, ...] = ()
    """Of the derived one."""
    switch: bool = False
    """On or off."""


def test_flags_are_read_off_the_class():
    base, derived = ({flag.field: flag for flag in flags_of(kind)} for kind in (Base, Derived))
    assert (base["kept"].value, base["kept"].default, base["kept"].may_be_none) == ("INT or none", "none", True)
    assert (base["told"].value, base["told"].default) == ("NUMBER ...", "0.5 30")
    assert base["told"].help == "Of the base, over two lines."
    assert derived["kept"].help == "Of the base." and derived["told"].help == "Of the derived one."
    assert (derived["switch"].value, derived["switch"].default) == ("", "off")


@pytest.mark.parametrize(("given", "kept"), [("none", None), ("None", None), ("3", 3)])
@pytest.mark.parametrize("joined", [True, False])
def test_none_may_be_typed_as_help_says(given, kept, joined):
    words = [f"--kept={given}"] if joined else ["--kept", given]
    assert cli.parse(Base, "try", words).kept == kept


@pytest.mark.parametrize("command", COMMANDS)
def test_what_help_shows_can_be_given(command):
    """All flags together, with the defaults that are shown, are the defaults."""
    kind, default = kind_of(command)
    needed, options = NEEDED.get(command, ()), {} if default is None else {"default": default}
    flags = [flag for flag in flags_of(kind, default) if not flag.positional and is_shown(command, flag)]
    given = [flag for flag in flags if flag.value and flag.default not in (None, "none")]
    words = [word for flag in given for word in (flag.names[-1], *flag.default.split(" "))]
    plain = cli.parse(kind, command, needed, **options)
    assert cli.parse(kind, command, [*words, *needed], **options) == plain
