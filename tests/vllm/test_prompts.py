"""Prompts of a task as a transformer's tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from eggroll.core.errors import UsageError
from eggroll.tasks.registry import make_task
from eggroll.vllm.prompts import Prompts, load_tokenizer
from tests.vllm.engines import config_of
from tests.vllm.models import STORIES

pytestmark = pytest.mark.skipif(not STORIES.is_dir(), reason="needs ../shared/models/stories260k")
TEMPLATE = "{% for said in messages %}<{{ said.role }}>{{ said.content }}{% endfor %}<reply>"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for path in STORIES.glob("tokenizer*.json"):
        shutil.copyfile(path, tmp_path / path.name)
    shutil.copyfile(STORIES / "config.json", tmp_path / "config.json")
    rows = [{"prompt": f"Once upon a time {'very ' * (k % 5)}"} for k in range(31)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def prompts_of(folder: Path, **changes: object) -> Prompts:
    task = make_task("tests.vllm.stories:dog", data=str(folder / "data.jsonl"))
    return Prompts(task, folder, config_of(folder, prompts=4, **changes))


def test_a_chat_template_is_used_where_there_is_one(folder: Path) -> None:
    plain = prompts_of(folder)
    example = plain.task.example("train", 0)
    tokenizer = load_tokenizer(folder)
    assert plain.tokens(example) == tokenizer(example.prompt)["input_ids"]
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": TEMPLATE}))
    asked = prompts_of(folder, system="be kind")
    text = f"<system>be kind<user>{example.prompt}<reply>"
    assert asked.tokens(example) == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert prompts_of(folder, template="never").tokens(example) == plain.tokens(example)


def test_long_prompts_are_left_out(folder: Path) -> None:
    every = prompts_of(folder)
    shortest = min(len(every.tokens(every.task.example("train", k))) for k in range(5))
    few = prompts_of(folder, prompt_tokens=shortest)
    assert all(few.fits(example) for group in few.of_generation(3) for example in group)
    with pytest.raises(UsageError, match="--prompt-tokens"):
        prompts_of(folder, prompt_tokens=1)


def test_prompts_and_draws_hang_on_seed_generation_and_group(folder: Path) -> None:
    prompts = prompts_of(folder, group_size=4, population_size=16)
    chosen = prompts.of_generation(2)
    assert [len(group) for group in chosen] == [4] * 4 and chosen == prompts_of(folder, group_size=4).of_generation(2)[
        :4
    ]
    rows = prompts.rows(chosen[0], 3, (2, 0))
    assert len(rows) == 12 and len({row.seed for row in rows}) == 12
    assert rows == prompts.rows(chosen[0], 3, (2, 0)) != prompts.rows(chosen[0], 3, (2, 1))


def test_no_tokenizer_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a tokenizer in"):
        load_tokenizer(tmp_path)
