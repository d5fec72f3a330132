"""Whether a device computes what it should: the noise to the bit, the oracle law to rounding, the integers exactly."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from eggroll.core import noise
from eggroll.core.draws import stream_keys
from eggroll.core.strategy import EvolutionStrategy
from eggroll.doctor import oracle
from eggroll.integer.arithmetic import Factors, linear, perturbation_shift
from eggroll.integer.model import Config, sign_axis
from eggroll.integer.update import new_leaves
from eggroll.runs.folder import reason

LATTICES = ("signs", "popcount", "table_normal")
"""Laws that are integers, and so the same to the bit."""
SEED, GENERATION, PATH = 0x0123_4567_89AB_CDEF, 3, "head"
MEMBERS, SIGMA, RANK, LAW = 8, 0.1, 2, "popcount"
TOLERANCE = 1e-4
"""Of float32 sums over some 30 products, at matmul precision "highest", against float64; relative to the largest."""


class Check(NamedTuple):
    """What a check came to."""

    name: str
    device: str
    problem: str  # empty: it holds
    seconds: float

    @property
    def holds(self) -> bool:
        """Whether it does."""
        return not self.problem


def check_device(device: Any) -> list[Check]:
    """All checks on one device; one that cannot be made does not hold."""
    return [_checked(name, check, device) for name, check in CHECKS.items()]


def _checked(name: str, check: Callable[[], str], device: Any) -> Check:
    start = time.perf_counter()
    try:
        with jax.default_device(device), jax.default_matmul_precision("highest"):
            problem = check()
    except Exception as error:  # whatever is broken is to be told, beside all that is not
        problem = f"got {type(error).__name__}: {reason(error)}"
    return Check(name, f"{device.platform}:{device.id}", problem, round(time.perf_counter() - start, 2))


def noise_is_the_same() -> str:
    """The draws of every lattice law equal NumPy's to the bit, also where counters are large."""
    pairs = np.array([0, 1, 2**19, 2**31 - 1], np.int32)
    elements = np.concatenate([np.arange(1024), 2**31 - 1 - np.arange(64)]).astype(np.int32)

    @jax.jit
    def drawn(seed: Any, generation: Any, pairs: Any, elements: Any) -> Any:
        streams = [(noise.leaf_id(PATH), factor) for factor in (noise.FACTOR_A, noise.FACTOR_B)]
        first, second = stream_keys(streams, seed=seed, generation=generation, pairs=pairs)
        bits = noise.element_bits((first[..., None], second[..., None]), elements.reshape(1, 1, -1))
        return {law: noise.law(law).integer(jnp, bits) for law in LATTICES}

    words = jnp.asarray(noise.seed_words(SEED), jnp.int32)
    found = jax.device_get(drawn(words, jnp.int32(GENERATION), pairs, elements))
    for law, values in found.items():
        for factor in (noise.FACTOR_A, noise.FACTOR_B):
            for k, pair in enumerate(pairs):
                bits = oracle.bits(PATH, factor, elements, seed=SEED, generation=GENERATION, pair=int(pair))
                wrong = int((values[factor][k] != noise.law(law).integer(np, bits)).sum())
                if wrong:
                    return f"{wrong} of {elements.size} draws of the law {law} differ from NumPy's"
    return ""


def _fitness(params: Any, key: Any, x: Any) -> Any:
    hidden = jnp.tanh(x @ params["w1"] + params["b1"][None])
    return jnp.tanh(hidden @ params["w2"]).sum()


def _plain_fitness(params: oracle.Params, x: np.ndarray) -> float:
    return float(np.tanh(np.tanh(x @ params["w1"] + params["b1"]) @ params["w2"]).sum())


