"""Names and shapes of a checkpoint from its configuration alone, and what is not mapped."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors
import torch
import transformers

from eggroll.core.errors import UsageError
from eggroll.vllm.blueprint import blueprint_of
from tests.vllm.models import make_model


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "qwen3_moe"])
def test_leaves_are_the_checkpoints_own(kind: str, tmp_path: Path) -> None:
    folder = make_model(kind, tmp_path)
    blueprint = blueprint_of(folder)
    with safetensors.safe_open(folder / "model.safetensors", "pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    named = {leaf.name: leaf[1:] for leaf in blueprint.leaves}
    assert named.items() <= shapes.items()
    assert named.keys() | set(blueprint.frozen) == shapes.keys()  # no leaf is forgotten
    assert not named.keys() & set(blueprint.frozen)
    rest = {name for name in shapes if len(shapes[name]) == 2} - named.keys()
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in rest} <= {"embed_tokens", "lm_head", "gate"}


def test_no_weight_is_allocated(tmp_path: Path) -> None:
    huge = transformers.LlamaConfig(hidden_size=16384, intermediate_size=53248, num_hidden_layers=126)
    huge.save_pretrained(tmp_path)
    assert blueprint_of(tmp_path).parameters > 3e11


def test_what_evolves_can_be_chosen(tmp_path: Path) -> None:
    folder = make_model("llama", tmp_path)
    some = blueprint_of(folder, ("*.mlp.*",), ("*.layers.1.*",))
    assert [leaf.name for leaf in some.leaves] == [
        f"model.layers.0.mlp.{target}_proj.weight" for target in ("gate", "up", "down")
    ]
    assert "model.layers.1.mlp.up_proj.weight" in some.frozen
    with pytest.raises(UsageError, match="leave some"):
        blueprint_of(folder, ("*.no_such",))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (transformers.Phi3Config(pad_token_id=0, vocab_size=512, hidden_size=64, num_hidden_layers=1), "qkv_proj"),
        (transformers.GPT2Config(n_embd=64, n_layer=1, n_head=2), "not mapped"),
        (transformers.BertConfig(), "causal language model|not mapped"),
    ],
)
def test_what_is_not_mapped_is_named(config: object, says: str, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match=says):
        blueprint_of(tmp_path)


def test_a_fused_layer_can_be_left_as_it_is(tmp_path: Path) -> None:
    transformers.Phi3Config(pad_token_id=0, vocab_size=512, hidden_size=64, num_hidden_layers=1).save_pretrained(
        tmp_path
    )
    blueprint = blueprint_of(tmp_path, frozen=("*.qkv_proj.weight", "*.gate_up_proj.weight"))
    assert {leaf.name.split(".")[-2] for leaf in blueprint.leaves} == {"o_proj", "down_proj"}


def test_nonsense_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="causal language model"):
        blueprint_of(tmp_path)
    assert torch.get_default_dtype() == torch.float32
