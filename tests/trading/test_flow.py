"""Generated flow: a valid LOBSTER day that replays exactly, a market that lasts, and numbers that are found again."""

import dataclasses
import json
import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eggroll.core.errors import UsageError
from eggroll.trading.book import CAPACITY, NONE, Book, Message, best, held_of, levels, step
from eggroll.trading.calibration import (
    DEFAULT,
    SPEEDS,
    Calibration,
    calibrated,
    fit_hawkes,
    read_calibration,
    settled,
    shape_of,
    simulated_shape,
)
from eggroll.trading.flow import DRAWS, flow_step, opened
from eggroll.trading.lobster import read_day, write_book, write_messages
from eggroll.trading.messages import CANCEL, DELETE, EXECUTE, HIDDEN, LIMIT, MARKET, TICK, Messages
from tests.trading.books import lobster_rows, message_of, orders_of, plain_of

PRICE, OPENS = 5_850_000, 34_200 * 10**9
PART, PARTS, LEVELS = 4000, 5, 10  # a day has 20,000 messages
CHILD = -1


class Told(NamedTuple):
    """Messages, and of the book after each what a test looks at; on the host."""

    gap: np.ndarray
    message: Message
    rows: np.ndarray  # levels, as in a LOBSTER file
    orders: np.ndarray  # (n, 2) of each side
    held: np.ndarray  # shares of the child order


class Day(NamedTuple):
    """A generated day."""

    start: Book
    told: Told
    end: Book


warmed = jax.jit(lambda flow, key: opened(flow, key, PRICE, warm_up=500))
one_step = jax.jit(step)


@jax.jit
def part(flow, key, book, state):
    def one(carry, draws):
        book, state = carry
        state, gap, message = flow_step(flow, state, book, draws)
        book, _ = step(book, message)
        return (book, state), Told(gap, message, levels(book, LEVELS), (book.size > 0).sum(-1), held_of(book, CHILD))

    return jax.lax.scan(one, (book, state), jax.random.uniform(key, (PART, DRAWS)))


def on_from(flow, seed, book, state, parts=1):
    """More messages: the book after them and what is told of each."""
    found = []
    for key in jax.random.split(jax.random.key(seed), parts):
        (book, state), told = part(flow, key, book, state)
        found.append(jax.tree.map(np.asarray, told))
    told = jax.tree.map(lambda *leaves: np.concatenate(leaves), *found)
    return book, told._replace(rows=lobster_rows(told.rows))


def day_of(flow, seed, parts):
    book, state = warmed(flow, jax.random.key(seed))
    end, told = on_from(flow, seed, book, state, parts)
    return Day(book, told, end)


@pytest.fixture(scope="module")
def flow():
    return read_calibration().flow()


@pytest.fixture(scope="module")
def day(flow):
    return day_of(flow, 0, PARTS)


@pytest.fixture(scope="module")
def partial_day(flow):
    """Of a market in which cancellations may leave something, as they do not in the sample."""
    return day_of(flow._replace(partial=jnp.float32(0.3)), 1, 1)


@pytest.fixture(params=["day", "partial_day"])
def either(request):
    return request.getfixturevalue(request.param)


def messages_of(told):
    time = OPENS + np.cumsum(told.gap.astype(np.int64))
    kind, name, size, price, direction = told.message
    return Messages(time, kind, name.astype(np.int64), size, price, direction)


# ---- a day of it


def test_a_generated_day_is_a_lobster_day(either, tmp_path):
    messages = messages_of(either.told)
    write_messages(tmp_path / "message_10.csv", messages)
    write_book(tmp_path / "orderbook_10.csv", either.told.rows)
    again = read_day(tmp_path / "message_10.csv", tmp_path / "orderbook_10.csv")
    assert all(np.array_equal(one, other) for one, other in zip(again.messages, messages, strict=True))
    assert np.array_equal(again.book, either.told.rows)
    assert {LIMIT, DELETE, EXECUTE, HIDDEN} <= set(np.unique(messages.kind)) <= {LIMIT, CANCEL, DELETE, EXECUTE, HIDDEN}


def test_it_replays_exactly_in_the_plain_book(either):
    plain, cancels = plain_of(either.start), 0
    for number, row in enumerate(zip(*(column.tolist() for column in either.told.message), strict=True)):
        kind, name, size, price, direction = row
        if kind in (CANCEL, DELETE, EXECUTE):
            own = plain.bids if direction == 1 else plain.asks
            meant = next(order for order in own if order[0] == name)
            left = meant[2] - size
            assert meant[1] == price and (left > 0 if kind == CANCEL else left == 0 if kind == DELETE else left >= 0)
            assert kind != EXECUTE or meant is own[0]
            cancels += kind == CANCEL
        assert plain.apply(*row) == (0, 0)  # as in LOBSTER's files, a limit order is what came to rest
        if number % 16 == 0:
            assert np.array_equal(np.array(plain.levels(LEVELS)), either.told.rows[number])
    assert plain.unmatched == 0 and [plain.bids, plain.asks] == orders_of(either.end)
    assert (cancels > 100) == (either.told.message.kind == CANCEL).any()


