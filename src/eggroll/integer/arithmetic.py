"""Arithmetic of the pure-integer model: int8 in [−127, 127], one unit = 1/16, products summed in int32.

Every function here is exact: it gives the integers of the specification on every backend. Where float32 stands in for
integers, the sums stay below 2²⁴.
"""

from __future__ import annotations

import functools
import math
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int8, Int32, Integer

from eggroll.core import dispatch
from eggroll.core.errors import UsageError
from eggroll.integer import kernels

LIMIT = kernels.LIMIT
FRACTION_BITS = 4
EXACT_BLOCK = 1024
"""Inputs of one float32 block: 127² · 1024 < 2²⁴, so that its sums are exact."""

AUTO_KERNEL = "pallas"
"""The mode of `core.dispatch` that "auto" stands for in `linear`."""

_INT32_MAX = 2**31 - 1


def expand(value: Array, ndim: int) -> Array:
    """Put axes of size 1 in front until there are `ndim`."""
    return value.reshape((1,) * (ndim - value.ndim) + value.shape)


def saturate(value: Int32[Array, "*shape"]) -> Int32[Array, "*shape"]:
    """Clip to [−127, 127]; int32 in, int32 out."""
    return jnp.clip(value, -LIMIT, LIMIT)


def row_sum(value: Int32[Array, "*rows width"]) -> Int32[Array, "*rows"]:
    """Σ over the last axis, folding it in halves down to 32.

    XLA's CPU backend cuts a longer reduction into windows and writes its terms to memory; folded, it stays one loop and
    takes half the time. Integer sums do not depend on the order.
    """
    while value.shape[-1] > 32 and value.shape[-1] % 2 == 0:
        half = value.shape[-1] // 2
        value = value[..., :half] + value[..., half:]
    return jnp.sum(value, axis=-1, dtype=jnp.int32)


def _blocked_matmul(
    x: Int8[Array, "*rows inputs"], weight: Int8[Array, "outputs inputs"], dtype: jnp.dtype
) -> Int32[Array, "*rows outputs"]:
    """The exact product with operands of `dtype`: floats are summed in float32, a block at a time."""
    contract_last = (((x.ndim - 1,), (1,)), ((), ()))
    total = jnp.int32(0)
    for k in range(0, weight.shape[1], EXACT_BLOCK):
        left, right = (side[..., k : k + EXACT_BLOCK].astype(dtype) for side in (x, weight))
        product = lax.dot_general(
            left, right, contract_last, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32
        )
        total = total + product.astype(jnp.int32)
    return total


def _integer_matmul(
    x: Int8[Array, "*rows inputs"], weight: Int8[Array, "outputs inputs"]
) -> Int32[Array, "*rows outputs"]:
    contract_last = (((x.ndim - 1,), (1,)), ((), ()))
    return lax.dot_general(x, weight, contract_last, preferred_element_type=jnp.int32)


def matmul_with(
    dtype: jnp.dtype, x: Int8[Array, "*rows inputs"], weight: Int8[Array, "outputs inputs"]
) -> Int32[Array, "*rows outputs"]:
    """`x · weightᵀ` with operands of int8, bfloat16 or float32: the same integers by each."""
    return _integer_matmul(x, weight) if dtype == jnp.int8 else _blocked_matmul(x, weight, dtype)


_chosen: list[jnp.dtype] = []


def use_cpu_operands(name: str) -> None:
    """Take these operands without a trial, before anything is compiled: processes of one program must take the same.

    Args:
      name: what `cpu_operand_dtype().name` said elsewhere.
    """
    _chosen[:] = [jnp.dtype(name)]


def cpu_operand_dtype() -> jnp.dtype:
    """The operands of exact products on CPUs: those that were chosen, else the fastest in a trial."""
    return _chosen[0] if _chosen else fastest_cpu_operands()


@functools.cache
def fastest_cpu_operands() -> jnp.dtype:
    """The operands that this CPU multiplies fastest, by a trial of a few milliseconds each.

    int8, float32, and bfloat16 where the processor has it: which one wins depends on processor and XLA version, and
    all give the same integers.
    """
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        flags = set()
    hardware = [jnp.bfloat16] if flags & {"avx512_bf16", "amx_bf16"} else []
    return min(map(jnp.dtype, [jnp.int8, jnp.float32, *hardware]), key=_trial_seconds)


def _trial_seconds(dtype: jnp.dtype) -> float:
    """The best of a few products of the model's usual size, on the CPU, outside of any trace."""
    with jax.ensure_compile_time_eval(), jax.default_device(jax.local_devices(backend="cpu")[0]):
        x, weight = jnp.ones((2048, 256), jnp.int8), jnp.ones((256, 256), jnp.int8)
        product = jax.jit(functools.partial(matmul_with, dtype))
        product(x, weight).block_until_ready()
        times = []
        for _ in range(7):
            start = time.perf_counter()
            product(x, weight).block_until_ready()
            times.append(time.perf_counter() - start)
    return min(times)


