"""Tokens: both directions are exact within the ranges, and what is outside is refused or clipped."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eggroll.core.errors import UsageError
from eggroll.trading import lobster, tokens
from eggroll.trading.messages import HALT, LIMIT, MARKET, Messages
from eggroll.trading.tokens import COLUMN, DEEPEST, FIELDS, LARGEST, LONGEST, MODELLED, TICK, Fields, decode, encode

START = 34_200_000_000_000
SAMPLE = "lobster/AAPL_2012-06-21_34200000_57600000_{}_10.csv"
gaps = st.one_of(st.integers(0, LONGEST), st.integers(0, 47).flatmap(lambda bits: st.integers(0, 2**bits - 1)))


def own_reference(reference: int, direction: int) -> int:
    """The mid rounded to a tick towards the own side, as the documentation says it."""
    return reference // TICK * TICK if direction == 1 else -(-reference // TICK) * TICK


@st.composite
def flows(draw):
    """Messages that have tokens, and their references."""
    rows = []
    for _ in range(draw(st.integers(0, 5))):
        kind, direction = draw(st.integers(1, HALT)), draw(st.sampled_from([-1, 1]))
        reference = draw(st.integers(1_000_000, 2_000_000_000))
        offset = draw(st.integers(-DEEPEST * TICK, DEEPEST * TICK - 1))
        price = direction * offset + (0 if kind == HALT else own_reference(reference, direction))
        rows.append((draw(gaps), kind, draw(st.integers(0, LARGEST)), price, direction, reference))
    gap, kind, size, price, direction, reference = np.array(rows, np.int64).reshape(-1, 6).T
    narrow = [column.astype(np.int32) for column in (kind, size, price, direction)]
    ids = np.zeros(len(gap), np.int64)
    return Messages(START + np.cumsum(gap), narrow[0], ids, *narrow[1:]), reference.astype(np.int32)


def row(**changes):
    """One message at a mid of 100 dollars and half a cent, as `encode` takes it."""
    values = {"time": START, "kind": LIMIT, "order_id": 7, "size": 100, "price": 1_000_000, "direction": 1, **changes}
    dtypes = {"time": np.int64, "order_id": np.int64}
    columns = {name: np.array([value], dtypes.get(name, np.int32)) for name, value in values.items()}
    return Messages(**columns), np.array([1_000_050], np.int32)


def token(rows, name):
    return rows[:, COLUMN[name]].tolist()


def mantissa(rows):
    """The 46 bits after the leading one of each gap."""
    columns = range(COLUMN["gap_high"], COLUMN["gap_low4"] + 1)
    shifted = [rows[:, k].astype(np.int64) << shift for k, shift in zip(columns, (40, 30, 20, 10, 0), strict=True)]
    return np.sum(shifted, axis=0)


@given(flows())
def test_decoding_gives_back_the_messages(flow):
    messages, reference = flow
    rows, clipped = encode(messages, reference, start_time=START)
    assert clipped == 0 and rows.dtype == np.int32 and rows.shape == (len(reference), len(FIELDS))
    assert all((rows[:, k] >= 0).all() and (rows[:, k] < field.values).all() for k, field in enumerate(FIELDS))
    for before, after in zip(messages, decode(rows, reference, START), strict=True):
        np.testing.assert_array_equal(before, after)
        assert before.dtype == after.dtype


@given(st.data(), st.integers(1, 5))
def test_encoding_gives_back_the_tokens(data, n):
    """But for the bits of a gap that are below a nanosecond: these come back as 0."""
    drawn = [[data.draw(st.integers(0, field.values - 1)) for field in FIELDS] for _ in range(n)]
    rows, reference = np.array(drawn, np.int32), np.array(data.draw(st.lists(gaps, min_size=n, max_size=n))) % 10**9
    messages = decode(rows, reference, START)
    again, clipped = encode(messages, reference, start_time=START)
    for k, column in enumerate(FIELDS):
        if not column.name.startswith("gap"):
            np.testing.assert_array_equal(again[:, k], rows[:, k])
    kept = mantissa(rows) & -(1 << (47 - rows[:, 2].astype(np.int64).clip(1)))
    np.testing.assert_array_equal(again[:, 2], rows[:, 2])
    np.testing.assert_array_equal(mantissa(again), np.where(rows[:, 2] == 0, 0, kept))
    assert clipped == 0
    np.testing.assert_array_equal(encode(decode(again, reference, START), reference, start_time=START)[0], again)


def test_the_touch_has_the_same_tokens_on_both_sides():
    for bid, ask in ((999_900, 1_000_100), (999_900, 1_000_000), (1_000_000, 1_000_050), (999_700, 1_000_500)):
        reference = np.array([(bid + ask) // 2] * 2, np.int32)
        own = row(price=bid)[0], row(price=ask, direction=-1)[0]
        sides = Messages(*map(np.concatenate, zip(*own, strict=True)))
        rows, _ = encode(sides, reference)
        assert token(rows, "side") == [1, 0]
        if (ask - bid) % TICK == 0:
            np.testing.assert_array_equal(rows[0, COLUMN["price_coarse"] :], rows[1, COLUMN["price_coarse"] :])
        offset = rows[:, COLUMN["price_coarse"]] * 64 + rows[:, COLUMN["price_fine"]] - DEEPEST
        assert (offset <= 0).all() and (offset > -5).all()


def test_the_fields_are_those_of_the_table():
    rows, _ = encode(*row(time=START + 0b1_010011_0000000001_11, size=1234, price=999_950), start_time=START)
    assert dict(zip([field.name for field in FIELDS], rows[0].tolist(), strict=True)) == {
        "kind": 0, "side": 1, "gap_scale": 19, "gap_high": 0b010011, "gap_low1": 1, "gap_low2": 0b11 << 8,
        "gap_low3": 0, "gap_low4": 0, "price_coarse": 127, "price_fine": 63, "price_part": 50, "size_lots": 12,
        "size_odd": 34,
    }  # fmt: skip
    assert set(MODELLED) == {field.name for field in FIELDS} - {f"gap_low{k}" for k in (1, 2, 3, 4)}


def test_a_halt_keeps_its_status():
    for status in (-1, 0, 1):
        message, reference = row(kind=HALT, price=status, direction=-1, size=0)
        rows, clipped = encode(message, reference)
        assert clipped == 0 and decode(rows, reference, START).price.tolist() == [status]


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"kind": MARKET}, "expected kind 1 to 7 in row 0, got 8; leave it out"),
        ({"kind": 0}, "expected kind 1 to 7 in row 0, got 0; leave it out"),
        ({"direction": 0}, "expected direction −1 or 1 in row 0, got 0; correct it"),
        ({"size": LARGEST + 1}, "expected size 0 to 102399 in row 0, got 102400"),
        ({"size": -1}, "expected size 0 to 102399 in row 0, got -1"),
        ({"price": 1_819_200}, "expected price 180800 to 1819199 in row 0, got 1819200"),
        ({"price": 180_900, "direction": -1}, "expected price 180901 to 1819300 in row 0, got 180900"),
        ({"time": START - 1}, f"expected gap 0 to {LONGEST} in row 0, got -1"),
    ],
)
def test_what_has_no_token_is_refused(changes, expected):
    with pytest.raises(UsageError) as error:
        encode(*row(**changes), start_time=START)
    assert str(error.value).startswith(expected)


def test_what_is_outside_is_clipped_and_counted():
    for changes, name, nearest in (
        ({"size": 200_000}, "size", LARGEST),
        ({"size": -5}, "size", 0),
        ({"price": 99_999_900}, "price", 1_819_199),
        ({"price": 0, "direction": -1}, "price", 180_901),
        ({"time": START - 1}, "time", START),
        ({"time": START + LONGEST + 9}, "time", START + LONGEST),
    ):
        message, reference = row(**changes)
        rows, clipped = encode(message, reference, outside="clip", start_time=START)
        assert clipped == 1 and getattr(decode(rows, reference, START), name).tolist() == [nearest]
    assert encode(*row(size=200_000, price=0), outside="clip")[1] == 1, "a message counts once"
    with pytest.raises(UsageError, match="expected kind"):
        encode(*row(kind=MARKET), outside="clip")


def test_bad_rows_of_tokens_are_refused():
    rows, reference = encode(*row())[0], row()[1]
    with pytest.raises(UsageError, match=r"expected tokens \(1, 13\).* got \(1, 12\); cut them alike"):
        decode(rows[:, :12], reference, START)
    with pytest.raises(UsageError, match="expected side a token from 0 to 1 in row 0, got 2; correct it"):
        decode(np.where(np.arange(13) == 1, 2, rows), reference, START)
    with pytest.raises(UsageError, match="expected price within 32 bits in row 0"):
        decode(rows, np.array([2**33]), START)
    with pytest.raises(UsageError, match="expected 1 values in each column"):
        encode(row()[0], np.array([1, 2], np.int32))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2**31 - 1), st.integers(-DEEPEST, DEEPEST), st.integers(-9, LARGEST + 9))))
def test_jax_and_numpy_give_the_same_fields(values):
    gap, offset, size = np.array(values, np.int32).reshape(-1, 3).T[:, :8]
    n = len(gap)
    direction = np.where(np.arange(n) % 2, -1, 1).astype(np.int32)
    reference = np.full(n, 5_853_050, np.int32)
    kind = np.full(n, LIMIT, np.int32)
    fields = Fields(kind, direction, gap, (reference + 100 * offset).astype(np.int32), size)
    expected = tokens.message_tokens(fields, reference)
    pad = [np.pad(column, (0, 8 - n), constant_values=1) for column in (*fields, reference)]
    found = np.asarray(_jitted(*map(jnp.asarray, pad)))
    np.testing.assert_array_equal(found[:n], expected)
    back = tokens.message_of(expected, reference)
    again = _back(jnp.asarray(found), jnp.asarray(pad[-1]))
    for one, other in zip(back, again, strict=True):
        np.testing.assert_array_equal(one, other[:n])
    assert again.gap.dtype == jnp.int32


@jax.jit
def _jitted(*columns):
    return tokens.message_tokens(Fields(*columns[:-1]), columns[-1])


_back = jax.jit(tokens.message_of)


def test_the_real_sample_goes_there_and_back(shared):
    day = lobster.read_day(*(shared / "data" / SAMPLE.format(name) for name in ("message", "orderbook")))
    before = np.concatenate([day.book[:1], day.book[:-1]])[:, 0]
    reference = (before[:, 0] + before[:, 2]) // 2
    rows, clipped = encode(day.messages, reference)
    assert clipped == 0 and len(rows) == 999
    found = decode(rows, reference, int(day.messages.time[0]))
    for name in ("time", "kind", "size", "price", "direction"):
        np.testing.assert_array_equal(getattr(found, name), getattr(day.messages, name))
    new = rows[day.messages.kind == LIMIT]
    near = abs(new[:, COLUMN["price_coarse"]] * 64 + new[:, COLUMN["price_fine"]] - DEEPEST) < 128
    assert near.mean() > 0.9, "limit orders come near the touch"
    assert (new[:, COLUMN["price_part"]] == 0).all()
