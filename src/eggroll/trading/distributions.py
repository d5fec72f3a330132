"""A model's own flow against the market's: spread, time between messages, and how far the price moves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from eggroll.runs.folder import RunFolder
from eggroll.trading.book import NONE, Book, Message, best, mid, names_order, step
from eggroll.trading.config import PretrainConfig
from eggroll.trading.data import calibration_of, days_in, generated_market, read_pair, recorded_markets, split
from eggroll.trading.flow import DRAWS, LONGEST_GAP
from eggroll.trading.lobster import Day
from eggroll.trading.messages import DELETE, EXECUTE, TICK
from eggroll.trading.model import ModelConfig, advance, draw, prepared, start_carry
from eggroll.trading.model import step as model_step
from eggroll.trading.task import LAG, MEASURES, QUANTILES
from eggroll.trading.tokens import message_of
from eggroll.trading.world import Market, Others, book_features, generated, next_message, widened

_BOOKS, _MESSAGES, _READ = 32, 1500, 64
_ALL = 2**30  # shares
_SEED = 1_000_003  # of keys that no other stream has


def draw_distributions(config: PretrainConfig, model: ModelConfig, params: Any, folder: RunFolder) -> dict[str, Any]:
    """Let the model write, and leave `distributions.json` and `distributions.png` in the run's folder.

    Returns:
      What the JSON holds: for each source (market or record, model, and sample) 101 quantiles of each of `MEASURES`,
      the Kolmogorov-Smirnov distance of the model's from the first, and the share of the model's messages that named a
      price at which nobody stands, and were moved to one at which somebody does.
    """
    others, markets = _markets(config)
    key = jax.random.key(_SEED)
    seen = jax.jit(lambda markets: _both(params, model, others, markets, key))(markets)
    market, written, moved = jax.tree.map(np.asarray, seen)
    sources = {"record" if config.data else "market": market, "model": written}
    if config.sample:
        sources["sample"] = _of_day(read_pair(Path(config.sample)))
    values = {name: _measured(*source) for name, source in sources.items()}
    first = next(iter(values.values()))
    found = {
        "quantiles": {
            name: {measure: np.quantile(own[measure], QUANTILES).tolist() for measure in MEASURES}
            for name, own in values.items()
        },
        "distance": {measure: distance(values["model"][measure], first[measure]) for measure in MEASURES},
        "moved_share": float(moved.mean()),
    }
    folder.write_json("distributions.json", found)
    _draw(values, folder.path / "distributions.png")
    return found


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """Kolmogorov and Smirnov's: the largest difference of two distribution functions, in [0, 1]."""
    at = np.sort(np.concatenate([one, other]))
    below = [np.searchsorted(np.sort(each), at, side="right") / len(each) for each in (one, other)]
    return float(np.abs(below[0] - below[1]).max())


def write(params: Any, memory: Any, book: Book, key: Key[Array, ""], count: int) -> tuple[Book, tuple[Any, Any, Any]]:
    """Have a model write messages, each of which goes to the book before the next is written.

    Its cancellations and executions name no id: they go to whoever is first at their price, and a deletion takes all of
    that order. Where nobody stands there, a cancellation is moved to the nearest price of its side at which somebody
    does, an execution to the best.

    Args:
      params: prepared.
      memory: its carry and the last vector, after what it has read.
    Returns:
      The book, and after each message best bid and ask, (count, 2), the gap before it in ns, and whether it was moved.
    """

    def one(carry: Any, key: Any) -> Any:
        book, (states, hidden) = carry
        row = draw(params, hidden, key)
        before = mid(book)
        said = message_of(row, before)
        gap = jnp.clip(said.gap, 0, LONGEST_GAP)
        message, is_moved = _moved(book, Message(said.kind, jnp.int32(0), said.size, said.price, said.direction))
        book, _ = step(book, message)
        features = widened(book_features(book, before))
        return (book, model_step(params, states, row, features)), (best(book), gap, is_moved)

    (book, _), seen = jax.lax.scan(one, (book, memory), jax.random.split(key, count))
    return book, seen


