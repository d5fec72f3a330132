"""What fits into memory: by the rules that a strategy itself follows."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest

from eggroll.core import EvolutionStrategy, memory
from eggroll.doctor import room
from eggroll.pretrain.config import preset
from eggroll.pretrain.population import chunk_pairs

DEVICE = jax.local_devices()[0]
WEIGHTS = {"w1": jnp.ones((8, 64)), "w2": jnp.ones((64, 2))}
X = jnp.ones((4, 8))


def fitness(params, key, x):
    return jnp.tanh(jnp.tanh(x @ params["w1"]) @ params["w2"]).sum()


def strategy(population_size, chunk_size="auto"):
    return EvolutionStrategy(optax.adam(0.1), population_size=population_size, chunk_size=chunk_size, sigma=0.1)


def test_members_at_a_time_are_those_of_auto():
    es = strategy(2**16)
    chunk = es.resolve_chunk_size(es.init(WEIGHTS), fitness, X)
    probe = room.probe_bytes(WEIGHTS, fitness, X)
    budget = memory.memory_budget(WEIGHTS)
    assert chunk == pytest.approx(2 * memory.largest_chunk(2**15, memory.PROBE_PAIRS, probe, budget), rel=0.05)


def test_a_member_keeps_no_more_than_is_said():
    """By the compiler, of a whole step of which a chunk is the same."""
    sizes = {}
    for size in (2**18, 2**19):
        es = strategy(size, 16)
        step = functools.partial(es._evaluate_and_update, fitness=fitness, has_aux=False, layout=None)
        sizes[size] = memory.working_bytes(step, es.init(WEIGHTS), (X,), None)
    each = (sizes[2**19] - sizes[2**18]) / 2**18
    assert 16 < each <= room.BYTES_OF_MEMBER


@pytest.mark.parametrize("gib", [1, 8, 64])
def test_half_of_the_free_memory_is_for_what_members_keep(gib, monkeypatch):
    monkeypatch.setattr(memory, "host_memory", lambda: (gib * 2**30, 64 * 2**30))
    policy, demo = room.populations(DEVICE)
    weights = sum(leaf.size * 4 for leaf in jax.tree.leaves(jax.eval_shape(room.policy.policy_params)))
    left = gib * 2**29 - room.COPIES_OF_WEIGHTS * weights
    assert policy.holds == min(left // room.BYTES_OF_MEMBER // 2 * 2, room.MOST_MEMBERS)
    assert demo.at_a_time == 2 * chunk_pairs(preset("demo")) <= demo.holds <= 2**26
    assert room.host_room() == room.Room("host", gib * 2**30, 64 * 2**30)


def test_a_model_that_does_not_fit(monkeypatch):
    monkeypatch.setattr(memory, "host_memory", lambda: (2**30, 2**31))
    assert room.square_population(10**9, DEVICE).holds == 0
    fits = room.square_population(10**6, DEVICE)
    assert fits.model.startswith("3 layers of 577×577") and 2 <= fits.at_a_time <= fits.holds


class Accelerator:
    """As far as memory goes."""

    platform, id = "gpu", 3

    def __init__(self, **statistics):
        self.statistics = statistics

    def memory_stats(self):
        return self.statistics


def test_memory_of_an_accelerator_is_its_own():
    own = Accelerator(bytes_limit=10**9, bytes_in_use=10**8)
    assert room.room_of(own) == room.Room("gpu:3", 9 * 10**8, 10**9)
    assert memory.memory_budget(WEIGHTS, device=own) == memory.SHARE_OF_FREE * 9 * 10**8
    assert room.demo_population(own).holds < 10**8
    assert room.room_of(DEVICE) is None and room.room_of(Accelerator()) is None