def _cpu_matmul(x: Int8[Array, "*rows inputs"], weight: Int8[Array, "outputs inputs"]) -> Int32[Array, "*rows outputs"]:
    return matmul_with(cpu_operand_dtype() if jax.default_backend() == "cpu" else jnp.dtype(jnp.float32), x, weight)


def matmul(x: Int8[Array, "*rows inputs"], weight: Int8[Array, "outputs inputs"]) -> Int32[Array, "*rows outputs"]:
    """`x · weightᵀ` with sums in int32, exactly; inputs ≤ 133,000.

    On CPUs with the operands that are fastest there, floats in blocks of at most 1024 inputs; on accelerators int8 ×
    int8 → int32. All give the same integers.
    """
    return lax.platform_dependent(x, weight, cpu=_cpu_matmul, default=_integer_matmul)


class Factors(NamedTuple):
    """Low-rank perturbations of one matrix, one for each pair of a chunk, rank before row.

    a: (pairs, rank, outputs) int8, unsigned by the member's sign; b: (pairs, rank, inputs) int8.
    """

    a: Int8[Array, "pairs rank outputs"]
    b: Int8[Array, "pairs rank inputs"]


def perturbation_shift(sigma_shift: int, rank: int) -> int:
    """`4 + s + log2(r)/2`, the right shift that scales `c·A` to weight units of the product.

    Raises:
      UsageError: the rank is no power of 4, or sigma_shift is negative.
    """
    if rank < 1 or rank & (rank - 1) or rank.bit_length() % 2 == 0:
        raise UsageError(f"expected a rank that is a power of 4 (1, 4, 16, …), got {rank}; choose one of these")
    if not 0 <= sigma_shift <= 16:
        raise UsageError(f"expected sigma_shift in 0…16, got {sigma_shift}; the default is 4")
    return FRACTION_BITS + sigma_shift + (rank.bit_length() - 1) // 2


def sum_limit(inputs: int, rank: int) -> int | None:
    """What `|c_k|` is cut to so that `Σ_k c_k·A_k` stays within int32; None where it does so by itself."""
    limit = _INT32_MAX // (LIMIT * rank)
    return limit if LIMIT * LIMIT * inputs > limit else None


def perturbation(
    x: Int8[Array, "*time signs pairs inputs"],
    factors: Factors,
    signs: Int32[Array, "signs 1 1"],
    sigma_shift: int,
) -> Int32[Array, "*time signs pairs outputs"]:
    """`(Σ_k c_k · ±A_k) ≫ (4 + s + log2(r)/2)` with `c_k = x·B_k`, clipped so that no int32 sum overflows."""
    rank, inputs = factors.b.shape[1:]
    limit = sum_limit(inputs, rank)
    total = jnp.int32(0)
    for k in range(rank):
        a, b = (expand(side[:, k].astype(jnp.int32), x.ndim) for side in factors)
        c = row_sum(x.astype(jnp.int32) * b)[..., None]
        if limit is not None:
            c = jnp.clip(c, -limit, limit)
        total = total + (c * expand(signs, x.ndim)) * a
    return total >> perturbation_shift(sigma_shift, rank)


def output_shift(inputs: int) -> int:
    """`log2(16·√inputs)`, the division that ends a matrix product.

    Raises:
      UsageError: inputs is no power of 4.
    """
    if inputs < 1 or inputs & (inputs - 1) or inputs.bit_length() % 2 == 0:
        raise UsageError(f"expected a width that is a power of 4 (16, 64, 256, …), got {inputs}; choose one of these")
    return FRACTION_BITS + (inputs.bit_length() - 1) // 2


def linear(
    x: Int8[Array, "*time signs pairs inputs"],
    weight: Int8[Array, "outputs inputs"],
    factors: Factors | None,
    signs: Int32[Array, "signs 1 1"],
    sigma_shift: int,
) -> Int32[Array, "*time signs pairs outputs"]:
    """`sat((x·Wᵀ + ((x·B)·±Aᵀ ≫ …)) // (16·√inputs))`; values in [−127, 127], kept in int32 for what follows.

    By XLA or by a kernel, as `core.dispatch` chooses: the same integers.

    Args:
      signs: [+1, −1], or [+1] without factors.
    """
    if factors is None:
        return saturate(matmul(x, weight) >> output_shift(x.shape[-1]))
    (outputs, inputs), rank = weight.shape, factors.b.shape[1]
    scaling = kernels.Scaling(perturbation_shift(sigma_shift, rank), output_shift(inputs), sum_limit(inputs, rank))

    def plain(x: Array, weight: Array, a: Array, b: Array) -> Array:
        product = matmul(x, weight) + perturbation(x, Factors(a, b), signs, sigma_shift)
        return saturate(product >> scaling.output)

    def kernel(x: Array, weight: Array, a: Array, b: Array, interpret: bool) -> Array:
        product = kernels.perturbed_product(x, weight, a[:, 0], b[:, 0], scaling, tiles=tiles, interpret=interpret)
        return product.astype(jnp.int32)

    tiles = kernels.tiles_for(inputs)
    suits = rank == 1 and signs.shape[0] == 2 and kernels.fits(tiles, x.shape[-2], inputs, outputs)
    result: Array = dispatch.choose(kernel if suits else None, plain, x, weight, *factors, auto=AUTO_KERNEL)
    return result


