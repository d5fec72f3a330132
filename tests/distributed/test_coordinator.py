"""A coordinator and real workers in a box: whoever dies, is late, joins or drifts, the run is that of one process."""

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eggroll.distributed import coordinator as coordinator_module
from eggroll.distributed.wire import Message
from eggroll.distributed.worker import Worker
from tests.distributed.fake import Box, Drifting, alone, sent_kinds


def run(box, generations, *, snapshots=(), before=lambda generation: None, meanwhile=0):
    """Generations to their end; `before` stirs. Returns the weights of each."""
    found = []
    for generation in range(generations):
        before(generation)
        box.pump()
        for _ in range(50):
            if box.coordinator.is_complete():
                break
            box.wait(200)
            box.pump()
        found.append(box.end_generation(more=generation + 1 < generations, meanwhile=meanwhile))
        if generation + 1 in snapshots:
            box.snapshot()
    box.pump()
    return found


def check(box, found, carries=True):
    expected, state = alone(len(found), carries)
    np.testing.assert_array_equal(np.array(found), np.array(expected))
    np.testing.assert_array_equal(box.state.parameters["w"], state.parameters["w"])
    return state


@pytest.mark.parametrize("carries", [True, False])
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_a_fleet_runs_as_one_process_does(workers, carries):
    box = Box(carries=carries)
    for _ in range(workers):
        box.join()
    box.open()
    found = run(box, 5, snapshots=(2, 5))
    state = check(box, found, carries)
    if carries:
        np.testing.assert_array_equal(box.state.carry["n"], state.carry["n"])
    for worker in box.workers.values():
        np.testing.assert_array_equal(worker.state.parameters["w"], state.parameters["w"])
    assert box.coordinator.traffic.resynchronised == box.coordinator.traffic.lost_workers == 0


@pytest.mark.parametrize("carries", [True, False])
def test_answers_that_come_before_the_run_s_own_update_are_not_forgotten(carries):
    """All that one worker may hold is answered before it is known what the answers must carry."""
    box = Box(ranges=7, carries=carries)
    box.join()
    box.open()
    found = run(box, 4, meanwhile=10**6)
    check(box, found, carries)
    assert box.now == 0  # nothing had to run out


def test_ranges_stay_with_their_workers_and_are_shared_out():
    box = Box(ranges=8)
    for _ in range(2):
        box.join()
    box.open()
    owners = []
    run(box, 4, before=lambda generation: owners.append(list(box.coordinator.book.owner)))
    assert sorted(owners[2]) == sorted(owners[3]) == [0, 0, 0, 0, 1, 1, 1, 1]
    assert owners[2] == owners[3]
    assert box.coordinator.traffic.rebuilt_ranges == 0


@pytest.mark.parametrize("snapshots", [(), (2,), (1, 2, 3)])
def test_a_dead_worker_s_ranges_are_rebuilt(snapshots):
    box = Box()
    for _ in range(2):
        box.join()
    box.open()
    found = run(box, 6, snapshots=snapshots, before=lambda g: box.kill(0) if g == 3 else None)
    check(box, found)
    assert box.coordinator.traffic.lost_workers == 1
    assert box.coordinator.traffic.rebuilt_ranges == 3
    assert (box.coordinator.traffic.carry_bytes > 0) == bool(snapshots)
    assert any("w0 left" in line for line in box.said)


def test_whoever_joins_late_gets_the_state_and_some_ranges():
    box = Box(ranges=8)
    box.join()
    box.open()
    found = run(box, 6, snapshots=(2,), before=lambda g: box.join() if g in (1, 4) else None)
    check(box, found)
    owners = box.coordinator.book.owner
    assert {owners.count(worker) for worker in (0, 1, 2)} == {2, 3}
    assert sent_kinds(box, 2, Message.PIECE) > 0  # parameters of the snapshot, carry of others
    assert box.coordinator.traffic.rebuilt_ranges == 0  # the carry came from its owner


def test_a_late_worker_is_not_waited_for():
    box = Box()
    for _ in range(2):
        box.join()
    box.open()

    def stir(generation):
        if generation == 2:
            box.frozen.add(1)
        if generation == 4:
            box.frozen.clear()

    found = run(box, 7, before=stir)
    check(box, found)
    assert box.coordinator.book.resent > 0
    assert len(box.workers) == 2  # it has caught up
    np.testing.assert_array_equal(box.workers[1].state.parameters["w"], box.state.parameters["w"])


def test_the_second_answer_is_dropped():
    box = Box(carries=False, ranges=2)
    for _ in range(2):
        box.join()
    box.open()
    box.pump(rounds=12)
    box.frozen.add(0)
    box.pump()
    for _ in range(10):
        box.wait(200)
        box.pump()
    assert box.coordinator.is_complete()
    before = {index: result.values.tobytes() for index, result in box.coordinator.results.items()}
    box.frozen.clear()
    box.pump()
    assert before == {index: result.values.tobytes() for index, result in box.coordinator.results.items()}
    assert box.coordinator.book.duplicates > 0


def test_a_worker_that_drifts_is_brought_in_step():
    box = Box()
    box.join()
    box.join(Drifting)
    box.open()
    found = run(box, 5)
    check(box, found)
    assert box.coordinator.traffic.resynchronised == 1
    assert any("w1 has other parameters at generation 2" in line for line in box.said)
    np.testing.assert_array_equal(box.workers[1].state.parameters["w"], box.state.parameters["w"])


