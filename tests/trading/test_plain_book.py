"""The plain book, by hand: it is the oracle for the book in JAX, so it must itself be right."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eggroll.trading.messages import CANCEL, CROSS, DELETE, EXECUTE, HALT, HIDDEN, LIMIT, MARKET
from tests.trading.plain_book import NO_ASK, NO_BID, PlainBook

BUY, SELL = 1, -1


@pytest.fixture
def book():
    """Bids 100: 5 (order 1) then 7 (order 2), 99: 4 (order 3); asks 102: 6 (order 4), 103: 8 (order 5)."""
    book = PlainBook()
    book.apply(LIMIT, 3, 4, 99, BUY)
    book.apply(LIMIT, 1, 5, 100, BUY)
    book.apply(LIMIT, 2, 7, 100, BUY)
    book.apply(LIMIT, 5, 8, 103, SELL)
    book.apply(LIMIT, 4, 6, 102, SELL)
    return book


def test_orders_stand_in_price_and_then_time_order(book):
    assert book.bids == [[1, 100, 5], [2, 100, 7], [3, 99, 4]]
    assert book.asks == [[4, 102, 6], [5, 103, 8]]
    assert book.levels(3) == [(102, 6, 100, 12), (103, 8, 99, 4), (*NO_ASK, *NO_BID)]
    assert book.levels(1) == [(102, 6, 100, 12)]


def test_a_limit_order_trades_at_the_resting_prices_and_its_rest_joins(book):
    assert book.apply(LIMIT, 9, 20, 99, SELL) == (16, 12 * 100 + 4 * 99)
    assert book.bids == [] and book.asks == [[9, 99, 4], [4, 102, 6], [5, 103, 8]]


def test_a_limit_order_stops_at_its_own_price(book):
    assert book.apply(LIMIT, 9, 20, 102, BUY) == (6, 6 * 102)
    assert book.bids[0] == [9, 102, 14] and book.asks == [[5, 103, 8]]


def test_the_first_in_the_queue_is_filled_first(book):
    assert book.apply(LIMIT, 9, 6, 100, SELL) == (6, 600)
    assert book.bids == [[2, 100, 6], [3, 99, 4]] and len(book.asks) == 2


@pytest.mark.parametrize(
    ("price", "traded", "bids"),
    [
        (0, (16, 12 * 100 + 4 * 99), []),
        (100, (12, 1200), [[3, 99, 4]]),
        (101, (0, 0), [[1, 100, 5], [2, 100, 7], [3, 99, 4]]),
    ],
)
def test_what_is_left_of_a_market_order_lapses(book, price, traded, bids):
    assert book.apply(MARKET, 9, 50, price, SELL) == traded
    assert book.bids == bids and book.asks == [[4, 102, 6], [5, 103, 8]]


def test_a_market_order_buys_at_any_price(book):
    assert book.apply(MARKET, 0, 10, 0, BUY) == (10, 6 * 102 + 4 * 103)
    assert book.asks == [[5, 103, 4]]


@pytest.mark.parametrize("size", [0, -3])
@pytest.mark.parametrize("kind", [LIMIT, MARKET])
def test_orders_without_shares_do_nothing(book, kind, size):
    before = book.levels(3)
    assert book.apply(kind, 9, size, 103, BUY) == (0, 0) and book.levels(3) == before


@pytest.mark.parametrize("kind", [CANCEL, EXECUTE])
def test_cancellation_and_execution_take_at_most_what_is_there(book, kind):
    assert book.apply(kind, 2, 3, 100, BUY) == (0, 0)
    assert book.bids[1] == [2, 100, 4]
    book.apply(kind, 2, 9, 100, BUY)
    assert book.bids == [[1, 100, 5], [3, 99, 4]] and book.unmatched == 0


def test_deletion_takes_all_whatever_its_size(book):
    book.apply(DELETE, 2, 1, 100, BUY)
    assert book.bids == [[1, 100, 5], [3, 99, 4]]


def test_an_order_is_looked_for_on_its_side_alone(book):
    before = book.levels(3)
    book.apply(DELETE, 2, 7, 100, SELL)
    assert book.levels(3) == before and book.unmatched == 1


@pytest.mark.parametrize("kind", [CANCEL, DELETE, EXECUTE])
def test_an_unknown_name_is_taken_for_an_anonymous_order_at_its_price(kind):
    book = PlainBook.of_levels([(102, 6, 100, 5)])
    book.apply(LIMIT, 1, 3, 100, BUY)
    book.apply(LIMIT, 0, 4, 100, BUY)
    book.apply(kind, 77, 2, 100, BUY)
    assert book.bids == [[0, 100, 3], [1, 100, 3], [0, 100, 4]]
    book.apply(kind, 77, 9, 100, BUY)
    assert book.bids == [[1, 100, 3], [0, 100, 4]]
    book.apply(kind, 77, 9, 99, BUY)
    assert book.bids == [[1, 100, 3], [0, 100, 4]] and book.unmatched == 1


@pytest.mark.parametrize("kind", [CANCEL, DELETE, EXECUTE])
def test_an_anonymous_message_is_for_the_first_order_at_its_price(book, kind):
    book.apply(kind, 0, 2, 100, BUY)
    assert book.bids[0] == [1, 100, 3]
    book.apply(kind, 0, 9, 100, BUY)
    assert book.bids == [[2, 100, 7], [3, 99, 4]]
    book.apply(kind, 0, 1, 101, BUY)
    assert book.unmatched == 1


@pytest.mark.parametrize("kind", [HIDDEN, CROSS, HALT, 0, 9])
def test_other_kinds_change_nothing(book, kind):
    before = book.levels(3)
    assert book.apply(kind, 2, 3, 100, BUY) == (0, 0)
    assert book.levels(3) == before and book.unmatched == 0


def test_a_full_side_drops_its_last_order_or_the_newcomer():
    book = PlainBook(capacity=2)
    for name, price in ((1, 100), (2, 99), (3, 99)):
        book.apply(LIMIT, name, 5, price, BUY)
    assert book.bids == [[1, 100, 5], [2, 99, 5]] and book.dropped == 1
    book.apply(LIMIT, 4, 5, 101, BUY)
    assert book.bids == [[4, 101, 5], [1, 100, 5]] and book.dropped == 2
    assert book.apply(LIMIT, 5, 6, 101, SELL) == (5, 505)  # the room that trading makes is the other side's
    assert book.bids == [[1, 100, 5]] and book.asks == [[5, 101, 1]] and book.dropped == 2


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([LIMIT, LIMIT, MARKET, CANCEL, EXECUTE]),
            st.integers(0, 9),
            st.integers(1, 9),
            st.integers(1, 12),
            st.sampled_from([BUY, SELL]),
        ),
        max_size=60,
    )
)
def test_no_share_comes_from_nowhere_and_no_book_is_crossed(messages):
    book = PlainBook()
    for kind, *rest in messages:
        before = sum(size for *_, size in book.bids + book.asks)
        quantity, value = book.apply(kind, *rest)
        after = sum(size for *_, size in book.bids + book.asks)
        if kind == LIMIT:
            assert after == before + rest[1] - 2 * quantity
        elif kind == MARKET:
            assert after == before - quantity and quantity <= rest[1]
        else:
            assert before - rest[1] <= after <= before and quantity == 0
        assert quantity <= value <= 12 * quantity
        bids, asks = ([price for _, price, _ in side] for side in (book.bids, book.asks))
        assert bids == sorted(bids, reverse=True) and asks == sorted(asks) and (not bids + asks or min(bids + asks) > 0)
        assert not (bids and asks) or bids[0] < asks[0]
        assert all(size > 0 for *_, size in book.bids + book.asks)
