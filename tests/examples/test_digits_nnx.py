"""The NNX example learns digits from accuracy alone."""

from tests.scripts import load


def test_held_out_accuracy_rises():
    start, end = load("examples/digits_nnx.py").train(generations=15, population_size=256)
    assert start < 0.3
    assert end > start + 0.2
