"""Background order flow: a market of zero intelligence in which everything hangs on the book as it stands.

When something happens is a Hawkes process, whose intensity jumps with each message and decays at several speeds. What
happens is a chain over kinds and sides, bent towards cancelling on a side that holds many orders. Where an order is put
hangs on its own side's best price and on the spread. Nothing of it knows where the price will go. The process is
simulated exactly (Dassios and Zhao, arXiv 1308.5467, for exponential kernels); the market is of the kind of Smith,
Farmer, Gillemot and Krishnamurthy, arXiv cond-mat/0210475.

Because the flow hangs on the book, orders of others change it: it can be traded against. Ids below 0 are theirs, and it
never cancels them.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32, Key

from eggroll.trading.book import CAPACITY, NONE, Book, Message, empty_book, lowest_key, step
from eggroll.trading.messages import CANCEL, DELETE, EXECUTE, HIDDEN, LIMIT, TICK

KINDS = (LIMIT, DELETE, EXECUTE, HIDDEN)
"""What happens, on the buy side and then on the sell side: eight events."""
DRAWS = 12
"""Uniform numbers that a message needs."""
LONGEST_GAP = 2_000_000_000
"""Nanoseconds, which 32 bits hold. Longer silences are cut to it."""
_FEWEST = 4  # orders of a side below which none is taken away, so that there is always a price
_SEEDED = 24  # orders of a side at the start


class Flow(NamedTuple):
    """A market's numbers, from `calibration.Calibration`."""

    base: Float32[Array, ""]  # messages a second that nothing causes
    jump: Float32[Array, "speeds"]  # by which a message raises the intensity, per second
    decay: Float32[Array, "speeds"]  # per second
    chain: Float32[Array, "8 8"]  # from the event before to this one, rows sum to 1
    crowd: Float32[Array, ""]  # usual number of orders of a side
    improves: Float32[Array, ""]  # share of limit orders that better a best price half the usual spread from the anchor
    forgets: Float32[Array, ""]  # share of the way to the mid that the anchor goes with each message
    spread: Float32[Array, ""]  # usual spread, ticks
    inside: Float32[Array, "ticks"]  # distribution function of improvements by 1, 2, … ticks
    behind: Float32[Array, "ticks"]  # of limit orders 0, 1, 2, … ticks behind the best price
    joins: Float32[Array, ""]  # share of those that queue at a price where there are others
    fading: Float32[Array, "ticks"]  # how readily an order so many ticks behind the best is deleted
    sizes: Int32[Array, "sizes"]  # shares
    limit_sizes: Float32[Array, "sizes"]  # distribution function of limit orders' sizes
    taken_sizes: Float32[Array, "sizes"]  # of what executions ask for
    partial: Float32[Array, ""]  # share of cancellations that leave something


class FlowState(NamedTuple):
    """What the flow remembers."""

    excitement: Float32[Array, "speeds"]  # intensity above the base, per second
    event: Int32[Array, ""]  # of the message before
    next_id: Int32[Array, ""]
    anchor: Float32[Array, ""]  # what the market holds the price for, ticks from the book's origin: the mid of late


def start_flow(flow: Flow) -> FlowState:
    """At rest; ids from 1."""
    return FlowState(jnp.zeros_like(flow.jump), jnp.int32(0), jnp.int32(1), jnp.float32(0))


