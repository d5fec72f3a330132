"""RWKV-7 against the package `rwkv` from PyPI, and against itself in pieces."""

import importlib
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eggroll.core.strategy import EvolutionStrategy
from eggroll.llm import recurrence
from eggroll.llm.evolve import MATRICES, distribution_for
from eggroll.llm.quantise import converted, dequantised, is_int8
from eggroll.llm.rwkv7 import PUBLISHED, Sizes, random_params, sizes_of
from eggroll.llm.rwkv7 import read as plain_read
from eggroll.llm.rwkv7 import read_one as plain_read_one
from tests.llm.models import SHAPES, TINY, as_pth, noisy

TIME = 64
read = jax.jit(plain_read, static_argnames="all_logits")
read_one = jax.jit(plain_read_one)


@pytest.fixture(scope="module")
def published() -> Any:
    """The package's RWKV-7, on the CPU, without compiling."""
    pytest.importorskip("rwkv", reason="needs the package rwkv")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        for name, value in {"RWKV_V7_ON": "1", "RWKV_JIT_ON": "0", "RWKV_CUDA_ON": "0"}.items():
            patch.setenv(name, value)
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's, of its script methods
        return importlib.import_module("rwkv.model").RWKV_x070


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("sizes", SHAPES, ids=str)
def test_logits_are_those_of_the_published_code(sizes: Sizes, published: Any, tmp_path: Path) -> None:
    params = noisy(sizes, 3)
    as_pth(params, tmp_path / "model.pth")
    theirs = published(str(tmp_path / "model"), "cpu fp32")
    tokens = np.random.default_rng(0).integers(0, sizes.vocabulary, 2 * TIME)
    first, state = theirs.forward(tokens[:TIME].tolist(), None, full_output=True)
    second, _ = theirs.forward(tokens[TIME:].tolist(), state, full_output=True)  # the state is carried
    ours, own = read(params, jnp.asarray(tokens[None, :TIME]), all_logits=True)
    np.testing.assert_allclose(ours[0], first.numpy(), atol=1e-3)
    for token, expected in zip(tokens[TIME:], second.numpy(), strict=True):  # and so in decoding
        logits, own = read_one(params, jnp.asarray([token]), own)
        np.testing.assert_allclose(logits[0], expected, atol=1e-3)
    assert float(np.abs(second.numpy()).max()) > 0.1  # there was something to compare


def test_a_prompt_in_pieces_is_the_prompt() -> None:
    params, tokens = noisy(TINY), jax.random.randint(jax.random.key(0), (3, 41), 0, TINY.vocabulary)
    whole, state = read(params, tokens)
    for cut in (1, 16, 40):
        _, before = read(params, tokens[:, :cut])
        logits, after = read(params, tokens[:, cut:], before)
        np.testing.assert_allclose(logits, whole, atol=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), state, after)


def test_what_is_masked_at_the_left_is_not_there() -> None:
    params, tokens = noisy(TINY), jax.random.randint(jax.random.key(0), (2, 20), 0, TINY.vocabulary)
    alone, state = read(params, tokens)
    padded = jnp.concatenate([jnp.full((2, 13), 7), tokens], axis=1)
    mask = jnp.arange(33)[None] >= jnp.full((2, 1), 13)
    logits, after = read(params, padded, mask=mask)
    np.testing.assert_allclose(logits, alone, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), state, after)


@settings(max_examples=12, deadline=None)
@given(st.sampled_from([1, 16, 35]), st.integers(0, 2**31))
def test_chunks_of_the_recurrence_are_its_steps(time: int, seed: int) -> None:
    keys = jax.random.split(jax.random.key(seed), 7)
    draw = lambda key: jax.random.normal(key, (2, time, 3, 8))
    unit = draw(keys[0])
    unit = unit / jnp.linalg.norm(unit, axis=-1, keepdims=True)
    rate, log_w = jax.nn.sigmoid(4 * draw(keys[1])), -0.606531 * jax.nn.sigmoid(6 * draw(keys[2]))
    x = recurrence.Inputs(draw(keys[3]), log_w, draw(keys[4]), draw(keys[5]), -unit, unit * rate)
    state = jax.random.normal(keys[6], (2, 3, 8, 8))
    both = jax.jit(recurrence.chunked)(state, x), jax.jit(recurrence.stepwise)(state, x)
    for ours, expected in zip(*both, strict=True):
        np.testing.assert_allclose(ours, expected, atol=2e-4, rtol=1e-4)


