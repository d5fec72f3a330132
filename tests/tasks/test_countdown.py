"""countdown.py: every puzzle can be solved, its answer counts, its split is its own; TinyZero's file."""

import itertools
import json
import operator
import re
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eggroll.core.errors import UsageError
from eggroll.tasks.base import Example, Task
from eggroll.tasks.countdown import Countdown, CountdownSettings, distinct_key
from tests.tasks import hostile
from tests.tasks.test_arithmetic import by_eval

SMALL = CountdownSettings(numbers=(2, 3), maximum=12, target_maximum=60, train_size=1500, test_size=300)
OPERATIONS = (operator.add, operator.sub, operator.mul, operator.truediv)


def reachable(numbers: tuple[Fraction, ...]) -> set[Fraction]:
    """All values of all expressions over all the numbers, by brute force."""
    if len(numbers) == 1:
        return set(numbers)
    found = set()
    for x, y in itertools.permutations(range(len(numbers)), 2):
        rest = tuple(number for place, number in enumerate(numbers) if place not in (x, y))
        for operation in OPERATIONS:
            if operation is not operator.truediv or numbers[y] != 0:
                found |= reachable((*rest, operation(numbers[x], numbers[y])))
    return found


def puzzles(task: Countdown, split: str) -> list[Example]:
    return [task.example(split, index) for index in range(task.size(split))]


def key(example: Example) -> tuple[tuple[int, ...], int]:
    return tuple(sorted(example.facts["numbers"])), example.facts["target"]


@pytest.mark.parametrize("template", ["bare", "chat"])
@pytest.mark.parametrize("answers", ["any", "all"])
def test_its_own_answer_verifies(template, answers):
    task = Countdown(CountdownSettings(template=template, answers=answers, format_reward=0.1))
    for split, index in itertools.product(("train", "test"), range(100)):
        example = task.example(split, index)
        assert task.verify(example, example.answer) == 1.0


def test_puzzles_can_be_solved_and_keep_to_their_settings():
    task = Countdown(SMALL)
    for example in puzzles(task, "train")[:150] + puzzles(task, "test")[:50]:
        numbers, target = example.facts["numbers"], example.facts["target"]
        assert target in reachable(tuple(Fraction(number) for number in numbers))
        assert 2 <= len(numbers) <= 3 and min(numbers) >= 1 and max(numbers) <= 12
        assert 0 < target <= 60 and target not in numbers


def test_the_splits_share_no_puzzle_whatever_the_seed():
    train = {key(example) for example in puzzles(Countdown(SMALL), "train")}
    test = {key(example) for example in puzzles(Countdown(SMALL), "test")}
    other = Countdown(CountdownSettings(**{**vars(SMALL), "seed": 7}))
    assert len(train) > 500 and len(test) > 80
    assert not (train | {key(example) for example in puzzles(other, "train")[:500]}) & test


def test_an_example_is_a_pure_function_of_settings_split_and_index():
    default, again, seeded = Countdown(), Countdown(), Countdown(CountdownSettings(seed=1))
    assert [default.example("train", index) for index in (5, 99_999, 0)] == [
        again.example("train", index) for index in (5, 99_999, 0)
    ]
    assert default.example("train", 5) != seeded.example("train", 5)
    assert (default.size("train"), default.size("test"), isinstance(default, Task)) == (100_000, 512, True)


def test_prompts_are_worded_by_template():
    bare = Countdown(SMALL).example("test", 0)
    numbers, target = " ".join(map(str, bare.facts["numbers"])), bare.facts["target"]
    assert bare.prompt == f"{numbers}={target}:" and re.fullmatch(r"[-+*/()0-9]+\n", bare.answer)
    chat = Countdown(CountdownSettings(**{**vars(SMALL), "template": "chat"})).example("test", 0)
    assert f"Using the numbers [{numbers}], create an equation that equals {target}." in chat.prompt
    assert chat.answer.endswith(f"<answer> {bare.answer.strip()} </answer>")


PUZZLE = Example("", {"numbers": [3, 5, 7, 7], "target": 22, "template": "bare", "answers": "any"})


@pytest.mark.parametrize(
    ("completion", "reward"),
    [
        ("3*5+7\n", 1.0),
        (" 7 + 5 × 3 = 22", 1.0),
        ("3*5+7\n3*5", 1.0),
        ("3*5+7+7/7\n", 0.25),  # 7 three times
        ("11*2", 0.25),
        ("3*5", 0.25),
        ("22", 0.25),
        ("\n3*5+7", 0.0),
        ("3*5+x", 0.0),
        ("<answer>3*5+7</answer>", 0.0),
    ],
)
def test_rewards(completion, reward):
    assert Countdown(CountdownSettings(format_reward=0.25)).verify(PUZZLE, completion) == reward


