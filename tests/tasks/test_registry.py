"""registry.py: tasks by name, options from text, refusals of one line; no engine is loaded."""

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings

from eggroll.core.errors import UsageError
from eggroll.tasks import Task, make_task, names
from tests.tasks import hostile

ENGINES = """
import pkgutil, sys
import eggroll.tasks.registry
light = set(sys.modules)
for module in pkgutil.iter_modules(eggroll.tasks.__path__):
    __import__(f"eggroll.tasks.{module.name}")
eggroll.tasks.make_task("countdown")
eggroll.tasks.make_task("reasoning_gym:maze")
print({"jax", "jaxlib", "torch", "optax"} & set(sys.modules), {"numpy", "sympy", "reasoning_gym"} & light)
"""


def test_no_engine_is_loaded_by_any_task():
    done = subprocess.run([sys.executable, "-c", ENGINES], capture_output=True, text=True, timeout=100)
    assert (done.stdout, done.returncode) == ("set() set()\n", 0), done.stderr


def test_tasks_by_name(tmp_path):
    rows = [{"question": "2 and 3?", "answer": "#### 5"}] * 2
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    for name in ("countdown", "gsm8k", "maths", "reasoning_gym:maze"):
        task = make_task(name, data=str(tmp_path / "a.jsonl") if name in ("gsm8k", "maths") else "")
        example = task.example("test", 0)
        assert isinstance(task, Task) and task.name == name
        assert task.verify(example, example.answer) == 1.0
        assert json.loads(json.dumps(example.facts)) == example.facts
    assert set(names()) == {"countdown", "gsm8k", "maths", "reasoning_gym:NAME", "MODULE:FUNCTION"}
    assert make_task("tests.tasks.test_registry:TASK") is TASK


TASK = make_task("countdown")


@pytest.mark.parametrize(
    "options",
    [
        {"numbers": "2,3", "maximum": "9", "format_reward": "0"},
        {"numbers": [2, 3], "maximum": 9, "format_reward": 0},
        {"numbers": (2, 3), "maximum": 9.0, "format_reward": 0.0},
    ],
)
def test_options_come_as_text_or_values(options):
    settings = make_task("countdown", options=options).settings
    assert (settings.numbers, settings.maximum, settings.format_reward) == ((2, 3), 9, 0.0)
    assert isinstance(settings.format_reward, float)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("countdow", {}, "got 'countdow'; near: countdown"),
        ("math", {}, "near: maths"),
        ("xyz", {}, "known: countdown, gsm8k, maths"),
        ("", {}, "got ''"),
        ("countdown", {"number": 3}, "got 'number'; choose from numbers, maximum, target_maximum"),
        ("countdown", {"maximum": "many"}, "expected maximum of the kind of 99, got 'many'"),
        ("countdown", {"maximum": True}, "got True"),
        ("countdown", {"maximum": 9.5}, "got 9.5"),
        ("countdown", {"numbers": 3}, r"expected numbers of the kind of \(3, 4\), got 3"),
        ("countdown", {"template": 3}, "expected template of the kind of 'bare', got 3"),
        ("countdown", {"format_reward": "nan"}, "expected 0 ≤ format_reward < 1, got nan"),
        ("gsm8k", {"style": "x"}, "choose from template"),
        ("reasoning_gym:", {}, "expected a set of reasoning-gym, got ''"),
        ("reasoning_gym:mase", {}, "near: maze"),
    ],
)
def test_what_cannot_be_used_is_refused(name, options, message):
    with pytest.raises(UsageError, match=message) as refusal:
        make_task(name, options=options)
    assert str(refusal.value).startswith("expected ") and "\n" not in str(refusal.value)


def test_a_made_set_takes_no_data():
    with pytest.raises(UsageError, match="expected no data for reasoning_gym:maze"):
        make_task("reasoning_gym:maze", data="x")


@pytest.mark.parametrize("text", hostile.TEXTS, ids=lambda text: repr(text[:12]))
def test_horrors_score_within_bounds(text):
    example = TASK.example("train", 0)
    assert all(0.0 <= TASK.verify(example, completion) <= 1.0 for completion in hostile.wrapped(text))


@given(hostile.completions())
@settings(max_examples=50)
def test_names_of_any_kind_are_refused_or_made(name):
    if not name.startswith("reasoning_gym") and ":" not in name and name not in names():
        with pytest.raises(UsageError, match="expected the name of a task"):
            make_task(name)
