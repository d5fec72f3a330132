"""The torch side against the JAX core: the same draws, members and updates, whole or in parts."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eggroll.core import noise
from eggroll.core.distribution import LowRank, make_plan
from eggroll.core.draws import draw_noise
from eggroll.core.errors import UsageError
from eggroll.core.state import seed_words
from eggroll.vllm import checkpoint
from eggroll.vllm.blueprint import Blueprint
from eggroll.vllm.config import VllmConfig
from eggroll.vllm.draws import Settings, draw_factors, stream_keys, weighted_noise
from eggroll.vllm.learner import as_kept, start_of, whole_learner
from eggroll.vllm.leaves import Leaf, Part, check_cover
from eggroll.vllm.mean import Mean, MeanSettings
from eggroll.vllm.slots import Slot
from eggroll.vllm.step import Held, Step, round_at_random, update
from tests.vllm.reference import dense_update, start

LEAVES = (Leaf("model.layers.0.mlp.up_proj.weight", 12, 8), Leaf("model.layers.1.self_attn.o_proj.weight", 8, 16))
BLUEPRINT = Blueprint(LEAVES, (), "float32")


def config_of(**changes: object) -> VllmConfig:
    values = {"model": "m", "dtype": "float32", "population_size": 8, "sigma": 0.1, "learning_rate": 0.05, "seed": 3}
    return VllmConfig(**values | changes)  # type: ignore[arg-type]


def weights_of(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = np.random.default_rng(seed)
    return {leaf.name: torch.from_numpy(generator.normal(size=leaf[1:]).astype(np.float32)) for leaf in LEAVES}


def halves(leaf: Leaf, *, by_row: bool) -> list[Part]:
    if by_row:
        return [Part(leaf, k * leaf.rows // 2, leaf.rows // 2, 0, leaf.columns) for k in range(2)]
    return [Part(leaf, 0, leaf.rows, k * leaf.columns // 2, leaf.columns // 2) for k in range(2)]


@pytest.mark.parametrize("law", ["popcount", "signs", "table_normal"])
def test_factors_are_those_of_the_core(law: str) -> None:
    params = {leaf.name: jnp.zeros(leaf[1:]) for leaf in LEAVES}
    plan = make_plan(LowRank(rank=2, law=law), params)
    pairs = jnp.arange(5, dtype=jnp.int32)
    seed = 2**40 + 7
    drawn = draw_noise(plan, seed=seed_words(seed), generation=jnp.int32(4), pairs=pairs)
    expected = dict(zip(sorted(params), drawn, strict=True))
    own = Settings(seed, 2, law)
    for leaf in LEAVES:
        for part in [Part.whole(leaf), *halves(leaf, by_row=True), *halves(leaf, by_row=False)]:
            factors = [noise.FACTOR_A, noise.FACTOR_B]
            (keys,) = stream_keys(own, [part], factors, 4, torch.arange(5, dtype=torch.int32))
            a, b = draw_factors(own, part, keys)
            rows = slice(part.first_row, part.first_row + part.rows)
            columns = slice(part.first_column, part.first_column + part.columns)
            np.testing.assert_array_equal(a.numpy(), np.asarray(expected[leaf.name].a)[:, rows])
            np.testing.assert_array_equal(b.numpy(), np.asarray(expected[leaf.name].b)[:, columns])


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("rank", [1, 3])
def test_updates_are_those_of_the_core_and_of_dense_matrices(optimizer: str, rank: int) -> None:
    config = config_of(optimizer=optimizer, rank=rank, noise_reuse=2)
    learner = whole_learner(config, BLUEPRINT, start_of(config, weights_of()))
    es, state = start(config, learner.parameters)
    dense, memory = state, {"optimizer": optimizer, "rate": config.learning_rate}
    parameters, kept = learner.parameters, learner.optimizer
    for generation in range(3):
        weights = np.random.default_rng(generation).normal(size=4).astype(np.float32)
        parameters, kept, _ = learner.update(parameters, kept, weights, generation)
        state = es.update(state, weights)
        dense = dense_update(es, dense, weights, memory)
    assert int(kept["count"]) == 3
    for leaf in LEAVES:
        np.testing.assert_allclose(parameters[leaf.name], state.params[leaf.name], rtol=0, atol=2e-6)
        np.testing.assert_allclose(parameters[leaf.name], dense.params[leaf.name], rtol=0, atol=1e-5)


@settings(deadline=None, max_examples=25)
@given(st.booleans(), st.sampled_from(["sgd", "adam"]), st.integers(1, 4), st.integers(1, 9))
def test_parts_move_as_the_whole(by_row: bool, optimizer: str, rank: int, pairs: int) -> None:
    own, weights = Settings(11, rank, "popcount"), weights_of()
    drawn = torch.from_numpy(np.random.default_rng(pairs).normal(size=pairs).astype(np.float32))
    for leaf in LEAVES:
        whole = Held.of(Part.whole(leaf), weights[leaf.name].clone(), optimizer, "master")
        parts = [
            Held.of(
                part,
                weights[leaf.name][
                    part.first_row : part.first_row + part.rows, part.first_column : part.first_column + part.columns
                ].clone(),
                optimizer,
                "master",
            )
            for part in halves(leaf, by_row=by_row)
        ]
        axis, clear = 0 if by_row else 1, torch.ones(leaf[1:], dtype=torch.bool)
        for generation in range(2):
            step = Step(generation, generation, 0.1, 0.05, 2 * pairs)
            for held in [whole, *parts]:
                update(held, own, drawn, step)
            for kind, value in whole.kept.items():
                if kind != "weight":  # these are sums of gradients, and so hold everywhere
                    joined = torch.cat([held.kept[kind] for held in parts], axis)
                    torch.testing.assert_close(joined, value, rtol=1e-5, atol=1e-5)
            if optimizer == "adam":  # which blows up what is left of terms that cancel
                moment = whole.moments["mean"].abs()
                clear &= moment > 1e-5 * moment.max()
        joined = torch.cat([held.weight for held in parts], axis)
        assert clear.float().mean() > 0.2
        torch.testing.assert_close(joined[clear], whole.weight[clear], rtol=0, atol=2e-6)


@pytest.mark.parametrize("precision", ["master", "stochastic"])
def test_a_step_below_half_an_ulp_does_not_vanish(precision: str) -> None:
    leaf = Leaf("w", 32, 32)
    held = Held.of(Part.whole(leaf), torch.ones(32, 32, dtype=torch.bfloat16), "sgd", precision)  # type: ignore[arg-type]
    own, weights = Settings(0, 1, "signs"), torch.ones(1)
    one = weighted_noise(own, held.part, 0, weights)  # ±1 everywhere
    ulp = 2.0**-7
    steps, rate = 40, ulp / 20 / 2  # the gradient is 2/(2·1)·E, so that a step is a fortieth of an ulp
    for generation in range(steps):
        update(held, own, weights, Step(generation, 0, 1.0, rate, 2))
    moved = (held.weight.float() - 1) * one
    assert moved.mean().item() == pytest.approx(steps * rate, rel=0.25)
    if precision == "master":
        assert held.master is not None
        torch.testing.assert_close(held.master, 1 + steps * rate * one, rtol=0, atol=1e-5)
    plain = torch.ones(32, 32, dtype=torch.bfloat16)
    for _ in range(steps):
        plain += (rate * one).bfloat16()
    assert (plain == 1)[one > 0].all()  # what rounding to nearest would have left


@settings(deadline=None, max_examples=50)
@given(st.floats(-(2.0**99), 2.0**99, width=32, allow_subnormal=False), st.integers(-(2**31), 2**31 - 1))
def test_rounding_goes_to_a_neighbour(value: float, bits: int) -> None:
    x = torch.full((1, 1), value, dtype=torch.float32)
    got = round_at_random(x, torch.full((1, 1), bits, dtype=torch.int32))
    near = x.bfloat16()
    other = torch.nextafter(near, torch.tensor(torch.inf if near.float() < x else -torch.inf, dtype=torch.bfloat16))
    assert got.item() in (near.item(), other.item())
    if near.float() == x:
        assert got.item() == near.item()


def test_a_rank_perturbs_saves_and_loads_its_parts(tmp_path: Path) -> None:
    weights, rank, adapters = weights_of(), 2, 6
    own = MeanSettings(3, rank, "popcount", "adam", "master", tuple(leaf.name for leaf in LEAVES))
    ranks = []
    for k in range(2):
        parts = [halves(LEAVES[0], by_row=True)[k], halves(LEAVES[1], by_row=False)[k]]
        slots = []
        for part in parts:
            view = weights[part.leaf.name][
                part.first_row : part.first_row + part.rows, part.first_column : part.first_column + part.columns
            ].clone()
            a, b = torch.zeros(adapters, 8, part.columns), torch.zeros(adapters, part.rows, 8)
            slots.append(Slot(part, view, a, b))
        ranks.append(Mean(own, slots, adapters))
    for mean in ranks:
        mean.perturb(5, 0.1, 4, 3)
        mean.update(torch.tensor([1.0, -0.5]), Step(0, 0, 0.1, 0.05, 4))
    es, state = start(config_of(rank=rank, population_size=16), {n: v.numpy() for n, v in weights_of().items()})
    at = state._replace(generation=jnp.int32(5))
    for member in range(4, 7):
        moved = es.perturbed(at, member)
        for mean in ranks:
            for slot in mean.slots:
                part = slot.part
                rows = slice(part.first_row, part.first_row + part.rows)
                columns = slice(part.first_column, part.first_column + part.columns)
                expected = (np.asarray(moved[part.leaf.name]) - weights_of()[part.leaf.name].numpy())[rows, columns]
                got = (slot.b[member - 4] @ slot.a[member - 4]).numpy()
                np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)
    for k, mean in enumerate(ranks):
        mean.save(tmp_path / f"{k}.safetensors")
    files = [path.read_bytes() for path in sorted(tmp_path.glob("*.safetensors"))]
    joined = checkpoint.read_parts(files, [[slot.part for slot in mean.slots] for mean in ranks])
    assert set(joined) == {"weight", "mean", "square"}
    assert all(set(held) == {leaf.name for leaf in LEAVES} for held in joined.values())
    before = [mean.digest() for mean in ranks]
    (tmp_path / "all.safetensors").write_bytes(checkpoint.pack_kept(joined))
    for mean in ranks:
        mean.held[0].weight.zero_()
        mean.held[1].moments["mean"].zero_()
        assert mean.digest() not in before
        mean.load(tmp_path / "all.safetensors")
    assert [mean.digest() for mean in ranks] == before


def test_bfloat16_goes_through_snapshots_unchanged() -> None:
    config = config_of(dtype="bfloat16", precision="stochastic")
    weights = {name: value.bfloat16() for name, value in weights_of().items()}
    parameters, optimizer = start_of(config, weights)
    assert all(value.dtype == jnp.bfloat16 for value in parameters.values())
    kept = as_kept(parameters, optimizer)
    assert all(torch.equal(kept["weight"][name], value) for name, value in weights.items())


def test_parts_must_cover_every_leaf() -> None:
    leaf = LEAVES[0]
    check_cover([leaf], halves(leaf, by_row=True))
    check_cover([leaf], [*halves(leaf, by_row=False), *halves(leaf, by_row=False)])
    for parts, what in [
        (halves(leaf, by_row=True)[:1], "hold all of"),
        (halves(leaf, by_row=False)[1:], "hold all of"),
        ([Part.whole(LEAVES[1])], "no such matrix"),
        ([Part.whole(Leaf(leaf.name, 8, 12))], "expected"),
    ]:
        with pytest.raises(UsageError, match=what):
            check_cover([leaf], parts)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": ""}, "--model"),
        ({"engine_options": "[1]"}, "--engine-options"),
        ({"engine_options": "{"}, "--engine-options"),
        ({"dtype": "float16", "precision": "stochastic"}, "--precision"),
        ({"tensor_parallel": 0}, "--tensor-parallel"),
        ({"pass_k": 2, "samples": 2}, "--temperature"),
        ({"group_size": 3}, "--group-size"),
        ({"devices": 2}, "--devices"),
        ({"listen": "127.0.0.1:1", "workers": 1}, "--listen"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        config_of(**changes)


def test_members_that_an_engine_holds() -> None:
    assert config_of(population_size=64, prompts=4).chunk == 64
    assert config_of(population_size=64, prompts=64).chunk == 8
    assert config_of(population_size=64, prompts=4, ray="local", workers=2).chunk == 32
    assert config_of(population_size=6, chunk_size=64).chunk == 6
    assert config_of(population_size=1024, prompts=1).chunk == 64


def test_a_journal_without_names_is_refused() -> None:
    from eggroll.vllm.job import _recorded_blueprint

    assert _recorded_blueprint({"strategy": {"trainable": ["a.b 3x4"]}}, config_of()).leaves == (Leaf("a.b", 3, 4),)
    for strategy in (None, {}, {"trainable": ["a"]}, {"trainable": [3]}):
        with pytest.raises(UsageError, match="names of matrices"):
            _recorded_blueprint({"strategy": strategy}, config_of())


def test_checkpoints_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"config\.json"):
        checkpoint.folder_of(str(tmp_path))
    with pytest.raises(UsageError, match="folder of a model"):
        checkpoint.folder_of("./no/such")
    with pytest.raises(UsageError, match="safetensors files"):
        checkpoint.read_leaves(tmp_path, LEAVES, torch.float32)
    (tmp_path / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(UsageError, match="a safetensors file"):
        checkpoint.read_leaves(tmp_path, LEAVES, torch.float32)


def test_a_checkpoint_is_written_anew(tmp_path: Path) -> None:
    import safetensors.torch

    base, out, weights = tmp_path / "base", tmp_path / "out", weights_of()
    base.mkdir()
    (base / "config.json").write_text("{}")
    first, second = (leaf.name for leaf in LEAVES)
    safetensors.torch.save_file({first: weights[first].bfloat16(), "norm": torch.ones(3)}, base / "a.safetensors")
    safetensors.torch.save_file({second: weights[second]}, base / "b.safetensors")
    moved = {name: value + 1 for name, value in weights.items()}
    journal = tmp_path / "journal.egg"
    journal.write_bytes(b"j")
    checkpoint.export(base, out, moved, journal)
    read = checkpoint.read_leaves(out, LEAVES, torch.float32)
    assert torch.equal(read[second], moved[second])
    assert torch.equal(read[first], moved[first].bfloat16().float())
    names = {path.name for path in out.iterdir()}
    assert names == {"a.safetensors", "b.safetensors", "config.json", "journal.egg"}
    with pytest.raises(UsageError, match="expected nowhere"):
        checkpoint.read_leaves(out, [Leaf("nowhere", 1, 1)], torch.float32)
    with pytest.raises(UsageError, match=r"\[2, 2\]"):
        checkpoint.read_leaves(out, [Leaf(second, 2, 2)], torch.float32)


def test_standing_weights_are_a_tree_without_leaves() -> None:
    from eggroll.vllm.learner import Standing

    assert jax.tree.leaves(Standing(3)) == []
    assert jax.tree.map(lambda leaf: leaf, Standing(3)) == Standing(3)
