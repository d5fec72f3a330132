"""Where a run's model comes from: random weights, a file, or another run; with the tokenizer for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from eggroll.core.distribution import leaf_paths, matches
from eggroll.core.errors import UsageError
from eggroll.llm.checkpoint import load, save
from eggroll.llm.config import FinetuneConfig, is_random, random_size
from eggroll.llm.distill_config import DistillConfig
from eggroll.llm.quantise import LINEAR, converted, has_int8, quantised
from eggroll.llm.rwkv7 import Params, Sizes, random_params, sizes_of
from eggroll.llm.tokenizers import ByteTokenizer, Tokenizer, load_tokenizer
from eggroll.runs.folder import RunFolder
from eggroll.runs.settings import from_json
from eggroll.runs.trees import as_arrays, filled, nested
from eggroll.runs.weights import load_parameters

WEIGHTS = "model.safetensors"
"""What a run leaves of its mean model at its end, in the published names."""
Model = tuple[Params, Tokenizer]


def load_model(config: FinetuneConfig) -> Model:
    """Weights in the dtype of the settings, int8 ones too, NumPy; and the tokenizer.

    Raises:
      UsageError: the model or its tokenizer cannot be read.
    """
    params, tokenizer = find_model(config.model, config.tokenizer, config.seed)
    return converted(params, config.dtype), tokenizer


def load_student(config: DistillConfig) -> tuple[Params, Params, Tokenizer]:
    """The teacher in float32, the student that rounds it to the nearest levels, both NumPy; and the tokenizer.

    Raises:
      UsageError: the teacher or its tokenizer cannot be read, is int8 itself, or has nothing to quantise.
    """
    teacher, tokenizer = find_model(config.teacher, config.tokenizer, config.seed)
    if has_int8(teacher):
        raise UsageError(f"expected float weights of a teacher in {config.teacher}, got int8; give the float model")
    unknown = [pattern for pattern in config.quantised if not any(matches([pattern], path) for path in LINEAR)]
    stray = [path for path in leaf_paths(teacher) if path not in LINEAR and matches(config.quantised, path)]
    if unknown or stray:
        raise UsageError(
            f"expected --quantised patterns of {', '.join(LINEAR)}, got {(unknown or stray)[0]}; choose some of these"
        )
    teacher = converted(teacher, "float32")
    try:
        return teacher, quantised(teacher, config.levels, config.quantised or LINEAR, inputs=config.inputs), tokenizer
    except ValueError as error:
        raise UsageError(str(error)) from None


def find_model(name: str, tokenizer: str, seed: int = 0) -> Model:
    """A model as it is stored, and its tokenizer.

    Args:
      name: tiny or tiny:LAYERSxWIDTH, a file or folder of weights, or the folder of a run: its end, or its newest
        snapshot.
      tokenizer: as in `tokenizers.load_tokenizer`.
      seed: of random weights.
    Raises:
      UsageError: it cannot be read.
    """
    if is_random(name):
        layers, width = random_size(name)
        sizes = Sizes(layers, width, width // 32, ByteTokenizer.size, (16, 16, 8, 32))  # a byte a token
        params = jax.tree.map(np.asarray, random_params(sizes, jax.random.key(seed % 2**32)))
        return params, load_tokenizer(tokenizer, Path(), sizes.vocabulary)
    place = Path(name)
    recorded = _recorded(place)
    if recorded is None:
        params = load(place)
        return params, load_tokenizer(tokenizer, place, sizes_of(params).vocabulary)
    params = load(place / WEIGHTS) if (place / WEIGHTS).is_file() else _newest(recorded, place)
    inherited = tokenizer or recorded.tokenizer
    if inherited or is_random(recorded.origin):
        return params, load_tokenizer(inherited, Path(), sizes_of(params).vocabulary)
    return params, find_model(recorded.origin, "", recorded.seed)[1]


def _newest(recorded: FinetuneConfig | DistillConfig, place: Path) -> Params:
    """The model of a run's newest snapshot, NumPy."""
    if isinstance(recorded, DistillConfig):
        return nested({**as_arrays(load_student(recorded)[1]), **load_parameters(place)})
    start, _ = find_model(recorded.model, recorded.tokenizer, recorded.seed)
    model: Params = filled(converted(start, recorded.dtype), load_parameters(place), str(place))
    return jax.tree.map(np.asarray, model)


def _recorded(place: Path) -> FinetuneConfig | DistillConfig | None:
    """The settings of a run in that folder; None where it is none of a language model's."""
    if not (place / "journal.egg").is_file():
        return None
    settings = RunFolder.open(place).read_json("config.json")
    kinds: dict[Any, type[FinetuneConfig | DistillConfig]] = {"finetune": FinetuneConfig, "distill": DistillConfig}
    if settings.get("job") not in kinds:
        raise UsageError(
            f"expected weights or a run of eggroll finetune or distill in {place}, got a run of another job; choose "
            "its own"
        )
    return from_json(kinds[settings["job"]], settings, str(place))


def keep_weights(params: Any, folder: RunFolder) -> None:
    """Write the mean model into its run's folder, so that published tools, `--model` and chat find it."""
    save(jax.tree.map(np.asarray, params), folder.path / WEIGHTS)
