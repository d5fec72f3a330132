"""A real engine against transformers and the JAX core: members, updates, prefixes; several architectures."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from eggroll.vllm.checkpoint import pack_kept, read_leaves, read_parts
from eggroll.vllm.engine import Engine, EngineError, Row, Sampling
from eggroll.vllm.learner import step_of
from eggroll.vllm.leaves import check_cover
from tests.vllm.engines import config_of, engine_of, prompts_of, told_by_engine
from tests.vllm.models import STORIES, make_model
from tests.vllm.reference import dense_update, log_probabilities, start

KINDS = ["stories", "qwen2", "qwen3", "llama", "qwen3_moe"]


def folder_of(kind: str, place: Path) -> Path:
    if kind == "stories":
        if not STORIES.is_dir():
            pytest.skip("needs ../shared/models/stories260k, which is not part of the project")
        return STORIES
    return make_model(kind, place / kind)


def closed(engine: Engine) -> None:
    """Another engine is to be started in this process."""
    engine.close()
    gc.collect()


@pytest.mark.parametrize("kind", KINDS)
def test_members_and_updates_are_those_of_dense_matrices(kind: str, tmp_path: Path) -> None:
    folder = folder_of(kind, tmp_path)
    config, blueprint, engine = engine_of(folder, optimizer="sgd", learning_rate=0.001)
    try:
        check_cover(blueprint.leaves, engine.parts[0])
        weights = read_leaves(folder, blueprint.leaves, torch.float32)
        es, state = start(config, {name: value.numpy() for name, value in weights.items()})
        prompts = prompts_of(folder, 3, 20)
        dense, memory = state, {"optimizer": config.optimizer, "rate": config.learning_rate}
        for generation in range(3):
            engine.call("perturb", generation, config.sigma, 6, 6)
            for member in (0, 1, 5) if generation else range(6):
                told = told_by_engine(engine, prompts, member, f"{generation}-{member}")
                expected = log_probabilities(folder, es.perturbed(dense, 6 + member), prompts)
                for one, other in zip(told, expected, strict=True):
                    np.testing.assert_allclose(one, other, rtol=0, atol=1e-4)
            pairs = np.random.default_rng(generation).normal(size=8).astype(np.float32)
            engine.update(step_of(config, generation), pairs)
            dense = dense_update(es, dense, pairs, memory)
        kept = read_parts(engine.save(), engine.parts)
        for name, value in dense.params.items():
            np.testing.assert_allclose(kept["weight"][name].numpy(), value, rtol=0, atol=1e-5)
        engine.call("perturb", 0, 0.0, 0, 1)
        mean = told_by_engine(engine, prompts, 0, "mean")
        for one, other in zip(mean, log_probabilities(folder, dense.params, prompts), strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-4)
    finally:
        closed(engine)


def test_adam_is_that_of_dense_matrices(tmp_path: Path) -> None:
    """But where a gradient is nothing beside its neighbours', which Adam blows up together with its rounding."""
    folder = folder_of("qwen3", tmp_path)
    config, blueprint, engine = engine_of(folder)
    try:
        weights = read_leaves(folder, blueprint.leaves, torch.float32)
        es, dense = start(config, {name: value.numpy() for name, value in weights.items()})
        memory: dict[str, Any] = {"optimizer": config.optimizer, "rate": config.learning_rate}
        clear = {leaf.name: np.ones(leaf[1:], bool) for leaf in blueprint.leaves}
        for generation in range(3):
            pairs = np.random.default_rng(generation).normal(size=8).astype(np.float32)
            engine.update(step_of(config, generation), pairs)
            dense = dense_update(es, dense, pairs, memory)
            for name, seen in clear.items():
                moment = np.abs(memory[f"m {name}"])
                seen &= moment > 1e-3 * np.sqrt(np.mean(moment**2))
        kept = read_parts(engine.save(), engine.parts)["weight"]
    finally:
        closed(engine)
    for name, value in dense.params.items():
        assert clear[name].mean() > 0.99
        np.testing.assert_allclose(kept[name].numpy()[clear[name]], np.asarray(value)[clear[name]], rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Engine, Path]]:
    """One engine for the tests that follow; each says from which weights it begins."""
    folder = folder_of("stories", tmp_path_factory.mktemp("models"))
    _, _, engine = engine_of(folder)
    yield engine, folder
    closed(engine)