def _moved(book: Book, message: Message) -> tuple[Message, Any]:
    """A message at a price at which somebody stands, if it must, and whether it had to be moved there."""
    live = (jnp.arange(2) == (1 - message.direction) // 2)[:, None] & (book.size > 0)
    off = jnp.where(live, jnp.abs(book.key + message.price * message.direction), NONE)
    nearest = jnp.where(live & (off == off.min()), book.key, NONE).min()
    first = jnp.where(live, book.key, NONE).min()
    is_moved = names_order(message) & live.any() & (off.min() > 0)
    key = jnp.where(message.kind == EXECUTE, first, nearest)
    price = jnp.where(is_moved, -key * message.direction, message.price)
    size = jnp.where(message.kind == DELETE, _ALL, message.size)
    return message._replace(price=price, size=size), is_moved


def _markets(config: PretrainConfig) -> tuple[Others, Market]:
    """Held-out books to go on from."""
    if config.data:
        held_out = [split(day)[1] for day in days_in(config.data)]
        markets, others = recorded_markets(held_out, _BOOKS, _READ + 1)
        return others, markets
    flow = calibration_of(config.calibration).flow()
    keys = jax.random.split(jax.random.key(_SEED + 1), _BOOKS)
    return generated(flow), jax.jit(jax.vmap(lambda key: generated_market(flow, key)))(keys)


def _both(params: Any, config: ModelConfig, others: Others, markets: Market, key: Key[Array, ""]) -> Any:
    """(bid and ask, gaps) of the market and of the model, from the same books; and how many named nobody."""
    model = prepared(params)

    def one(market: Market, key: Any) -> Any:
        draws, then, own = jax.random.split(key, 3)

        def shown(market: Market, draws: Any) -> Any:
            market, seen = next_message(others, market, draws)
            return market, (seen, best(market.book))

        market, (seen, _) = jax.lax.scan(shown, market, jax.random.uniform(draws, (_READ, DRAWS)))
        carry, hidden = advance(model, start_carry(config), seen.tokens, widened(seen.features))
        _, (goes_on, prices) = jax.lax.scan(shown, market, jax.random.uniform(then, (_MESSAGES, DRAWS)))
        _, (own_prices, gaps, moved) = write(model, (carry, hidden[-1]), market.book, own, _MESSAGES)
        return (prices, goes_on.gap), (own_prices, gaps), moved

    return jax.vmap(one)(markets, jax.random.split(key, _BOOKS))


def _of_day(day: Day) -> tuple[np.ndarray, np.ndarray]:
    prices = day.rows[1:, 0][:, [2, 0]]
    return prices[None], np.diff(day.messages.time)[None]


def _measured(prices: np.ndarray, gaps: np.ndarray) -> dict[str, np.ndarray]:
    """Values of each measure.

    Args:
      prices: (books, messages, 2) best bid and ask; a side that is empty has none in [1, 2³¹ − 1).
      gaps: (books, messages) ns.
    """
    there = (np.abs(prices) < 2**31 - 1).all(-1)
    middle = prices.astype(np.float64).mean(-1)
    lag = min(LAG, middle.shape[1] - 1)
    both = there[:, lag:] & there[:, :-lag]
    return {
        "spread": (prices[..., 1].astype(np.int64) - prices[..., 0])[there] / TICK,
        "gap": np.log10(np.maximum(gaps, 1) / 1e9).ravel(),
        "move": ((middle[:, lag:] - middle[:, :-lag])[both]) / TICK,
    }


def _draw(values: dict[str, dict[str, np.ndarray]], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, (measure, label) in zip(figure.subplots(1, len(MEASURES)), MEASURES.items(), strict=True):
        low, high = np.quantile(np.concatenate([own[measure] for own in values.values()]), [0.005, 0.995])
        for name, own in values.items():
            axis.plot(np.quantile(own[measure], QUANTILES), QUANTILES, label=name)
        axis.set_xlim(low, high)
        axis.set_xlabel(label)
    figure.axes[0].set_ylabel("share of messages below")
    figure.axes[0].legend(frameon=False)
    figure.savefig(path, dpi=120, metadata={"Software": None})
