"""entropy.py against loops over a Counter."""

from __future__ import annotations

import gzip
import itertools
import math
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eggroll.pretrain import entropy

TEXTS = st.binary(min_size=1, max_size=200) | st.text("ab", min_size=1).map(str.encode)


def array(text: bytes) -> np.ndarray:
    return np.frombuffer(text, np.uint8)


def unigram(text: bytes) -> float:
    return -sum(n / len(text) * math.log2(n / len(text)) for n in Counter(text).values())


def bigram(text: bytes) -> float:
    before, bits = Counter(text[:-1]), 0.0
    for (first, _), count in Counter(itertools.pairwise(text)).items():
        bits -= count * math.log2(count / before[first])
    return bits / max(1, len(text) - 1)


def cross(train: bytes, text: bytes) -> tuple[float, float]:
    counts, bits = Counter(train), 0.0
    for byte in text:
        bits -= math.log2((counts[byte] + 1) / (len(train) + 256))
    pairs, before, pair_bits = Counter(itertools.pairwise(train)), Counter(train[:-1]), 0.0
    for first, second in itertools.pairwise(text):
        pair_bits -= math.log2((pairs[first, second] + 1) / (before[first] + 256))
    return bits / len(text), pair_bits / max(1, len(text) - 1)


@given(TEXTS)
def test_plug_in_entropies(text: bytes) -> None:
    assert entropy.unigram_entropy(array(text)) == pytest.approx(unigram(text), abs=1e-9)
    assert entropy.bigram_entropy(array(text)) == pytest.approx(bigram(text), abs=1e-9)
    assert entropy.gzip_bits(array(text)) == 8 * len(gzip.compress(text, 9)) / len(text)


@given(TEXTS, TEXTS)
def test_cross_entropies(train: bytes, text: bytes) -> None:
    one, two = cross(train, text)
    assert entropy.unigram_cross_entropy(array(train), array(text)) == pytest.approx(one, abs=1e-9)
    assert entropy.bigram_cross_entropy(array(train), array(text)) == pytest.approx(two, abs=1e-9)


def test_pieces_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    text = np.random.default_rng(0).integers(0, 9, 1000).astype(np.uint8)
    whole = entropy.reference_entropies(text)
    monkeypatch.setattr(entropy, "_CHUNK", 7)
    assert entropy.reference_entropies(text) == whole


def test_known_values_and_speed() -> None:
    text = np.tile(np.arange(256, dtype=np.uint8), 8192)
    start = time.perf_counter()
    assert entropy.unigram_entropy(text) == 8
    assert entropy.bigram_entropy(text) == 0
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize("text", [np.zeros(0, np.uint8), np.zeros(3, np.int64), np.zeros((2, 2), np.uint8)])
def test_complaint(text: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected a uint8 text with one axis and some bytes, got"):
        entropy.reference_entropies(text)
