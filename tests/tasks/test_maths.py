"""maths.py: equal answers however they are written, and horrors that end within a second."""

import json
import sys
import time

import pytest
from hypothesis import given, settings

from eggroll.core.errors import UsageError
from eggroll.tasks.base import Example, Task
from eggroll.tasks.maths import Maths, MathsSettings, is_huge
from tests.tasks import hostile


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    made = Maths(data=write(tmp_path_factory.mktemp("maths") / "a.jsonl", *[{"problem": "1+1", "answer": 2}] * 20))
    assert made.verify(Example("", {"gold": r"\frac{1}{2}"}), r"\boxed{0.5}") == 1.0  # the scoring process has started
    return made


def test_it_is_a_task_whose_own_answers_verify(task):
    assert (isinstance(task, Task), task.size("train"), task.size("test")) == (True, 18, 2)
    example = task.example("test", 1)
    assert (example.facts, example.answer, task.verify(example, example.answer)) == ({"gold": "2"}, r"\boxed{2}", 1.0)


@pytest.mark.parametrize(
    ("gold", "completion"),
    [
        (r"\frac{1}{2}", r"so \boxed{\dfrac{1}{2}}."),
        (r"\frac{1}{2}", r"The answer is $\frac12$."),
        ("x^2+2x+1", r"\boxed{(x+1)^2}"),
        (r"\{1,2\}", r"\boxed{\{2,1\}}"),
        ("(1,2)", r"\boxed{(1, 2)}"),
        ("2^{2023}-1", r"\boxed{2^{2022}\cdot 2-1}"),
        (r"2\sqrt{3}", r"\boxed{\sqrt{12}}"),
        (r"\text{Tuesday}", r"\boxed{Tuesday}"),
        ("12", "The final answer is 12."),
        ("x=5", r"\boxed{5}"),
        (r"90^\circ", r"\boxed{90}"),
        ("1000", r"\boxed{1,000}"),
        ("204", r"\boxed{204}"),
        ("204", r"\boxed{3} no, \boxed{204.0}"),
        (r"\frac{1}{1+\frac{1}{2}}", r"\boxed{2/3}"),
    ],
)
def test_equal_answers(task, gold, completion):
    assert task.verify(Example("", {"gold": gold}), completion) == 1.0


@pytest.mark.parametrize(
    ("gold", "completion"),
    [
        ("2", r"\boxed{3}"),
        ("204", r"\boxed{204} or \boxed{205}"),
        (r"\frac{1}{2}", r"\boxed{\frac{1}{3}}"),
        ("x+1", r"\boxed{x-1}"),
        ("(1,2)", r"\boxed{(2,1)}"),
        ("2", ""),
        ("2", r"\boxed{}"),
        ("2", "two"),
        ("2", r"\boxed{2" + " + 0" * 100 + "}"),
    ],
)
def test_other_answers(task, gold, completion):
    assert task.verify(Example("", {"gold": gold}), completion) == 0.0


@pytest.mark.parametrize("text", hostile.TEXTS, ids=lambda text: repr(text[:12]))
def test_horrors_are_done_with_within_a_second_each(task, text):
    for gold in ("1", r"\frac{1}{2}"):
        for completion in hostile.wrapped(text):
            start = time.process_time()
            assert task.verify(Example("", {"gold": gold}), completion) in (0.0, 1.0)
            assert time.process_time() - start < 1.0


@pytest.mark.parametrize("answer", ["9**9**9", "10^{10^{10}}", "9^9^9", "((9^{99})^{99})^{99}", "100000!", "(9!)!"])
def test_towers_of_powers_are_refused_unread(task, answer):
    assert is_huge(answer)
    start = time.monotonic()
    assert task.verify(Example("", {"gold": r"\frac{1}{2}"}), f"\\boxed{{{answer}}}") == 0.0
    assert time.monotonic() - start < 1.0


@pytest.mark.parametrize(
    "answer",
    ["2^{2023}-1", "x^2+y^2", r"(x^2+1)^{10}", "e^{2x}", "(x+1)^3(x^2+2)^2", r"\frac{3^{10}}{2^9}", "10!", "90^\\circ"],
)
def test_answers_of_problems_are_not(answer):
    assert not is_huge(answer)


def test_what_computes_too_long_is_wrong_and_the_next_is_scored(task):
    slow = r"\boxed{\binom{1000000000}{500000000}}"
    assert task.verify(Example("", {"gold": r"\frac{1}{2}"}), slow) == 0.0
    assert task.verify(Example("", {"gold": r"\frac{1}{2}"}), r"\boxed{\frac{2}{4}}") == 1.0


@pytest.mark.parametrize(
    ("row", "gold"),
    [
        ({"problem": "?", "answer": "5"}, "5"),
        ({"question": "?", "answer": 5}, "5"),
        ({"prompt": "?", "expected_answer": "5", "answer": "6"}, "5"),
        ({"problem": "?", "solution": r"so \boxed{\frac{1}{2}}."}, r"\frac{1}{2}"),
        ({"problem": "?", "answer": r"$\boxed{x_{1}}$"}, "x_{1}"),
        ({"question": "?", "answer": "it is so\n#### 5"}, "5"),
    ],
)
def test_fields_of_many_files_are_read(tmp_path, row, gold):
    example = Maths(MathsSettings(template="plain"), data=write(tmp_path / "a.jsonl", row)).example("train", 0)
    assert (example.prompt, example.facts) == ("Problem: ?\nAnswer:", {"gold": gold})
    assert example.answer == row.get("solution", f"\\boxed{{{gold}}}")


@pytest.mark.parametrize(
    "row", [{"problem": "?"}, {"answer": "5"}, {"problem": 3, "answer": "5"}, {"problem": "?", "solution": "5"}]
)
def test_rows_of_other_kinds_are_refused(tmp_path, row):
    with pytest.raises(UsageError, match=r"^expected .* in line 1 of .*, got .*; "):
        Maths(data=write(tmp_path / "a.jsonl", row))


def test_a_missing_package_is_refused_with_its_install_line(monkeypatch):
    monkeypatch.delitem(sys.modules, "math_verify", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError) as refusal:
        Maths(data="x")
    assert str(refusal.value) == ('expected the package math-verify for maths, got none; pip install "eggroll-es[llm]"')


@given(text=hostile.completions())
@settings(max_examples=60, deadline=None)
def test_no_text_makes_it_raise(task, text):
    assert task.verify(Example("", {"gold": r"\frac{1}{2}"}), text) in (0.0, 1.0)
