"""A float baseline for `eggroll pretrain`: a small byte-level Transformer, trained by backpropagation.

The same documents and the same held-out split as the integer model gets (`eggroll.pretrain.corpus`), SGD and
Adam side by side, as in Figure 2b of arXiv 2511.16652: decoder only, LayerNorm before each block, learned
positions, float32. Writes result.json and curve.png, prints one closing line of JSON.

    python examples/backprop_transformer.py --seconds 60
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from eggroll.pretrain.corpus import Corpus, CorpusError, load_corpus
from eggroll.pretrain.entropy import reference_entropies

Params = dict[str, Any]
HEAD_WIDTH = 32


@dataclass(frozen=True)
class Point:
    """One moment of a run: seconds of training (no compiling, no validating), bytes read, bits per byte."""

    seconds: float
    bytes_seen: int
    bits_per_byte: float


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Byte-level Transformer by backpropagation.")
    add = parser.add_argument
    add("--data", nargs="+", help="files, folders, globs or hf:NAME (default: Python's standard library)")
    add("--width", type=int, default=128, help=f"units, a multiple of {HEAD_WIDTH}")
    add("--layers", type=int, default=2, help="blocks")
    add("--context", type=int, default=64, help="bytes of a window")
    add("--batch", type=int, default=16, help="windows of a step")
    add("--seconds", type=float, default=60.0, help="training time of each optimiser, seconds")
    add("--validation-bytes", type=int, default=262_144, help="most bytes held out, as in eggroll pretrain")
    add("--validate-every", type=float, default=20.0, help="training seconds between validations")
    # Tried, 20 s: SGD 1.0 diverges, 0.3 4.16, 0.1 4.32; Adam 1e-3 4.00 (+60 % bytes), 3e-3 4.01, 1e-2 4.08.
    add("--sgd-rate", type=float, default=0.3, help="learning rate of SGD")
    add("--adam-rate", type=float, default=3e-3, help="learning rate of Adam")
    add("--seed", type=int, default=0, help="of weights and windows")
    add("--out", type=Path, help="folder for the results (default: a fresh one in runs/)")
    flags = parser.parse_args(arguments)
    if flags.width % HEAD_WIDTH:
        parser.error(f"expected a multiple of {HEAD_WIDTH}, got {flags.width}; change --width")
    return flags


def initial_params(key: jax.Array, width: int, layers: int, context: int) -> Params:
    """Normal weights of variance 1/inputs, (inputs, outputs) float32; layers that end a block begin at 0."""

    keys = iter(jax.random.split(key, 3 + 2 * layers))

    def weight(inputs: int, outputs: int) -> jax.Array:
        return jax.random.normal(next(keys), (inputs, outputs)) / jnp.sqrt(inputs)

    blocks = [
        {
            "norms": jnp.ones((2, 1, width)),
            "attend": weight(width, 3 * width),
            "attended": jnp.zeros((width, width)),
            "widen": weight(width, 4 * width),
            "narrow": jnp.zeros((4 * width, width)),
        }
        for _ in range(layers)
    ]
    ends = {"bytes": weight(256, width) * 16, "positions": weight(context, width)}
    return {**ends, "blocks": blocks, "norm": jnp.ones((1, width)), "head": weight(width, 256) * 0.1}


def logits(params: Params, text: jax.Array) -> jax.Array:
    """Scores of the next byte at each place; (context,) int32 → (context, 256) float32."""
    x = params["bytes"][text] + params["positions"]
    for block in params["blocks"]:
        mixed = (jax.nn.standardize(x) * block["norms"][0]) @ block["attend"]
        query, key, value = jnp.moveaxis(mixed.reshape(len(text), 3, -1, HEAD_WIDTH), 1, 0)
        attended = jax.nn.dot_product_attention(query, key, value, is_causal=True)
        x = x + attended.reshape(x.shape) @ block["attended"]
        x = x + jax.nn.gelu((jax.nn.standardize(x) * block["norms"][1]) @ block["widen"]) @ block["narrow"]
    return (jax.nn.standardize(x) * params["norm"]) @ params["head"]


def bits(params: Params, windows: jax.Array) -> jax.Array:
    """Bits of every target; (batch, context + 1) bytes → (batch, context) float32."""
    text = windows.astype(jnp.int32)
    scores = jax.vmap(logits, (None, 0))(params, text[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(scores, text[:, 1:]) / jnp.log(2.0)


def training_windows(stream: np.ndarray, context: int, batch: int, seed: int) -> Iterator[np.ndarray]:
    """Windows at random places, (batch, context + 1) uint8, without end."""
    random = np.random.default_rng(seed)
    while True:
        starts = random.integers(0, len(stream) - context, (batch, 1))
        yield np.asarray(stream[starts + np.arange(context + 1)])


def held_out_windows(stream: np.ndarray, context: int, batch: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Batches that predict each byte after the first exactly once: windows, and which targets count."""
    rows = -(-(len(stream) - 1) // (context * batch)) * batch
    padded = np.zeros(rows * context + 1, np.uint8)
    padded[: len(stream)] = stream
    windows = np.lib.stride_tricks.sliding_window_view(padded, context + 1)[::context]
    counts = (np.arange(1, rows * context + 1) < len(stream)).reshape(rows, context)
    return [(windows[i : i + batch], counts[i : i + batch]) for i in range(0, rows, batch)]


def train(name: str, optimiser: Any, corpus: Corpus, flags: argparse.Namespace) -> list[Point]:
    """Train for `flags.seconds`; validation bits per byte at the start, now and then, and at the end."""

    @jax.jit
    def step(params: Params, state: Any, windows: jax.Array) -> tuple[Params, Any]:
        gradient = jax.grad(lambda params: bits(params, windows).mean())(params)
        updates, state = optimiser.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    held_out = held_out_windows(corpus.validation, flags.context, flags.batch)
    cost = jax.jit(lambda params, windows, counts: jnp.where(counts, bits(params, windows), 0).sum())

    def validate(seconds: float, steps: int) -> Point:
        total = sum(float(cost(params, windows, counts)) for windows, counts in held_out)
        point = Point(round(seconds, 3), steps * flags.batch * flags.context, total / (len(corpus.validation) - 1))
        print(name, point, file=sys.stderr)
        return point

    initialise = jax.jit(initial_params, static_argnums=(1, 2, 3))
    params = initialise(jax.random.key(flags.seed), flags.width, flags.layers, flags.context)
    state = optimiser.init(params)
    batches = training_windows(corpus.train, flags.context, flags.batch, flags.seed)
    jax.block_until_ready(step(params, state, next(batches)))  # compile
    points, seconds, steps = [validate(0.0, 0)], 0.0, 0
    while seconds < flags.seconds:
        start = time.perf_counter()
        params, state = jax.block_until_ready(step(params, state, next(batches)))
        seconds, steps = seconds + time.perf_counter() - start, steps + 1
        if seconds >= min(points[-1].seconds + flags.validate_every, flags.seconds):
            points.append(validate(seconds, steps))
    return points


def draw(curves: dict[str, list[Point]], references: dict[str, float], path: Path) -> None:
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, field in zip(figure.subplots(1, 2, sharey=True), ("seconds", "bytes_seen"), strict=True):
        for name, points in curves.items():
            places = [(getattr(point, field), point.bits_per_byte) for point in points]
            axes.plot(*zip(*places, strict=True), "o-", label=name)
        for index, (name, value) in enumerate(references.items()):
            axes.axhline(value, color="gray", linestyle=("--", "-.", ":")[index], label=name)
        axes.set(xlabel=field.replace("_", " "), ylabel="validation bits per byte")
    axes.legend()
    figure.savefig(path, dpi=120)


def main(arguments: list[str]) -> int:
    flags = parse(arguments)
    try:
        corpus = load_corpus(flags.data, validation_bytes=flags.validation_bytes)
        if len(corpus.train) <= flags.context:
            raise CorpusError(f"more than {flags.context} bytes", str(len(corpus.train)), "change --context")
    except CorpusError as error:
        print(error, file=sys.stderr)
        return 2
    out = flags.out or Path("runs", time.strftime("backprop-transformer-%Y%m%d-%H%M%S"))
    out.mkdir(parents=True, exist_ok=True)
    optimisers = {"sgd": optax.sgd(flags.sgd_rate), "adam": optax.adam(flags.adam_rate)}
    curves = {name: train(name, optimiser, corpus, flags) for name, optimiser in optimisers.items()}
    references = asdict(reference_entropies(corpus.validation))
    result = {
        "settings": {name: str(v) if isinstance(v, Path) else v for name, v in vars(flags).items()},
        "corpus": {"name": corpus.name, "sha256": corpus.sha256, "held_out": corpus.held_out},
        "references": references,
        "curves": {name: [asdict(point) for point in points] for name, points in curves.items()},
    }
    (out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    draw(curves, references, out / "curve.png")
    print(json.dumps({**{name: asdict(c[-1]) for name, c in curves.items()}, **references, "out": str(out)}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
