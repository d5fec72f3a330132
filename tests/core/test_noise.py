"""noise.py: the same integers everywhere, known answers, and statistics that a bad generator would fail."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import types
from typing import Any

import jax
import jax.extend.random
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from eggroll.core import noise
from tests.scripts import load

INTEGER_LAWS = ("signs", "popcount", "table_normal")
WORD = st.integers(-(2**31), 2**31 - 1) | st.sampled_from([-(2**31), -1, 0, 1, 2**31 - 1])
COUNT = st.integers(0, 2**31 - 1) | st.sampled_from([0, 1, 2**31 - 1])
SEED = st.integers(0, 2**64 - 1) | st.sampled_from([0, 2**31, 2**32 - 1, 2**32, 2**63, 2**64 - 1])
MASK = 0xFFFFFFFF


def int32(values: Any) -> np.ndarray:
    return np.asarray(values, np.int32)


def bits_of(
    *, seed: int = 0, leaf: int = 5, factor: int = 0, generation: int = 0, pair: Any = 0, element: Any = 0
) -> np.ndarray:
    """Bits of streams × elements from NumPy, (pairs, elements) int32."""
    key = noise.stream_key(
        seed=noise.seed_words(seed),
        leaf=leaf,
        factor=factor,
        generation=generation,
        pair=int32(pair).reshape(-1, 1),
    )
    return noise.element_bits(key, int32(element).reshape(1, -1))


def words(bits: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(bits).view(np.uint32)


# The same integers everywhere


def rotate(word: int, by: int) -> int:
    return (word << by | word >> (32 - by)) & MASK


def python_threefry(key: tuple[int, int], counter: tuple[int, int], rounds: int) -> tuple[int, int]:
    """Threefry-2x32 on Python's unsigned integers, written from the paper."""
    keys = (key[0], key[1], key[0] ^ key[1] ^ 0x1BD11BDA)
    x, y = (counter[0] + keys[0]) & MASK, (counter[1] + keys[1]) & MASK
    for index in range(rounds):
        x = (x + y) & MASK
        y = rotate(y, (13, 15, 26, 6, 17, 29, 16, 24)[index % 8]) ^ x
        if (index + 1) % 4 == 0:
            turn = (index + 1) // 4
            x, y = (x + keys[turn % 3]) & MASK, (y + keys[(turn + 1) % 3] + turn) & MASK
    return x, y


def python_bits(seed: int, leaf: int, factor: int, generation: int, pair: int, element: int) -> int:
    """One draw, on Python's unsigned integers."""
    middle = python_threefry((seed & MASK, seed >> 32), (leaf & MASK, generation), 13)
    first, second = python_threefry(middle, (factor, pair & MASK), 13)
    x = (element & MASK) ^ first
    x = (x ^ x >> 16) * 0x7FEB352D & MASK
    x = (x ^ x >> 15 ^ second) * 0x846CA68B & MASK
    return x ^ x >> 16


def python_value(law: str, bits: int) -> int:
    if law == "signs":
        return -1 if bits >> 31 else 1
    if law == "popcount":
        return bits.bit_count() - 16
    return int(noise.normal_table()[bits >> 20])


def draw(xp: Any, law: str, counters: tuple[Any, ...]) -> Any:
    """Bits, integers and float32 values for the counters seed, leaf, factor, generation, pair, element."""
    seed, leaf, factor, generation, pair, element = counters
    key = noise.stream_key(seed=seed, leaf=leaf, factor=factor, generation=generation, pair=pair)
    bits = noise.element_bits(key, element)
    return bits, noise.law(law).integer(xp, bits), noise.to_float(xp, noise.law(law), bits)


def check(law: str, result: Any, bits: list[list[int]]) -> None:
    """Compare what `draw` gave with bits from Python integers."""
    got, integer, value = map(np.asarray, result)
    values = [[python_value(law, word) for word in row] for row in bits]
    assert got.dtype == np.int32 and value.dtype == np.float32
    assert integer.dtype == (np.int8 if law == "table_normal" else np.int32)
    assert words(got).tolist() == bits
    assert integer.tolist() == values
    assert value.tobytes() == (int32(values).astype(np.float32) * np.float32(noise.law(law).scale)).tobytes()