def perturbation_is_the_dense_one() -> str:
    """Members under low-rank noise score as their matrices written out; the update is a plain loop over members."""
    generator = np.random.default_rng(0)
    shapes = {"w1": (24, 32), "b1": (32,), "w2": (32, 3)}
    params = {path: (generator.standard_normal(shape) / 6).astype(np.float32) for path, shape in shapes.items()}
    x = generator.standard_normal((5, 24)).astype(np.float32)
    settings: dict[str, Any] = {"sigma": SIGMA, "rank": RANK, "law": LAW}
    counters: dict[str, Any] = {"seed": SEED, "generation": 0}
    es = EvolutionStrategy(optax.sgd(1.0), population_size=MEMBERS, chunk_size=4, **settings)
    state = es.init({path: jnp.asarray(value) for path, value in params.items()}, SEED)
    after, info = es.step(state, _fitness, jnp.asarray(x))
    members = [oracle.member(params, index, **settings, **counters) for index in range(MEMBERS)]
    expected = np.array([_plain_fitness(own, x) for own in members])
    apart = _apart(np.asarray(info.fitness), expected)
    if apart > TOLERANCE:
        return f"fitness is {apart:.1e} away from that of matrices written out, expected {TOLERANCE:.0e} at most"
    utilities = (expected - expected.mean()) / expected.std()
    ascent = oracle.ascent(params, utilities, **settings, **counters)
    worst = max(_apart(np.asarray(after.params[path]) - params[path], ascent[path]) for path in params)
    if worst > 10 * TOLERANCE:
        return f"the update is {worst:.1e} away from a loop over members, expected {10 * TOLERANCE:.0e} at most"
    return ""


def _apart(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, relative to the largest value; infinite where something is no number."""
    difference = float(np.abs(found - expected).max() / np.abs(expected).max())
    return difference if np.isfinite(difference) else np.inf


def integers_are_exact() -> str:
    """Perturbed int8 products and the ±1 update are those of int64, to the last integer."""
    generator, pairs, config = np.random.default_rng(1), 16, Config(layers=1, width=16)
    x = generator.integers(-127, 128, (3, 2, pairs, 64)).astype(np.int8)
    weight, head = (generator.integers(-127, 128, shape).astype(np.int8) for shape in ((16, 64), (256, 16)))
    signs = generator.integers(-1, 2, pairs).astype(np.int8)
    counters, level = {"seed": SEED, "generation": GENERATION}, 16 * 800
    sides = [
        np.stack([oracle.draw(PATH, factor, (1, n), "table_normal", pair=p, **counters) for p in range(pairs)])
        for factor, n in ((noise.FACTOR_A, 16), (noise.FACTOR_B, 64))
    ]
    a, b = (side.astype(np.int8) for side in sides)

    @jax.jit
    def computed(x: Any, weight: Any, a: Any, b: Any, head: Any, signs: Any, seed: Any) -> Any:
        product = linear(x, weight, Factors(a, b), sign_axis(True), config.sigma_shift)
        leaves = new_leaves({PATH: head}, signs, jnp.int32(level), config, seed=seed, generation=jnp.int32(GENERATION))
        return product, leaves[PATH]

    words = jnp.asarray(noise.seed_words(SEED), jnp.int32)
    product, new = jax.device_get(computed(x, weight, a, b, head, signs, words))
    plain = functools.partial(oracle.integer_product, shift=perturbation_shift(config.sigma_shift, 1))
    for index in range(2 * pairs):
        pair, way = index // 2, index % 2
        expected = plain(x[:, way, pair], weight, (1 - 2 * way) * sides[0][pair, 0], sides[1][pair, 0])
        if not np.array_equal(product[:, way, pair], expected):
            return f"the int8 products of member {index} differ from those of int64"
    wrong = int((new != oracle.integer_update(head, PATH, signs, level, **counters)).sum())
    return f"{wrong} of {head.size} weights after an integer update differ from those of int64" if wrong else ""


CHECKS: dict[str, Callable[[], str]] = {
    "noise": noise_is_the_same,
    "oracle": perturbation_is_the_dense_one,
    "integers": integers_are_exact,
}
"""Name → function that returns what is wrong, or nothing."""
