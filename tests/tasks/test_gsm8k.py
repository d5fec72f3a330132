"""gsm8k.py: the number that a completion answers; all solutions of the real files."""

import json
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eggroll.core.errors import UsageError
from eggroll.tasks.base import Task
from eggroll.tasks.gsm8k import Gsm8k, Gsm8kSettings, answer_number
from tests.tasks import hostile

ROW = {"question": "2 and 3?", "answer": "It is 2+3=<<2+3=5>>5.\n#### 5"}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("template", ["plain", "chat"])
def test_every_real_solution_verifies_against_itself(shared, template):
    task = Gsm8k(Gsm8kSettings(template=template), data=str(shared / "data" / "gsm8k"))
    assert (task.size("train"), task.size("test"), isinstance(task, Task)) == (7473, 1319, True)
    for index in range(1319):
        example = task.example("test", index)
        assert task.verify(example, example.answer) == 1.0
        assert task.verify(example, f"so it is {Fraction(example.facts['gold'].replace(',', '')) + 1}") == 0.0
        assert "<<" not in example.answer


def test_prompts_and_answers_are_worded_by_template(tmp_path):
    data = write(tmp_path / "a.jsonl", [ROW] * 2)
    plain = Gsm8k(data=data).example("train", 0)
    assert plain == ("Question: 2 and 3?\nAnswer:", {"gold": "5"}, " It is 2+3=5.\n#### 5")
    chat = Gsm8k(Gsm8kSettings(template="chat"), data=data).example("test", 0)
    assert chat.answer == "It is 2+3=5.\nThe answer is \\boxed{5}." and "\\boxed{}" in chat.prompt


@pytest.mark.parametrize(
    ("completion", "number"),
    [
        ("It is 18.", 18),
        ("$1,234.50 in all", Fraction("1234.5")),
        ("a loss of -$5", -5),
        ("a loss of $-5", -5),
        ("a loss of −5", -5),
        ("5-3", 3),
        ("from 2-18", 18),
        ("50%", 50),
        (".5", Fraction(1, 2)),
        ("1,2", 2),
        ("1,2345", 2345),
        ("3 then #### 7 or 8", 7),
        ("#### 1\n#### $2,000", 2000),
        ("#### none, 3 before", 3),
        ("#### none", None),
        ("\\boxed{4} #### 5 and 6", 4),
        ("\\boxed{4} \\boxed{\\$1{,}000}", 1000),
        ("\\boxed{x = 18 \\text{ m}^2}", 18),
        ("\\boxed{\\text{about } 18\\%}", 18),
        ("\\boxed{4} \\boxed{5", 4),
        ("\\boxed{}", None),
        ("none", None),
        ("²", None),
        ("٣", None),
    ],
)
def test_where_the_number_is(completion, number):
    assert answer_number(completion) == number


@given(
    st.integers(-(10**12), 10**12),
    st.sampled_from(["{}", "{:,}", "#### {}.", "\\boxed{{{:,}}}", "so = {:,} %", "{}.00"]),
)
def test_a_number_is_read_however_it_is_written(number, way):
    assert answer_number(way.format(number)) == number


@pytest.mark.parametrize(
    "row", [{"question": "?"}, {"question": "?", "answer": "5"}, {"question": 1, "answer": "#### 5"}, [1], 7]
)
def test_rows_of_other_kinds_are_refused(tmp_path, row):
    with pytest.raises(UsageError, match=r"^expected .* in line 2 of .*, got .*; ") as refusal:
        Gsm8k(data=write(tmp_path / "a.jsonl", [ROW, row]))
    assert "\n" not in str(refusal.value)


def test_the_place_of_the_files(tmp_path, monkeypatch):
    monkeypatch.delenv("EGGROLL_GSM8K", raising=False)
    with pytest.raises(UsageError, match="expected data for gsm8k, got none; give the folder"):
        Gsm8k()
    with pytest.raises(UsageError, match=r"expected to read .*nowhere, got FileNotFoundError"):
        Gsm8k(data=str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="expected rows in"):
        Gsm8k(data=str(tmp_path))
    write(tmp_path / "test.jsonl", [ROW] * 3)
    monkeypatch.setenv("EGGROLL_GSM8K", str(tmp_path))
    assert (Gsm8k().size("train"), Gsm8k().size("test")) == (0, 3)


@given(hostile.completions())
def test_no_text_makes_it_raise(text):
    found = answer_number(text)
    assert found is None or isinstance(found, Fraction)
