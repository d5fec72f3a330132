"""Tests of real engines need vLLM, in an environment of its own: make test-vllm. Others run anywhere."""

import importlib.util
import os
from pathlib import Path

import pytest

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("RAY_AUTH_MODE", "token")  # which Ray reads once, and vLLM imports it before a test sets it up
HERE = importlib.util.find_spec("vllm") is not None
OF_ENGINES = [f"test_{name}.py" for name in ("blueprint", "engine", "parallel", "prompts", "ray", "run")]
collect_ignore = [] if HERE else OF_ENGINES


def pytest_report_header() -> str:
    """Says what is left out."""
    return "" if HERE else "tests/vllm: those of real engines need vLLM, which is not here: make test-vllm"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """vLLM, transformers and PyTorch warn of each other; our own warnings stay errors."""
    for item in items:
        if Path(item.path).name in OF_ENGINES:
            item.add_marker(pytest.mark.filterwarnings("error:::eggroll"))
            item.add_marker(pytest.mark.filterwarnings("ignore"))


@pytest.fixture(autouse=True)
def torch_threads() -> None:
    """One, as engines have."""
    import torch

    torch.set_num_threads(1)
