"""The book of ranges, whatever happens in whatever order: nothing is lost, nothing counts twice."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eggroll.distributed.ranges import NOBODY, Book, cut
from eggroll.distributed.wire import Span


@given(st.integers(1, 5000), st.integers(1, 600))
def test_ranges_tile_the_population(pairs, count):
    spans = cut(pairs, count)
    assert spans[0].first == 0 and sum(span.pairs for span in spans) == pairs
    for before, after in itertools.pairwise(spans):
        assert after.first == before.first + before.pairs
    sizes = {span.pairs for span in spans}
    assert len(spans) == min(count, pairs)
    assert min(sizes) > 0 and max(sizes) - min(sizes) <= max(1, pairs // len(spans) // 4)


def test_ranges_of_a_power_of_two_are_equal_and_others_divide_well():
    assert {span.pairs for span in cut(2048, 8)} == {256}
    assert {span.pairs % 16 for span in cut(2048, 6)} == {0}
    assert [span.pairs for span in cut(7, 3)] == [2, 2, 3]


def book(ranges=6, **settings):
    return Book([Span(k, 1) for k in range(ranges)], **({"sticky": True} | settings))


def take_all(own, worker, deadline=10.0):
    found = []
    while (number := own.next_for(worker, deadline)) is not None:
        found.append(number)
    return found


def test_a_worker_holds_no_more_than_its_depth():
    own = book(depth=3)
    own.join(1)
    assert take_all(own, 1) == [0, 1, 2]
    assert own.answer(1, 1)
    assert take_all(own, 1) == [3]


def test_ranges_return_to_their_owner_and_move_to_balance():
    own = book(depth=6)
    own.join(1)
    for number in take_all(own, 1):
        own.answer(number, 1)
    own.join(2)
    own.start()
    assert own.owner.count(1) == own.owner.count(2) == 3
    assert own.keeper == [1] * 6
    assert len(take_all(own, 2)) == 3
    own.answer(own.owner.index(2), 2)
    assert own.keeper.count(2) == 1


def test_without_carry_anybody_gets_anything():
    own = book(sticky=False, depth=1)
    own.join(1)
    own.join(2)
    seen = []
    while own.left:
        for worker in (1, 2):
            for number in take_all(own, worker):
                seen.append((number, worker))
                own.answer(number, worker)
    assert [number for number, _ in seen] == list(range(6))
    assert own.owner == [NOBODY] * 6


def test_a_lease_that_runs_out_is_anybody_s_and_the_first_answer_counts():
    own = book(ranges=1)
    own.join(1)
    own.join(2)
    assert own.next_for(1, 5.0) == 0
    assert own.expire(4.9) == [] and own.next_for(2, 9.0) is None
    assert own.expire(5.0) == [(0, 1)] and own.late == {1}
    assert own.next_for(1, 9.0) is None
    assert own.next_for(2, 9.0) == 0
    assert own.answer(0, 1) and not own.answer(0, 2)
    assert (own.resent, own.duplicates, own.left, own.owner) == (1, 1, 0, [1])


def test_a_lease_that_was_made_longer_lasts_longer():
    own = book(ranges=1)
    own.join(1)
    own.next_for(1, 5.0)
    own.extend(1, 0, 50.0)
    assert own.expire(49.0) == [] and own.expire(50.0) == [(0, 1)]


def test_who_leaves_leaves_everything():
    own = book(depth=2)
    own.join(1)
    own.join(2)
    first = take_all(own, 1)
    assert own.leave(1) == first
    assert sorted(take_all(own, 2)) == first
    assert own.next_for(1, 1.0) is None


@settings(max_examples=200)
@given(st.data())
def test_nothing_is_lost_and_nothing_counts_twice(data):
    own = book(data.draw(st.integers(1, 9)), sticky=data.draw(st.booleans()), depth=data.draw(st.integers(1, 3)))
    now, held, counted = 0.0, {}, []
    for _ in range(data.draw(st.integers(0, 60))):
        action = data.draw(st.sampled_from(["join", "leave", "take", "answer", "wait", "start", "speak"]))
        worker = data.draw(st.integers(0, 3))
        if action == "join":
            own.join(worker)
            held.setdefault(worker, [])
        elif action == "leave" and worker in held:
            own.leave(worker)
            del held[worker]
        elif action == "take" and worker in held:
            number = own.next_for(worker, now + 5)
            held[worker] += [] if number is None else [number]
        elif action == "answer" and held.get(worker):
            number = held[worker].pop()
            counted += [number] if own.answer(number, worker) else []
        elif action == "speak":
            own.alive(worker)
        elif action == "wait":
            now += data.draw(st.integers(1, 9))
            own.expire(now)
        elif action == "start":
            own.start()
            counted, held = [], {worker: [] for worker in held}
        assert len(counted) == len(set(counted)) == len(own.spans) - own.left
    own.join(9)
    for _ in range(40):  # whatever came before, a worker that stays ends the generation
        now += 100
        own.expire(now)
        for number in take_all(own, 9, now + 1000):
            counted += [number] if own.answer(number, 9) else []
    for worker in held:  # those whose leases have not run out hold the rest
        own.leave(worker)
    for number in take_all(own, 9, now + 1000) + take_all(own, 9, now + 1000):
        counted += [number] if own.answer(number, 9) else []
    while own.left and (number := own.next_for(9, now + 1000)) is not None:
        counted += [number] if own.answer(number, 9) else []
    assert sorted(counted) == list(range(len(own.spans)))


@pytest.mark.parametrize("workers", [2, 3, 7])
def test_nobody_owns_two_more_than_another(workers):
    own = book(ranges=40, depth=50)
    own.join(0)
    for number in take_all(own, 0):
        own.answer(number, 0)
    for worker in range(1, workers):
        own.join(worker)
    own.start()
    counts = [own.owner.count(worker) for worker in range(workers)]
    assert sum(counts) == 40 and max(counts) - min(counts) <= 1
