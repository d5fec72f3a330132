"""Between the book in JAX, the plain book and LOBSTER's rows; and random messages for any of them."""

import numpy as np

from eggroll.trading.book import NONE, Message
from eggroll.trading.lobster import MISSING, read_day
from eggroll.trading.messages import CANCEL, DELETE, EXECUTE, HALT, HIDDEN, LIMIT, MARKET
from tests.trading.plain_book import PlainBook

MIX = {LIMIT: 12, CANCEL: 4, DELETE: 3, EXECUTE: 3, MARKET: 2, HIDDEN: 1, HALT: 1}
"""How often each kind comes among random messages, so that the books of a few slots are now full and now empty."""


def sample(shared):
    """LOBSTER's sample: the book's rows, and the messages as tuples (kind, id, size, price, direction)."""
    messages, book = read_day(*sorted((shared / "data/lobster").glob("*_10.csv")))
    return book, list(zip(*(field.tolist() for field in messages[1:]), strict=True))


def random_messages(seed, count, *, prices=6, largest=9, middle=1_000, mix=MIX):
    """Messages around a price, (count, 5): kind, id, size, price, direction.

    Limit orders have ids 1, 2, … or none; the others mostly name a late one, as it was or at another price or side.
    """
    rng = np.random.default_rng(seed)
    kind = rng.choice(list(mix), count, p=np.array(list(mix.values())) / sum(mix.values()))
    direction = rng.choice([1, -1], count)
    size = rng.integers(1, largest + 1, count) * rng.choice([0, 1, 8], count, p=[0.03, 0.87, 0.1])
    price = middle - direction * (rng.integers(0, prices, count) - rng.integers(0, 3, count))
    name = np.cumsum(kind == LIMIT)
    name[(kind == LIMIT) & (rng.random(count) < 0.15)] = 0
    limits = np.flatnonzero(kind == LIMIT)
    for at in np.flatnonzero(np.isin(kind, (CANCEL, DELETE, EXECUTE))):
        known = limits[: np.searchsorted(limits, at)]
        meant = known[-1 - rng.integers(min(len(known), 24))] if len(known) else at
        name[at], price[at], direction[at] = name[meant], price[meant], direction[meant]
    changed = ~np.isin(kind, (LIMIT, MARKET)) & (rng.random(count) < 0.3)
    name[changed] = rng.choice([0, 0, 10**6], changed.sum())
    price[changed & (rng.random(count) < 0.2)] += 1
    direction[changed & (rng.random(count) < 0.2)] *= -1
    price[(kind == MARKET) & (rng.random(count) < 0.5)] = 0
    price[kind == HALT] = -1
    return np.stack([kind, name, size, price, direction], axis=1)


def message_of(rows):
    """Rows of random messages for a book in JAX."""
    return Message(*np.asarray(rows, np.int32).T)


def lobster_rows(levels):
    """What `book.levels` returns as in a LOBSTER file."""
    rows = np.asarray(levels, np.int64)
    return np.where(np.abs(rows) == NONE, np.sign(rows) * MISSING, rows)


def orders_of(book):
    """Bids and asks of a book in JAX as the plain book has them: [id, price, size] in priority order."""
    key, size, name, came = (np.asarray(each).tolist() for each in book[:4])
    sides = []
    for side, sign in enumerate((-1, 1)):
        live = sorted(zip(key[side], came[side], name[side], size[side], strict=True))
        sides.append([[who, sign * at, shares] for at, _, who, shares in live if shares > 0])
    return sides


def plain_of(book, capacity=None):
    """The plain book with the same orders."""
    plain = PlainBook(capacity)
    plain.bids, plain.asks = orders_of(book)
    return plain
