"""Weights in both layouts and back; files that are none."""

import pickle
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from eggroll.core.distribution import leaf_paths
from eggroll.core.errors import UsageError
from eggroll.llm.checkpoint import load, save
from eggroll.llm.names import name_of, place_of
from eggroll.llm.quantise import converted
from eggroll.llm.rwkv7 import Sizes
from tests.llm.models import SHAPES, TINY, as_pth, noisy

IDLE = ("blocks/att/v0", "blocks/att/v1", "blocks/att/v2")


def flat(params: Any) -> dict[str, np.ndarray]:
    """Path → array, the leaves of layer 0 that do nothing left out."""
    found = dict(zip(leaf_paths(params), map(np.asarray, jax.tree.leaves(params)), strict=True))
    return {path: leaf[1:] if path in IDLE else leaf for path, leaf in found.items()}


def same(one: Any, other: Any) -> None:
    one, other = flat(one), flat(other)
    assert one.keys() == other.keys()
    for path, leaf in one.items():
        assert leaf.dtype == other[path].dtype, path
        np.testing.assert_array_equal(leaf, other[path], err_msg=path)


def hugging_face(params: Any) -> dict[str, torch.Tensor]:
    """The layout of flash-linear-attention, written independently of `names`: linear layers hold (out, in)."""
    att, ffn, blocks = params["blocks"]["att"], params["blocks"]["ffn"], params["blocks"]
    tensors = {
        "model.embeddings.weight": params["emb"]["weight"],
        "model.norm.weight": params["ln_out"]["weight"],
        "model.norm.bias": params["ln_out"]["bias"],
        "lm_head.weight": params["head"]["weight"],
        "model.layers.0.pre_norm.weight": params["ln0"]["weight"],
        "model.layers.0.pre_norm.bias": params["ln0"]["bias"],
    }
    for layer in range(len(att["r_k"])):
        own = f"model.layers.{layer}"
        for theirs, ours in {"attn_norm": "ln1", "ffn_norm": "ln2"}.items():
            for kind in ("weight", "bias"):
                tensors[f"{own}.{theirs}.{kind}"] = blocks[ours][kind][layer]
        for name in "rwkvag":
            tensors[f"{own}.attn.x_{name}"] = att[f"x_{name}"][layer][None, None]
        for name in ("k_k", "k_a", "r_k"):
            tensors[f"{own}.attn.{name}"] = att[name][layer]
        for theirs, ours in {"r": "receptance", "k": "key", "v": "value", "o": "output"}.items():
            tensors[f"{own}.attn.{theirs}_proj.weight"] = att[ours]["weight"][layer]
        for kind in ("weight", "bias"):
            tensors[f"{own}.attn.g_norm.{kind}"] = att["ln_x"][kind][layer]
        for name in "wavg":
            if name == "v" and layer == 0:
                continue
            tensors[f"{own}.attn.{name}_lora.lora.0.weight"] = att[f"{name}1"][layer].T
            tensors[f"{own}.attn.{name}_lora.lora.2.weight"] = att[f"{name}2"][layer].T
            if name != "g":
                tensors[f"{own}.attn.{name}_lora.lora.2.bias"] = att[f"{name}0"][layer]
        tensors[f"{own}.ffn.x_k"] = ffn["x_k"][layer]
        tensors[f"{own}.ffn.key.weight"] = ffn["key"]["weight"][layer]
        tensors[f"{own}.ffn.value.weight"] = ffn["value"]["weight"][layer]
    return {name: torch.tensor(np.ascontiguousarray(leaf)) for name, leaf in tensors.items()}


@pytest.mark.parametrize("sizes", SHAPES, ids=str)
def test_every_layout_is_the_same_model(sizes: Sizes, tmp_path: Path) -> None:
    params = noisy(sizes)
    as_pth(params, tmp_path / "model.pth")
    same(load(tmp_path / "model.pth"), params)
    if sizes.layers > 1:
        save_file(hugging_face(params), tmp_path / "model.safetensors")
        same(load(tmp_path / "model.safetensors"), params)
        same(load(tmp_path), params)  # the folder: safetensors come before .pth
    save(params, tmp_path / "ours.safetensors")
    same(load(tmp_path / "ours.safetensors"), params)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_what_is_saved_loads_back(dtype: str, tmp_path: Path) -> None:
    params = converted(noisy(TINY), dtype)
    save(params, tmp_path / "model.safetensors")
    same(load(tmp_path / "model.safetensors"), params)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors"]