def test_no_stale_prefix_is_served(stories: tuple[Engine, Path]) -> None:
    """Members with a long prompt in common, asked twice; slots that change hands; updates."""
    engine, folder = stories
    config = config_of(folder)
    prompts = prompts_of(folder, 1, 320) * 2
    es, state = start(config, {n: v.numpy() for n, v in read_parts(engine.save(), engine.parts)["weight"].items()})
    rows = [[Row(prompts[0]), Row(prompts[0])] for _ in range(6)]
    state = state._replace(generation=jnp.int32(engine.generation))
    for _ in range(2):
        at = engine.generation
        told = []
        for generation in (at, at + 7):  # the second one's members take the slots of the first one's
            drawn = state._replace(generation=jnp.int32(generation))
            engine.complete_members((generation, config.sigma), 0, rows, Sampling(4))
            written = engine.complete_members((generation, config.sigma), 0, rows, Sampling(4))
            told.append([own[0].text for own in written])
            for member in (0, 3, 5):
                name = f"{engine.generation}-{generation}-0-{member}"  # what the engine itself calls it
                found = told_by_engine(engine, prompts, member, name)
                expected = log_probabilities(folder, es.perturbed(drawn, member), prompts[:1])
                np.testing.assert_allclose(found[0][-8:], expected[0][-8:], rtol=0, atol=2e-4)
        assert told[0] != told[1]
        pairs = np.linspace(-2, 1, 8, dtype=np.float32)
        engine.update(step_of(config, at), pairs)
        kept = read_parts(engine.save(), engine.parts)
        params = {name: jnp.asarray(value.numpy()) for name, value in kept["weight"].items()}
        state = state._replace(params=params, generation=state.generation + 1)
    mean = engine.complete_mean([Row(prompts[0])], Sampling(4))
    engine.forget()
    assert engine.complete_mean([Row(prompts[0])], Sampling(4)) == mean


def test_failures_are_told_and_leave_no_reply_behind(stories: tuple[Engine, Path]) -> None:
    engine, _ = stories
    before = engine.digest()
    for arguments in [(0, 0.1, 1, 2), (0, 0.1, 0, 7), (0, 0.1, 0, 0)]:
        with pytest.raises(EngineError, match="1 to 6 members from an even one"):
            engine.call("perturb", *arguments)
    with pytest.raises(EngineError, match="expected update"):
        engine.call("update", "{}", b"")
    with pytest.raises(EngineError, match="an update of generation"):
        engine.update(step_of(config_of(STORIES), 99), np.zeros(8, np.float32))
    assert engine.digest() == before


def test_weights_come_back_as_they_were_kept(stories: tuple[Engine, Path]) -> None:
    engine, folder = stories
    config, at = config_of(folder), engine.generation
    kept = pack_kept(read_parts(engine.save(), engine.parts))
    before, rows = engine.digest(), [Row(prompts_of(folder, 1, 30)[0])]
    text = engine.complete_mean(rows, Sampling(16))
    engine.update(step_of(config, at), np.linspace(-1, 3, 8, dtype=np.float32))
    assert engine.digest() != before
    engine.load(kept, at)
    assert engine.digest() == before
    assert engine.complete_mean(rows, Sampling(16)) == text


def test_draws_go_by_their_seeds(stories: tuple[Engine, Path]) -> None:
    engine, folder = stories
    prompt = prompts_of(folder, 1, 12)[0]
    rows = [[Row(prompt, 5), Row(prompt, 5), Row(prompt, 6)] for _ in range(4)]
    written = engine.complete_members((0, 0.0), 0, rows, Sampling(24, temperature=1.0))
    assert len({own[0].text for own in written}) == 1  # no perturbation, one seed
    assert all(own[0] == own[1] != own[2] for own in written)


def test_the_extension_brings_in_no_jax() -> None:
    code = (
        "import sys, eggroll.vllm.extension; print([name for name in ('jax', 'optax', 'orbax') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")
