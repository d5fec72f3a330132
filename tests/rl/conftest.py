"""Third-party environments broadcast ranks and warn; our own modules are held to the strict settings elsewhere."""

import warnings
from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(autouse=True)
def lenient() -> Iterator[None]:
    """Rank promotion as JAX has it by default; third-party packages' warnings are not errors."""
    with warnings.catch_warnings(), jax.numpy_rank_promotion("allow"):
        for category in (DeprecationWarning, FutureWarning, UserWarning):
            warnings.simplefilter("ignore", category)
        yield