@pytest.mark.parametrize("law", INTEGER_LAWS)
@settings(max_examples=40, deadline=None)
@given(SEED, WORD, st.integers(0, 2), COUNT, st.tuples(COUNT, WORD), st.tuples(COUNT, WORD, COUNT))
@example(2**64 - 1, -(2**31), 2, 2**31 - 1, (2**31 - 1, -(2**31)), (2**31 - 1, -(2**31), -1))
def test_every_array_module_gives_the_same(
    law: str, seed: int, leaf: int, factor: int, generation: int, pairs: tuple, elements: tuple
) -> None:
    bits = [[python_bits(seed, leaf, factor, generation, p, e) for e in elements] for p in pairs]
    seeds, pair, element = noise.seed_words(seed), int32(pairs)[:, None], int32(elements)[None]
    counters = (seeds, leaf, factor, generation, pair, element)
    arrays = (int32(seeds), leaf, factor, np.int32(generation), pair, element)
    check(law, draw(np, law, counters), bits)
    check(law, draw(np, law, arrays), bits)
    for xp in (jnp, torch):
        check(law, draw(xp, law, (*counters[:4], xp.asarray(pair), xp.asarray(element))), bits)
        check(law, draw(xp, law, tuple(x if isinstance(x, int) else xp.asarray(x) for x in arrays)), bits)


@pytest.mark.parametrize("law", INTEGER_LAWS)
@pytest.mark.parametrize(("leaf", "factor"), [(-(2**31), 0), (2**31 - 1, 1), (noise.leaf_id("w"), 2)])
def test_jit_gives_the_same(law: str, leaf: int, factor: int) -> None:
    @jax.jit
    def jitted(seed: Any, generation: Any, pair: Any, element: Any) -> Any:
        return draw(jnp, law, (seed, leaf, factor, generation, pair, element))

    @settings(max_examples=20, deadline=None)
    @given(SEED, COUNT, st.tuples(COUNT, WORD), st.tuples(COUNT, WORD, COUNT))
    def compare(seed: int, generation: int, pairs: tuple, elements: tuple) -> None:
        bits = [[python_bits(seed, leaf, factor, generation, p, e) for e in elements] for p in pairs]
        pair, element = int32(pairs)[:, None], int32(elements)[None]
        check(law, jitted(int32(noise.seed_words(seed)), np.int32(generation), pair, element), bits)

    compare()


def test_uniform_integers_of_the_normal_law_agree() -> None:
    bits = words(bits_of(pair=range(8), element=range(64))).view(np.int32)
    expected = noise.law("normal").integer(np, bits)
    assert expected.tolist() == [[(int(b) >> 8) * 2 + 1 for b in row] for row in bits]
    for result in (
        noise.law("normal").integer(jnp, jnp.asarray(bits)),
        noise.law("normal").integer(torch, torch.asarray(bits)),
    ):
        np.testing.assert_array_equal(np.asarray(result), expected)


def test_a_part_of_the_counters_draws_its_part() -> None:
    whole = bits_of(pair=range(20), element=range(50))
    np.testing.assert_array_equal(bits_of(pair=range(7, 11), element=range(30, 50)), whole[7:11, 30:])


def test_version_1_is_frozen() -> None:
    assert noise.NOISE_VERSION == 1
    bits = bits_of(
        seed=2**40 + 3,
        leaf=noise.leaf_id("layers/0/w"),
        factor=1,
        generation=9,
        pair=range(64),
        element=range(64),
    )
    digest = hashlib.sha256(bits.astype("<i4").tobytes() + noise.normal_table().tobytes())
    assert digest.hexdigest() == "6b5d539e6d5a94ecdcf044dd32179391eab4dc6fe100fe55f47aca7b69835978"


# Known answers

# "threefry2x32" in tests/kat_vectors of Random123 (D. E. Shaw Research): rounds, counter, key, result.
KNOWN_ANSWERS = """
13 00000000 00000000 00000000 00000000 9d1c5ec6 8bd50731
13 ffffffff ffffffff ffffffff ffffffff fd36d048 2d17272c
13 243f6a88 85a308d3 13198a2e 03707344 ba3e4725 f27d669e
20 00000000 00000000 00000000 00000000 6b200159 99ba4efe
20 ffffffff ffffffff ffffffff ffffffff 1cb996fc bb002be7
20 243f6a88 85a308d3 13198a2e 03707344 c4923a9c 483df7a0
32 00000000 00000000 00000000 00000000 cee3d47e a23dfd5c
32 ffffffff ffffffff ffffffff ffffffff 6e2fe0d0 b1b76f82
32 243f6a88 85a308d3 13198a2e 03707344 e2827716 c3c05cdf
"""


