"""Laws of the simulated fleet, in small worlds; `benchmarks/fleet_simulation.py` simulates the large ones."""

import dataclasses
import types

import pytest

from tests.scripts import load


@pytest.fixture(scope="module")
def fleet() -> types.ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend("benchmarks")
        return load("benchmarks/fleet_simulation.py")


def world(fleet, **changes):
    """A few workers and no cost but those that are named."""
    quiet = fleet.without(fleet.World(workers=8, generations=3), *fleet.CAUSES)
    return dataclasses.replace(quiet, **changes)


@pytest.mark.parametrize("carries", [False, True])
@pytest.mark.parametrize("seconds", [0.05, 30.0])
def test_nothing_is_lost_where_nothing_costs(fleet, carries, seconds):
    result = fleet.simulate(world(fleet, range_seconds=seconds, carries=carries))
    assert result["utilisation"] == pytest.approx(1, abs=1e-6)
    assert result["evaluating"] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("cause", [{"latency": 0.01}, {"bandwidth": 1e5}, {"message_seconds": 1e-3}])
def test_more_of_a_cost_never_helps(fleet, cause):
    (name, value), times = next(iter(cause.items())), []
    for factor in (1, 4, 16):
        changed = world(
            fleet, range_seconds=0.05, spread=0.1, **{name: value / factor if name == "bandwidth" else value * factor}
        )
        times.append(fleet.simulate(changed)["generation_seconds"])
    assert times[0] < times[1] < times[2]


def test_a_generation_takes_its_evaluation_and_a_turn_of_the_network(fleet):
    result = fleet.simulate(world(fleet, latency=0.25, update_share=0.01))
    assert result["generation_seconds"] == pytest.approx(2 + 2 * 0.25 + 0.01 * 16)


def test_leases_pay_where_some_straggle(fleet):
    straggling = {"straggler_share": 0.02, "straggler_factor": 500.0, "seed": 2}
    leased = fleet.simulate(world(fleet, lease_seconds=1.0, **straggling))
    patient = fleet.simulate(world(fleet, lease_seconds=1e6, **straggling))
    assert leased["resent"] > 0 and patient["resent"] == 0
    assert leased["generation_seconds"] < patient["generation_seconds"] / 4


@pytest.mark.parametrize("carries", [False, True])
def test_workers_die_and_the_run_goes_on(fleet, carries):
    dying = world(fleet, death_rate=60.0, carries=carries, generations=20)
    result = fleet.simulate(dying)
    assert result["deaths"] > 3
    assert 0.05 < result["utilisation"] < 0.95


def test_the_same_seed_gives_the_same_result(fleet):
    whole = fleet.World(
        workers=6, generations=3, death_rate=100.0, straggler_share=0.05, carries=True, return_seconds=5.0
    )
    first, again = fleet.simulate(whole), fleet.simulate(whole)
    assert first == again
    assert first != fleet.simulate(dataclasses.replace(whole, seed=1))


def test_what_is_lost_adds_up(fleet):
    found = fleet.waterfall(fleet.World(workers=6, generations=2))
    assert sum(found["lost"].values()) == pytest.approx(1 - found["utilisation"])
