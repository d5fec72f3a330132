"""Text from a trained model, in integer arithmetic to the last step.

A byte is drawn in proportion to `EXP2[z]`, the loss's own table, with z counted down from 255 at the likeliest byte; a
byte that falls below the table is never drawn. The temperature scales that distance, in sixteenths.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax import lax
from jaxtyping import Array, Int32, UInt8

from eggroll.core import noise
from eggroll.core.errors import UsageError
from eggroll.integer.arithmetic import exp2
from eggroll.integer.model import (
    Config,
    Parameters,
    hidden_forward,
    leaf_shapes,
    logits_of,
    nested,
    parameter_leaves,
    zero_state,
)
from eggroll.runs import snapshots
from eggroll.runs.folder import RunFolder


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """Write text from a trained model."""

    run_dir: tyro.conf.Positional[Path]
    """Folder of a pretraining run."""
    prompt: str = ""
    """Text that the sample goes on from."""
    bytes: int = 400
    """Bytes to write."""
    temperature: float = 0.75
    """Temperature of the draws: 0 takes the likeliest byte, 1 samples the model as it is; counted in sixteenths."""
    seed: int = 0
    """Seed of the draws, in [0, 2**64)."""
    generation: int | None = None
    """Generation whose snapshot is used; none: the newest."""

    def __post_init__(self) -> None:
        if self.bytes < 1:
            raise UsageError(f"expected --bytes of at least 1, got {self.bytes}; give a positive number")
        if not 0 <= self.temperature <= 16:
            raise UsageError(f"expected --temperature in [0, 16], got {self.temperature}; 1 samples the model as it is")
        if not 0 <= self.seed < 2**64:
            raise UsageError(f"expected --seed in [0, 2**64), got {self.seed}; choose another seed")


def sample(config: SampleConfig) -> bytes:
    """The bytes that follow the prompt.

    Raises:
      UsageError: the folder is no pretraining run, or its snapshot does not fit its configuration.
    """
    model, parameters = load_model(config.run_dir, config.generation)
    prompt = np.frombuffer(b"\0" + prompt_bytes(config), np.uint8)
    sixteenths = round(16 * config.temperature)
    words = noise.seed_words(config.seed)
    written = generate(parameters, jnp.asarray(prompt), jnp.asarray(words, jnp.int32), model, config.bytes, sixteenths)
    return np.asarray(written).tobytes()


def sample_text(parameters: Parameters, model: Config, count: int, *, temperature: float = 0.75) -> str:
    """So many bytes from the start of a document, the same draws each time, as text."""
    start, seed = jnp.zeros(1, jnp.uint8), jnp.zeros(2, jnp.int32)
    written = generate(parameters, start, seed, model, count, round(16 * temperature))
    return np.asarray(written).tobytes().decode(errors="replace")


def prompt_bytes(config: SampleConfig) -> bytes:
    """The prompt as the shell gave it, UTF-8 or not."""
    return config.prompt.encode(errors="surrogateescape")


def load_model(run_dir: Path, generation: int | None = None) -> tuple[Config, Parameters]:
    """Model and parameters of a run's snapshot.

    Raises:
      UsageError: the folder is no pretraining run, or a leaf has another shape or dtype than its configuration says.
    """
    folder = RunFolder.open(run_dir)
    settings = folder.read_json("config.json")
    names = ("layers", "width", "sigma_shift", "rank")
    if settings.get("job") != "pretrain" or not all(isinstance(settings.get(name), int) for name in names):
        raise UsageError(f"expected the folder of a pretraining run, got {run_dir}; its config.json names another job")
    model = Config(*(settings[name] for name in names))
    parameters = snapshots.load(folder, generation, only="parameters")[1]["parameters"]
    _check_leaves(parameters, model, run_dir)
    return model, nested(parameter_leaves(parameters))


def _check_leaves(parameters: Any, model: Config, run_dir: Path) -> None:
    expected = leaf_shapes(model)
    leaves = jax.tree_util.tree_flatten_with_path(parameters)[0]
    found = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    for path, shape in expected.items():
        leaf = found.get(path)
        got = "nothing" if leaf is None else f"{leaf.dtype} {tuple(leaf.shape)}"
        if got != f"int8 {shape}":
            raise UsageError(
                f"expected leaf {path} of int8 {shape} in the snapshot of {run_dir}, got {got}; "
                "its config.json does not belong to it"
            )


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def generate(
    parameters: Parameters,
    prompt: UInt8[Array, "prompt"],
    seed: Int32[Array, "2"],
    config: Config,
    count: int,
    temperature: int,
) -> UInt8[Array, "count"]:
    """Read the prompt, then write `count` bytes, one from another; temperature in sixteenths, 0 for the likeliest."""

    def read(state: Array, byte: Array) -> tuple[Array, Array]:
        x, state = hidden_forward(parameters, None, config, byte[None, None], state)
        return state, logits_of(parameters, None, config, x)[0, 0, 0]

    def write(carry: tuple[Array, Array], bits: Array) -> tuple[tuple[Array, Array], Array]:
        state, logits = carry
        byte = choose(logits, bits, temperature).astype(jnp.uint8)
        return read(state, byte), byte

    state, logits = lax.scan(read, zero_state(config, 1, 1), prompt)
    key = noise.stream_key(
        seed=seed, leaf=noise.leaf_id("sample"), factor=0, generation=jnp.int32(0), pair=jnp.zeros(1, jnp.int32)
    )
    return lax.scan(write, (state, logits[-1]), noise.element_bits(key, jnp.arange(count, dtype=jnp.int32)))[1]


def choose(logits: Int32[Array, "bytes"], bits: Int32[Array, ""], temperature: int) -> Int32[Array, ""]:
    """The byte at which the running sum of `EXP2` passes `⌊bits · S / 2³²⌋`, computed in 16-bit halves, exactly."""
    if temperature == 0:
        return jnp.argmax(logits).astype(jnp.int32)
    z = 255 - ((jnp.max(logits) - logits) * 16) // temperature
    running = jnp.cumsum(jnp.where(z < 0, 0, exp2(jnp.maximum(z, 0))))
    total, draw = running[-1].astype(jnp.uint32), lax.bitcast_convert_type(bits, jnp.uint32)
    upper = (draw >> 16) * (total & 0xFFFF) + (((draw & 0xFFFF) * (total & 0xFFFF)) >> 16)
    lower = (draw & 0xFFFF) * (total >> 16) + (upper & 0xFFFF)
    level = (draw >> 16) * (total >> 16) + (upper >> 16) + (lower >> 16)
    return jnp.sum((running <= level.astype(jnp.int32)).astype(jnp.int32))
