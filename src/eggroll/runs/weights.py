"""Parameters from wherever a person has them: a run, a snapshot, or a safetensors file."""

from __future__ import annotations

from pathlib import Path

from eggroll.runs import snapshots
from eggroll.runs.folder import RunError, RunFolder
from eggroll.runs.tensors import load_tensors
from eggroll.runs.trees import Leaves, as_arrays


def load_parameters(path: Path) -> Leaves:
    """Leaf path → NumPy array.

    Args:
      path: folder of a run (its newest snapshot counts), folder of a snapshot, or a .safetensors file whose tensors are
        named by leaf paths, "a/b/c".
    Raises:
      RunError: it is none of these, or cannot be read.
    """
    if path.suffix == ".safetensors":
        return load_tensors(path)
    if (path / snapshots.MANIFEST).is_file():
        return as_arrays(snapshots.read(path, only="parameters")["parameters"])
    if not (path / "config.json").is_file():
        raise RunError(
            f"expected the folder of a run or of a snapshot, or a .safetensors file, got {path}; give one of these"
        )
    return as_arrays(snapshots.load(RunFolder.open(path), only="parameters")[1]["parameters"])
