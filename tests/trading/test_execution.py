"""Episodes of execution: as a slow plain-Python reference has them, and their laws."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from eggroll.core.errors import UsageError
from eggroll.trading.book import best, book_of_levels, empty_book, play
from eggroll.trading.calibration import read_calibration
from eggroll.trading.data import generated_day, recorded_markets
from eggroll.trading.execution import CHILD, Account, Immediate, Order, Scheduled, Task, Twap, episode
from eggroll.trading.flow import opened
from eggroll.trading.lobster import read_day
from eggroll.trading.messages import CANCEL, DELETE, EXECUTE, HALT, HIDDEN, LIMIT, MARKET, Messages, cut
from eggroll.trading.world import FEATURES, Market, generated, next_message, record_of, replayed
from tests.trading.books import message_of, plain_of, random_messages
from tests.trading.plain_book import PlainBook

BUY, SELL = 1, -1
DECISIONS, INTERVAL, CAPACITY, ORIGIN = 4, 8, 12, 1_990
TASKS = {side: Task(side, 40, DECISIONS, INTERVAL) for side in ("sell", "buy")}
COUNT = TASKS["sell"].messages
MIX = {LIMIT: 12, CANCEL: 3, DELETE: 2, EXECUTE: 6, HIDDEN: 1, HALT: 1}
KEY = jax.random.key(0)


class Scripted:
    """Puts the orders of a list, (decisions, 3): kind, price, size."""

    def __init__(self, orders):
        self._orders = orders

    def start(self):
        return ()

    def read(self, memory, tokens, features):
        assert features.shape == (tokens.shape[0], len(FEATURES))
        return memory

    def decide(self, memory, book, account, key):
        return memory, Order(*self._orders[account.decided])


@partial(jax.jit, static_argnames=("side", "way"))
def run(side, way, market, record, orders):
    """An episode against a record."""
    task = TASKS[side]
    trader = {"twap": Twap, "immediate": Immediate}[way](task) if way != "scripted" else Scripted(orders)
    return episode(task, replayed(record), trader, market, KEY)


def orders_of(rows):
    return jnp.asarray(rows, jnp.int32)


NONE = orders_of([[LIMIT, 0, 0]] * DECISIONS)


def recorded(rows):
    """Rows of messages as a record, one a millisecond."""
    kind, name, size, price, direction = (np.array(column) for column in np.asarray(rows).T)
    time = np.arange(len(rows), dtype=np.int64) * 10**6
    fields = (kind.astype(np.int32), name.astype(np.int64), *(np.int32(each) for each in (size, price, direction)))
    return record_of(Messages(time, *fields))


# ---- the reference


def sent(row):
    """A recorded message as it meets the market: an execution is an order of the other side."""
    kind, name, size, price, direction = row
    return (MARKET, name, size, price, -direction) if kind == EXECUTE else row


class Reference:
    """An episode by hand, on the plain book."""

    def __init__(self, task, plain, rows, origin):
        self.task, self.plain, self.rows, self.origin = task, plain, iter(rows), origin
        self.left, self.gained, self.passive, self.price, self.arrival = task.quantity, 0, 0, 0, 0
        self.trace = []

    @property
    def own(self):
        return self.plain.asks if self.task.side == "sell" else self.plain.bids

    @property
    def other(self):
        return self.plain.bids if self.task.side == "sell" else self.plain.asks

    def held(self):
        return sum(size for name, _, size in self.own if name == CHILD)

    def mid(self):
        return (self.plain.bids[0][1] + self.plain.asks[0][1]) // 2 if self.own and self.other else self.origin

    def trade(self, shares, value):
        self.left -= shares
        self.gained += (value - shares * self.arrival) * (1 if self.task.side == "sell" else -1)

    def wait(self):
        for _ in range(self.task.interval):
            row, before = sent(next(self.rows)), self.held()
            self.plain.apply(*row)
            if row[0] in (LIMIT, MARKET) and row[4] != self.task.direction:  # only those trade with the child
                shares = before - self.held()
                self.passive += shares
                self.trade(shares, shares * self.price)
            self.trace.append((self.held(), self.left))

    def put(self, kind, price, size):
        self.own[:] = [order for order in self.own if order[0] != CHILD]
        size = min(max(size, 0), self.left)
        self.trade(*self.plain.apply(kind, CHILD, size, price, self.task.direction))
        self.price = price

    def close(self):
        self.crossed = self.left
        self.own[:] = [order for order in self.own if order[0] != CHILD]
        last = self.other[-1][1] if self.other else self.arrival
        self.trade(*self.plain.apply(MARKET, CHILD, self.left, 0, self.task.direction))
        self.trade(self.left, self.left * last)

    def outcome(self, decide):
        """PnL, slippage, passive and left; `decide`: (number of the decision, this) → kind, price, size."""
        self.wait()
        self.trace.clear()
        self.arrival = self.mid()
        for number in range(self.task.decisions):
            self.put(*decide(number, self))
            self.wait()
        self.close()
        quantity, pnl = self.task.quantity, self.gained / 10_000
        notional = self.arrival / 10_000 * quantity
        return pnl, -pnl / notional * 10_000, self.passive / quantity, self.crossed / quantity


def twap(number, now):
    due = now.task.quantity * (number + 1) // now.task.decisions
    return MARKET, 0, due - (now.task.quantity - now.left)


def immediate(number, now):
    return MARKET, 0, now.left


def agrees(found, reference, decide):
    outcome, trace = jax.tree.map(np.asarray, found)
    assert list(outcome) == pytest.approx(reference.outcome(decide), rel=1e-5, abs=1e-6)
    assert np.stack([trace.held, trace.left], 1).tolist() == [list(row) for row in reference.trace]
    assert round(float(outcome.left) * 40, 4) == trace.left[-1]
    assert trace.held.min() >= 0 and (trace.held <= trace.left).all() and (np.diff(trace.left) <= 0).all()


# ---- random markets


started = jax.jit(lambda messages: play(empty_book(CAPACITY, ORIGIN), messages)[0])


def market_of(seed):
    """A market of anonymous orders at even prices around 2,000, and the messages that follow."""
    rows = random_messages(seed, 64 + COUNT, prices=8, middle=1_000, mix=MIX)
    rows[rows[:, 0] != HALT, 3] *= 2
    first, later = rows[:64], rows[64:]
    book = started(message_of(first))
    return book._replace(order_id=jnp.zeros_like(book.order_id)), later  # a record's ids are numbered anew


seeds = st.integers(0, 2**32 - 1)
sides = st.sampled_from(["sell", "buy"])
scripts = st.lists(
    st.tuples(
        st.sampled_from([LIMIT, LIMIT, LIMIT, MARKET]),
        st.integers(990, 1_010).map(lambda price: 2 * price),
        st.integers(-2, 50),
    ),
    min_size=DECISIONS,
    max_size=DECISIONS,
)


@pytest.mark.parametrize(("side", "way", "decide"), [("sell", "twap", twap), ("buy", "immediate", immediate)])
def test_plans_come_to_what_the_reference_says(side, way, decide):
    @settings(deadline=None, max_examples=40)
    @given(seeds)
    def holds(seed):
        book, rows = market_of(seed)
        found = run(side, way, Market(book, jnp.int32(0)), recorded(rows), NONE)
        agrees(found, Reference(TASKS[side], plain_of(book, CAPACITY), rows.tolist(), ORIGIN), decide)

    holds()


def test_the_other_plans_are_due_when_they_should_be():
    """What is traded by each decision, of 40 shares in 4 and of 10 in 4."""
    for quantity, due in ((40, [10, 20, 30, 40]), (10, [2, 5, 7, 10])):
        task = Task("sell", quantity, 4, 8)
        for trader, expected in ((Twap(task), due), (Immediate(task), [quantity] * 4)):
            assert isinstance(trader, Scheduled)
            assert [_decided(trader, number, quantity) for number in range(4)] == [
                (MARKET, 0, each) for each in expected
            ]


def _decided(trader, number, left):
    none = jnp.int32(0)
    account = Account(jnp.int32(left), none, none, none, none, jnp.int32(number))  # as if it could trade nothing
    _, order = trader.decide(trader.start(), empty_book(2), account, KEY)
    return tuple(int(each) for each in order)


@settings(deadline=None, max_examples=100)
@given(seeds, sides, scripts)
@example(251923, "sell", [(1, 1998, 11), (1, 1980, 0), (1, 1998, 14), (1, 1998, 16)])  # fills it, and its rest drops
def test_resting_orders_come_to_what_the_reference_says(seed, side, script):
    book, rows = market_of(seed)
    found = run(side, "scripted", Market(book, jnp.int32(0)), recorded(rows), orders_of(script))
    reference = Reference(TASKS[side], plain_of(book, CAPACITY), rows.tolist(), ORIGIN)
    agrees(found, reference, lambda number, _: script[number])


@settings(deadline=None, max_examples=40)
@given(seeds, scripts)
def test_buying_is_selling_in_the_mirror(seed, script):
    book, rows = market_of(seed)
    turn = lambda price: 4_000 - price
    mirrored = book._replace(
        **{name: getattr(book, name)[::-1] for name in ("size", "order_id", "came")},
        key=book.key[::-1] + 4_000 * jnp.array([[-1], [1]]),
        origin=turn(book.origin),
    )
    other_rows = rows * [1, 1, 1, 1, -1]
    priced = rows[:, 0] != HALT
    other_rows[priced, 3] = turn(rows[priced, 3])
    other_script = [(kind, turn(price), size) for kind, price, size in script]
    one = run("sell", "scripted", Market(book, jnp.int32(0)), recorded(rows), orders_of(script))
    other = run("buy", "scripted", Market(mirrored, jnp.int32(0)), recorded(other_rows), orders_of(other_script))
    (sold, trace), (bought, other_trace) = jax.tree.map(np.asarray, (one, other))
    assert (sold.pnl, sold.passive, sold.left) == (bought.pnl, bought.passive, bought.left)
    assert np.array_equal(trace.held, other_trace.held) and np.array_equal(trace.left, other_trace.left)
    there = np.abs([trace.bid, trace.ask]) < 10**9
    assert np.array_equal(turn(trace.bid)[there.all(0)], other_trace.ask[there.all(0)])


# ---- by hand: bids 2,000: 5 and 1,990: 30; asks 2,010: 6 and 2,020: 7; the arrival price is 2,005

QUIET = (HIDDEN, 0, 1, 2_005, BUY)


def by_hand(side, events, script, capacity=CAPACITY, levels=((2_010, 6, 2_000, 5), (2_020, 7, 1_990, 30))):
    """An episode in which all is quiet but for `events`, {number of the message after the first decision: row}."""
    rows = [events.get(number - INTERVAL, QUIET) for number in range(COUNT)]
    market = Market(book_of_levels(np.array(levels), capacity), jnp.int32(0))
    script = orders_of([*script, *[(LIMIT, 0, 0)] * (DECISIONS - len(script))])
    outcome, trace = jax.tree.map(np.asarray, run(side, "scripted", market, recorded(rows), script))
    gained = round(float(outcome.pnl) * 10_000, 3)
    return gained, round(float(outcome.passive) * 40), round(float(outcome.left) * 40), trace


def test_what_others_take_counts_at_the_price_of_the_order_and_once():
    """10 rest at 2,010 behind 6; 16 are bought there: 10 filled. Replaced by 15 at 2,006, of which 4 are bought."""
    events = {2: (LIMIT, 1, 9, 2_010, BUY), 3: (LIMIT, 2, 7, 2_010, BUY), 9: (LIMIT, 3, 4, 2_006, BUY)}
    script = [(LIMIT, 2_010, 10), (LIMIT, 2_006, 15)]
    gained, passive, left, trace = by_hand("sell", events, script)
    assert trace.held[:9].tolist() == [10, 10, 7, 0, 0, 0, 0, 0, 15] and trace.held[9] == 11
    assert (passive, left) == (14, 26)  # which cross the book: 5 at 2,000 and 21 at 1,990
    assert gained == 10 * 5 + 4 * 1 - 5 * 5 - 21 * 15


def test_an_order_that_crosses_takes_and_its_rest_rests():
    """20 at 2,000: 5 trade at once, 15 rest, of which 9 are executed."""
    gained, passive, left, trace = by_hand("sell", {4: (EXECUTE, 99, 9, 2_000, SELL)}, [(LIMIT, 2_000, 20)])
    assert trace.left[0] == 35 and trace.held[0] == 15 and trace.held[4] == 6 and trace.child[0] == 2_000
    assert (passive, left) == (9, 26) and gained == -5 * 5 - 9 * 5 - 26 * 15


def test_an_order_that_a_full_side_has_no_room_for_is_no_fill():
    """At once, being the last of three on a side of two; or later, when one at a better price comes."""
    _, passive, left, trace = by_hand("sell", {}, [(LIMIT, 2_030, 10)], capacity=2)
    assert (passive, left, trace.held.max()) == (0, 40, 0)
    levels = ((2_010, 6, 2_000, 5),)
    _, passive, left, trace = by_hand("sell", {3: (LIMIT, 1, 5, 2_015, SELL)}, [(LIMIT, 2_030, 10)], 2, levels)
    assert (passive, left) == (0, 40) and trace.held.tolist() == [10] * 3 + [0] * 29 and (trace.left == 40).all()


def test_to_take_back_an_order_that_is_gone_takes_nothing_from_others():
    """Orders without shares, at the price of an anonymous one: all 35 shares of the bids are there to be hit."""
    script = [(LIMIT, 2_000, 0), (LIMIT, 1_990, 0), (LIMIT, 1_980, 10)]
    _, passive, left, trace = by_hand("buy", {20: (LIMIT, 1, 35, 1_990, SELL)}, script)
    assert (passive, left) == (0, 40) and trace.bid[23] == 1_980 and trace.ask[23] == 2_010 and trace.held[23] == 10


def test_an_anonymous_cancellation_that_meets_the_order_is_no_fill():
    """A record may have them; what it names is the first order at its price, whose shares are to sell yet."""
    gained, passive, left, trace = by_hand("sell", {2: (CANCEL, 0, 4, 2_008, SELL)}, [(LIMIT, 2_008, 10)])
    assert trace.held[:4].tolist() == [10, 10, 6, 6] and (passive, left) == (0, 40)
    assert gained == -5 * 5 - 30 * 15 - 5 * 15


def test_what_the_book_has_no_room_for_is_valued_at_its_last_price():
    """40 against bids of 35; against a side without orders, at the arrival price, which is then the book's origin."""
    gained, _, left, _ = by_hand("sell", {}, [])
    assert left == 40 and gained == -5 * 5 - 30 * 15 - 5 * 15
    gained, _, left, _ = by_hand("buy", {}, [])
    assert left == 40 and gained == -6 * 5 - 7 * 15 - 27 * 15
    gained, _, left, _ = by_hand("sell", {}, [], levels=((2_010, 6, -2_000, 0),))
    assert (gained, left) == (0, 40)


