"""Data sets of Hugging Face, by name or from a folder; for those who say what is wrong with them."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from typing import Any

PREFIX = "hf:"


def load_splits(value: str) -> dict[str, Any]:
    """The splits of `hf:NAME`, `hf:NAME:CONFIG` or `hf:/saved/folder`.

    Raises:
      ImportError: the package datasets is missing.
      Exception: whatever the network, the hub and a data set's own builder raise.
    """
    datasets = importlib.import_module("datasets")
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)  # it logs each retry of what we then raise
    name = value.removeprefix(PREFIX)
    folder = Path(name).expanduser()
    if (folder / "dataset_info.json").is_file() or (folder / "dataset_dict.json").is_file():
        loaded = datasets.load_from_disk(str(folder))
    else:
        loaded = datasets.load_dataset(*name.split(":", 1))
    return dict(loaded) if isinstance(loaded, dict) else {"train": loaded}
