"""Other people's environments broadcast ranks and warn of their own dependencies; only these tests let them."""

from collections.abc import Iterator

import jax
import pytest

# Where the warnings come from, each with what it is about; ours stay errors.
_FOREIGN = (
    "ignore::UserWarning:brax",  # that Brax is not maintained any more
    *(
        f"ignore::DeprecationWarning:{package}"
        for package in ("brax", "craftax", "flax", "gymnax", "jaxmarl", "jaxopt", "pygame", "tensorflow_probability")
    ),
    "ignore::DeprecationWarning:pkg_resources",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Warnings of those modules are ignored in the tests of this folder."""
    for item in items:
        if "tests/rl/" in item.path.as_posix():
            for line in _FOREIGN:
                kind, _, module = line.removeprefix("ignore::").partition(":")
                item.add_marker(pytest.mark.filterwarnings(f"ignore::{kind}:{module}(\\..*)?"))


@pytest.fixture(autouse=True)
def foreign_ranks() -> Iterator[None]:
    """Ranks may broadcast."""
    with jax.numpy_rank_promotion("allow"):
        yield