def test_it_never_crosses_nor_empties_a_side_nor_overflows(either):
    told = either.told
    assert (told.rows[:, 0, 2] < told.rows[:, 0, 0]).all() and (told.rows[:, 0, [1, 3]] > 0).all()
    assert told.orders.min() >= 4 and told.orders.max() < CAPACITY and either.end.dropped == either.end.unmatched == 0
    assert (told.message.price % TICK == 0).all() and (told.message.size > 0).all() and (told.gap >= 0).all()
    hidden = np.flatnonzero((told.message.kind == HIDDEN)[1:]) + 1
    ask, _, bid, _ = told.rows[hidden - 1, 0].T
    price = told.message.price[hidden]
    assert ((bid < price) & (price < ask))[ask - bid > TICK].all()  # a hidden order is executed inside the spread


def test_the_same_key_is_the_same_stream(flow, day):
    book, state = warmed(flow, jax.random.key(0))
    again, other = (part(flow, jax.random.split(jax.random.key(seed), PARTS)[0], book, state)[1] for seed in (0, 1))
    first = jax.tree.map(lambda leaf: leaf[:PART], day.told)
    same = lambda told: jax.tree.leaves(jax.tree.map(np.array_equal, told[:2], first[:2]))
    assert all(same(again)) and not any(same(other))


# ---- others in its book


@pytest.mark.parametrize("size", [100, 1_000_000])
def test_an_order_of_another_is_executed_but_never_cancelled(flow, size):
    book, state = warmed(flow, jax.random.key(1))
    price = int(best(book)[0]) + TICK
    book, _ = one_step(book, message_of((LIMIT, CHILD, size, price, 1)))
    end, told = on_from(flow, 1, book, state)
    own = told.message.order_id == CHILD
    assert set(told.message.kind[own]) == {EXECUTE} and end.unmatched == 0
    assert np.array_equal(-np.diff(told.held, prepend=size), np.where(own, told.message.size, 0))
    assert (told.held[-1] == 0) == (size == 100)


@pytest.mark.parametrize("sides", [[1], [-1], [1, -1]])
def test_a_market_goes_on_after_another_has_emptied_a_side_or_both(flow, sides):
    book, state = warmed(flow, jax.random.key(2))
    for direction in sides:
        book, trade = one_step(book, message_of((MARKET, CHILD, 10**6, 0, direction)))
        assert 0 < trade.quantity < 10**6
    end, told = on_from(flow, 3, book, state)
    assert end.unmatched == 0 and (told.message.price % TICK == 0).all()
    assert (np.abs(told.message.price - PRICE) < 0.05 * PRICE).all() and (told.orders[200:] >= 4).all()
    assert (told.rows[200:, 0, 2] < told.rows[200:, 0, 0]).all()


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 2**32 - 1))
def test_whatever_the_draws_a_message_fits_the_book(seed):
    """Also where draws fall on the border between two orders or two events."""
    book, told = extremes(read_calibration().flow(), jax.random.key(seed))
    key, size, name = (np.asarray(each) for each in book[:3])
    gap, message = jax.tree.map(np.asarray, told)
    side = np.where(message.direction > 0, 0, 1)
    removes = np.isin(message.kind, (CANCEL, DELETE, EXECUTE))
    meant = (name[side] == message.order_id[:, None]) & (size[side] >= message.size[:, None])
    assert meant[removes].any(1).all() and removes.sum() > 100 and (message.size > 0).all() and (gap >= 0).all()
    assert (message.kind[message.order_id == CHILD] == EXECUTE).all()
    other = np.where(size > 0, key, NONE).min(1)[1 - side]
    assert (-message.price * message.direction + other)[message.kind == LIMIT].min() > 0  # none crosses


@jax.jit
def extremes(flow, key):
    """A book in which another has an order, and what comes of 1,000 times draws of which many lie on a border."""
    first, second, third, fourth = jax.random.split(key, 4)
    book, state = opened(flow, first, PRICE, warm_up=100)
    child = Message(*map(jnp.int32, (LIMIT, CHILD, 100)), best(book)[0], jnp.int32(1))
    book, _ = step(book, child)
    draws = jax.random.uniform(second, (1000, DRAWS))
    hazard = jnp.cumsum(jnp.where(book.order_id > 0, jnp.float32(book.size > 0), 0), axis=1)
    borders = jnp.clip(jnp.concatenate([(hazard / hazard[:, -1:]).ravel(), jnp.array([0.0, 0.5])]), 0, 1 - 2**-23)
    border = jax.random.choice(third, borders, draws.shape)
    draws = jnp.where(jax.random.bernoulli(fourth, 0.3, draws.shape), border, draws)
    return book, jax.vmap(lambda draws: flow_step(flow, state, book, draws)[1:])(draws)