# ---- a generated market

GENERATED = Task("sell", 400, 6, 8)


@jax.jit
def against_flow(market, due, key):
    flow = read_calibration().flow()
    return episode(GENERATED, generated(flow), Scheduled(GENERATED, due), market, key)


@pytest.fixture(scope="module")
def market():
    flow = read_calibration().flow()
    return Market(*jax.jit(lambda key: opened(flow, key, 5_850_000, warm_up=300))(jax.random.key(3)))


def test_traders_meet_the_same_market_as_long_as_they_do_the_same(market):
    key, start = jax.random.key(1), 3 * GENERATED.interval
    plans = [[0, 0, 0, 0, 0, 0], [0, 0, 0, 400, 400, 400], [0, 0, 0, 0, 0, 400]]
    idle, late, later = (jax.tree.map(np.asarray, against_flow(market, jnp.array(plan), key)) for plan in plans)
    again = against_flow(market, jnp.array(plans[1]), key)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, late, again)))
    same = jax.tree.map(lambda one, other: np.array_equal(one[:start], other[:start]), late[1], idle[1])
    assert all(same)
    assert np.array_equal(idle[1].time[: 5 * 8], later[1].time[: 5 * 8])
    assert late[1].bid[start] < idle[1].bid[start] and late[1].left[start] == 0 and idle[0].left == 1
    other = against_flow(market, jnp.array(plans[0]), jax.random.key(2))
    assert not np.array_equal(other[1].time, idle[1].time)


