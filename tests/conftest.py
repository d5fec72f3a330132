"""Strict settings for every test: two virtual CPU devices, no silent broadcasting of ranks, shapes checked."""

import os
from collections.abc import Iterator
from pathlib import Path

# 8 devices in the process that `tests.eight` starts
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + f" --xla_force_host_platform_device_count={os.environ.get('EGGROLL_TEST_DEVICES', '2')}"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest
from jaxtyping import install_import_hook

from tests.runs import chromium

install_import_hook("eggroll", "beartype.beartype")

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and conformance files beside the project; tests that need it skip without it."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("needs the folder ../shared (real data, conformance files), which is not part of the project")
    return folder


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[chromium.Chromium]:
    """A Chromium to look at pages with; tests that need it skip without it."""
    program = chromium.find()
    if program is None:
        pytest.skip(f"needs a Chromium on PATH ({', '.join(chromium.NAMES)}) to look at the page")
    opened = chromium.Chromium(program, tmp_path / "profile")
    try:
        opened.call("Browser.getVersion")
    except (EOFError, BrokenPipeError):
        opened.close()
        pytest.skip(f"needs a Chromium that starts, and {program} ended at once")
    yield opened
    opened.close()