def floor_divide(numerator: Int32[Array, "*shape"], divisor: Int32[Array, "*divisor"]) -> Int32[Array, "*shape"]:
    """`sat(numerator // divisor)` for |numerator| ≤ 16129 and divisors in 1…127; the divisor broadcasts.

    Taken as `⌊(n + ½) · (1/d)⌋` in float32. The half keeps every quotient up to the saturation at least 0.0039 from an
    integer, 100 times the rounding error: the floor is exact.
    """
    reciprocal = 1.0 / divisor.astype(jnp.float32)
    return saturate(jnp.floor((numerator.astype(jnp.float32) + 0.5) * reciprocal).astype(jnp.int32))


def normalise(x: Int8[Array, "*rows width"], scale: Int32[Array, "*broadcast width"]) -> Int8[Array, "*rows width"]:
    """`sat(int16(x·w) // max(Σ|x| // width, 1))`, the integer layer normalisation; width is a power of 2."""
    width = x.shape[-1]
    magnitude = row_sum(jnp.abs(x.astype(jnp.int32)))[..., None] >> (width.bit_length() - 1)
    product = x.astype(jnp.int32) * expand(scale, x.ndim)
    return floor_divide(product, jnp.maximum(magnitude, 1)).astype(jnp.int8)


@functools.cache
def octave_table() -> tuple[int, ...]:
    """`⌊2²⁰ · 2^(r/16)⌋` for r in 0…15, exactly."""
    return tuple(_ceil_power(20 * 16 + r) - (1 if r else 0) for r in range(16))


def exp2(z: Int32[Array, "*shape"]) -> Int32[Array, "*shape"]:
    """`EXP2[z] = int(16·2^(z/16))` for z in 0…255: the octave's mantissa, shifted down.

    A table of 16 chosen by the low bits with selects, which vectorise; a table of 256 would be a load per element.
    """
    level = [jnp.int32(value) for value in octave_table()]
    for bit in range(4):
        odd = (z >> bit) & 1 == 1
        level = [jnp.where(odd, high, low) for low, high in zip(level[::2], level[1::2], strict=True)]
    return level[0] >> (16 - (z >> 4))


@functools.cache
def log2_thresholds() -> np.ndarray:
    """`⌈2^(28 + i/16)⌉` for i in 1…15, int32: where 16·log2 of a number in [2²⁸, 2²⁹) passes a sixteenth."""
    return np.array([_ceil_power(28 * 16 + i) for i in range(1, 16)], np.int32)


def _ceil_power(sixteenths: int) -> int:
    """`⌈2^(sixteenths/16)⌉`, exactly: the least n with n¹⁶ ≥ 2^sixteenths."""
    n = math.floor(2 ** (sixteenths / 16)) - 2
    while n**16 < 2**sixteenths:
        n += 1
    return n


def log2_sixteenths(total: Int32[Array, "*shape"]) -> Int32[Array, "*shape"]:
    """`int(16·log2(total/16))` for total in [16, 2²⁹), from the position of the top bit and 15 thresholds."""
    top = 31 - lax.clz(total)
    mantissa = total << (28 - top)
    passed = jnp.sum(
        (mantissa[..., None] >= expand(jnp.asarray(log2_thresholds()), total.ndim + 1)).astype(jnp.int32),
        axis=-1,
    )
    return 16 * (top - 4) + passed


def log_likelihood(logits: Integer[Array, "*shape bytes"], target: Integer[Array, "*target"]) -> Int32[Array, "*shape"]:
    """Sixteenths of a bit: `z[target] − int(16·log2(Σ EXP2[z]/16))` with `z = logits + 128`; at most 0 but rounding.

    `target` broadcasts against the leading axes of `logits`.
    """
    z = logits.astype(jnp.int32) + 128
    total = row_sum(exp2(z))
    index = jnp.broadcast_to(target.astype(jnp.int32), z.shape[:-1])[..., None]
    chosen = jnp.take_along_axis(z, index, axis=-1, mode="promise_in_bounds")[..., 0]
    return chosen - log2_sixteenths(total)
