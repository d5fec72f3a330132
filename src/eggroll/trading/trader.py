"""The message model as a trader: it reads the stream and writes the next message of it, which is its own order."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax.typing import ArrayLike

from eggroll.trading.book import Book, mid
from eggroll.trading.execution import Account, Order, Task, task_features
from eggroll.trading.messages import LIMIT
from eggroll.trading.model import ModelConfig, Params, advance, draw, prepared, start_carry, step
from eggroll.trading.tokens import COLUMN, FIELDS, price_of, size_of
from eggroll.trading.world import book_features

_PRICE = ("price_coarse", "price_fine", "price_part")
_SIZE = ("size_lots", "size_odd")


class ModelTrader:
    """Puts a limit order at each decision, at the price and of the size that the model would write next.

    Its order is a message of the stream like any other: of kind limit and of its own side, which are given, at once and
    on a whole tick. Price and size are the model's, field by field. It reads its own order before the others go on.

    Args:
      params: of `model`; matrices may be members of a population.
      temperature: of the draw; 0: the likeliest price and size.
    """

    def __init__(self, params: Params, config: ModelConfig, task: Task, temperature: ArrayLike = 0) -> None:
        self._params, self._config, self._task = prepared(params), config, task
        self._temperature = temperature
        fixed = {name: 0 for name, _ in FIELDS if name.startswith("gap")}
        self._given = fixed | {"kind": LIMIT - 1, "side": (1 + task.direction) // 2, "price_part": 0}

    def start(self) -> Any:
        """The states of its layers, and nothing read."""
        return start_carry(self._config), jnp.zeros(self._config.width)

    def read(self, memory: Any, tokens: Any, features: Any) -> Any:
        """Messages of others."""
        carry, hidden = advance(self._params, memory[0], tokens, features)
        return carry, hidden[-1]

    def decide(self, memory: Any, book: Book, account: Account, key: Any) -> tuple[Any, Order]:
        """The message that the model would write next."""
        carry, hidden = memory
        row = draw(self._params, hidden, key, given=self._given, temperature=self._temperature)
        middle, direction = mid(book), jnp.int32(self._task.direction)
        coarse, fine, part = (row[COLUMN[name]] for name in _PRICE)
        price = price_of(coarse, fine, part, direction, middle)
        size = size_of(*(row[COLUMN[name]] for name in _SIZE))
        features = jnp.concatenate([book_features(book, middle), task_features(self._task, book, account)])
        return step(self._params, carry, row, features), Order(jnp.int32(LIMIT), price, size)