def test_time_is_that_since_the_first_decision(market):
    _, trace = against_flow(market, jnp.zeros(6, int), jax.random.key(1))
    time = np.asarray(trace.time)
    assert time.shape == (6 * 8,) and (np.diff(time) >= 0).all() and time[0] >= 0


# ---- a recorded one


def test_an_episode_against_the_real_sample(shared):
    messages, book = read_day(*sorted((shared / "data/lobster").glob("*_10.csv")))
    later = cut(messages, 1, len(book))
    market = Market(book_of_levels(book[0]), jnp.int32(0))
    found = run("sell", "twap", market, record_of(later), NONE)
    rows = list(zip(*(field.tolist() for field in later[1:]), strict=True))
    plain = PlainBook.of_levels(book[0])
    agrees(found, Reference(TASKS["sell"], plain, rows[:COUNT], int(market.book.origin)), twap)
    others = replayed(record_of(later))
    send = lambda market, _: next_message(others, market, jnp.zeros(12))
    (last, place), _ = jax.jit(lambda market: jax.lax.scan(send, market, length=len(rows)))(market)
    plain = PlainBook.of_levels(book[0])
    for row in rows:
        plain.apply(*sent(row))
    assert int(last.unmatched) == plain.unmatched and place == 0  # it would begin anew
    assert plain_of(last).bids == _renamed(plain.bids, rows) and int(last.dropped) == 0