@pytest.mark.parametrize("line", KNOWN_ANSWERS.split("\n")[1:-1])
def test_threefry_known_answers(line: str) -> None:
    rounds, *rest = line.split()
    c0, c1, k0, k1, r0, r1 = (int32([noise.signed(int(word, 16))]) for word in rest)
    result = noise.threefry2x32((k0, k1), (c0, c1), int(rounds))
    np.testing.assert_array_equal(result, (r0, r1))


@settings(max_examples=50, deadline=None)
@given(WORD, WORD, st.lists(WORD, min_size=8, max_size=8))
def test_threefry_with_20_rounds_is_that_of_jax(key0: int, key1: int, counters: list[int]) -> None:
    counter = int32(counters)
    key = int32([key0, key1]).view(np.uint32)
    expected = jax.extend.random.threefry_2x32(jnp.asarray(key), jnp.asarray(counter.view(np.uint32)))
    zero = np.zeros(4, np.int32)
    result = noise.threefry2x32((zero + int32(key0), zero + int32(key1)), (counter[:4], counter[4:]), 20)
    np.testing.assert_array_equal(words(np.concatenate(result)), np.asarray(expected))


def test_normal_table() -> None:
    exact = 16 * scipy.stats.norm.ppf((np.arange(4096) + 0.5) / 4096)
    assert np.abs(exact - np.floor(exact) - 0.5).min() > 9e-4  # no entry is near a rounding border
    table = noise.normal_table()
    assert table.dtype == np.int8 and table.shape == (4096,)
    np.testing.assert_array_equal(table, np.rint(exact))
    np.testing.assert_array_equal(table, -table[::-1])
    assert (table.min(), table.max()) == (-59, 59)


# Statistics. Seeds are fixed, so a test always passes or always fails; |z| < 5 leaves chance about 1e-6.