def test_pieces_of_a_model_are_joined(tmp_path: Path) -> None:
    params = noisy(TINY)
    tensors = hugging_face(params)
    names = sorted(tensors)
    for number in range(3):
        part = {name: tensors[name] for name in names[number::3]}
        save_file(part, tmp_path / f"model-{number}-of-3.safetensors")
    same(load(tmp_path), params)


def test_bfloat16_comes_from_torch(tmp_path: Path) -> None:
    params = converted(noisy(TINY), "bfloat16")
    tensors = {}
    for path, leaf in zip(leaf_paths(params), jax.tree.leaves(params), strict=True):
        for layer, own in enumerate(leaf) if path.startswith("blocks/") else [(None, leaf)]:
            tensors[name_of(path, layer)] = torch.tensor(own.astype(np.float32)).bfloat16()
    torch.save(tensors, tmp_path / "model.pth")
    same(load(tmp_path / "model.pth"), params)


def test_names_go_both_ways() -> None:
    for path in leaf_paths(noisy(TINY)):
        for layer in (0, 1) if path.startswith("blocks/") else (None,):
            place = place_of(name_of(path, layer))
            assert place is not None and (place.path, place.layer, place.transposed) == (path, layer, False)


class Hostile:
    """What a pickle could do."""

    def __reduce__(self) -> Any:
        return (Path.write_text, (Path("executed"), "yes"))


def test_nothing_loaded_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"emb.weight": Hostile()}, "zip.pth")
    Path("old.pth").write_bytes(pickle.dumps({"emb.weight": Hostile()}))
    for name in ("zip.pth", "old.pth"):
        with pytest.raises(UsageError, match="expected tensors and nothing else"):
            load(name)
    assert not Path("executed").exists()


def damaged(params: Any, how: str) -> Any:
    if how == "missing":
        del params["blocks"]["att"]["k_k"]
    elif how == "shape":
        params["blocks"]["ffn"]["key"]["weight"] = params["blocks"]["ffn"]["key"]["weight"][:, :, :-1]
    elif how == "extra":
        params["blocks"]["att"]["z_z"] = params["blocks"]["att"]["k_k"]
    return params


@pytest.mark.parametrize(
    ("how", "complaint"),
    [
        ("missing", r"expected blocks/att/k_k of shape \(2, 32\) in .*, got none"),
        ("shape", r"expected blocks/ffn/key/weight of shape .*, got \(2, 128, 31\)"),
        ("extra", "expected nothing but RWKV-7 in .*, got blocks/att/z_z"),
    ],
)
def test_another_model_is_refused_by_name(how: str, complaint: str, tmp_path: Path) -> None:
    save(damaged(noisy(TINY), how), tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match=complaint):
        load(tmp_path / "model.safetensors")


def test_files_that_are_none(tmp_path: Path) -> None:
    for name, content in {"a.safetensors": b"\x01\x02", "b.pth": b"PK nothing", "c.pth": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UsageError, match=r"expected (safetensors|tensors)"):
            load(tmp_path / name)
    save_file({"transformer.h.0.attn.weight": torch.zeros(2, 2)}, tmp_path / "gpt.safetensors")
    with pytest.raises(UsageError, match=r"expected tensors of RWKV-7 in .*, got transformer.h.0.attn.weight"):
        load(tmp_path / "gpt.safetensors")
    save_file({"emb.weight": torch.zeros(2, 2)}, tmp_path / "part.safetensors")
    with pytest.raises(UsageError, match="expected the tensors of RWKV-7"):
        load(tmp_path / "part.safetensors")
    with pytest.raises(UsageError, match="expected weights at"):
        load(tmp_path / "none.pth")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="got neither"):
        load(tmp_path / "empty")
