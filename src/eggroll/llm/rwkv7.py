"""RWKV-7 ("Goose") as plain JAX functions, over a prompt at once or a token at a time.

Parameters are a tree of nested dicts by the names of BlinkDL's files ("blocks.3.att.key.weight" is layer 3 of
`blocks/att/key/weight`), all layers of a leaf stacked along a first axis. Weights of linear layers are (out, in).
Any weight may instead be int8 with a scale for each output channel: a dict {"int8": (…, out, in), "scale": (…, out)};
with a third entry, "inputs": (…) int8, its inputs are rounded too, to as many levels either way.

Source: Peng et al., arXiv 2503.14456.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from eggroll.llm.recurrence import Inputs, sequence
from eggroll.llm.recurrence import step as one_step

Params = dict[str, Any]
DECAY = -0.606531  # −exp(−½), as the published code has it
NORM_EPS, GROUP_EPS = 1e-5, 64e-5
VOCABULARY = 65_536


class Sizes(NamedTuple):
    """Of a model; all from its weights' shapes.

    Attributes:
      layers, width, heads: the head size is width / heads.
      vocabulary: tokens.
      ranks: of the low-rank parts for decay (w), learning rate (a), value residual (v) and gate (g).
      hidden: units of the channel mixing, 4 · width in all published models.
    """

    layers: int
    width: int
    heads: int
    vocabulary: int = VOCABULARY
    ranks: tuple[int, int, int, int] = (64, 64, 32, 128)
    hidden: int = 0

    @property
    def head(self) -> int:
        """Size of a head."""
        return self.width // self.heads


PUBLISHED: dict[str, Sizes] = {
    "0.1B": Sizes(12, 768, 12, ranks=(64, 64, 32, 128)),
    "0.4B": Sizes(24, 1024, 16, ranks=(64, 64, 32, 128)),
    "1.5B": Sizes(24, 2048, 32, ranks=(96, 96, 64, 256)),
    "2.9B": Sizes(32, 2560, 40, ranks=(96, 96, 64, 320)),
    "7.2B": Sizes(32, 4096, 64, ranks=(128, 128, 96, 480)),
    "13.3B": Sizes(61, 4096, 64, ranks=(192, 192, 128, 384)),
}
"""Shapes of the published models. A file's own shapes count; these are for random weights."""


UNROLLED = 8
"""Models of at most so many layers have them written out one after the other, each with a state of its own: decoding
is 1.7 times as fast on a CPU, where stacked states are copied at every step. Deeper ones scan over their layers, whose
program is compiled once."""


class RwkvState(NamedTuple):
    """What a row has read so far: stacked over layers, or a tuple with one of each (see `UNROLLED`).

    Attributes:
      attention, channel: (layers, rows, width), the last input of each half of a block.
      wkv: (layers, rows, heads, head, head) float32.
    """

    attention: Any
    channel: Any
    wkv: Any

    def repeated(self, times: int) -> RwkvState:
        """Each row so many times, one after the other."""
        axis = 0 if isinstance(self.wkv, tuple) else 1
        result: RwkvState = jax.tree.map(lambda leaf: jnp.repeat(leaf, times, axis=axis), self)
        return result


def sizes_of(params: Params) -> Sizes:
    """Read off the weights; of arrays or of anything with a shape."""
    att, ffn = params["blocks"]["att"], params["blocks"]["ffn"]
    layers, heads, head = att["r_k"].shape
    ranks = tuple(att[f"{name}1"].shape[-1] for name in "wavg")
    hidden = _shape(ffn["key"]["weight"])[1]
    return Sizes(layers, heads * head, heads, _shape(params["head"]["weight"])[0], ranks, hidden)


def _shape(weight: Any) -> tuple[int, ...]:
    return tuple(weight["int8"].shape if isinstance(weight, dict) else weight.shape)


def start_state(sizes: Sizes, rows: int, dtype: Any = jnp.float32) -> RwkvState:
    """Of rows that have read nothing."""
    last = jnp.zeros((sizes.layers, rows, sizes.width), dtype)
    wkv = jnp.zeros((sizes.layers, rows, sizes.heads, sizes.head, sizes.head), jnp.float32)
    state = RwkvState(last, last, wkv)
    return RwkvState(*map(tuple, state)) if sizes.layers <= UNROLLED else state


