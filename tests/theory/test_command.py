"""`eggroll theory`: what it leaves, what it refuses, and that a claim that fails is told."""

import json
import re
from pathlib import Path

import pytest

from eggroll.cli import main
from eggroll.theory import command, style
from eggroll.theory.fitting import at_least, at_most, near

DOCS = Path(__file__).resolve().parents[2] / "docs" / "theory"


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_figure_and_its_numbers(capsys):
    assert main(["theory", "edgeworth", "--quick"]) == 0
    out, err = capsys.readouterr()
    summary = json.loads(out)
    folder = Path(summary["out"])
    assert folder.parent == Path("runs") and re.match(r"theory-\d{4}-\d\d-\d\d-", folder.name)
    assert sorted(path.name for path in folder.iterdir()) == ["edgeworth.json", "edgeworth.png"]
    whole = json.loads((folder / "edgeworth.json").read_text())
    assert whole["figure"] == "edgeworth" and all(check["holds"] for check in whole["checks"])
    assert f"edgeworth: {len(whole['checks'])} of {len(whole['checks'])} checks hold" in err


def test_a_claim_that_fails_is_told_and_exits_with_1(capsys, monkeypatch):
    monkeypatch.setattr("eggroll.theory.roofline.PAPER_WIDTH", 4096)
    assert main(["theory", "intensity", "--out", "here"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["holds"] is False
    assert "1 of 3 checks hold" in err and "does not hold: the paper's batch of EGGROLL, rank 1: " in err


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ([], "expected a figure among score, "),
        (["gravity"], "all, got gravity; "),
        (["score", "--seed", "-1"], "expected --seed of at least 0, got -1; "),
        (["intensity", "--chip", "abacus"], "expected --chip among a100, "),
        (["intensity", "--dtype", "float64"], "expected --dtype among float32, "),
        (["intensity", "--dtype", "float8", "--chip", "a100"], "expected a dtype of A100 SXM 80 GB, "),
        (["intensity", "--width", "0"], "expected --width of at least 1, got 0; "),
        (["intensity", "--rank", "0"], "expected --tokens and --rank of at least 1, got 1 and (0,); "),
        (["intensity", "--intensity", "nan"], "expected --intensity of at least 0, got nan; "),
        (["intensity", "--batch", "many"], "expected --batch INT, got 'many'; "),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(flags, complaint, capsys):
    assert main(["theory", *flags]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("eggroll theory: expected ") and complaint in err and err.count("\n") == 1
    assert not list(Path().iterdir())


def test_nothing_is_written_over(capsys):
    Path("there").mkdir()
    Path("there/intensity.json").write_text("mine")
    assert main(["theory", "intensity", "--out", "there"]) == 2
    assert "expected no intensity.json in --out there, got one; " in capsys.readouterr().err
    assert Path("there/intensity.json").read_text() == "mine" and len(list(Path("there").iterdir())) == 1
    assert main(["theory", "all", "--out", "there/intensity.json"]) == 2
    assert "expected --out, a folder that can be made, got there/intensity.json: " in capsys.readouterr().err


def test_help_lists_the_figures(capsys):
    assert main(["theory", "--help"]) == 0
    out = capsys.readouterr().out
    assert all(re.search(rf"^  {name} +\w", out, re.MULTILINE) for name in (*command.FIGURES, "all"))
    assert main(["theory", "rank", "--help"]) == 0 and "--quick" in capsys.readouterr().out


@pytest.mark.parametrize("name", command.FIGURES)
def test_every_figure_has_a_page_its_numbers_hold_and_it_can_be_drawn_from_them(name):
    page, index = (DOCS / f"{name}.md").read_text(), (DOCS / "README.md").read_text()
    assert f"({name}.png)" in page and f"eggroll theory {name}" in page and f"({name}.md)" in index
    whole = json.loads((DOCS / f"{name}.json").read_text())
    assert whole["figure"] == name and whole["checks"] and all(check["holds"] for check in whole["checks"])
    assert style.png(command._module(name).draw(whole["numbers"])).startswith(b"\x89PNG")
    assert (DOCS / f"{name}.png").is_file()


def test_checks():
    assert near("", 1.0, 1.1, 0.2).holds and not near("", 1.0, 1.1, 0.05).holds
    assert at_most("", 1.0, 1.0).holds and not at_least("", float("nan"), 0.0).holds
    assert at_most("x", 1.0, 2.0).as_json() == {"claim": "x", "value": 1.0, "high": 2.0, "holds": True}
