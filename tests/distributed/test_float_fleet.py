"""A float job on a fleet: scores up, float16 frames down, and the run of one process with such frames."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eggroll
from eggroll.core.strategy import EvolutionStrategy
from eggroll.distributed.fleet import FleetOptions, on_fleet
from eggroll.distributed.worker import Built
from eggroll.runs import loop, training
from eggroll.runs.folder import RunFolder
from eggroll.runs.frames import Kind
from eggroll.runs.job import Job
from eggroll.runs.journal import Journal
from tests.distributed.fake import TOKEN
from tests.distributed.test_fleet import Fleet, lines, nobody_waits_for_long  # noqa: F401

PARAMS = {"w": jnp.ones((4, 3)), "b": jnp.zeros(4)}
TARGET = np.linspace(-1, 1, 4).astype(np.float32)


def strategy():
    return EvolutionStrategy(optax.adam(0.05), population_size=32, sigma=0.1, group_size=8, chunk_size=8)


def fitness(params, key, carry, scale):
    y = params["w"] @ jnp.arange(3.0) + params["b"] + 0.01 * jax.random.normal(key, (4,))
    return -jnp.sum((y - TARGET) ** 2) * scale + 0.01 * carry["n"], {"n": (carry["n"] + 1) % 5}, {"size": jnp.sum(y)}


def batches(generation):
    return (jnp.float32(1 + generation % 2),)


def start_carry(first_pair, pairs):
    return {"n": jnp.arange(2 * first_pair, 2 * (first_pair + pairs), dtype=jnp.float32) % 3}


def parts(frames="float16"):
    es = strategy()
    state = es.init(PARAMS, 5)
    learner = training.strategy_learner(es, state, frames)
    return learner, training.range_work(es, state.seed, fitness, batches, start_carry=start_carry, aux=("size",))


def build(welcome):
    learner, work = parts()
    return Built(learner, work, (), welcome["checks"])


class FloatFleet(Fleet):
    def __init__(self, path):
        learner, self.work = parts()
        super().__init__(path)
        self.job = Job(
            name="float",
            config={},
            learner=learner,
            evaluate=lambda state, generation: pytest.fail("the fleet evaluates"),
            validate=lambda state: {},
            main_metric="fitness_mean",
            units=("members", 32),
            generations=6,
            validate_every=3,
            snapshot_every=3,
            carry=start_carry(0, 16),
        )

    def work_and_folder(self):
        return self.work, RunFolder.create(self.path, "float", {"job": "float"})


def test_a_float_job_on_a_fleet_is_that_of_one_process(tmp_path):
    state, _ = eggroll.train(
        strategy(), PARAMS, fitness, generations=6, batches=batches, seed=5, carry=start_carry(0, 16), has_aux=True,
        run_dir=tmp_path / "alone", frames="float16", snapshot_every=3, validate_every=3,
    )  # fmt: skip
    fleet = FloatFleet(tmp_path / "fleet")
    work, folder = fleet.work_and_folder()
    options = FleetOptions(2, TOKEN)
    with on_fleet(fleet.job, work, folder, options, checks={}, say=fleet.said.append) as (own, fleet.server):
        fleet.join(make=build)
        fleet.join(make=build)
        outcome = loop.run(own, folder, extra={})
    assert fleet.errors == [] and outcome.exit_status == 0
    for a, b in zip(jax.tree.leaves(outcome.state.parameters), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3)  # frames of float16, scores that round in other batches
    with Journal.open(folder.journal) as journal:
        assert journal.segments[0].kind is Kind.FLOAT16
    for a, b in zip(lines(tmp_path / "fleet"), lines(tmp_path / "alone"), strict=True):
        for name in ("fitness_mean", "fitness_std", "fitness_max", "size"):
            assert a[name] == pytest.approx(b[name], rel=1e-2, abs=1e-3)
        assert a["wire_down_bytes"] <= 2 * 16 + 256 and a["resynchronised"] == 0


@pytest.mark.parametrize("cuts", [(0, 16), (0, 5, 16), (0, 4, 8, 12, 16)])
def test_ranges_of_a_strategy_come_to_the_whole(cuts):
    es = strategy()
    state, carry = es.init(PARAMS, 5), start_carry(0, 16)
    found = [
        es.evaluate_range(
            state, fitness, *batches(0), first_pair=a, pairs=b - a, carry=start_carry(a, b - a), has_aux=True
        )
        for a, b in itertools.pairwise(cuts)
    ]
    weights, info, whole = es.evaluate(state, fitness, *batches(0), carry=carry, has_aux=True)
    joined = np.concatenate([part.fitness for part in found])
    np.testing.assert_allclose(joined, whole.fitness, rtol=1e-5)
    np.testing.assert_array_equal(np.concatenate([part.carry["n"] for part in found]), whole.carry["n"])
    np.testing.assert_allclose(es.weigh(state, joined)[0], weights, rtol=1e-3, atol=1e-5)
    assert es.weigh(state, joined)[1].fitness_mean == pytest.approx(float(info.fitness_mean), rel=1e-5)


@pytest.mark.parametrize(("first", "pairs"), [(-1, 2), (0, 0), (15, 2), (16, 1)])
def test_ranges_outside_the_population_are_refused(first, pairs):
    es = strategy()
    with pytest.raises(ValueError, match="expected a range within 16 pairs"):
        es.evaluate_range(es.init(PARAMS), fitness, first_pair=first, pairs=pairs)
