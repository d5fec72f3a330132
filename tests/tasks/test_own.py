"""own.py: the user's own tasks and rewards by import path."""

import json
import sys

import pytest

from eggroll.core.errors import UsageError
from eggroll.tasks.base import Task
from eggroll.tasks.own import make_own

MODULE = """
from eggroll.tasks.base import Example

def length(prompt, completion, facts):
    return min(1.0, len(completion) / facts["wanted"])

def given(prompt, completion, facts):
    return float(completion) if completion.replace(".", "").isdigit() or completion == "nan" else completion

class Echo:
    name = "echo"
    def __init__(self, word="hi"): self.word = word
    def size(self, split): return 1
    def example(self, split, index): return Example(self.word, {}, self.word)
    def verify(self, example, completion): return float(completion == self.word)

echo = Echo("hello")
number = 3
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with a module and prompts."""
    (tmp_path / "my_rewards.py").write_text(MODULE)
    (tmp_path / "broken.py").write_text("import no_such_package")
    (tmp_path / "unwritten.py").write_text("def")
    rows = [{"prompt": f"p{number}", "answer": number, "wanted": 4} for number in range(20)]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in ("my_rewards", "broken", "unwritten"):
        sys.modules.pop(name, None)


def test_a_reward_function_with_prompts(here):
    path = list(sys.path)
    task = make_own("my_rewards:length", data="a.jsonl")
    assert (task.name, task.size("train"), task.size("test"), isinstance(task, Task)) == (
        "my_rewards:length",
        18,
        2,
        True,
    )
    assert task.example("test", 1) == ("p19", {"answer": 19, "wanted": 4}, "19")
    assert [task.verify(task.example("train", 0), text) for text in ("", "ab", "abcdef")] == [0.0, 0.5, 1.0]
    assert sys.path == path


def test_rows_may_name_their_split(here):
    rows = [{"prompt": "a", "split": "test"}, {"prompt": "b", "split": "train"}, {"prompt": "c", "split": "test"}]
    (here / "b.jsonl").write_text("\n\n".join(json.dumps(row) for row in rows))
    task = make_own("my_rewards:length", data="b.jsonl")
    assert [task.example("test", index).prompt for index in range(task.size("test"))] == ["a", "c"]
    (here / "b.jsonl").write_text('{"prompt": "a", "split": "valid"}')
    with pytest.raises(UsageError, match=r"expected train or test as every split in b\.jsonl, got 'valid'"):
        make_own("my_rewards:length", data="b.jsonl")


@pytest.mark.parametrize("completion", ["1.5", "2", "nan", "text"])
def test_a_reward_that_is_none_is_refused(here, completion):
    task = make_own("my_rewards:given", data="a.jsonl")
    with pytest.raises(UsageError, match="expected a reward from 0 to 1 of my_rewards:given, got ") as refusal:
        task.verify(task.example("train", 0), completion)
    assert completion in str(refusal.value)
    assert task.verify(task.example("train", 0), "0.25") == 0.25


def test_a_task_and_a_class(here):
    assert make_own("my_rewards:echo").example("train", 0).prompt == "hello"
    assert make_own("my_rewards:Echo").example("train", 0).prompt == "hi"
    assert make_own("my_rewards:Echo", options={"word": "yo"}).example("train", 0).prompt == "yo"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("no_such_module:f", {}, "expected the module no_such_module for no_such_module:f, got none; run where"),
        ("broken:f", {}, "expected the module no_such_package for broken:f, got none; install no_such_package"),
        ("unwritten:f", {}, "expected unwritten to import, got SyntaxError"),
        ("my_rewards:size", {}, "expected 'size' in my_rewards, got .*length"),
        ("my_rewards:number", {}, "expected a Task, or a function .* got int"),
        ("my_rewards:length", {}, "expected data for the reward function my_rewards:length, got none"),
        ("my_rewards:length", {"word": 1}, "expected no options for my_rewards:length, got word"),
        ("my_rewards:Echo", {"words": 1}, "expected options that my_rewards:Echo takes"),
        (":f", {}, "expected module:name, got ':f'"),
        ("f:", {}, "expected module:name, got 'f:'"),
        (".f:g", {}, "expected .f to import, got TypeError"),
    ],
)
def test_what_cannot_be_used_is_refused(here, name, options, message):
    with pytest.raises(UsageError, match=message) as refusal:
        make_own(name, options=options)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("line", ['{"answer": "a"}', '{"prompt": 3}', '{"prompt": "a", "answer": []}', "[]", "{"])
def test_rows_of_other_kinds_are_refused(here, line):
    (here / "b.jsonl").write_text(line)
    with pytest.raises(UsageError, match=r"^expected .* in line 1 of b\.jsonl, got .*; "):
        make_own("my_rewards:length", data="b.jsonl")


def test_prompts_of_a_hugging_face_data_set(here):
    import datasets

    rows = {"prompt": [f"p{number}" for number in range(20)], "wanted": [4] * 20}
    datasets.Dataset.from_dict(rows).save_to_disk("one")
    both = {"train": datasets.Dataset.from_dict(rows), "validation": datasets.Dataset.from_dict({"prompt": ["v"]})}
    datasets.DatasetDict(both).save_to_disk("two")
    one, two = (make_own("my_rewards:length", data=f"hf:{name}") for name in ("one", "two"))
    assert (one.size("train"), one.size("test")) == (18, 2)
    assert one.example("test", 1) == ("p19", {"wanted": 4}, "")
    assert (two.size("train"), two.example("test", 0).prompt) == (20, "v")
    datasets.Dataset.from_dict({"question": ["q"]}).save_to_disk("three")
    with pytest.raises(UsageError, match="expected prompt in line 1 of hf:three"):
        make_own("my_rewards:length", data="hf:three")
    with pytest.raises(UsageError, match="a data set at hf:/no/such"):
        make_own("my_rewards:length", data="hf:/no/such")
