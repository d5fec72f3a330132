"""The model adds vectors to rows throughout; only these tests let ranks broadcast."""

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(autouse=True)
def broadcast_ranks() -> Iterator[None]:
    """Ranks may broadcast."""
    with jax.numpy_rank_promotion("allow"):
        yield
