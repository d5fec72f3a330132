"""The book in JAX: message by message as the plain one, on LOBSTER's sample as recorded, and its laws."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eggroll.trading.book import (
    NONE,
    Book,
    Message,
    best,
    book_of_levels,
    empty_book,
    held_of,
    levels,
    mid,
    on_device,
    play,
    step,
    touch_sizes,
)
from eggroll.trading.horizon import contradicted, determined, horizons
from eggroll.trading.lobster import MISSING
from eggroll.trading.messages import CANCEL, DELETE, EXECUTE, LIMIT, MARKET, Messages
from tests.trading.books import lobster_rows, message_of, orders_of, plain_of, random_messages, sample
from tests.trading.plain_book import PlainBook

BUY, SELL = 1, -1
COUNT, CAPACITY, LEVELS, ORIGIN = 4096, 6, 10, 990
seeds = st.integers(0, 2**32 - 1)
streams = st.builds(random_messages, seeds, st.just(COUNT), prices=st.integers(2, 12))

one_step, played = jax.jit(step), jax.jit(play)


@jax.jit
def seen(book, messages):
    """The last book; of every message what it took, the best levels and the counts after it."""

    def one(book, message):
        book, trade = step(book, message)
        return book, (trade, levels(book, LEVELS), book.dropped, book.unmatched)

    return jax.lax.scan(one, book, messages)


@jax.jit
def unfolded(book, messages):
    """Of every message what it took, and the whole book after it."""

    def one(book, message):
        book, trade = step(book, message)
        return book, (book, trade)

    return jax.lax.scan(one, book, messages)[1]


def told(plain, rows):
    """What `seen` tells, by the plain book."""
    found = []
    for row in rows:
        trade = plain.apply(*row)
        found.append((*trade, plain.dropped, plain.unmatched, plain.levels(LEVELS)))
    quantity, value, dropped, unmatched, best_levels = zip(*found, strict=True)
    return np.stack([quantity, value, dropped, unmatched], axis=1), np.array(best_levels, np.int64)


@settings(deadline=None, max_examples=25)
@given(streams)
def test_every_message_does_what_it_does_to_the_plain_book(rows):
    plain = PlainBook(CAPACITY)
    counts, best_levels = told(plain, rows.tolist())
    book, (trade, own_levels, dropped, unmatched) = seen(empty_book(CAPACITY, ORIGIN), message_of(rows))
    quantity, value = (np.asarray(each, np.int64) for each in trade)
    own_counts = np.stack([quantity, value + quantity * ORIGIN, dropped, unmatched], axis=1)
    differs = (own_counts != counts).any(1) | (lobster_rows(own_levels) != best_levels).any((1, 2))
    assert not differs.any(), f"first at message {differs.argmax()}: {rows[differs.argmax()]}"
    assert orders_of(book) == [plain.bids, plain.asks]


def test_random_messages_try_everything():
    rows = random_messages(0, COUNT)
    plain, orders_met, emptied = PlainBook(CAPACITY), 0, 0
    for row in rows.tolist():
        other = plain.asks if row[4] == BUY else plain.bids
        before = len(other)
        plain.apply(*row)
        orders_met, emptied = max(orders_met, before - len(other)), emptied + (before > 0 and not other)
    assert orders_met >= 4 and emptied > 8 and plain.dropped > 100 and plain.unmatched > 100
    quantity, (kind, _, size, _, _) = told(PlainBook(CAPACITY), rows.tolist())[0][:, 0], rows.T
    for each in (LIMIT, MARKET):
        taken, wanted = quantity[(kind == each) & (size > 0)], size[(kind == each) & (size > 0)]
        assert min((taken == 0).sum(), ((taken > 0) & (taken < wanted)).sum(), (taken == wanted).sum()) > 10
    assert all((size[kind == each] == 0).any() for each in (LIMIT, CANCEL, DELETE, EXECUTE, MARKET))


# ---- laws


@settings(deadline=None, max_examples=10)
@given(streams)
def test_shares_are_conserved_and_the_book_is_never_crossed(rows):
    kind, _, size, _, _ = rows.T
    books, (quantity, _) = jax.tree.map(np.asarray, unfolded(empty_book(CAPACITY), message_of(rows)))
    rests = np.concatenate([np.zeros(1, int), books.size.sum((1, 2))])
    dropped = np.diff(books.dropped, prepend=0) > 0
    change, limit = np.diff(rests), kind == LIMIT
    assert (books.size >= 0).all() and (quantity[~limit & (kind != MARKET)] == 0).all()
    assert np.array_equal(change[limit & ~dropped], (size - 2 * quantity)[limit & ~dropped])
    assert np.array_equal(change[kind == MARKET], -quantity[kind == MARKET]) and (quantity <= size).all()
    removes = np.isin(kind, (CANCEL, EXECUTE))
    assert (-size[removes] <= change[removes]).all() and (change[removes | (kind == DELETE)] <= 0).all()
    assert not change[~removes & ~limit & ~np.isin(kind, (MARKET, DELETE))].any()
    key = np.where(books.size > 0, books.key, NONE).min(2)
    both = (key < NONE).all(1)
    assert both.any() and (-key[both, 0] < key[both, 1]).all()
    gone = np.array([_last(books, at, rows[at], quantity[at]) for at in np.flatnonzero(dropped)])
    assert np.array_equal(change[dropped], size[dropped] - 2 * quantity[dropped] - gone)
    removed = -change[~limit & (kind != MARKET)].sum()
    assert size[limit].sum() == rests[-1] + quantity.sum() + quantity[limit].sum() + removed + gone.sum()


def _last(books, at, row, quantity):
    """Shares of the order that message `at` pushed out of its full side: the last in priority, itself included."""
    _, _, size, price, direction = row
    side = 0 if direction == BUY else 1
    orders = list(zip(*(each[at - 1, side].tolist() for each in (books.key, books.came, books.size)), strict=True))
    return max([*orders, (-price * direction, NONE, size - quantity)])[2]


def test_eight_books_at_once_do_what_each_does_alone():
    rows = np.stack([random_messages(seed, 256) for seed in range(8)])
    starts = [empty_book(CAPACITY, ORIGIN + seed) for seed in range(8)]
    for number in range(1, 8):  # not all from an empty book
        starts[number], _ = played(starts[number], message_of(random_messages(100 + number, 64)))
    together = jax.jit(jax.vmap(play))(
        jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts), Message(*np.int32(rows).transpose(2, 0, 1))
    )
    for number in range(8):
        one = played(starts[number], message_of(rows[number]))
        same = jax.tree.map(lambda all_, own, at=number: np.array_equal(all_[at], own), together, one)
        assert all(jax.tree.leaves(same))


read_off = jax.jit(lambda book: (best(book), touch_sizes(book), mid(book), levels(book, 3)))


def ready(seed):
    """A book after some messages."""
    return played(empty_book(16, ORIGIN), message_of(random_messages(seed, 64, prices=10)))[0]


@settings(deadline=None, max_examples=50)
@given(seeds, st.sampled_from([0, 995, 1000, 1005]), st.sampled_from([BUY, SELL]), st.integers(1, 200))
def test_a_market_order_leaves_nothing(seed, price, direction, size):
    book = ready(seed)
    row = (MARKET, 77, size, price, direction)
    after, (quantity, value) = one_step(book, message_of(row))
    plain = plain_of(book)
    assert plain.apply(*row) == (int(quantity), int(value) + ORIGIN * int(quantity))
    assert orders_of(after) == [plain.bids, plain.asks]
    assert quantity <= size and after.size.sum() == book.size.sum() - quantity
    assert int(held_of(after, 77)) == 0


# ---- what is read off a book


@settings(deadline=None, max_examples=50)
@given(seeds)
def test_what_is_read_off_a_book_is_so(seed):
    book = ready(seed)
    (bids, asks), (touch, shares, middle, three) = orders_of(book), read_off(book)
    bid, ask = (side[0][1] if side else none for side, none in ((bids, -NONE), (asks, NONE)))
    assert touch.tolist() == [bid, ask]
    at_best = [sum(size for _, price, size in side if price == side[0][1]) for side in (bids, asks)]
    assert shares.tolist() == at_best and middle == ((bid + ask) // 2 if bids and asks else ORIGIN)
    for name in {name for name, _, _ in bids + asks}:
        assert held_of(book, name) == sum(size for other, _, size in bids + asks if other == name)
    assert lobster_rows(three).tolist() == [list(level) for level in plain_of(book).levels(3)]


def test_an_empty_side_has_no_price_and_the_mid_is_then_the_origin():
    told = lambda book: [np.asarray(each).tolist() for each in read_off(book)]
    book = empty_book(16, 1_234)
    assert told(book) == [[-NONE, NONE], [0, 0], 1_234, [[NONE, 0, -NONE, 0]] * 3]
    bid, _ = one_step(book, message_of((LIMIT, 1, 5, 1_000, BUY)))
    assert told(bid) == [[1_000, NONE], [5, 0], 1_234, [[NONE, 0, 1_000, 5], *[[NONE, 0, -NONE, 0]] * 2]]
    ask, _ = one_step(book, message_of((LIMIT, 1, 5, 1_000, SELL)))
    assert told(ask) == [[-NONE, 1_000], [0, 5], 1_234, [[1_000, 5, -NONE, 0], *[[NONE, 0, -NONE, 0]] * 2]]


def test_a_book_of_levels_shows_them():
    row = np.array([[1_003, 6, 1_000, 5], [1_004, 2, 998, 1], [MISSING, 0, 990, 7]])
    book = book_of_levels(row, 3)
    assert np.array_equal(lobster_rows(levels(book, 3)), row) and int(book.origin) == 1_001
    assert orders_of(book) == [[[0, 1_000, 5], [0, 998, 1], [0, 990, 7]], [[0, 1_003, 6], [0, 1_004, 2]]]
    one_sided = np.array([[MISSING, 0, 1_000, 5], [MISSING, 0, -MISSING, 0]])
    assert np.array_equal(lobster_rows(levels(book_of_levels(one_sided), 2)), one_sided)
    with pytest.raises(ValueError, match="at most 2 levels, got 3"):
        book_of_levels(row, 2)


@settings(deadline=None)
@given(st.lists(st.integers(-3, 3) | st.integers(-(2**63), 2**63 - 1), max_size=20))
def test_renumbered_ids_are_equal_where_they_were_and_anonymous_where_they_were(ids):
    ids = np.array(ids, np.int64)
    zeros = np.zeros(len(ids), np.int32)
    found = np.asarray(on_device(Messages(ids, zeros, ids, zeros, zeros, zeros)).order_id)
    assert found.dtype == np.int32 and np.array_equal(found == 0, ids == 0)
    assert np.array_equal(found[:, None] == found, ids[:, None] == ids)
    assert set(found[ids != 0].tolist()) == set(range(1, 1 + len(set(ids[ids != 0].tolist()))))


# ---- the proof on real data


def recorded(shared):
    """LOBSTER's sample: the book's rows, and what comes after the first as a device reads it."""
    rows, messages = sample(shared)
    kind, name, size, price, direction = np.array(messages).T
    return rows, on_device(Messages(name, kind, name, size, price, direction))


def test_the_real_sample_is_reproduced_wherever_its_first_row_determines_it(shared):
    rows, messages = recorded(shared)
    later = jax.tree.map(lambda column: column[1:], messages)
    _, (trade, own_levels, dropped, unmatched) = seen(book_of_levels(rows[0]), later)
    replay, known = lobster_rows(own_levels), determined(rows[0], rows[1:])
    equal = (replay.reshape(-1, LEVELS, 2, 2) == rows[1:].reshape(-1, LEVELS, 2, 2)).all(-1)
    assert known.sum(axis=(0, 1)).tolist() == [5372, 1031] and equal[known].all()  # asks and bids, of 9,980 each
    assert not contradicted(rows[0], rows[1:], replay).any()
    assert not np.asarray(trade.quantity).any() and dropped[-1] == 0 and unmatched[-1] == 4


def test_the_real_sample_is_reproduced_but_for_what_comes_into_sight(shared):
    """A replay that is shown, after each message, what stands at prices that were out of sight in the row before."""
    rows, messages = recorded(shared)
    book, known = book_of_levels(rows[0]), 0
    after = jax.jit(lambda book, message: (*step(book, message), levels(step(book, message)[0], LEVELS)))
    columns = np.stack(messages, axis=1)
    for number, (before, row) in enumerate(pairwise(rows), start=1):
        book, trade, own_levels = after(book, Message(*columns[number]))
        assert not trade.quantity
        replay = lobster_rows(own_levels)
        cells = determined(before, row[None])[0]
        known += cells.sum()
        assert (replay.reshape(LEVELS, 2, 2) == row.reshape(LEVELS, 2, 2)).all(-1)[cells].all()
        assert not contradicted(before, row[None], replay[None]).any()
        book = shown(book, row, *horizons(before, row[None])[0])
    assert known == 19_642 and not book.unmatched and not book.dropped  # of 19,960: the other 318 come into sight


def shown(book, row, ask, bid):
    """The book with one anonymous order for each level of the row beyond the prices `ask` and `bid`, and no other."""
    key, size, name, came = (np.array(each) for each in book[:4])
    for side, (levels_of, bound) in enumerate(((row[:, 2:] * [-1, 1], -bid), (row[:, :2], ask))):
        size[side, key[side] > bound] = 0
        new = levels_of[(levels_of[:, 1] > 0) & (levels_of[:, 0] > bound)]
        free = np.flatnonzero(size[side] == 0)[: len(new)]
        key[side, free], size[side, free] = new.T
        name[side, free] = came[side, free] = 0
    return Book(*map(jnp.asarray, (key, size, name, came)), *book[4:])
