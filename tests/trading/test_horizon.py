"""What a first row and the messages determine: a law on made-up books, and the proof on LOBSTER's sample."""

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from eggroll.trading.horizon import contradicted, determined, horizons
from eggroll.trading.lobster import MISSING
from eggroll.trading.messages import CANCEL, DELETE, EXECUTE, LIMIT
from tests.trading.books import sample
from tests.trading.plain_book import PlainBook


def replayed(first_row, messages, levels):
    """The rows of a replay, what it traded, and the indices of messages that found no order."""
    book = PlainBook.of_levels(first_row)
    rows, traded, unmatched = [], 0, []
    for number, message in enumerate(messages):
        traded += book.apply(*message)[0]
        rows.append(book.levels(levels))
        unmatched += [number] * (book.unmatched - len(unmatched))
    return np.array(rows, np.int64).reshape(-1, levels, 4), traded, unmatched


def test_a_price_that_was_out_of_sight_is_not_determined():
    """The ask at 12 falls behind one at 10 and goes unseen: the replay still has it when 10 is gone."""
    first = np.array([[11, 1, 5, 1], [12, 1, -MISSING, 0]])
    behind = np.array([[10, 1, 5, 1], [11, 1, -MISSING, 0]])
    after = np.array([[11, 1, 5, 1], [13, 1, -MISSING, 0]])
    rows = np.stack([behind, after])
    replay, traded, _ = replayed(first, [(LIMIT, 8, 1, 10, -1), (DELETE, 8, 1, 10, -1)], 2)
    assert traded == 0 and replay[1, 1].tolist() == [12, 1, -MISSING, 0]
    assert horizons(first, rows).tolist() == [[11, -MISSING], [11, -MISSING]]
    assert determined(first, rows).tolist() == [[[True, True], [True, False]], [[True, True], [False, False]]]
    assert not contradicted(first, rows, replay).any()


def test_wrong_missing_and_surplus_levels_within_the_horizon_are_contradicted():
    first = np.array([[11, 1, 5, 1], [14, 1, -MISSING, 0]])
    rows = np.array([[[11, 1, 5, 1], [14, 1, -MISSING, 0]]])
    where = lambda replay: np.argwhere(contradicted(first, rows, np.array([replay]))).tolist()
    assert where([[11, 1, 5, 1], [14, 1, -MISSING, 0]]) == []
    assert where([[11, 2, 5, 1], [14, 1, 2**31 - 1, 0]]) == [[0, 0, 0]]
    assert where([[11, 1, 5, 1], [15, 1, -MISSING, 0]]) == [[0, 1, 0]]
    assert where([[11, 1, 5, 1], [14, 1, 3, 1]]) == [[0, 1, 1]]
    assert where([[11, 1, -MISSING, 0], [14, 1, -MISSING, 0]]) == [[0, 0, 1]]


orders = st.tuples(st.just(LIMIT), st.just(0), st.integers(1, 4), st.integers(0, 8), st.sampled_from([1, -1]))
events = st.tuples(
    st.sampled_from([LIMIT, CANCEL, DELETE]),
    st.integers(0, 50),
    st.integers(1, 4),
    st.integers(0, 8),
    st.sampled_from([1, -1]),
)


class Market:
    """A whole book, where limit orders come to rest, and what a file of some levels records of it."""

    def __init__(self, levels):
        self.book, self.levels, self.orders = PlainBook(), levels, 0

    def message(self, kind, which, size, offset, direction):
        """The event as a message; None: there is no order to cancel or delete."""
        own, other = (self.book.bids, self.book.asks)[::direction]
        if kind == LIMIT:
            self.orders += 1
            reference = other[0][1] if other else 10_000
            return kind, self.orders, size, reference - direction * (1 + offset), direction
        if not own:
            return None
        name, price, left = own[which % len(own)]
        return kind, name, left if kind == DELETE else min(size, left), price, direction

    def row(self):
        return np.array(self.book.levels(self.levels), np.int64)


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 4), st.lists(orders, max_size=12), st.lists(events, max_size=60))
def test_what_a_file_of_few_levels_determines_is_so(levels, start, later):
    market = Market(levels)
    for event in start:
        market.book.apply(*market.message(*event))
    first, messages, rows = market.row(), [], []
    for event in later:
        before, message = market.row(), market.message(*event)
        if message is None:
            continue
        market.book.apply(*message)
        if not np.array_equal(before, market.row()):  # others are out of sight
            messages.append(message)
            rows.append(market.row())
    replay, traded, _ = replayed(first, messages, levels)
    assume(traded == 0)
    assert not contradicted(first, np.array(rows, np.int64).reshape(replay.shape), replay).any()


# ---- the proof on real data


def test_the_real_sample_is_reproduced_wherever_its_first_row_determines_it(shared):
    rows, messages = sample(shared)
    replay, traded, unmatched = replayed(rows[0], messages[1:], 10)
    assert determined(rows[0], rows[1:]).sum(axis=(0, 1)).tolist() == [5372, 1031]  # asks and bids, of 9,980 each
    assert not contradicted(rows[0], rows[1:], replay).any() and traded == 0
    strangers = [(*messages[1 + number], horizons(rows[0], rows[1:])[number, 1]) for number in unmatched]
    assert len(strangers) == 4  # orders that came while their price was out of sight
    assert all(kind == EXECUTE and side == 1 and price < horizon for kind, _, _, price, side, horizon in strangers)


def test_the_real_sample_is_reproduced_but_for_what_comes_into_sight(shared):
    """A replay that is shown, after each message, what stands at prices that were out of sight in the row before."""
    rows, messages = sample(shared)
    book, known = PlainBook.of_levels(rows[0]), 0
    for before, row, message in zip(rows, rows[1:], messages[1:], strict=False):
        assert book.apply(*message) == (0, 0)
        replay = np.array(book.levels(10), np.int64)
        known += determined(before, row[None]).sum()
        assert not contradicted(before, row[None], replay[None]).any()
        show(book, row, *horizons(before, row[None])[0])
    assert known == 19_642 and book.unmatched == 0  # of 19,960: the other 318 come into sight


def show(book, row, ask, bid):
    """Have the book hold, beyond the prices `ask` and `bid`, one anonymous order for each level of the row."""
    shown = PlainBook.of_levels(row)
    book.asks = [order for order in book.asks if order[1] <= ask] + [order for order in shown.asks if order[1] > ask]
    book.bids = [order for order in book.bids if order[1] >= bid] + [order for order in shown.bids if order[1] < bid]