SHAPES: dict[str, dict[str, Any]] = {
    "elements of one stream": {"element": range(2**20)},
    "one element of many pairs": {"pair": range(2**20)},
    "pairs and elements": {"pair": range(1024), "element": range(1024)},
    "large leaf": {"pair": range(4), "element": np.arange(2**31 - 2**18, 2**31)},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_bits_are_uniform(shape: str) -> None:
    drawn = words(bits_of(**SHAPES[shape])).ravel()
    for bit in range(32):
        balance = int((drawn >> np.uint32(bit) & 1).sum())
        assert abs(balance - drawn.size / 2) < 5 * np.sqrt(drawn.size / 4), bit
    for start in (0, 8, 16, 20, 24):
        counts = np.bincount(drawn >> np.uint32(start) & 255, minlength=256)
        chi_square = ((counts - drawn.size / 256) ** 2).sum() / (drawn.size / 256)
        assert abs(chi_square - 255) < 5 * np.sqrt(2 * 255), start


def flip(counter: str, bit: int, base: np.ndarray) -> np.ndarray:
    """Bits of 4096 draws whose counters are `base`, with one bit of one counter flipped."""
    counters = dict(zip(("seed0", "seed1", "leaf", "factor", "generation", "pair", "element"), base, strict=True))
    if counter:
        counters[counter] = counters[counter] ^ np.int32(noise.signed(1 << bit))
    seed = counters["seed0"], counters["seed1"]
    key = noise.threefry2x32(
        noise.threefry2x32(seed, (counters["leaf"], counters["generation"])),
        (counters["factor"], counters["pair"]),
    )
    return words(noise.element_bits(key, counters["element"]))


@pytest.mark.parametrize("counter", ["seed0", "seed1", "leaf", "factor", "generation", "pair", "element"])
def test_flipping_a_bit_of_a_counter_flips_half_of_the_output(counter: str) -> None:
    base = np.random.default_rng(1).integers(0, 2**31, (7, 4096)).astype(np.int32)
    drawn = flip("", 0, base)
    shares = np.array([
        [(changed >> np.uint32(bit) & 1).mean() for bit in range(32)]
        for changed in (drawn ^ flip(counter, flipped, base) for flipped in range(32))
    ])  # fmt: skip
    assert np.abs(shares - 0.5).max() < 5 * 0.5 / np.sqrt(4096)
    assert abs(shares.mean() - 0.5) < 0.002


def square(**counters: Any) -> np.ndarray:
    return bits_of(**{"pair": range(512), "element": range(512), **counters})


NEIGHBOURS = {
    "element": lambda: (square(), square(element=range(1, 513))),
    "pair": lambda: (square(), square(pair=range(1, 513))),
    "generation": lambda: tuple(stack("generation", start) for start in (0, 1)),
    "leaf": lambda: tuple(stack("leaf", start) for start in (0, 1)),
    "seed": lambda: tuple(stack("seed", start) for start in (0, 1)),
    "high seed word": lambda: tuple(stack("seed", start, 2**32) for start in (0, 1)),
    "factor": lambda: (square(factor=0), square(factor=1)),
    "dense factor": lambda: (square(factor=1), square(factor=2)),
}


def stack(counter: str, start: int, step: int = 1) -> np.ndarray:
    values = [(start + index) * step for index in range(64)]
    return np.stack([bits_of(**{counter: value}, pair=range(64), element=range(64)) for value in values])


@pytest.mark.parametrize("counter", NEIGHBOURS)
def test_neighbours_are_not_correlated(counter: str) -> None:
    one, two = NEIGHBOURS[counter]()
    for law in INTEGER_LAWS:
        x, y = (noise.to_float(np, noise.law(law), bits).astype(float) for bits in (one, two))
        for left, right in ((x, y), (x**2 - 1, y**2 - 1), (x, y**2 - 1), (x**2 - 1, y)):
            spread = np.sqrt((left**2).mean() * (right**2).mean() * left.size)
            assert abs((left * right).sum()) <= 5 * spread


@pytest.mark.parametrize("factor", [noise.FACTOR_A, noise.FACTOR_B])
@pytest.mark.parametrize("law", INTEGER_LAWS)
def test_streams_span_space_like_independent_ones(law: str, factor: int) -> None:
    """Inner products of all 256 streams, and the spectrum of their Gram matrix (Marchenko and Pastur)."""
    bits = bits_of(factor=factor, pair=range(256), element=range(512))
    streams = noise.to_float(np, noise.law(law), bits)
    gram = streams @ streams.T / 512
    products = gram[np.triu_indices(256, 1)] * np.sqrt(512)
    assert np.abs(products).max() < 6
    assert products.std() == pytest.approx(1, abs=0.02)
    spectrum = np.linalg.eigvalsh(gram)
    low, high = (1 - np.sqrt(0.5)) ** 2, (1 + np.sqrt(0.5)) ** 2
    assert low - 0.05 < spectrum[0] < spectrum[-1] < high + 0.1


@pytest.mark.parametrize(
    ("law", "kurtosis"),
    [("signs", 1.0), ("popcount", 3 - 2 / 32), ("table_normal", None), ("normal", 3.0)],
)
def test_moments(law: str, kurtosis: float | None) -> None:
    if kurtosis is None:
        table = noise.normal_table().astype(float)
        kurtosis = (table**4).mean() / (table**2).mean() ** 2
        assert kurtosis == pytest.approx(3, abs=0.02)
    bits = bits_of(pair=range(1024), element=range(1024))
    x = noise.to_float(np, noise.law(law), bits, erf_inv=scipy.special.erfinv).astype(float).ravel()
    root = np.sqrt(x.size)
    assert abs(x.mean()) < 5 / root
    assert abs((x**2).mean() - 1) <= 5 * np.sqrt(kurtosis - 1) / root + 1e-6
    assert abs((x**3).mean()) < 5 * np.sqrt(15) / root
    assert abs((x**4).mean() - kurtosis) <= 5 * np.sqrt(96) / root


def test_normal_law_is_normal() -> None:
    bits = bits_of(pair=range(256), element=range(1024))
    values = noise.to_float(jnp, noise.law("normal"), jnp.asarray(bits), erf_inv=jax.lax.erf_inv)
    numbers = np.asarray(values)
    assert numbers.dtype == np.float32 and np.isfinite(numbers).all()
    assert scipy.stats.kstest(numbers.ravel()[::4], "norm").pvalue > 1e-3
    extremes = jnp.asarray(int32([-(2**31), 2**31 - 1]))
    ends = np.asarray(noise.to_float(jnp, noise.law("normal"), extremes, erf_inv=jax.lax.erf_inv))
    assert ends[0] == -ends[1] and 5 < ends[1] < 6
    in_torch = noise.to_float(torch, noise.law("normal"), torch.asarray(bits), erf_inv=torch.erfinv)
    np.testing.assert_allclose(in_torch.numpy(), numbers, rtol=2e-5, atol=1e-6)


# Shared stretches of noise


@pytest.fixture(scope="module")
def overlap() -> types.ModuleType:
    return load("benchmarks/noise_overlap.py")


def test_no_two_streams_share_a_shifted_stretch(overlap: types.ModuleType) -> None:
    """At full size, 2¹⁹ streams of 1024 elements, where one 32-bit key a stream would make a fifth of them overlap."""
    found = overlap.measure("eggroll", 2**19, jax=True)
    assert found.streams_that_share == 0
    assert found.windows_compared == pytest.approx(2**19 * 1017 / 32, rel=0.01)


@pytest.mark.parametrize(("bad", "least", "most"), [("added_key", 0.012, 0.018), ("pool_slices", 0.95, 1.0)])
def test_the_overlap_check_catches_bad_generators(
    overlap: types.ModuleType, bad: str, least: float, most: float
) -> None:
    # Theory for added_key: 1 − exp(−2046 / 2¹⁷) = 0.0155, less the stretches too short to be found.
    assert least < overlap.measure(bad, 2**15).share <= most


def test_no_two_streams_share_a_key() -> None:
    pair = np.arange(2**19, dtype=np.int32)
    keys = [
        noise.stream_key(seed=noise.seed_words(0), leaf=1, factor=factor, generation=0, pair=pair)
        for factor in (noise.FACTOR_A, noise.FACTOR_B)
    ]
    joined = [words(first).astype(np.uint64) << np.uint64(32) | words(second) for first, second in keys]
    assert len(np.unique(np.concatenate(joined))) == 2**20


# Faces and complaints


def test_needs_no_engine() -> None:
    code = "import sys, eggroll.core.noise; print(*{'jax', 'jaxlib', 'torch', 'optax'} & {*sys.modules})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""


@given(st.integers(0, MASK))
def test_signed_keeps_the_bits(word: int) -> None:
    assert noise.signed(word) & MASK == word and -(2**31) <= noise.signed(word) < 2**31


@given(WORD, st.integers(1, 31))
def test_shift_right_is_logical(word: int, by: int) -> None:
    assert int(noise.shift_right(int32([word]), by)[0]) == (word & MASK) >> by


def test_leaf_ids() -> None:
    paths = ["layers/0/w", "layers/1/w", "bias"]
    assert noise.leaf_ids(paths) == {path: noise.leaf_id(path) for path in paths}
    assert noise.leaf_id("w") == int.from_bytes(hashlib.sha256(b"w").digest()[:4], "little", signed=True)
    assert noise.leaf_ids(["a", "a"]) == {"a": noise.leaf_id("a")}


def test_leaf_ids_refuse_a_collision() -> None:
    other, path = "leaf38878", "leaf67075"  # found by trying
    with pytest.raises(ValueError) as caught:
        noise.leaf_ids(["first", other, path])
    assert str(caught.value) == (
        f"expected leaf paths with different 32-bit hashes, got {other!r} and {path!r} with the same one; "
        "rename one of the two parameters"
    )


def test_seed_words() -> None:
    assert noise.seed_words(0) == (0, 0)
    assert noise.seed_words(2**64 - 1) == (-1, -1)
    assert noise.seed_words(2**32 + 2**31) == (-(2**31), 1)
    for seed in (-1, 2**64):
        with pytest.raises(ValueError, match=rf"expected a seed in \[0, 2\*\*64\), got {seed}; choose another seed"):
            noise.seed_words(seed)


def test_laws() -> None:
    with pytest.raises(ValueError) as caught:
        noise.law("cauchy")
    assert str(caught.value) == (
        "expected a noise law among signs, popcount, table_normal, normal, got 'cauchy'; choose one of these"
    )
    with pytest.raises(ValueError, match="expected erf_inv for the law 'normal', got None"):
        noise.to_float(np, noise.law("normal"), int32([1]))
    assert noise.law("signs") is noise.law("signs")
