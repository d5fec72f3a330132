"""Small models as their frameworks write them, none of which knows that its parameters are perturbed.

A builder makes the parameters, a function of them and the distribution that says how leaves of three and more
axes are matrices. Parameters are float32; whoever wants another dtype casts them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

IMAGE, WIDTH = (2, 5, 5, 4), 8
TOKENS = jnp.array([[0, 3, 6, 1], [2, 2, 5, 4]])


@dataclass(frozen=True)
class Model:
    """What a test needs to know of a model.

    Attributes:
      params: float32 parameters, or any pytree of arrays.
      apply: `apply(params, x)`, of one member; the output's dtype follows that of the parameters and of x.
      x: the input, float32 or integers.
      stacked, split: as of `eggroll.LowRank`.
      reference: `apply` in float32 where it computes in less by itself.
    """

    params: Any
    apply: Callable[[Any, Any], Any]
    x: jax.Array
    stacked: Mapping[str, int] = field(default_factory=dict)
    split: Mapping[str, int] = field(default_factory=dict)
    reference: Callable[[Any, Any], Any] | None = None


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


ROWS = normal(1, 3, WIDTH)
SEQUENCE = normal(2, 2, 4, WIDTH)
PICTURE = normal(3, *IMAGE)
KEY = jax.random.key(0)
# Flax keeps heads apart: (in, head, size) into them, (head, size, out) out of them; a bias (head, size) is no matrix.
HEADS = {"*query/kernel*": 1, "*key/kernel*": 1, "*value/kernel*": 1, "*out/kernel*": 2, "*bias*": 0}


# ── plain functions ──


def plain_mlp() -> Model:
    params = {"first": normal(10, WIDTH, 6), "bias": normal(11, 6), "second": normal(12, 5, 6)}

    def apply(p: Any, x: Any) -> Any:
        return jnp.tanh(x @ p["first"] + p["bias"][None]) @ p["second"].T

    return Model(params, apply, ROWS)


def plain_mixed_precision() -> Model:
    def apply_in(dtype: Any) -> Callable[[Any, Any], Any]:
        def apply(p: Any, x: Any) -> Any:
            hidden = jax.nn.gelu(x.astype(dtype) @ p["first"].astype(dtype))
            return (hidden @ p["second"].T.astype(dtype)).astype(jnp.float32)

        return apply

    params = {"first": normal(10, WIDTH, 6), "second": normal(12, 5, 6)}
    return Model(params, apply_in(jnp.bfloat16), ROWS, reference=apply_in(jnp.float32))


@jax.custom_jvp
def jvp_layer(x: Any, w: Any) -> Any:
    return jnp.tanh(x @ w)


jvp_layer.defjvp(lambda primals, tangents: (jvp_layer(*primals), tangents[0]))


@jax.custom_vjp
def vjp_layer(x: Any, w: Any) -> Any:
    return jnp.tanh(x @ w.T)


vjp_layer.defvjp(lambda x, w: (vjp_layer(x, w), None), lambda _, g: (g, g))


def plain_custom_rules() -> Model:
    """custom_jvp, custom_vjp and jax.checkpoint, one in the other."""

    def apply(p: Any, x: Any) -> Any:
        return jax.checkpoint(lambda p, x: vjp_layer(jvp_layer(x, p["first"]), p["second"]))(p, x)

    return Model({"first": normal(10, WIDTH, 6), "second": normal(12, 5, 6)}, apply, ROWS)


def plain_ensemble() -> Model:
    one = plain_mlp()
    params = {"first": normal(10, 3, WIDTH, 6), "bias": normal(11, 3, 6), "second": normal(12, 3, 5, 6)}
    return Model(params, jax.vmap(one.apply, in_axes=(0, None)), ROWS, stacked={"*": 1})


# ── Flax Linen ──


def linen(module: nn.Module, x: Any, **kwargs: Any) -> Model:
    return Model(jax.jit(module.init)(KEY, x), module.apply, x, **kwargs)


def linen_mlp() -> Model:
    return linen(nn.Sequential([nn.Dense(6), nn.gelu, nn.LayerNorm(), nn.Dense(5)]), ROWS)


def linen_mixed_precision() -> Model:
    def module(dtype: Any) -> nn.Module:
        wide = {"dtype": dtype, "param_dtype": jnp.float32}
        return nn.Sequential([nn.Dense(6, **wide), nn.gelu, nn.LayerNorm(**wide), nn.Dense(5, **wide)])

    return linen(module(jnp.bfloat16), ROWS, reference=module(jnp.float32).apply)


def linen_cnn() -> Model:
    layers = [
        nn.Conv(6, (3, 3)), nn.relu, nn.Conv(6, (3, 3), feature_group_count=2, strides=2), nn.GroupNorm(2),
        nn.ConvTranspose(4, (2, 2)), nn.ConvTranspose(4, (2, 2), transpose_kernel=True),
        lambda h: nn.avg_pool(h, (2, 2)).reshape(h.shape[0], -1), nn.Dense(5),
    ]  # fmt: skip
    return linen(nn.Sequential(layers), PICTURE, split={"*layers_[0245]/kernel": 3})


class Block(nn.Module):
    """A pre-norm Transformer block; the second argument and result are there for `nn.scan`."""

    @nn.compact
    def __call__(self, h: Any, _: Any = None) -> Any:
        mask = nn.make_causal_mask(h[..., 0])
        h = h + nn.MultiHeadDotProductAttention(num_heads=2)(nn.LayerNorm()(h), mask=mask)
        return h + nn.Dense(WIDTH)(nn.gelu(nn.Dense(6)(nn.LayerNorm()(h)))), None


class Transformer(nn.Module):
    """Token and position embeddings, blocks scanned with remat, and the token embedding as head."""

    layers: int = 0

    @nn.compact
    def __call__(self, tokens: Any) -> Any:
        embed, positions = nn.Embed(7, WIDTH), nn.Embed(4, WIDTH, name="positions")
        h = embed(tokens) + positions(jnp.arange(tokens.shape[-1]))[None]
        if self.layers:
            own = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
            h, _ = nn.scan(nn.remat(Block), length=self.layers, **own)()(h, None)
        else:
            h, _ = Block()(h)
        return embed.attend(nn.LayerNorm()(h))


def linen_transformer() -> Model:
    return linen(Transformer(), TOKENS, split=HEADS)


def linen_scanned_transformer() -> Model:
    return linen(Transformer(layers=2), TOKENS, stacked={"*Block*": 1}, split=HEADS)


def linen_lstm() -> Model:
    return linen(nn.RNN(nn.LSTMCell(6)), SEQUENCE)


def linen_optimized_lstm() -> Model:
    return linen(nn.RNN(nn.OptimizedLSTMCell(6)), SEQUENCE)


def linen_gru() -> Model:
    return linen(nn.Bidirectional(nn.RNN(nn.GRUCell(6)), nn.RNN(nn.GRUCell(6))), SEQUENCE)


def linen_ensemble() -> Model:
    """Convolutions too: under vmap their kernels are merged into one of many groups."""
    own = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}, "axis_size": 3, "out_axes": 0}

    class Ensemble(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            h = nn.vmap(nn.Conv, in_axes=None, **own)(5, (2, 2))(x)
            return nn.vmap(nn.Conv, in_axes=0, **own)(4, (2, 2))(jnp.tanh(h)).mean((2, 3))

    return linen(Ensemble(), PICTURE, stacked={"*": 1}, split={"*kernel": 3, "*bias": 0})


# ── Flax NNX ──


def nnx_model(module: Any, x: Any, **kwargs: Any) -> Model:
    graph, params, rest = nnx.split(module, nnx.Param, ...)
    return Model(params, lambda p, x: nnx.merge(graph, p, rest, copy=True)(x), x, **kwargs)


def nnx_mlp() -> Model:
    rngs = nnx.Rngs(0)
    layers = [nnx.Linear(WIDTH, 6, rngs=rngs), nnx.gelu, nnx.LayerNorm(6, rngs=rngs), nnx.Linear(6, 5, rngs=rngs)]
    return nnx_model(nnx.Sequential(*layers), ROWS)


def nnx_mixed_precision() -> Model:
    def module(dtype: Any) -> Any:
        wide = {"dtype": dtype, "param_dtype": jnp.float32, "rngs": nnx.Rngs(0)}
        return nnx.Sequential(nnx.Linear(WIDTH, 6, **wide), nnx.gelu, nnx.Linear(6, 5, **wide))

    return nnx_model(module(jnp.bfloat16), ROWS, reference=nnx_model(module(jnp.float32), ROWS).apply)


def nnx_cnn() -> Model:
    rngs = nnx.Rngs(0)
    layers = nnx.Sequential(
        nnx.Conv(4, 6, (3, 3), rngs=rngs), nnx.relu, nnx.Conv(6, 6, (3, 3), feature_group_count=6, rngs=rngs),
        lambda h: nnx.max_pool(h, (2, 2)).reshape(h.shape[0], -1), nnx.Linear(96, 5, rngs=rngs),
    )  # fmt: skip
    return nnx_model(layers, PICTURE, split={"layers/0/kernel*": 3, "layers/2/kernel*": 3})


class NnxTransformer(nnx.Module):
    def __init__(self, rngs: Any) -> None:
        self.embed = nnx.Embed(7, WIDTH, rngs=rngs)
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, WIDTH, decode=False, rngs=rngs)
        self.dense = nnx.Linear(WIDTH, WIDTH, rngs=rngs)

    def __call__(self, tokens: Any) -> Any:
        h = self.embed(tokens)
        h = h + self.attention(self.norm(h))
        return self.embed.attend(h + nnx.gelu(self.dense(h)))


def nnx_transformer() -> Model:
    return nnx_model(NnxTransformer(nnx.Rngs(0)), TOKENS, split=HEADS)


def nnx_lstm() -> Model:
    return nnx_model(nnx.RNN(nnx.LSTMCell(WIDTH, 6, rngs=nnx.Rngs(0))), SEQUENCE)


def nnx_gru() -> Model:
    return nnx_model(nnx.RNN(nnx.GRUCell(WIDTH, 6, rngs=nnx.Rngs(0))), SEQUENCE)


class NnxStack(nnx.Module):
    """Layers made by `nnx.vmap` and run by `nnx.scan`, each under `nnx.remat`."""

    def __init__(self, rngs: Any) -> None:
        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def make(rngs: Any) -> Any:
            return nnx.Linear(WIDTH, WIDTH, rngs=rngs)

        self.layers = make(rngs)

    def __call__(self, x: Any) -> Any:
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        @nnx.remat
        def forward(h: Any, layer: Any) -> Any:
            return h + nnx.tanh(layer(h))

        return forward(x, self.layers)


def nnx_scanned_layers() -> Model:
    return nnx_model(NnxStack(nnx.Rngs(0)), ROWS, stacked={"*": 1})


def nnx_ensemble() -> Model:
    @nnx.split_rngs(splits=3)
    @nnx.vmap(in_axes=(0,), out_axes=0)
    def make(rngs: Any) -> Any:
        return nnx.Linear(WIDTH, 5, rngs=rngs)

    graph, params = nnx.split(make(nnx.Rngs(0)))
    run = nnx.vmap(lambda layer, x: layer(x), in_axes=(0, None))
    return Model(params, lambda p, x: run(nnx.merge(graph, p), x), ROWS, stacked={"*": 1})


# ── Equinox ──


def equinox(module: Any, call: Callable[[Any, Any], Any], x: Any, **kwargs: Any) -> Model:
    params, static = eqx.partition(module, eqx.is_inexact_array)
    return Model(params, lambda p, x: call(eqx.combine(p, static), x), x, **kwargs)


def equinox_mlp() -> Model:
    return equinox(eqx.nn.MLP(WIDTH, 5, 6, 2, key=KEY), lambda m, x: jax.vmap(m)(x), ROWS)


def equinox_cnn() -> Model:
    keys = jax.random.split(KEY, 3)
    module = eqx.nn.Sequential([
        eqx.nn.Conv2d(4, 6, 3, key=keys[0]), eqx.nn.Lambda(jax.nn.relu),
        eqx.nn.Conv2d(6, 6, 3, padding=1, groups=2, key=keys[1]), eqx.nn.GroupNorm(2, 6),
        eqx.nn.ConvTranspose2d(6, 4, 2, key=keys[2]), eqx.nn.AvgPool2d(2),
    ])  # fmt: skip
    split = {f"layers/{k}/weight": 1 for k in (0, 2, 4)} | {"*bias": 0}
    return equinox(module, lambda m, x: jax.vmap(m)(x.transpose(0, 3, 1, 2)), PICTURE, split=split)


def equinox_attention() -> Model:
    module = eqx.nn.MultiheadAttention(2, WIDTH, key=KEY)
    return equinox(module, lambda m, x: jax.vmap(lambda s: m(s, s, s))(x), SEQUENCE)


def unroll(cell: Any, start: Any, x: Any) -> Any:
    """The last state of a recurrent cell over (batch, time, width)."""
    return jax.vmap(lambda steps: lax.scan(lambda s, v: (cell(v, s), None), start(steps.dtype), steps)[0])(x)


def equinox_gru() -> Model:
    cell = eqx.nn.GRUCell(WIDTH, 6, key=KEY)
    return equinox(cell, lambda m, x: unroll(m, lambda dtype: jnp.zeros(6, dtype), x), SEQUENCE)


def equinox_lstm() -> Model:
    cell = eqx.nn.LSTMCell(WIDTH, 6, key=KEY)
    return equinox(cell, lambda m, x: unroll(m, lambda dtype: (jnp.zeros(6, dtype),) * 2, x), SEQUENCE)


def equinox_embedding() -> Model:
    module = eqx.nn.Shared(
        eqx.nn.Sequential([eqx.nn.Embedding(7, WIDTH, key=KEY), eqx.nn.Linear(WIDTH, 7, use_bias=False, key=KEY)]),
        lambda m: m[1].weight, lambda m: m[0].weight,
    )  # fmt: skip
    return equinox(module, lambda m, x: jax.vmap(jax.vmap(m()))(x), TOKENS)


def equinox_ensemble() -> Model:
    module = eqx.filter_vmap(lambda key: eqx.nn.MLP(WIDTH, 5, 6, 1, key=key))(jax.random.split(KEY, 3))

    def call(m: Any, x: Any) -> Any:
        return eqx.filter_vmap(lambda one, x: jax.vmap(one)(x), in_axes=(eqx.if_array(0), None))(m, x)

    return equinox(module, call, ROWS, stacked={"*": 1})


def equinox_scanned_layers() -> Model:
    module = eqx.filter_vmap(lambda key: eqx.nn.Linear(WIDTH, WIDTH, key=key))(jax.random.split(KEY, 3))

    def call(m: Any, x: Any) -> Any:
        arrays, static = eqx.partition(m, eqx.is_array)

        @eqx.filter_checkpoint
        def layer(h: Any, own: Any) -> Any:
            return h + jnp.tanh(jax.vmap(eqx.combine(own, static))(h))

        return lax.scan(lambda h, own: (layer(h, own), None), x, arrays)[0]

    return equinox(module, call, ROWS, stacked={"*": 1})


# ── Haiku ──


def haiku(function: Callable[[Any], Any], x: Any, **kwargs: Any) -> Model:
    transformed = hk.without_apply_rng(hk.transform(function))
    return Model(jax.jit(transformed.init)(KEY, x), transformed.apply, x, **kwargs)


def haiku_mlp() -> Model:
    return haiku(lambda x: hk.nets.MLP([6, 5])(x), ROWS)


def haiku_cnn() -> Model:
    def function(x: Any) -> Any:
        h = jax.nn.relu(hk.Conv2D(6, 3)(x))
        h = hk.Conv2DTranspose(4, 2)(hk.Conv2D(6, 3, feature_group_count=2)(h))
        return hk.Linear(5)(hk.Flatten()(hk.DepthwiseConv2D(2, 3)(h)))

    return haiku(function, PICTURE, split={"*conv2*/w": 3})


def haiku_lstm() -> Model:
    def function(x: Any) -> Any:
        core = hk.LSTM(6)
        start = jax.tree.map(lambda s: s.astype(x.dtype), core.initial_state(2))
        return hk.dynamic_unroll(core, x, start, time_major=False)[0]

    return haiku(function, SEQUENCE)


def haiku_gru() -> Model:
    def function(x: Any) -> Any:
        core = hk.GRU(6)
        return hk.dynamic_unroll(core, x, core.initial_state(2).astype(x.dtype), time_major=False)[0]

    return haiku(function, SEQUENCE)


def haiku_transformer() -> Model:
    def function(tokens: Any) -> Any:
        embed = hk.Embed(7, WIDTH)
        h = embed(tokens)
        norm = hk.LayerNorm(-1, True, True)(h)
        h = h + hk.MultiHeadAttention(2, 4, w_init=hk.initializers.VarianceScaling())(norm, norm, norm)
        return h @ embed.embeddings.T

    return haiku(function, TOKENS)


def haiku_ensemble() -> Model:
    net = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([6, 5])(x)))
    params = jax.vmap(net.init, in_axes=(0, None))(jax.random.split(KEY, 3), ROWS)
    return Model(params, jax.vmap(net.apply, in_axes=(0, None)), ROWS, stacked={"*": 1})


def haiku_layer_stack() -> Model:
    def function(x: Any) -> Any:
        return hk.experimental.layer_stack(3)(lambda h: h + hk.remat(lambda h: jnp.tanh(hk.Linear(WIDTH)(h)))(h))(x)

    return haiku(function, ROWS, stacked={"*": 1})


MODELS: dict[str, Callable[[], Model]] = {
    make.__name__: functools.cache(make)
    for make in (
        plain_mlp,
        plain_mixed_precision,
        plain_custom_rules,
        plain_ensemble,
        linen_mlp,
        linen_mixed_precision,
        linen_cnn,
        linen_transformer,
        linen_scanned_transformer,
        linen_lstm,
        linen_optimized_lstm,
        linen_gru,
        linen_ensemble,
        nnx_mlp,
        nnx_mixed_precision,
        nnx_cnn,
        nnx_transformer,
        nnx_lstm,
        nnx_gru,
        nnx_scanned_layers,
        nnx_ensemble,
        equinox_mlp,
        equinox_cnn,
        equinox_attention,
        equinox_gru,
        equinox_lstm,
        equinox_embedding,
        equinox_ensemble,
        equinox_scanned_layers,
        haiku_mlp,
        haiku_cnn,
        haiku_lstm,
        haiku_gru,
        haiku_transformer,
        haiku_ensemble,
        haiku_layer_stack,
    )
}
