"""reasoning.py: the sets of reasoning-gym, their own verifiers, apart from this process."""

import json
import sys
import time

import pytest
from hypothesis import given, settings

from eggroll.core.errors import UsageError
from eggroll.tasks.base import Task
from eggroll.tasks.reasoning import Reasoning
from tests.tasks import hostile

SETS = ("basic_arithmetic", "countdown", "puzzle24", "maze", "chain_sum")


@pytest.fixture(scope="module")
def sums():
    return Reasoning("chain_sum", {"train_size": 1000, "min_terms": 2, "max_terms": 3})


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("template", ["plain", "chat"])
def test_its_own_answers_verify(name, template):
    task = Reasoning(name, {"template": template})
    assert (task.name, isinstance(task, Task)) == (f"reasoning_gym:{name}", True)
    for split in ("train", "test"):
        example = task.example(split, 1)
        assert task.verify(example, example.answer) == 1.0
        tagged = example.answer if template == "chat" else f"<answer>{example.answer}</answer>"
        assert task.verify(example, f"<answer>no</answer> {tagged}") == 1.0
        assert task.verify(example, "<answer>no</answer>") < 0.5
        assert json.loads(json.dumps(example.facts)) == example.facts


def test_options_reach_the_set_and_the_splits_differ(sums):
    train, test = ([sums.example(split, index) for index in range(100)] for split in ("train", "test"))
    assert (sums.size("train"), sums.size("test")) == (1000, 512)
    assert all(example.prompt.count("+") + example.prompt.count("-") <= 4 for example in train)
    assert len({example.prompt for example in train} & {example.prompt for example in test}) < 5
    again = Reasoning("chain_sum", {"train_size": "1000", "min_terms": 2, "max_terms": 3})
    assert train == [again.example("train", index) for index in range(100)]


def test_seeds_of_items_never_meet():
    seeds = set()
    for seed in (0, 1, 999):
        task = Reasoning("chain_sum", {"seed": seed, "train_size": 1 << 20, "test_size": 1 << 20})
        for split in ("train", "test"):
            facts = task.example(split, 0).facts
            assert facts["seed"] + facts["size"] < 2**32 and facts["seed"] % (1 << 20) == 0
            seeds.add(facts["seed"])
    assert len(seeds) == 6


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("chain_sums", {}, "near: chain_sum"),
        ("chain_sum", {"terms": 3}, "got 'terms'; choose from seed, train_size, test_size, template, min_terms"),
        ("chain_sum", {"min_terms": 0}, "expected options that reasoning_gym:chain_sum takes"),
        ("chain_sum", {"seed": 1000}, "expected seed from 0 to 999"),
        ("chain_sum", {"size": 5}, "got 'size'"),
        ("chain_sum", {"train_size": 1 << 21}, "expected train_size from 1 to 1048576"),
    ],
)
def test_unknown_sets_and_options_are_refused(name, options, message):
    with pytest.raises(UsageError, match=message) as refusal:
        Reasoning(name, options)
    assert "\n" not in str(refusal.value)


def test_a_missing_package_is_refused_with_its_install_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
    with pytest.raises(UsageError) as refusal:
        Reasoning("maze")
    assert str(refusal.value) == (
        'expected the package reasoning-gym for maze, got none; pip install "eggroll-es[llm]"'
    )


def test_a_completion_cannot_write_files(tmp_path):
    """puzzle24 gives an answer to Python's eval."""
    task = Reasoning("puzzle24")
    example = task.example("train", 0)
    for code in (f"open({str(tmp_path / 'a')!r}, 'w')", f"__import__('os').system('touch {tmp_path}/b')"):
        assert task.verify(example, f"<answer>{code}</answer>") < 0.5
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", hostile.TEXTS, ids=lambda text: repr(text[:12]))
def test_horrors_are_done_with_within_a_second_each(sums, text):
    example = sums.example("train", 0)
    for completion in hostile.wrapped(text):
        start = time.process_time()
        assert 0.0 <= sums.verify(example, completion) <= 1.0
        assert time.process_time() - start < 1.0


@given(text=hostile.completions())
@settings(max_examples=60, deadline=None)
def test_no_text_makes_it_raise(sums, text):
    assert 0.0 <= sums.verify(sums.example("test", 3), text) <= 1.0
