"""Weights of RWKV-7 from a file or folder, and back: `.pth` (tensors alone, nothing is executed) and safetensors."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from eggroll.core.distribution import leaf_paths
from eggroll.core.errors import UsageError
from eggroll.llm.names import name_of, place_of
from eggroll.llm.quantise import DTYPES
from eggroll.llm.rwkv7 import Params, random_params, sizes_of
from eggroll.runs.trees import nested

_IGNORED = {f"blocks/att/{name}" for name in ("v0", "v1", "v2")}
"""In layer 0 these do nothing, and many files leave them out there."""


def load(path: str | Path) -> Params:
    """Read a model's weights, as they are stored.

    Args:
      path: a `.pth` file in BlinkDL's layout, a safetensors file in that or the Hugging Face layout, or a folder with
        one or more safetensors files.
    Returns:
      The tree of `rwkv7`, in NumPy arrays; `.pth` files are read in place where they allow it.
    Raises:
      UsageError: the file cannot be read, or is no RWKV-7: what is missing, unknown or of a wrong shape is named.
    """
    place = Path(path)
    if not place.exists():
        raise UsageError(f"expected weights at {place}, got no such file; name a .pth, a .safetensors or a folder")
    if place.is_dir():
        files = sorted(place.glob("*.safetensors")) or sorted(place.glob("*.pth"))
        if not files:
            raise UsageError(f"expected .safetensors or a .pth in {place}, got neither; name a model's folder")
    else:
        files = [place]
    tensors: dict[str, np.ndarray] = {}
    for file in files:
        tensors |= _pth(file) if file.suffix == ".pth" else _safetensors(file)
    return _tree(tensors, str(place))


def _safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise UsageError(f"expected safetensors in {path}, got {_short(error)}; fetch the file again") from None


def _pth(path: Path) -> dict[str, np.ndarray]:
    """A file of torch's, by its loader for tensors alone."""
    try:
        import torch
    except ModuleNotFoundError:
        raise UsageError(
            f"expected PyTorch to read {path}, got none; pip install torch, or convert it to safetensors"
        ) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that a pickle's protocol is unusual
            held = torch.load(path, map_location="cpu", weights_only=True, mmap=_can_map(path))
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise UsageError(
            f"expected tensors and nothing else in {path}, got {_short(error)}; use the publisher's file"
        ) from None
    if not isinstance(held, Mapping) or not all(isinstance(each, torch.Tensor) for each in held.values()):
        raise UsageError(f"expected a dict of tensors in {path}, got a {type(held).__name__}; use a file of weights")
    return {str(name): _as_numpy(torch, tensor) for name, tensor in held.items()}


def _can_map(path: Path) -> bool:
    with path.open("rb") as file:  # torch maps its zip files, not those of before 2020
        return file.read(2) == b"PK"


def _as_numpy(torch: Any, tensor: Any) -> np.ndarray:
    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:  # NumPy has none of its own
        view: np.ndarray = tensor.view(torch.uint16).numpy().view(DTYPES["bfloat16"])
        return view
    result: np.ndarray = tensor.numpy()
    return result


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__


def _tree(tensors: Mapping[str, np.ndarray], source: str) -> Params:
    """Our tree of a file's tensors."""
    layers: dict[str, dict[int, np.ndarray]] = {}
    flat: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        place = place_of(name)
        if place is None:
            raise UsageError(f"expected tensors of RWKV-7 in {source}, got {name}; use another model")
        tensor = tensor.T if place.transposed else tensor
        tensor = tensor.reshape(tensor.shape[-1]) if tensor.shape[:2] == (1, 1) else tensor
        if place.layer is None:
            flat[place.path] = tensor
        else:
            layers.setdefault(place.path, {})[place.layer] = tensor
    count = 1 + max((number for held in layers.values() for number in held), default=-1)
    for path, held in layers.items():
        flat[path] = _stacked(path, held, count, source)
    return _checked(flat, source)


def _stacked(path: str, held: dict[int, np.ndarray], count: int, source: str) -> np.ndarray:
    if path in _IGNORED and 0 not in held and 1 in held:
        held = held | {0: np.zeros_like(held[1])}
    missing = [number for number in range(count) if number not in held]
    if missing:
        raise UsageError(
            f"expected {path} in all {count} layers of {source}, got none in layer {missing[0]}; use a whole file"
        )
    shapes = {held[number].shape for number in range(count)}
    if len(shapes) > 1 or len({held[number].dtype for number in range(count)}) > 1:
        raise UsageError(
            f"expected one shape and dtype of {path} in all layers of {source}, got {sorted(map(str, shapes))}; use "
            "another file"
        )
    return np.stack([held[number] for number in range(count)])


def _checked(flat: dict[str, np.ndarray], source: str) -> Params:
    """The tree, if its leaves are those of a model of these sizes, each of its shape."""
    try:
        params = nested(flat)
        sizes = sizes_of(params)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        raise UsageError(
            f"expected the tensors of RWKV-7 in {source}, such as blocks.0.att.r_k, got {', '.join(list(flat)[:3])} …; "
            "use an RWKV-7 model"
        ) from None
    model = jax.eval_shape(lambda: random_params(sizes, jax.random.key(0)))
    wanted = dict(zip(leaf_paths(model), (leaf.shape for leaf in jax.tree.leaves(model)), strict=True))
    for path, shape in wanted.items():
        found = flat.get(path, flat.get(f"{path}/int8"))
        got = "none" if found is None else str(found.shape)
        if found is None or found.shape != shape or (path not in flat and f"{path}/scale" not in flat):
            raise UsageError(f"expected {path} of shape {shape} in {source}, got {got}; use a whole RWKV-7 model")
    extra = [path for path in flat if path not in wanted and path.rpartition("/")[0] not in wanted]
    if extra:
        raise UsageError(f"expected nothing but RWKV-7 in {source}, got {extra[0]}; use another file")
    return params


def save(params: Params, path: str | Path) -> None:
    """Write safetensors in BlinkDL's names, which `load` and the published tools read.

    Int8 weights have a tensor "….weight.int8" and one "….weight.scale". The file takes its place when it is whole.
    """
    tensors: dict[str, np.ndarray] = {}
    for name, leaf in zip(leaf_paths(params), jax.tree.leaves(params), strict=True):
        array = np.asarray(leaf)
        if not name.startswith("blocks/"):
            tensors[name_of(name, None)] = np.asarray(array, order="C")
            continue
        for layer, own in enumerate(array):
            tensors[name_of(name, layer)] = np.asarray(own, order="C")
    place = Path(path)
    part = place.with_name(f".{place.name}.part")
    save_file(tensors, part, metadata={"format": "pt", "model": "RWKV-7"})
    part.replace(place)
