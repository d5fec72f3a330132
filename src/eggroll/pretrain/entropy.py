"""What a byte costs under models that anyone can compute: reference points for a run's bits per byte.

The plug-in entropies are those of the text itself: no model that looks at no byte (or at one byte) of context
can do better on it, whatever it was trained on. The cross-entropies are fair to a model that was trained
elsewhere: counts from the training text, plus one.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass

import numpy as np

_CHUNK = 1 << 22


@dataclass(frozen=True)
class ReferenceEntropies:
    """Bits per byte of one text: unigram H(X_t), bigram H(X_t | X_{t−1}), and gzip at level 9."""

    unigram: float
    bigram: float
    gzip: float


def reference_entropies(validation: np.ndarray) -> ReferenceEntropies:
    """The three figures to print beside a run's result, computed on its own held-out split.

    Args:
      validation: (bytes,) uint8, at least one byte.
    Raises:
      ValueError: the text is empty or no uint8.
    """
    return ReferenceEntropies(unigram_entropy(validation), bigram_entropy(validation), gzip_bits(validation))


def unigram_entropy(text: np.ndarray) -> float:
    """Plug-in entropy of the byte frequencies of `text`, (bytes,) uint8, in bits per byte."""
    return _bits(_unigrams(text))


def bigram_entropy(text: np.ndarray) -> float:
    """Plug-in conditional entropy of a byte given the one before, in bits per byte.

    H(X_t | X_{t−1}) = H(X_{t−1}, X_t) − H(X_{t−1}) over the `len − 1` pairs of `text`, (bytes,) uint8; 0 when
    there is no pair.
    """
    pairs = _bigrams(text)
    return max(0.0, _bits(pairs.ravel()) - _bits(pairs.sum(1)))


def unigram_cross_entropy(train: np.ndarray, text: np.ndarray) -> float:
    """Bits per byte of `text` under the byte frequencies of `train`, each count plus one."""
    counts, model = _unigrams(text), _unigrams(train) + 1
    return float(-(counts * np.log2(model / model.sum())).sum() / counts.sum())


def bigram_cross_entropy(train: np.ndarray, text: np.ndarray) -> float:
    """Bits per byte of `text` after its first, under the successor counts of `train` plus one."""
    counts, model = _bigrams(text), _bigrams(train) + 1
    bits = -(counts * np.log2(model / model.sum(1, keepdims=True))).sum()
    return float(bits / max(1, counts.sum()))


def gzip_bits(text: np.ndarray) -> float:
    """Bits per byte of `text`, (bytes,) uint8, after `gzip -9` (header included)."""
    _check(text)
    return 8 * len(gzip.compress(np.ascontiguousarray(text).data, 9, mtime=0)) / len(text)


def _check(text: np.ndarray) -> None:
    if text.dtype != np.uint8 or text.ndim != 1 or not text.size:
        raise ValueError(
            f"expected a uint8 text with one axis and some bytes, got {text.dtype} of shape {text.shape}; "
            "pass Corpus.validation"
        )


def _unigrams(text: np.ndarray) -> np.ndarray:
    """(256,) int64 counts."""
    _check(text)
    counts = np.zeros(256, np.int64)
    for start in range(0, len(text), _CHUNK):
        counts += np.bincount(text[start : start + _CHUNK], minlength=256)
    return counts


def _bigrams(text: np.ndarray) -> np.ndarray:
    """(256, 256) int64 counts of (byte before, byte)."""
    _check(text)
    counts = np.zeros(65536, np.int64)
    for start in range(0, len(text) - 1, _CHUNK):
        piece = text[start : start + _CHUNK + 1].astype(np.int64)
        counts += np.bincount(piece[:-1] << 8 | piece[1:], minlength=65536)
    return counts.reshape(256, 256)


def _bits(counts: np.ndarray) -> float:
    """Entropy of the frequencies that the counts give, in bits; 0 without any."""
    shares = counts[counts > 0] / max(1, counts.sum())
    return max(0.0, float(-(shares * np.log2(shares)).sum()))
