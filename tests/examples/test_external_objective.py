"""The ask/tell example improves, and its workers know a member's parameters without JAX."""

import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import optax
import pytest

import eggroll
from tests.scripts import load

FOLDER = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))  # spawned workers import the module by its name
    return load("examples/external_objective.py")


def test_the_pole_stays_up_longer(example: types.ModuleType) -> None:
    start, end = example.train(generations=5, population_size=32)
    assert start < 50
    assert end > 2 * start


def test_workers_rebuild_the_parameters_of_perturbed(example: types.ModuleType) -> None:
    random = np.random.default_rng(0)
    mean = {name: random.normal(0, 0.1, shape).astype(np.float32) for name, shape in example.SHAPES.items()}
    es = eggroll.EvolutionStrategy(optax.sgd(0.1), population_size=8, sigma=example.SIGMA)
    state = es.init(mean, seed=2**40 + 3)
    state, _ = es.tell(state, range(8))
    mean = {name: np.asarray(value) for name, value in state.params.items()}
    members = es.ask(state)
    for member in range(8):
        own = example.member_params(
            mean,
            seed=members.seed.tolist(),
            generation=int(members.generation),
            pair=int(members.pair[member]),
            sign=int(members.sign[member]),
        )
        expected = es.perturbed(state, member)
        assert own.keys() == expected.keys()
        for name, value in own.items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-6, atol=1e-7)


def test_a_worker_needs_no_jax() -> None:
    program = (
        "import sys, numpy as np, external_objective as e\n"
        "mean = {name: np.zeros(shape, np.float32) for name, shape in e.SHAPES.items()}\n"
        "scores = e.score(mean, [0, 0], 0, [0, 0], [1, -1])\n"
        "assert len(scores) == 2 and min(scores) > 0, scores\n"
        "assert not {'jax', 'torch', 'optax'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, cwd=FOLDER, timeout=60)
