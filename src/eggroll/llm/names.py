"""Names of RWKV-7's tensors in the two layouts in use, against our tree of stacked layers.

"blocks.3.att.key.weight" (BlinkDL's) is layer 3 of our "blocks/att/key/weight". The layout of flash-linear-attention
and Hugging Face says "model.layers.3.attn.k_proj.weight", and has the low-rank parts transposed, as torch's linear
layers do.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_PARTS = {"attn": "att", "ffn": "ffn", "pre_norm": "ln0", "attn_norm": "ln1", "ffn_norm": "ln2"}
_PROJECTIONS = {
    "r_proj": "receptance",
    "k_proj": "key",
    "v_proj": "value",
    "o_proj": "output",
    "g_norm": "ln_x",
}
_OUTER = {"model.embeddings": "emb", "model.norm": "ln_out", "lm_head": "head"}
_SINGLE = r"(emb|head)\.weight(\.int8|\.scale|\.inputs)?|ln_out\.(weight|bias)"
_LORA = {"2.bias": "0", "0.weight": "1", "2.weight": "2"}


class Place(NamedTuple):
    """Where a tensor of a file belongs.

    Attributes:
      path: in our tree, "blocks/att/key/weight".
      layer: None where the leaf has no layers.
      transposed: as the file has it.
    """

    path: str
    layer: int | None
    transposed: bool = False


def place_of(name: str) -> Place | None:
    """Where a tensor belongs by its name in either layout; None: nowhere in RWKV-7."""
    if name.startswith(("model.", "lm_head.")):
        return _hugging_face(name)
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    if match is None:
        return Place(name.replace(".", "/"), None) if re.fullmatch(_SINGLE, name) else None
    layer, rest = int(match[1]), match[2].replace(".", "/")
    if rest.startswith("ln0/"):
        return Place(rest, None)
    return Place(f"blocks/{rest}", layer)


def _hugging_face(name: str) -> Place | None:
    outer, _, kind = name.rpartition(".")
    if outer in _OUTER:
        return Place(f"{_OUTER[outer]}/{kind}", None)
    match = re.fullmatch(r"model\.layers\.(\d+)\.(\w+)\.(.+)", name)
    if match is None or match[2] not in _PARTS:
        return None
    layer, part, rest = int(match[1]), _PARTS[match[2]], match[3]
    if part == "ln0":
        return Place(f"ln0/{rest}", None)
    low = re.fullmatch(r"([wavg])_lora\.lora\.(.+)", rest)
    if low is not None:
        return Place(f"blocks/att/{low[1]}{_LORA[low[2]]}", layer, low[2] != "2.bias") if low[2] in _LORA else None
    head, _, tail = rest.partition(".")
    renamed = _PROJECTIONS.get(head, head) if part == "att" else head
    return Place(f"blocks/{part}/{renamed}/{tail}" if tail else f"blocks/{part}/{renamed}", layer)


def name_of(path: str, layer: int | None) -> str:
    """Its name in BlinkDL's layout."""
    if layer is None:
        dotted = path.replace("/", ".")
        return f"blocks.0.{dotted}" if dotted.startswith("ln0.") else dotted
    return f"blocks.{layer}.{path.removeprefix('blocks/').replace('/', '.')}"