# ---- when things happen


def simulated_gaps(seed, count, base, jump):
    """Seconds between messages of a Hawkes process with the decays `SPEEDS`, by thinning (Ogata)."""
    rng = np.random.default_rng(seed)
    excitement, gaps, since = np.zeros(len(jump)), [], 0.0
    while len(gaps) < count:
        most = base + excitement.sum()
        wait = rng.exponential(1 / most)
        excitement = excitement * np.exp(-np.array(SPEEDS) * wait)
        since += wait
        if rng.random() * most < base + excitement.sum():
            gaps.append(since)
            excitement, since = excitement + jump, 0.0
    return np.array(gaps)


BRANCHING = (0.15, 0.25, 0.2)
JUMP = np.array(BRANCHING) * SPEEDS


def unlikelihood(gaps, base, jump):
    """−log likelihood of gaps after a first message, written out."""
    total, excitement, decay = 0.0, np.array(jump, float), np.array(SPEEDS)
    for gap in gaps:
        left = excitement * np.exp(-decay * gap)
        total -= np.log(base + left.sum()) - base * gap - ((excitement - left) / decay).sum()
        excitement = left + jump
    return total


def test_the_rate_and_the_branching_of_a_hawkes_process_are_found():
    shares = (0.1, 0.3, 0.4)
    gaps = simulated_gaps(0, 3000, 2.0, np.array(shares) * SPEEDS)
    base, jump = fit_hawkes(gaps)
    found = np.array(jump) / SPEEDS
    assert base / (1 - found.sum()) == pytest.approx(2.0 / 0.2, rel=0.1) and found.sum() == pytest.approx(0.8, abs=0.1)
    assert found == pytest.approx(shares, abs=0.1)
    assert unlikelihood(gaps, base, jump) < unlikelihood(gaps, 2.0, np.array(shares) * SPEEDS)


def test_the_simulation_has_the_rate_and_the_law_of_the_process(flow):
    """Mean rate base/(1 − branching); and the same quantiles of gaps as an independent simulation has."""
    flow = flow._replace(base=jnp.float32(8.0), jump=jnp.asarray(JUMP, jnp.float32))
    _, told = on_from(flow, 5, *warmed(flow, jax.random.key(5)), parts=PARTS)
    gaps = told.gap / 1e9
    assert 1 / gaps.mean() == pytest.approx(8.0 / 0.4, rel=0.06)
    levels_of = np.linspace(0.1, 0.95, 18)
    other = np.quantile(simulated_gaps(1, 20_000, 8.0, JUMP), levels_of)
    assert np.quantile(gaps, levels_of) == pytest.approx(other, rel=0.12, abs=1e-6)


# ---- a market's numbers


def test_a_calibration_reads_back(tmp_path):
    calibration = read_calibration()
    calibration.write(tmp_path / "calibration.json")
    assert read_calibration(tmp_path / "calibration.json") == calibration


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "Expecting value"),
        ('{"base": 1.0', "Expecting"),
        ("[1, 2]", "fields other than"),
        ("{}", "fields other than base"),
    ],
)
def test_damaged_calibrations_are_refused(tmp_path, text, told):
    (tmp_path / "calibration.json").write_text(text)
    refuses(tmp_path / "calibration.json", told)


def refuses(path, told):
    with pytest.raises(UsageError, match=told) as caught:
        read_calibration(path)
    assert str(caught.value).startswith("expected ") and "\n" not in str(caught.value)