def read(
    params: Params,
    tokens: Int[Array, "rows time"],
    state: RwkvState | None = None,
    mask: Array | None = None,
    *,
    all_logits: bool | int = False,
) -> tuple[Float[Array, "rows *time vocabulary"], RwkvState]:
    """Read a piece of text, all its tokens at once.

    Args:
      tokens: (rows, time) int.
      state: from what was read before; default nothing.
      mask: (rows, time) bool; tokens that are False, at the left end of a row that has read nothing, are not there.
      all_logits: after every token, or after so many of the last; default after the last alone.
    Returns:
      Logits (rows, vocabulary), or (rows, time, vocabulary), float32; and the state.
    """
    sizes = sizes_of(params)
    x = _embedded(params, tokens)
    state = start_state(sizes, tokens.shape[0], x.dtype) if state is None else state
    x, state = _blocks(params, sizes, x, state, None if mask is None else mask[..., None])
    if all_logits is False:
        return _logits(params, x[:, -1]), state
    return _logits(params, x if all_logits is True else x[:, -all_logits:]), state


def read_one(params: Params, tokens: Int[Array, " rows"], state: RwkvState) -> tuple[Array, RwkvState]:
    """Read one token in each row.

    Returns:
      Logits (rows, vocabulary) float32, and the state.
    """
    x, state = _blocks(params, sizes_of(params), _embedded(params, tokens[:, None]), state, None)
    return _logits(params, x[:, 0]), state


def _blocks(params: Params, sizes: Sizes, x: Array, state: RwkvState, there: Any) -> tuple[Array, RwkvState]:
    """All layers over (rows, time, width)."""

    def block(x: Array, first_value: Array, p: Params, own: Any, is_first: Any) -> tuple[Array, Array, Any]:
        attention, channel, wkv = own
        normed = _masked(layer_norm(x, p["ln1"]), there)
        mixed, wkv, first_value = _attention(p["att"], sizes, normed, attention, wkv, first_value, is_first, there)
        x = x + mixed
        second = _masked(layer_norm(x, p["ln2"]), there)
        x = x + _channel(p["ffn"], second, channel)
        return x, first_value, (normed[:, -1], second[:, -1], wkv)

    first_value = jnp.zeros_like(x)
    if isinstance(state.wkv, tuple):
        new = []
        for layer, own in enumerate(zip(*state, strict=True)):
            p = jax.tree.map(lambda leaf, layer=layer: leaf[layer], params["blocks"])
            x, first_value, after = block(x, first_value, p, own, layer == 0)
            new.append(after)
        return x, RwkvState(*(tuple(leaves) for leaves in zip(*new, strict=True)))

    def scanned(carry: tuple[Array, Array], layer: Any) -> Any:
        x, first_value, after = block(*carry, *layer)
        return (x, first_value), after

    layers = (params["blocks"], tuple(state), jnp.arange(sizes.layers) == 0)
    (x, _), after = lax.scan(scanned, (x, first_value), layers)
    return x, RwkvState(*after)


def _masked(x: Array, there: Any) -> Array:
    return x if there is None else jnp.where(there, x, 0)


