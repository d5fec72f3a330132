"""The Transformer example learns sums from a count that has no gradient."""

import pytest

from tests.scripts import load


@pytest.mark.heavy
def test_accuracy_rises():
    start, end = load("examples/modular_transformer.py").train(generations=40, population_size=256)
    assert start < 0.4
    assert end > start + 0.2
