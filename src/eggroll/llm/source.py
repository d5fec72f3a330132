"""Where a run's model comes from: random weights, a file, or another run; with the tokenizer for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from eggroll.core.errors import UsageError
from eggroll.llm.checkpoint import converted, is_int8, load, save
from eggroll.llm.config import TINY, FinetuneConfig
from eggroll.llm.rwkv7 import Params, Sizes, random_params, sizes_of
from eggroll.llm.tokenizers import ByteTokenizer, Tokenizer, load_tokenizer
from eggroll.runs.folder import RunFolder
from eggroll.runs.settings import from_json
from eggroll.runs.trees import filled
from eggroll.runs.weights import load_parameters

SIZES = Sizes(4, 128, 4, ByteTokenizer.size, (16, 16, 8, 32))
"""Of the model with random weights: 1.0 million parameters, a byte a token."""
WEIGHTS = "model.safetensors"
"""What a run leaves of its mean model at its end, in the published names."""
Model = tuple[Params, Tokenizer]


def load_model(config: FinetuneConfig) -> Model:
    """Weights in the dtype of the settings, NumPy, and the tokenizer.

    Raises:
      UsageError: the model or its tokenizer cannot be read, or its weights are int8.
    """
    params, tokenizer = find_model(config.model, config.tokenizer, config.seed)
    if any(is_int8(node) for node in jax.tree.leaves(params, is_leaf=is_int8)):
        raise UsageError(
            f"expected float weights in {config.model}, got int8, whose lattice has no small steps; fine-tune the "
            "float model"
        )
    return converted(params, config.dtype), tokenizer


def find_model(name: str, tokenizer: str, seed: int = 0) -> Model:
    """A model as it is stored, and its tokenizer.

    Args:
      name: `TINY`, a file or folder of weights, or the folder of a run of fine-tuning: its end, or its newest snapshot.
      tokenizer: as in `tokenizers.load_tokenizer`.
      seed: of random weights.
    Raises:
      UsageError: it cannot be read.
    """
    if name == TINY:
        params = jax.tree.map(np.asarray, random_params(SIZES, jax.random.key(seed % 2**32)))
        return params, load_tokenizer(tokenizer, Path(), SIZES.vocabulary)
    place = Path(name)
    recorded = _recorded(place)
    if recorded is None:
        params = load(place)
        return params, load_tokenizer(tokenizer, place, sizes_of(params).vocabulary)
    if (place / WEIGHTS).is_file():
        params = load(place / WEIGHTS)
    else:  # it has not come to its end
        start, _ = find_model(recorded.model, recorded.tokenizer, recorded.seed)
        params = jax.tree.map(np.asarray, filled(converted(start, recorded.dtype), load_parameters(place), name))
    inherited = tokenizer or recorded.tokenizer
    if inherited or recorded.model == TINY:
        return params, load_tokenizer(inherited, Path(), sizes_of(params).vocabulary)
    return params, find_model(recorded.model, "", recorded.seed)[1]


def _recorded(place: Path) -> FinetuneConfig | None:
    """The settings of a run in that folder; None where it is none of this job."""
    if not (place / "journal.egg").is_file():
        return None
    settings = RunFolder.open(place).read_json("config.json")
    if settings.get("job") != "finetune":
        raise UsageError(f"expected weights or a run of eggroll finetune in {place}, got a run of another job")
    return from_json(FinetuneConfig, settings, str(place))


def keep_weights(params: Any, folder: RunFolder) -> None:
    """Write the mean model into its run's folder, so that published tools, `--model` and chat find it."""
    save(jax.tree.map(np.asarray, params), folder.path / WEIGHTS)