def test_a_drift_shows_in_an_answer_that_comes_a_generation_late():
    """An answer stands in for READY, so that nobody else would look at the state that it was made with."""
    box = Box(ranges=2, carries=False)
    box.join()
    box.join(Drifting)  # idle: the first worker has both ranges
    box.open()

    def stir(generation):
        if generation == 1:
            box.frozen.add(1)
        if generation == 3:
            box.join()
            box.kill(0)

    found = run(box, 4, before=stir)
    assert sent_kinds(box, 1, Message.WORK) == 0
    box.frozen.clear()
    box.pump()
    assert sent_kinds(box, 1, Message.WORK) == 2 and box.coordinator.book.duplicates == 1  # the second is passed over
    check(box, found, carries=False)
    np.testing.assert_array_equal(box.workers[1].state.parameters["w"], box.state.parameters["w"])
    assert box.coordinator.traffic.resynchronised == 1


class Rubbish(Worker):
    """Whatever it is told, its parameters are its own."""

    def _own_fingerprint(self):
        return 12345


def test_a_worker_that_stays_out_of_step_is_sent_away():
    box = Box()
    box.join()
    box.join(Rubbish)
    box.open()
    found = run(box, 3)
    check(box, found)
    assert list(box.workers) == [0]


def test_a_rebuilt_range_that_comes_out_otherwise_ends_its_worker():
    class Liar(Worker):
        def _replay(self, message):
            work = self._job.work
            self._job = self._job._replace(
                work=work._replace(evaluate=lambda *a: work.evaluate(*a)._replace(values=-work.evaluate(*a).values))
            )
            try:
                yield from super()._replay(message)
            finally:
                self._job = self._job._replace(work=work)

    box = Box()
    box.join()
    box.join(Liar)
    box.open()

    def stir(generation):
        if generation == 3:
            box.kill(0)
        if generation == 4:
            box.join()

    with pytest.raises(Exception, match="evaluate in generation 0 as the journal says"):
        run(box, 5, before=stir)


def test_the_carry_of_the_last_generation_survives_a_death_before_the_snapshot():
    box = Box()
    for _ in range(2):
        box.join()
    box.open()
    found = run(box, 4, snapshots=(2,))
    box.kill(1)
    box.snapshot()
    state = check(box, found)
    np.testing.assert_array_equal(box.state.carry["n"], state.carry["n"])


def test_going_on_from_a_snapshot():
    _, state = alone(3)
    box = Box()
    for _ in range(3):
        box.join()
    box.open(state, 3)
    found = []
    for generation in range(3, 6):
        box.pump()
        found.append(box.end_generation(more=generation < 5))
    np.testing.assert_array_equal(np.array(found), np.array(alone(6)[0][3:]))
    assert box.coordinator.traffic.rebuilt_ranges == 0  # the snapshot's carry was enough


def test_a_range_that_kills_whoever_takes_it_ends_the_run(monkeypatch):
    monkeypatch.setattr(coordinator_module, "MOST_DEATHS", 3)
    box = Box(ranges=1)
    box.open()
    for _ in range(3):
        number = box.join()
        while not box.coordinator.book.holders(0):
            box.pump(rounds=1)
        box.kill(number)
    assert "3 that died over it" in str(box.coordinator.fault)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_any_mishaps_in_any_order_leave_the_run_as_it_is(data):
    carries = data.draw(st.booleans(), "carries")
    box = Box(ranges=data.draw(st.integers(1, 9), "ranges"), carries=carries)
    for _ in range(data.draw(st.integers(1, 3), "workers")):
        box.join(data.draw(st.sampled_from([Worker, Drifting]), "kind"))
    box.open()
    found, generations = [], 6
    for generation in range(generations):
        for _ in range(data.draw(st.integers(0, 4), "mishaps")):
            box.pump(rounds=data.draw(st.integers(0, 30), "messages"))
            mishap = data.draw(st.sampled_from(["join", "drift", "kill", "freeze", "thaw", "wait"]), "mishap")
            some = sorted(box.workers)
            if mishap in ("join", "drift"):
                box.join(Drifting if mishap == "drift" else Worker)
            elif mishap == "kill" and some:
                box.kill(data.draw(st.sampled_from(some), "whom"))
            elif mishap == "freeze" and some:
                box.frozen.add(data.draw(st.sampled_from(some), "whom"))
            elif mishap == "thaw":
                box.frozen.clear()
            elif mishap == "wait":
                box.wait(data.draw(st.sampled_from([1, 50, 500]), "seconds"))
        if len(set(box.workers) - box.frozen) == 0:
            box.join()
        for _ in range(60):
            box.pump()
            if box.coordinator.is_complete():
                break
            box.wait(500)
        meanwhile = data.draw(st.sampled_from([0, 1, 5, 10**6]), "meanwhile")
        found.append(box.end_generation(more=generation + 1 < generations, meanwhile=meanwhile))
        if data.draw(st.booleans(), "snapshot"):
            box.frozen.clear()
            if not box.workers:
                box.join()
            box.pump()
            box.snapshot()
    box.frozen.clear()
    box.pump()
    state = check(box, found, carries)
    for number, worker in box.workers.items():
        if box.coordinator.peers[number].stage == "ready":
            for own, theirs in zip(jax.tree.leaves(worker.state[:2]), jax.tree.leaves(state[:2]), strict=True):
                np.testing.assert_array_equal(own, theirs)
