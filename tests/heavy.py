"""Which cases `make test` leaves to `make test-all`: more of what others of the same test already try."""

from collections.abc import Iterable
from typing import Any

import pytest


def heavy_but(kept: Iterable[Any], names: Iterable[Any]) -> list:
    """Cases for `parametrize`; those not kept are marked heavy."""
    kept = set(kept)
    return [name if name in kept else pytest.param(name, marks=pytest.mark.heavy) for name in names]