def test_a_calibration_that_is_not_there_is_refused(tmp_path):
    refuses(tmp_path / "none.json", "No such file")
    refuses(tmp_path, "directory")


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"surplus": 1}, "fields other than"),
        ({"base": 0}, "a number > 0, as base of a calibration, got 0.0"),
        ({"base": "fast"}, "expected base as float"),
        ({"base": float("nan")}, "expected base as float"),
        ({"crowd": -1.0}, "as crowd"),
        ({"jump": [0.3, 20.0, 10_000.0]}, "less than one other, got 1.50"),
        ({"jump": [-0.3, 20.0, 1_000.0]}, "less than one other"),
        ({"jump": [0.1, 1.0]}, "as many as jumps"),
        ({"jump": 0.1}, "expected jump as"),
        ({"decay": [0.0, 50.0, 20_000.0]}, "as decay"),
        ({"decay": [-0.5, 50.0, 20_000.0]}, "as decay"),
        ({"jump": [0.1] * 4, "decay": [1.0] * 4}, "1 to 3 numbers"),
        ({"chain": [[1.0] * 8] * 7}, "8 by 8"),
        ({"chain": [[0.0] * 8] * 8}, "8 by 8"),
        ({"chain": [[1.0, -0.5, *[0.0] * 6]] * 8}, "8 by 8"),
        ({"chain": "ring"}, "expected chain as"),
        ({"inside": []}, "as inside"),
        ({"inside": [0.0, 0.0]}, "as inside"),
        ({"behind": [1.0, -0.5]}, "as behind"),
        ({"behind": "far"}, "expected behind as"),
        ({"fading": [float("nan"), 1.0]}, "expected fading as"),
        ({"sizes": [100, 200]}, "as many as weights"),
        ({"sizes": [0] * 32}, "whole numbers of shares"),
        ({"sizes": [10.5] * 32}, "expected sizes as"),
        ({"sizes": []}, "whole numbers of shares"),
        ({"limit_sizes": [1.0]}, "as many as weights"),
        ({"joins": 1.5}, "as joins"),
        ({"partial": -0.1}, "as partial"),
    ],
)
def test_calibrations_of_no_market_are_refused(tmp_path, changed, told):
    held = json.loads(DEFAULT.read_text()) | changed
    (tmp_path / "calibration.json").write_text(json.dumps(held))
    refuses(tmp_path / "calibration.json", told)


def sample(shared):
    return read_day(*sorted((shared / "data/lobster").glob("*_10.csv")))


def test_the_default_is_the_calibration_of_the_sample(shared):
    found, default = calibrated(*sample(shared)), read_calibration()
    for field in dataclasses.fields(Calibration):
        if field.name not in ("improves", "forgets", "crowd"):  # which `settled` tunes
            ours, theirs = (np.array(getattr(each, field.name)) for each in (found, default))
            assert ours == pytest.approx(theirs, rel=0.02), field.name


def test_too_short_a_record_is_refused(shared):
    messages, book = sample(shared)
    with pytest.raises(UsageError, match="at least 200 messages to calibrate on, got 199"):
        calibrated(Messages(*(field[:199] for field in messages)), book[:199])


def kinds(kind):
    """Percent of messages that are of each kind."""
    return 100 * np.array([(kind == each).mean() for each in (LIMIT, CANCEL, DELETE, EXECUTE, HIDDEN)])


def test_the_default_market_is_like_the_sample(shared, day):
    messages, book = sample(shared)
    real, ours = shape_of(messages, book), shape_of(messages_of(day.told), day.told.rows)
    assert ours.spread == pytest.approx(real.spread, rel=0.25)
    assert ours.inside == pytest.approx(real.inside, abs=0.08)
    assert kinds(day.told.message.kind) == pytest.approx(kinds(messages.kind), abs=5)
    buys = (day.told.message.direction > 0).mean()
    assert buys == pytest.approx(0.5, abs=0.05)  # the sample's first minutes are not, by chance


@pytest.mark.heavy
def test_settling_brings_a_market_to_the_shape_of_the_sample(shared):
    """Not to its depth and volume, which old orders make that a short record does not show."""
    messages, book = sample(shared)
    wanted, raw = shape_of(messages, book), calibrated(messages, book)
    calibration = settled(raw, wanted, seed=100)
    shape = jax.jit(simulated_shape)
    ours, before = (shape(each.flow(), jax.random.key(7)) for each in (calibration, raw))
    assert ours.spread == pytest.approx(wanted.spread, rel=0.25)
    assert ours.moves == pytest.approx(wanted.moves, rel=0.4)  # which a record of 15 such moves tells to a fifth
    assert ours.inside == pytest.approx(wanted.inside, abs=0.08)
    off = [abs(np.log(found.spread / wanted.spread)) for found in (ours, before)]
    assert off[0] < off[1]
    assert kinds(day_of(calibration.flow(), 7, 1).told.message.kind) == pytest.approx(kinds(messages.kind), abs=5)


def test_a_calibration_of_a_generated_day_finds_its_numbers(flow, partial_day):
    """As far as a calibration reads them off: rates, the chain, sizes, partial cancellations."""
    messages, rows = messages_of(partial_day.told), partial_day.told.rows
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = calibrated(messages, rows)
    default = read_calibration()
    assert found.partial == pytest.approx(0.3, abs=0.05)
    assert found.spread == pytest.approx(shape_of(messages, rows).spread, rel=0.05)
    assert set(found.sizes) <= set(range(1, 1 + max(default.sizes)))
    off = np.abs(np.array(found.chain) - np.array(default.chain))
    assert off[[0, 1, 4, 5]].max() < 0.1  # after limit orders and deletions, which are many
    found.flow()
