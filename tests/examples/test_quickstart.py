"""The README's first example runs and improves."""

from tests.scripts import load


def test_quickstart_improves(capsys):
    start, end = load("examples/quickstart.py").main(generations=30)
    assert end > start + 0.2
    assert "mean accuracy of the population" in capsys.readouterr().out
