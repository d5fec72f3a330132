"""The tangent-kernel picture: a network family that grows in width, its outputs' ES updates against their gradients.

`f(x) = v·tanh(W·h/√w)/√w` with `h = tanh(U·x/√p)`, all weights standard normal (the tangent-kernel parametrisation), so
that ∇f has a norm of order one at every width. In the hidden matrix W (w × w, d = w²) the update is exact: a unit gets
`z + σ·q·s` with q = ‖h‖/√w and s an entry of the perturbation, whence

    g = v_k·T(z_k)·h_l / w,     T(z) = E[s·tanh(z + σ·q·s)]/(σ·q)  →  tanh′(z)  as σ → 0,

and `T − tanh′ ≈ (σ²q²/6)·tanh‴·E[s⁴]`: three times as large at rank 1 (E[s⁴] = 9) as for Gaussian ES (3), and no
smaller when w grows. Linearisation needs σ → 0 in these units, which is `σ/√w` in a layer of fan-in w: no power of d.

Source: arXiv 2511.16652, section 5.2; Jacot et al., arXiv 1806.07572.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64

from eggroll.core.distribution import FullRank, LowRank, Plan, make_plan
from eggroll.core.draws import draw_noise, perturb, weighted_sum
from eggroll.core.lowrank import apply_perturbed
from eggroll.core.noise import seed_words
from eggroll.theory.entry import Rank
from eggroll.theory.updates import ridge_factor

INPUT = 4


@dataclass(frozen=True)
class WideNetwork:
    """One draw of the family, with the inputs that it is looked at on."""

    u: Float64[np.ndarray, "w p"]
    w: Float64[np.ndarray, "w w"]
    v: Float64[np.ndarray, " w"]
    inputs: Float64[np.ndarray, "k p"]

    @classmethod
    def random(cls, width: int, seed: int, inputs: int = 4) -> WideNetwork:
        """Standard normal weights; inputs of norm √p."""
        draw = np.random.default_rng([seed, width]).normal
        x = draw(size=(inputs, INPUT))
        x *= math.sqrt(INPUT) / np.linalg.norm(x, axis=1, keepdims=True)
        return cls(draw(size=(width, INPUT)), draw(size=(width, width)), draw(size=width), x)

    def hidden(self) -> tuple[Float64[np.ndarray, "k w"], Float64[np.ndarray, "k w"]]:
        """h and z of every input."""
        h = np.tanh(self.inputs @ self.u.T / math.sqrt(INPUT))
        return h, h @ self.w.T / math.sqrt(len(self.v))

    def tangents(self, rank: Rank, sigma: float) -> Float64[np.ndarray, "k w"]:
        """T(z) of every unit on every input: what stands for tanh′ in the expected update."""
        h, z = self.hidden()
        lengths = np.linalg.norm(h, axis=1) / math.sqrt(len(self.v))
        return np.stack([ridge_factor(rank, np.tanh, own, sigma * q) for own, q in zip(z, lengths, strict=True)])


def update_error(network: WideNetwork, rank: Rank, sigma: float) -> float:
    """`‖g − ∇f‖/‖∇f‖` in the hidden matrix, root mean square over inputs."""
    h, z = network.hidden()
    exact = 1 - np.tanh(z) ** 2
    length = np.sum(h**2, axis=1, keepdims=True)
    wrong = network.v * (network.tangents(rank, sigma) - exact)
    return math.sqrt(float(np.sum(length * wrong**2) / np.sum(length * (network.v * exact) ** 2)))


def kernel_error(network: WideNetwork, rank: Rank, sigma: float) -> float:
    """How far `⟨∇f(x), g(x′)⟩`, a step's effect on the outputs, lies from the tangent kernel; Frobenius, relative."""
    h, z = network.hidden()
    exact = network.v * (1 - np.tanh(z) ** 2)
    smoothed = network.v * network.tangents(rank, sigma)
    features = h @ h.T
    kernel, found = features * (exact @ exact.T), features * (exact @ smoothed.T)
    return float(np.linalg.norm(found - kernel) / np.linalg.norm(kernel))


def outputs(params: Any, x: Float[Array, "k p"]) -> Float[Array, " k"]:
    """The network as anyone would write it."""
    h = jnp.tanh(x @ params["u"].T / math.sqrt(INPUT))
    z = jnp.tanh(h @ params["w"].T / math.sqrt(params["v"].shape[0]))
    return z @ params["v"] / math.sqrt(params["v"].shape[0])


def nonlinearity(network: WideNetwork, rank: int, sigma: float, pairs: int, seed: int) -> float:
    """What is not linear in a pair's half difference, over what is: all leaves perturbed, by the library, law "normal".

    `(f(θ + σE) − f(θ − σE))/2 − σ⟨∇f, E⟩` against `σ⟨∇f, E⟩`, root mean squares over pairs and inputs.

    Args:
      rank: of EGGROLL; 0 for Gaussian ES.
    """
    params = {name: jnp.asarray(getattr(network, name), jnp.float32) for name in ("u", "w", "v")}
    x = jnp.asarray(network.inputs, jnp.float32)
    plan = make_plan(LowRank(rank=rank, law="normal") if rank else FullRank(law="normal"), params)
    drawn = draw_noise(
        plan,
        seed=jnp.array(seed_words(seed), jnp.int32),
        generation=jnp.int32(0),
        pairs=jnp.arange(pairs, dtype=jnp.int32),
    )
    return float(_ratio(plan, params, x, drawn, jnp.float32(sigma)))


@functools.partial(jax.jit, static_argnames="plan")
def _ratio(plan: Plan, params: Any, x: Array, drawn: Any, sigma: Array) -> Array:
    odd, linear = jax.vmap(lambda own: _halves(plan, params, x, own, sigma))(drawn)
    return jnp.sqrt(jnp.mean((odd - linear) ** 2) / jnp.mean(linear**2))


def _halves(plan: Plan, params: Any, x: Array, own: Any, sigma: Array) -> tuple[Array, Array]:
    """Half the difference of a pair's outputs, and its linear part."""
    plus, minus = (apply_perturbed(outputs, perturb(plan, params, own, s), x) for s in (sigma, -sigma))
    tree = jax.tree.structure(params)
    dense = [
        weighted_sum(leaf, jax.tree.map(lambda part: part[None], noise), jnp.ones(1))
        for leaf, noise in zip(plan, own, strict=True)
    ]
    _, slope = jax.jvp(lambda tree: outputs(tree, x), (params,), (jax.tree.unflatten(tree, dense),))
    return (plus - minus) / 2, sigma * slope
