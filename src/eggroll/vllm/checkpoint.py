"""Checkpoints of Hugging Face: leaves out of their safetensors files, and whole folders written anew.

Nothing loaded is executed: safetensors and JSON alone.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from eggroll.core.errors import UsageError
from eggroll.vllm.leaves import Leaf, Part

INDEX = "model.safetensors.index.json"
Kept = dict[str, dict[str, torch.Tensor]]
""" "weight" and moments → leaf's name → (rows, columns)."""
_PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]


def folder_of(model: str) -> Path:
    """Where the files of a model lie: a folder, or what a name of Hugging Face is downloaded to.

    Raises:
      UsageError: there is neither.
    """
    path = Path(model)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UsageError(f"expected config.json and safetensors files in {path}, got none; give a model's folder")
        return path
    if path.exists() or model.startswith((".", "/", "~")):
        raise UsageError(f"expected a folder of a model, got {model}; give one with config.json")
    try:
        import huggingface_hub

        return Path(huggingface_hub.snapshot_download(model, allow_patterns=_PATTERNS))
    except Exception as error:  # no network, no such name, no package
        why = str(error).strip().splitlines() or [type(error).__name__]
        raise UsageError(
            f"expected {model} as a folder or a name of Hugging Face, got {why[0][:200]}; mend it"
        ) from None


def _files(folder: Path) -> dict[str, Path]:
    """Name of a tensor → file that has it."""
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise UsageError(f"expected safetensors files in {folder}, got none; convert the model to safetensors")
    found: dict[str, Path] = {}
    for path in paths:
        try:
            with safetensors.safe_open(path, "pt") as file:
                found.update(dict.fromkeys(file.keys(), path))
        except (OSError, safetensors.SafetensorError) as error:
            raise UsageError(f"expected a safetensors file, got {path}: {error}; download it again") from None
    return found


def read_leaves(folder: Path, leaves: Iterable[Leaf], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The matrices that evolve, as the engine has them.

    Raises:
      UsageError: one is missing or has another shape.
    """
    files, found = _files(folder), {}
    for leaf in leaves:
        if leaf.name not in files:
            raise UsageError(
                f"expected {leaf.name} in {folder}, got {len(files)} other tensors; use another checkpoint"
            )
        with safetensors.safe_open(files[leaf.name], "pt") as file:
            value = file.get_tensor(leaf.name)
        if tuple(value.shape) != leaf[1:]:
            raise UsageError(f"expected {leaf.name} {list(leaf[1:])} in {folder}, got {list(value.shape)}; mend it")
        found[leaf.name] = value.to(dtype)
    return found


def read_parts(files: Sequence[bytes], parts: Sequence[Sequence[Part]]) -> Kept:
    """What every rank has saved (`Mean.save`), joined to whole leaves.

    Args:
      parts: what each rank holds.
    """
    whole: Kept = {}
    for data, own in zip(files, parts, strict=True):
        named = {part.leaf.name: part for part in own}
        for key, value in safetensors.torch.load(data).items():
            kind, _, name = key.partition("/")
            part, leaves = named[name], whole.setdefault(kind, {})
            if name not in leaves:
                leaves[name] = torch.empty(part.leaf[1:], dtype=value.dtype)
            rows = slice(part.first_row, part.first_row + part.rows)
            leaves[name][rows, part.first_column : part.first_column + part.columns] = value
    return whole


def pack_kept(kept: Mapping[str, Mapping[str, torch.Tensor]]) -> bytes:
    """What `Mean.load` reads."""
    flat = {f"{kind}/{name}": value.contiguous() for kind, own in kept.items() for name, value in own.items()}
    return safetensors.torch.save(flat)


def export(base: Path, out: Path, weights: Mapping[str, torch.Tensor], journal: Path | None = None) -> None:
    """A checkpoint that transformers and vLLM load unchanged: the base's, with these weights in it.

    Args:
      base: the folder that the run began with.
      out: the folder to write; what is there under the same names is replaced.
      weights: leaf's name → (rows, columns).
      journal: copied beside it.
    """
    out.mkdir(parents=True, exist_ok=True)
    for path in sorted(base.iterdir()):
        if path.is_file() and not path.name.startswith(".") and path.suffix in (".json", ".txt", ".model", ".jinja"):
            shutil.copyfile(path, out / path.name)
    for path in sorted(set(_files(base).values())):
        with safetensors.safe_open(path, "pt") as file:
            metadata: dict[str, Any] = file.metadata() or {"format": "pt"}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        for name in tensors.keys() & weights.keys():
            tensors[name] = weights[name].to(tensors[name].dtype).contiguous()
        partial = out / f".{path.name}.partial"
        safetensors.torch.save_file(tensors, partial, metadata)
        partial.rename(out / path.name)
    if journal is not None:
        shutil.copyfile(journal, out / journal.name)
