"""An engine of two ranks: each draws its own rows and columns, and together they are the whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from eggroll.vllm.checkpoint import pack_kept, read_leaves, read_parts
from eggroll.vllm.engine import Row, Sampling
from eggroll.vllm.learner import step_of
from eggroll.vllm.leaves import check_cover
from tests.vllm.engines import engine_of, prompts_of, told_by_engine
from tests.vllm.reference import dense_update, log_probabilities, start
from tests.vllm.test_engine import closed, folder_of


@pytest.mark.parametrize("kind", ["qwen2", "stories"])
def test_two_ranks_are_one(kind: str, tmp_path: Path) -> None:
    """qwen2 has one head of keys, which both ranks hold; stories has four, of which each holds two."""
    folder = folder_of(kind, tmp_path)
    config, blueprint, engine = engine_of(folder, optimizer="sgd", learning_rate=0.001, tensor_parallel=2)
    try:
        parts = [part for rank in engine.parts for part in rank]
        check_cover(blueprint.leaves, parts)
        keys = [part for part in parts if part.leaf.name.endswith("layers.0.self_attn.k_proj.weight")]
        assert (keys[0] == keys[1]) == (kind == "qwen2")
        weights = read_leaves(folder, blueprint.leaves, torch.float32)
        es, dense = start(config, {name: value.numpy() for name, value in weights.items()})
        memory = {"optimizer": config.optimizer, "rate": config.learning_rate}
        prompts = prompts_of(folder, 2, 20)
        for generation in range(3):
            engine.call("perturb", generation, config.sigma, 4, 6)
            for member in (4, 7):
                told = told_by_engine(engine, prompts, member - 4, f"{generation}-{member}")
                expected = log_probabilities(folder, es.perturbed(dense, member), prompts)
                for one, other in zip(told, expected, strict=True):
                    np.testing.assert_allclose(one, other, rtol=0, atol=1e-4)
            pairs = np.random.default_rng(generation).normal(size=8).astype(np.float32)
            engine.update(step_of(config, generation), pairs)
            dense = dense_update(es, dense, pairs, memory)
        kept = read_parts(engine.save(), engine.parts)
        for name, value in dense.params.items():
            np.testing.assert_allclose(kept["weight"][name].numpy(), value, rtol=0, atol=1e-5)
        before, packed = engine.digest(), pack_kept(kept)
        rows = [Row(prompts[0])]
        said = engine.complete_mean(rows, Sampling(8))
        engine.update(step_of(config, 3), np.ones(8, np.float32))
        assert all(new != old for new, old in zip(engine.digest(), before, strict=True))
        engine.load(packed, 3)
        assert engine.digest() == before
        assert engine.complete_mean(rows, Sampling(8)) == said
    finally:
        closed(engine)