def flow_step(
    flow: Flow, state: FlowState, book: Book, draws: Float32[Array, "12"]
) -> tuple[FlowState, Int32[Array, ""], Message]:
    """The next message of a market whose book stands as it does.

    Args:
      draws: uniform in [0, 1).
    Returns:
      The state, nanoseconds since the message before, and the message, which names orders by id.
    """
    seconds, excitement = _gap(flow, state.excitement, draws[:4])
    hazard = _hazard(flow, book)
    event = _event(flow, state.event, book, draws[4])
    kind, direction = jnp.array(KINDS)[event % 4], 1 - 2 * (event // 4)
    own = jnp.arange(2) == event // 4
    touch, spread = _touch(flow, book, own, direction)
    ahead = (touch + direction * book.origin) / TICK  # of the own side's best price from the origin, outwards
    anchor = state.anchor - flow.forgets * (direction * (ahead - spread / 2) + state.anchor)
    distance = ahead + direction * anchor
    placed = touch + TICK * _ticks_behind(flow, spread, distance, kind, draws[5:7])
    at = jnp.where((kind == LIMIT) & (draws[11] < flow.joins), _joined(book, own, touch, placed), placed)
    size = _size(flow, kind, draws[7])
    meant = own[:, None] & _meant(book, hazard, own, touch, kind, draws[8])[None]
    there, held, named = (jnp.where(meant, each, 0).sum() for each in (book.size, book.key, book.order_id))
    is_partial = (kind == DELETE) & (draws[9] < flow.partial) & (there > 1)
    some = 1 + jnp.int32(draws[10] * jnp.maximum(there - 1, 1))
    rests = (kind == LIMIT) | (kind == HIDDEN)
    message = Message(
        kind=jnp.where(is_partial, CANCEL, kind),
        order_id=jnp.where(kind == LIMIT, state.next_id, jnp.where(kind == HIDDEN, 0, named)),
        size=jnp.select(
            [rests, is_partial, kind == DELETE], [size, jnp.minimum(some, there - 1), there], jnp.minimum(size, there)
        ),
        price=jnp.where(rests, at, held) * -direction,
        direction=direction,
    )
    new = FlowState(excitement + flow.jump, event, state.next_id + (kind == LIMIT), anchor)
    return new, jnp.int32(seconds * 1e9), message


def simulate(
    flow: Flow, key: Key[Array, ""], count: int, book: Book, state: FlowState
) -> tuple[tuple[Book, FlowState], tuple[Int32[Array, "count"], Message, Book]]:
    """Messages of a market that nobody disturbs.

    Returns:
      Book and state after them; for each message the gap before it in ns, the message, and the book after it.
    """

    def one(carry: tuple[Book, FlowState], draws: Float32[Array, "12"]) -> tuple[tuple[Book, FlowState], tuple]:
        (book, state), gap, message = _advanced(flow, *carry, draws)
        return (book, state), (gap, message, book)

    return jax.lax.scan(one, (book, state), jax.random.uniform(key, (count, DRAWS)))


def opened(
    flow: Flow, key: Key[Array, ""], price: int, *, warm_up: int = 2000, capacity: int = CAPACITY
) -> tuple[Book, FlowState]:
    """A book that has been traded for a while, around a price in 1/10,000 dollar."""
    book, state = empty_book(capacity, price), start_flow(flow)
    half = jnp.maximum(jnp.int32(flow.spread) // 2, 1)
    number = jnp.arange(_SEEDED)
    own, warm = jax.random.split(key)
    size = flow.sizes[_inverse(flow.limit_sizes, jax.random.uniform(own, (2, _SEEDED)))]
    key_of = lambda sign: sign * (price // TICK * TICK) + (half + 2 * number) * TICK
    book = book._replace(
        key=book.key.at[:, :_SEEDED].set(jnp.stack([key_of(-1), key_of(1)])),
        size=book.size.at[:, :_SEEDED].set(size),
        order_id=book.order_id.at[:, :_SEEDED].set(1 + jnp.stack([number, _SEEDED + number])),
    )
    state = state._replace(next_id=jnp.int32(2 * _SEEDED + 1))

    def one(carry: tuple[Book, FlowState], draws: Float32[Array, "12"]) -> tuple[tuple[Book, FlowState], None]:
        return _advanced(flow, *carry, draws)[0], None

    return jax.lax.scan(one, (book, state), jax.random.uniform(warm, (warm_up, DRAWS)))[0]


def _advanced(
    flow: Flow, book: Book, state: FlowState, draws: Float32[Array, "12"]
) -> tuple[tuple[Book, FlowState], Int32[Array, ""], Message]:
    """Book and state after one more message, the gap before it, and the message."""
    state, gap, message = flow_step(flow, state, book, draws)
    return (step(book, message)[0], state), gap, message


def _gap(
    flow: Flow, excitement: Float32[Array, "speeds"], draws: Float32[Array, "4"]
) -> tuple[Float32[Array, ""], Float32[Array, "speeds"]]:
    """Seconds to the next message: the first of those that each decaying part, and the base, would cause."""
    draws = jnp.maximum(draws, 1e-7)
    count = excitement.shape[0]
    reached = 1 + flow.decay * jnp.log(draws[:count]) / jnp.maximum(excitement, 1e-9)
    caused = jnp.where(reached > 0, -jnp.log(jnp.maximum(reached, 1e-30)) / flow.decay, jnp.inf)
    seconds = jnp.minimum(caused.min(), -jnp.log(draws[count]) / flow.base)
    seconds = jnp.minimum(seconds, LONGEST_GAP / 1e9)
    return seconds, excitement * jnp.exp(-flow.decay * seconds)


def _hazard(flow: Flow, book: Book) -> Float32[Array, "2 capacity"]:
    """How readily each order is deleted; 0 where there is none of the flow's own."""
    live = (book.size > 0) & (book.order_id >= 0)
    ticks = jnp.clip((book.key - lowest_key(book.key, book.size)[:, None]) // TICK, 0, flow.fading.shape[0] - 1)
    return jnp.where(live, flow.fading[ticks], 0)


def _event(flow: Flow, before: Int32[Array, ""], book: Book, draw: Float32[Array, ""]) -> Int32[Array, ""]:
    """Which of the eight; a side with more orders than usual loses some, one with hardly any loses none."""
    orders = jnp.float32((book.size > 0).sum(-1))
    can_lose, ones = jnp.float32(orders > _FEWEST), jnp.ones(2)
    weight = jnp.stack([ones, orders / flow.crowd * can_lose, can_lose, ones], axis=-1).reshape(8)
    total = jnp.cumsum(flow.chain[before] * weight)
    return jnp.minimum((total <= draw * total[-1]).sum(), 7)


def _touch(
    flow: Flow, book: Book, own: Bool[Array, "2"], direction: Int32[Array, ""]
) -> tuple[Int32[Array, ""], Int32[Array, ""]]:
    """Key of the own side's best price, and the spread in ticks.

    Of a side that somebody has emptied it is the usual spread away from the other, and if that is empty too, from the
    book's origin.
    """
    key = lowest_key(book.key, book.size)
    touch, other = jnp.where(own, key, 0).sum(), jnp.where(own, 0, key).sum()
    usual = jnp.maximum(jnp.int32(flow.spread), 1)
    spread = jnp.where((touch == NONE) | (other == NONE), usual, (touch + other) // TICK)
    anchor = jnp.where(other == NONE, book.origin // TICK * TICK * direction, other)
    return jnp.where(touch == NONE, usual * TICK - anchor, touch), spread


def _ticks_behind(
    flow: Flow,
    spread: Int32[Array, ""],
    distance: Float32[Array, ""],
    kind: Int32[Array, ""],
    draws: Float32[Array, "2"],
) -> Int32[Array, ""]:
    """How far behind its side's best price an order is put; below 0 inside the spread, which it never closes.

    The further the best price is from the anchor, the likelier it is bettered: a gap that somebody has torn closes.
    """
    room = jnp.clip(spread - 1, 0, flow.inside.shape[0])
    share = jnp.clip(flow.improves * 2 * distance / flow.spread, 0, 0.9)
    inside = (kind == HIDDEN) | (draws[0] < share)
    limit = jnp.where(room > 0, flow.inside[jnp.maximum(room - 1, 0)], 0)
    better = jnp.minimum(1 + _inverse(flow.inside, draws[1] * limit), room)
    return jnp.where(inside & (room > 0), -better, _inverse(flow.behind, draws[1]))


def _joined(book: Book, own: Bool[Array, "2"], touch: Int32[Array, ""], placed: Int32[Array, ""]) -> Int32[Array, ""]:
    """The key of the next order behind; that itself where it betters the best price, or none is behind."""
    behind = own[:, None] & (book.size > 0) & (book.key >= placed)
    found = jnp.where(behind, book.key, NONE).min()
    return jnp.where((placed < touch) | (found == NONE), placed, found)


def _size(flow: Flow, kind: Int32[Array, ""], draw: Float32[Array, ""]) -> Int32[Array, ""]:
    law = jnp.where(kind == LIMIT, flow.limit_sizes, flow.taken_sizes)
    return flow.sizes[_inverse(law, draw)]


def _meant(
    book: Book,
    hazard: Float32[Array, "2 capacity"],
    own: Bool[Array, "2"],
    touch: Int32[Array, ""],
    kind: Int32[Array, ""],
    draw: Float32[Array, ""],
) -> Bool[Array, "capacity"]:
    """The slot of the order that is taken away: for an execution the first, else one by its hazard."""
    live = (own[:, None] & (book.size > 0)).any(0)
    total = jnp.cumsum(jnp.where(own[:, None], hazard, 0).sum(0))
    chosen = jnp.minimum((total <= draw * total[-1]).sum(), live.shape[0] - 1)
    key, came = (jnp.where(own[:, None], each, 0).sum(0) for each in (book.key, book.came))
    level = live & (key == touch)
    first = level & (came == jnp.where(level, came, NONE).min())
    return jnp.where(kind == EXECUTE, first, jnp.arange(live.shape[0]) == chosen)


def _inverse(law: Float32[Array, "n"], draw: Float32[Array, "*more"]) -> Int32[Array, "*more"]:
    """The value whose distribution function passes a draw."""
    law_of_each = law.reshape((1,) * jnp.ndim(draw) + law.shape)
    return jnp.minimum((law_of_each <= jnp.expand_dims(draw, -1)).sum(-1), law.shape[0] - 1)