def test_all_numbers_where_all_are_asked_for_and_the_last_tag_counts():
    task = Countdown()
    every = PUZZLE._replace(facts=PUZZLE.facts | {"answers": "all"})
    assert [task.verify(every, text) for text in ("3*5+7", "3*5+7+7-7", "5*3+7*7/7")] == [0.0, 0.0, 0.0]
    assert task.verify(every._replace(facts=every.facts | {"target": 29}), "3*5+7+7") == 1.0
    chat = PUZZLE._replace(facts=PUZZLE.facts | {"template": "chat"})
    texts = ("<answer>1</answer> <answer>\n3*5+7 </answer>", "<answer>3*5+7</answer><answer>1</answer>", "3*5+7")
    assert [task.verify(chat, text) for text in texts] == [1.0, 0.0, 0.0]


@given(st.lists(st.sampled_from([*"+-*/()", "1", "2", "3", "7", "8"]), max_size=9).map("".join))
@settings(max_examples=300)
def test_a_reward_is_1_just_where_python_says_so(text):
    facts = {"numbers": [1, 2, 3, 7], "target": 8, "template": "bare", "answers": "any"}
    try:
        value = by_eval(text) if not set(text) - set("0123456789+-*/()") else None
    except (SyntaxError, TypeError):
        value = None
    plain = "**" not in text and "//" not in text and not re.search(r"(^|[-+*/(])\+", text)
    right = plain and value == 8 and Counter(map(int, re.findall("[0-9]+", text))) <= Counter([1, 2, 3, 7])
    assert Countdown.verify(Countdown(SMALL), Example("", facts), text) == float(right)


def test_distinct_keys_tell_right_answers_apart():
    texts = ["3*5+7", "(3 × 5) + 7 = 22\n", "7+3*5", "5*3+7", "nonsense"]
    assert [distinct_key(PUZZLE, text) for text in texts] == ["3*5+7", "3*5+7", "7+3*5", "5*3+7", ""]
    assert Countdown.distinct_key(PUZZLE, "3*5+7") == "3*5+7"


def test_tinyzeros_file(shared):
    """An independent count says which of its solutions are right: some are null, some use a number twice."""
    path = shared / "data" / "countdown" / "countdown.json"
    rows = json.loads(path.read_text())
    task = Countdown(data=str(path))
    assert (task.size("train"), task.size("test")) == (2000, 200)
    examples = puzzles(task, "train") + puzzles(task, "test")
    assert [example.prompt for example in examples] == [row["context"] for row in rows]
    right = 0
    for row, example in zip(rows, examples, strict=True):
        solution = row["solution"] or ""
        value = by_eval(solution) if solution else None
        fits = Counter(map(int, re.findall("[0-9]+", solution))) <= Counter(row["numbers"])
        hits = value is not None and abs(float(value) - float(row["target"])) < 1e-6
        assert task.verify(example, f"so <answer>{solution}</answer>") == float(fits and hits)
        assert (task.verify(example, example.answer) == 1.0) == bool(example.answer) == (fits and hits)
        right += fits and hits
    assert right == 2166


@pytest.mark.parametrize(
    "content", ["{", "{}", "[]", "[1, 2]", '[{"context": "", "numbers": 3, "target": 1}, 2]', "[" * 9999]
)
def test_files_of_other_kinds_are_refused(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UsageError, match=r"^expected .*, got .*; ") as refusal:
        Countdown(data=str(tmp_path / "a.json"))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"numbers": (4, 3)}, "fewest,most"),
        ({"template": "xml"}, "expected template to be bare or chat, got 'xml'"),
        ({"answers": "one"}, "any or all"),
        ({"format_reward": 1.0}, "format_reward < 1"),
        ({"maximum": 0}, "1 ≤ maximum"),
        ({"seed": -1}, "seed"),
    ],
)
def test_settings_out_of_range_are_refused(wrong, message):
    with pytest.raises(UsageError, match=message):
        CountdownSettings(**wrong)


def test_settings_without_puzzles_are_refused():
    with pytest.raises(UsageError, match="expected puzzles for the train split, got none"):
        Countdown(CountdownSettings(numbers=(2, 2), maximum=1, target_maximum=1))
    with pytest.raises(UsageError, match="expected no maximum beside data"):
        Countdown(CountdownSettings(maximum=9), data="x.json")


@pytest.mark.parametrize(("split", "index"), [("valid", 0), ("train", -1), ("test", 512)])
def test_no_such_place(split, index):
    with pytest.raises(UsageError, match=r"^expected .*, got "):
        Countdown().example(split, index)


@given(hostile.completions(), st.sampled_from(["bare", "chat"]))
def test_no_text_makes_it_raise(text, template):
    example = PUZZLE._replace(facts=PUZZLE.facts | {"template": template})
    assert 0.0 <= Countdown.verify(Countdown(SMALL), example, text) <= 1.0
    assert isinstance(distinct_key(example, text), str)