def test_markets_of_several_days_begin_on_each_and_none_runs_over_its_end():
    flow = read_calibration().flow()
    days = [generated_day(flow, jax.random.key(number), count, 10) for number, count in ((0, 60), (1, 20), (2, 45))]
    market, others = recorded_markets(days, 40, 25)  # the second day is too short
    lengths, places = [60, 20, 45], np.asarray(market.others)
    begins, room = [0, 60, 80], [35, 0, 20]
    wanted = [begin + row for begin, own in zip(begins, room, strict=True) for row in range(own)]
    assert set(places - 1) <= set(wanted) and places[0] == 1 and places[-1] == 80 + 20 and (places > 80).any()
    rows = np.concatenate([day.book for day in days])
    books = [jax.tree.map(lambda leaf, number=number: leaf[number], market.book) for number in (0, 20, 39)]
    for book, place in zip(books, places[[0, 20, 39]], strict=True):
        assert [int(price) for price in best(book)] == rows[place - 1][0, [2, 0]].tolist()
    every = np.concatenate([day.messages.price for day in days])
    sent = [int(others(jnp.int32(place), books[0], None)[2].price) for place in places[[0, 20, 39]]]
    assert sent == every[places[[0, 20, 39]]].tolist() and sum(lengths) == len(every)
    with pytest.raises(UsageError, match="expected a record of more than 60 messages for an episode, got 60"):
        recorded_markets(days, 4, 60)


def _renamed(orders, rows):
    names = {name: number for number, name in enumerate(sorted({row[1] for row in rows} - {0}), start=1)}
    return [[names.get(name, 0), price, size] for name, price, size in orders]