def test_gradients_are_those_of_the_steps() -> None:
    draw = lambda seed: 0.3 * jax.random.normal(jax.random.key(seed), (2, 19, 3, 8))
    x = recurrence.Inputs(draw(0), -jnp.abs(draw(1)), *(draw(seed) for seed in range(2, 6)))
    state = jax.random.normal(jax.random.key(6), (2, 3, 8, 8))
    total = lambda how: lambda state, x: sum(jnp.sum(jnp.sin(leaf)) for leaf in how(state, x))
    both = (jax.jit(jax.grad(total(how), (0, 1)))(state, x) for how in (recurrence.sequence, recurrence.stepwise))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4), *both)


def test_gradients_pass_masked_tokens() -> None:
    params, tokens = noisy(TINY), jnp.zeros((2, 9), int)
    mask = jnp.arange(9)[None] >= jnp.array([[0], [5]])
    gradient = jax.jit(jax.grad(lambda p: read(p, tokens, mask=mask)[0].sum()))(params)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradient))


def test_a_member_reads_and_decodes_as_its_dense_matrices_do() -> None:
    params, tokens = jax.tree.map(jnp.asarray, noisy(TINY)), jnp.arange(12)[None] % TINY.vocabulary

    def fitness(own: Any, key: Any) -> Any:
        logits, state = read(own, tokens)
        return read_one(own, logits.argmax(-1), state)[0][0, 3]

    es = EvolutionStrategy(
        optax.sgd(0.1),
        population_size=4,
        sigma=0.02,
        distribution=distribution_for(params, rank=2),
        trainable=MATRICES,
    )
    state = es.init(params)
    found = es.evaluate(state, fitness)[2].fitness
    one = jax.jit(lambda params: fitness(params, None))
    dense = [one(es.perturbed(state, member)) for member in range(4)]
    np.testing.assert_allclose(found, jnp.stack(dense), atol=1e-4)


def test_bfloat16_and_int8_stay_near() -> None:
    params, tokens = noisy(TINY), jax.random.randint(jax.random.key(0), (3, 30), 0, TINY.vocabulary)
    exact = read(params, tokens)[0]
    spread = float(exact.std())
    for dtype, most in (("bfloat16", 0.08), ("int8", 0.08)):
        off = read(converted(params, dtype), tokens)[0] - exact
        assert 0 < float(jnp.sqrt(jnp.square(off).mean())) < most * spread
    held = converted(params, "int8")["blocks"]["att"]["key"]["weight"]
    assert is_int8(held) and held["int8"].shape == (2, 32, 32)
    weight = params["blocks"]["att"]["key"]["weight"]
    assert bool((np.abs(dequantised(held) - weight) <= held["scale"][..., None] * 0.501).all())


def test_an_int8_model_is_that_of_its_dense_weights() -> None:
    params, tokens = converted(noisy(TINY), "int8"), jax.random.randint(jax.random.key(0), (3, 30), 0, TINY.vocabulary)
    np.testing.assert_allclose(read(params, tokens)[0], read(converted(params, "float32"), tokens)[0], atol=1e-4)


def test_published_sizes_have_their_parameters() -> None:
    counts = {"0.1B": 0.19e9, "0.4B": 0.45e9, "1.5B": 1.53e9, "2.9B": 2.95e9, "7.2B": 7.2e9, "13.3B": 13.3e9}
    for name, count in counts.items():
        shapes = jax.eval_shape(lambda own=PUBLISHED[name]: random_params(own, jax.random.key(0)))
        assert sizes_of(shapes)._replace(hidden=0) == PUBLISHED[name]
        total = sum(leaf.size for leaf in jax.tree.leaves(shapes))
        assert abs(total - count) < 0.05 * count, (name, total)