def _attention(
    p: Params, sizes: Sizes, x: Array, last: Array, wkv: Array, first_value: Array, is_first: Any, there: Any
) -> tuple[Array, Array, Array]:
    """Time mixing of (rows, time, width): mixed, new state, the first layer's values."""
    over = _shifted(x, last) - x
    r, w, k, v, a, g = (x + over * p[f"x_{name}"] for name in "rwkvag")
    low = lambda name, h: (h @ p[f"{name}1"]) @ p[f"{name}2"]
    r, k, v_own = linear(r, p["receptance"]["weight"]), linear(k, p["key"]["weight"]), linear(v, p["value"]["weight"])
    decay = jnp.tanh(w @ p["w1"]) @ p["w2"]
    rate = jax.nn.sigmoid(p["a0"] + low("a", a))
    gate = jax.nn.sigmoid(g @ p["g1"]) @ p["g2"]
    first_value = jnp.where(is_first, v_own, first_value)
    v_own = v_own + (first_value - v_own) * jax.nn.sigmoid(p["v0"] + low("v", v))
    heads = lambda t: t.reshape(*t.shape[:-1], sizes.heads, sizes.head)
    unit = _unit(heads(k * p["k_k"]))
    k = k * (1 + (rate - 1) * p["k_a"])
    log_w = DECAY * jax.nn.sigmoid((p["w0"] + decay).astype(jnp.float32))
    parts = (heads(r), heads(log_w), heads(k), heads(v_own), -unit, unit * heads(rate))
    inputs = Inputs(*(part.astype(jnp.float32) for part in parts))
    if there is not None:
        inputs = Inputs(*(jnp.where(there[..., None], t, 0) for t in inputs))
    wkv, y = _recur(wkv, inputs)
    y = _group_norm(y.astype(x.dtype), p["ln_x"])
    bonus = (heads(r) * heads(k) * p["r_k"]).sum(-1, keepdims=True) * heads(v_own)
    return linear((y + bonus.reshape(y.shape)) * gate, p["output"]["weight"]), wkv, first_value


def _recur(wkv: Array, x: Inputs) -> tuple[Array, Array]:
    """One step of its own, many by `sequence`."""
    if x.r.shape[1] > 1:
        return sequence(wkv, x)
    wkv, y = one_step(wkv, Inputs(*(leaf[:, 0] for leaf in x)))
    return wkv, y[:, None]


def _channel(p: Params, x: Array, last: Array) -> Array:
    """Channel mixing."""
    k = x + (_shifted(x, last) - x) * p["x_k"]
    return linear(jnp.square(jax.nn.relu(linear(k, p["key"]["weight"]))), p["value"]["weight"])


def _shifted(x: Array, last: Array) -> Array:
    """The input before each."""
    return jnp.concatenate([last[:, None].astype(x.dtype), x[:, :-1]], axis=1)


def _unit(x: Array) -> Array:
    """Divided by its length, as torch's `normalize` does it; 0 stays 0, with a gradient of 0."""
    return x * lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), -1, keepdims=True), 1e-24))


def layer_norm(x: Array, p: Params, eps: float = NORM_EPS) -> Array:
    """Over the last axis, in float32."""
    wide = x.astype(jnp.float32)
    normed = (wide - wide.mean(-1, keepdims=True)) * lax.rsqrt(wide.var(-1, keepdims=True) + eps)
    return (normed * p["weight"] + p["bias"]).astype(x.dtype)


def _group_norm(y: Array, p: Params) -> Array:
    """(rows, time, heads, head) → (rows, time, width), each head a group."""
    wide = y.astype(jnp.float32)
    normed = (wide - wide.mean(-1, keepdims=True)) * lax.rsqrt(wide.var(-1, keepdims=True) + GROUP_EPS)
    flat = normed.reshape(*y.shape[:-2], -1)
    return (flat * p["weight"] + p["bias"]).astype(y.dtype)


def linear(x: Array, weight: Any) -> Array:
    """`x · weightᵀ`; of an int8 weight with one scale for each output, of whole numbers if it says so."""
    if not isinstance(weight, dict):
        return x @ weight.T
    if "inputs" in weight:
        return _of_integers(x, weight)
    product = jnp.matmul(x, weight["int8"].T.astype(x.dtype), preferred_element_type=jnp.float32)
    return (product * weight["scale"]).astype(x.dtype)


def _of_integers(x: Array, weight: dict[str, Any]) -> Array:
    """`x` rounded to ±`inputs` levels of each token's absmax, times the int8 weight.

    A product of integers: int8 × int8 → int32 on accelerators; on a CPU, where that is slow, the same in float32, which
    holds every sum of at most 1,040 products, and longer ones as long as they stay below 2²⁴.
    """
    wide = x.astype(jnp.float32)
    step = jnp.maximum(jnp.abs(wide).max(-1, keepdims=True), 1e-30) / weight["inputs"].astype(jnp.float32)
    whole, matrix = jnp.rint(wide / step), weight["int8"].T
    if jax.default_backend() == "cpu":
        product = jnp.matmul(whole, matrix.astype(jnp.float32), precision="highest")
    else:
        product = jnp.matmul(whole.astype(jnp.int8), matrix, preferred_element_type=jnp.int32).astype(jnp.float32)
    return (product * step * weight["scale"]).astype(x.dtype)


