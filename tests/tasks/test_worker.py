"""_worker.py: whatever a request does, the answer is None and the next one is answered."""

import threading
import time

import pytest

from eggroll.tasks._worker import Worker


@pytest.fixture(scope="module")
def worker():
    made = Worker("tests.tasks.horrid:act", seconds=0.3)
    yield made
    made.close()


@pytest.mark.parametrize("value", [None, True, 1.5, "²\n\ud800\x00", [[]], "9" * 10**6])
def test_an_answer_comes_back(worker, value):
    assert worker(["return", value]) == value


def test_requests_are_served_by_one_process(worker):
    assert worker(["pid", 0]) == worker(["pid", 0])


@pytest.mark.parametrize(
    "request_",
    [["raise", "x"], ["compute", 0], ["sleep", 60], ["allocate", 1 << 36], ["recurse", 0], ["exit", 3], ["exit", 1]],
    ids=str,
)
def test_a_horror_gives_none_in_time_and_the_next_is_answered(worker, request_):
    start = time.monotonic()
    assert worker(request_) is None
    assert time.monotonic() - start < 10
    assert worker(["return", 7]) == 7


def test_what_is_printed_is_no_answer(worker):
    assert [worker(["print", "5\n"]), worker(["return", 7])] == ["printed", 7]


def test_files_cannot_be_written(worker, tmp_path):
    assert worker(["write", str(tmp_path / "a")]) is None
    assert not list(tmp_path.iterdir())


def test_threads_get_their_own_answers(worker):
    found: dict[int, list[int]] = {}

    def ask(number: int) -> None:
        found[number] = [worker(["return", number]) for _ in range(50)]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: [number] * 50 for number in range(4)}


def test_a_closed_one_starts_again(worker):
    before = worker(["pid", 0])
    worker.close()
    worker.close()
    assert worker(["pid", 0]) != before


def test_a_child_that_cannot_start_is_said_so():
    missing = Worker("tests.tasks.nowhere:act")
    with pytest.raises(RuntimeError, match=r"the scoring process stopped: .*tests\.tasks\.nowhere:act"):
        missing(1)
