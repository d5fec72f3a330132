"""Exact integers: against NumPy int64 and, for the logarithm, exact powers, at the extremes too."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eggroll.core import noise
from eggroll.core.errors import UsageError
from eggroll.integer import arithmetic
from tests.integer import oracle

SIGNS = jnp.asarray([1, -1], jnp.int32).reshape(2, 1, 1)


def int8(generator, *shape, extreme=False):
    if extreme:
        return generator.choice(np.array([-127, 127], np.int8), shape)
    return generator.integers(-127, 128, shape).astype(np.int8)


@pytest.mark.parametrize("inputs", [64, 1024, 4096])
@pytest.mark.parametrize("worst", [False, True])
def test_both_matmuls_equal_int64(inputs, worst):
    """Float32 and bfloat16 operands and int8 × int8 → int32, also where every |sum| is as large as can be."""
    generator = np.random.default_rng(inputs)
    x = np.full((3, inputs), 127, np.int8) if worst else int8(generator, 3, inputs)
    weight = np.full((5, inputs), -127, np.int8) if worst else int8(generator, 5, inputs)
    expected = x.astype(np.int64) @ weight.T.astype(np.int64)
    kinds = [functools.partial(arithmetic.matmul_with, jnp.dtype(d)) for d in (jnp.int8, jnp.float32, jnp.bfloat16)]
    for product in (*kinds, arithmetic.matmul):
        got = jax.jit(product)(jnp.asarray(x), jnp.asarray(weight))
        assert got.dtype == jnp.int32
        np.testing.assert_array_equal(got, expected)


def test_float_blocks_are_exact_at_the_last_safe_size_only():
    assert 127**2 * arithmetic.EXACT_BLOCK < 2**24 <= 127**2 * 1041


@pytest.mark.parametrize("rank", [1, 4, 16])
@pytest.mark.parametrize("inputs", [16, 256, 4096])
@pytest.mark.parametrize("extreme", [False, True])
def test_linear_equals_the_oracle(rank, inputs, extreme):
    """Every rank, both signs; at the extremes the clip of `c` is all that keeps the int32 sums in range."""
    generator = np.random.default_rng(rank * inputs)
    x, weight = int8(generator, 2, 3, inputs, extreme=extreme), int8(generator, 6, inputs, extreme=extreme)
    a = np.full((3, 6, rank), 127, np.int8) if extreme else int8(generator, 3, 6, rank)
    b = (
        np.sign(x[0])[:, :, None].repeat(rank, 2).astype(np.int8) * np.int8(127)
        if extreme
        else int8(generator, 3, inputs, rank)
    )
    factors = arithmetic.Factors(jnp.asarray(a.transpose(0, 2, 1)), jnp.asarray(b.transpose(0, 2, 1)))
    got = arithmetic.linear(jnp.asarray(x), jnp.asarray(weight), factors, SIGNS, 4)
    shift = arithmetic.perturbation_shift(4, rank)
    for s, sign in enumerate((1, -1)):
        for p in range(3):
            expected = oracle.mm(x[s, p], weight, sign * a[p].astype(int), b[p], shift)
            np.testing.assert_array_equal(got[s, p], expected)


def test_linear_without_factors_is_the_plain_product():
    generator = np.random.default_rng(0)
    x, weight = int8(generator, 1, 3, 64), int8(generator, 6, 64)
    got = arithmetic.linear(jnp.asarray(x), jnp.asarray(weight), None, SIGNS[:1], 4)
    np.testing.assert_array_equal(got, oracle.sat((x.astype(int) @ weight.T.astype(int)) // (16 * 8)))


@given(seed=st.integers(0, 2**32 - 1), width=st.sampled_from([16, 64, 256]))
@settings(max_examples=20, deadline=None)
def test_normalise_equals_the_oracle(seed, width):
    generator = np.random.default_rng(seed)
    x = (int8(generator, 4, width) // generator.integers(1, 64, (4, 1))).astype(np.int8)
    scale = generator.integers(-127, 128, (4, width)).astype(np.int32)
    got = arithmetic.normalise(jnp.asarray(x), jnp.asarray(scale))
    for row in range(4):
        np.testing.assert_array_equal(got[row], oracle.norm(x[row].astype(int), scale[row].astype(int)))


def test_floor_divide_is_exact_everywhere():
    numerator = np.arange(-16129, 16130, dtype=np.int32)
    divide = jax.jit(arithmetic.floor_divide)
    for divisor in range(1, 128):
        got = divide(jnp.asarray(numerator), jnp.int32(divisor))
        np.testing.assert_array_equal(got, oracle.sat(numerator // divisor))


def test_exp2_equals_the_formula():
    np.testing.assert_array_equal(arithmetic.exp2(jnp.arange(256)), [int(16 * 2 ** (i / 16)) for i in range(256)])


def test_logarithm_at_every_boundary():
    """All S near which int(16·log2(S/16)) can change, decided in exact integers: 2^(k/16) ≤ S/16 ⟺ 2^k ≤ (S/16)¹⁶."""
    boundary = np.array([arithmetic._ceil_power(k + 64) for k in range(128, 16 * 24 + 1)])
    totals = np.unique(np.concatenate([boundary + d for d in (-2, -1, 0, 1, 2)] + [[4096, 257_054_464]]))
    totals = totals[(totals >= 4096) & (totals <= 257_054_464)]
    exact = [max(k for k in range(127, 385) if 2 ** (k + 64) <= int(s) ** 16) for s in totals]
    got = arithmetic.log2_sixteenths(jnp.asarray(totals, jnp.int32))
    np.testing.assert_array_equal(got, exact)
    np.testing.assert_array_equal(got, (16 * np.log2(totals / 16)).astype(int))


@given(st.integers(4096, 257_054_464))
@settings(max_examples=200, deadline=None)
def test_logarithm_anywhere(total):
    assert int(arithmetic.log2_sixteenths(jnp.asarray([total], jnp.int32))[0]) == int(16 * np.log2(total / 16))


def test_log_likelihood_equals_the_oracle():
    generator = np.random.default_rng(1)
    logits = np.concatenate([generator.integers(-127, 128, (6, 256)), np.full((1, 256), 127), np.full((1, 256), -127)])
    target = generator.integers(0, 256, 8)
    got = arithmetic.log_likelihood(jnp.asarray(logits, jnp.int32), jnp.asarray(target, jnp.uint8))
    np.testing.assert_array_equal(got, [oracle.log_likelihood(row, t) for row, t in zip(logits, target, strict=True)])


def test_tables_are_small():
    tables = (
        noise.normal_table().nbytes,
        arithmetic.log2_thresholds().nbytes,
        4 * len(arithmetic.octave_table()),
    )
    assert sum(tables) < 65536


@pytest.mark.parametrize("rank", [0, 2, 3, 8, -4])
def test_other_ranks_are_refused(rank):
    with pytest.raises(UsageError, match=r"^expected a rank that is a power of 4 .*, got -?\d+; .*$"):
        arithmetic.perturbation_shift(4, rank)


@pytest.mark.parametrize("width", [0, 2, 32, 100, -16])
def test_other_widths_are_refused(width):
    with pytest.raises(UsageError, match=r"^expected a width that is a power of 4 .*, got -?\d+; .*$"):
        arithmetic.output_shift(width)