def _embedded(params: Params, tokens: Array) -> Array:
    """Rows of the embedding, with the norm that published code folds into it."""
    weight = jax.tree.map(jnp.asarray, params["emb"]["weight"])
    if isinstance(weight, dict):
        x = weight["int8"][tokens] * weight["scale"][tokens][..., None]
        return layer_norm(x.astype(params["ln0"]["weight"].dtype), params["ln0"])
    return layer_norm(weight[tokens], params["ln0"])


def _logits(params: Params, x: Array) -> Array:
    return linear(layer_norm(x, params["ln_out"]), params["head"]["weight"]).astype(jnp.float32)


def random_params(sizes: Sizes, key: Any, dtype: Any = jnp.float32) -> Params:
    """Start weights for training from nothing, in the spirit of the published ones: blocks that begin as small changes
    of their input, decays spread over the channels, a small head.

    Args:
      sizes: hidden 0 is 4 · width.
      key: typed random key.
      dtype: of all leaves.
    """
    width, layers = sizes.width, sizes.layers
    hidden, head = sizes.hidden or 4 * width, sizes.head
    keys = iter(jax.random.split(key, 32))
    spread = lambda *shape, scale: jax.random.uniform(next(keys), shape, minval=-1, maxval=1) * scale
    ramp = jnp.linspace(0, 1, width)
    depth = jnp.linspace(0, 1, layers)[:, None] if layers > 1 else jnp.zeros((1, 1))
    shift = lambda power: 1 - ramp ** (power * (1 - depth) + 0.02)
    low = lambda rank, scale: (jnp.zeros((layers, width, rank)), spread(layers, rank, width, scale=scale))
    (w1, w2), (a1, a2), (v1, v2), (g1, g2) = (low(rank, 0.3 / rank**0.5) for rank in sizes.ranks)
    g1 = spread(layers, width, sizes.ranks[3], scale=width**-0.5)
    matrix = lambda out, into, scale: spread(layers, out, into, scale=scale * into**-0.5)
    ones, zeros = jnp.ones((layers, width)), jnp.zeros((layers, width))
    norm = lambda: {"weight": ones, "bias": zeros}
    att = {
        "x_r": shift(0.2), "x_w": shift(0.9), "x_k": shift(0.7), "x_v": shift(0.7), "x_a": shift(0.9),
        "x_g": shift(0.2),
        "w0": jnp.broadcast_to(-6 + 6 * ramp**1.1 + 0.5, (layers, width)), "w1": w1, "w2": w2,
        "a0": zeros, "a1": a1, "a2": a2, "v0": ones * 0.7, "v1": v1, "v2": v2, "g1": g1, "g2": g2,
        "k_k": ones * 0.85, "k_a": ones, "r_k": jnp.zeros((layers, sizes.heads, head)),
        "receptance": {"weight": matrix(width, width, 0.5)}, "key": {"weight": matrix(width, width, 0.5)},
        "value": {"weight": matrix(width, width, 0.5)}, "output": {"weight": matrix(width, width, 0.5)},
        "ln_x": norm(),
    }  # fmt: skip
    ffn = {
        "x_k": shift(2.0),
        "key": {"weight": matrix(hidden, width, 1.0)},
        "value": {"weight": matrix(width, hidden, 0.5)},
    }
    single = lambda: {"weight": jnp.ones(width), "bias": jnp.zeros(width)}
    vocabulary = sizes.vocabulary
    params = {
        "emb": {"weight": spread(vocabulary, width, scale=0.1)},
        "ln0": single(),
        "blocks": {"ln1": norm(), "ln2": norm(), "att": att, "ffn": ffn},
        "ln_out": single(),
        "head": {"weight": spread(vocabulary, width, scale=0.5 * width**-0.5)},
    }
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)
