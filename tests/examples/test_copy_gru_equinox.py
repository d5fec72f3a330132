"""The Equinox example learns to copy by hard decisions alone."""

import pytest

from tests.scripts import load


@pytest.mark.heavy
def test_copying_rises_beyond_chance():
    start, end = load("examples/copy_gru_equinox.py").train(generations=50, population_size=256)
    assert start < 0.4
    assert end > start + 0.12
