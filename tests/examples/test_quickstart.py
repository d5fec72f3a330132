"""The README's first example runs and improves."""

import importlib.util
from pathlib import Path


def test_quickstart_improves(capsys):
    path = Path(__file__).resolve().parents[2] / "examples/quickstart.py"
    spec = importlib.util.spec_from_file_location("quickstart", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    start, end = module.main(generations=30)
    assert end > start + 0.2
    assert "mean accuracy of the population" in capsys.readouterr().out
