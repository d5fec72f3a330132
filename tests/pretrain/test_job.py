"""The whole job, tiny: it learns, gives the same integers every time, compiles once, and writes down what it did."""

import dataclasses
import itertools
import json
import sys
from importlib import metadata

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from eggroll.core.errors import UsageError
from eggroll.integer import model
from eggroll.pretrain.config import PRESETS, PretrainConfig, preset
from eggroll.pretrain.corpus import load_corpus
from eggroll.pretrain.entropy import reference_entropies
from eggroll.pretrain.job import make_job, pretrain
from eggroll.pretrain.lanes import Lanes
from eggroll.pretrain.population import chunk_pairs, population_metrics, range_work, tally
from eggroll.runs import snapshots
from eggroll.runs.folder import RunFolder
from eggroll.runs.metrics import MetricsFile
from eggroll.runs.settings import NOT_RECORDED

TIMES = ("bytes_per_second", "seconds", "update_seconds")
TINY = PretrainConfig(
    width=16, population_size=64, group_size=8, seq_len=8, generations=12, decay=12.0, seed=3,
    validation_bytes=400, validate_every=4, snapshot_every=6, sample_bytes=20,
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "x.jsonl"
    lines = [json.dumps({"text": f"{n}: the hen lays an egg, the egg rolls, "}) + "\n" for n in range(100)]
    path.write_text("".join(lines))
    return path


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """Trains with some settings changed; returns the outcome, the folder and the lines that were for a person."""

    def train(**changes):
        path = tmp_path_factory.mktemp("runs") / "run"
        said = []
        config = dataclasses.replace(TINY, data=(str(data),), run_dir=path, **changes)
        return pretrain(config, report=said.append), RunFolder.open(path), said

    return train


@pytest.fixture(scope="module")
def first(run):
    """A run, and how often the backend had compiled when each generation ended."""
    compilations, counts = [], []
    append = MetricsFile.append

    def listen(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compilations.append(seconds)

    def count(self, line):
        counts.append(len(compilations))
        append(self, line)

    jax.monitoring.register_event_duration_secs_listener(listen)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MetricsFile, "append", count)
        try:
            return *run(), counts
        finally:
            jax.monitoring.unregister_event_duration_listener(listen)


def metrics(folder):
    return [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]


def without_times(lines):
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def leaves(folder):
    return model.flat(snapshots.load(folder)[1]["parameters"])


def test_it_learns(first):
    summary = first[0].summary
    assert summary["bits_per_byte"] < summary["start_bits_per_byte"] - 0.3


def test_it_compiles_in_the_first_generation_only(first):
    counts = first[3]
    assert counts[0] > 0 and len(counts) == 12
    assert counts == [counts[0]] * 12


def test_metrics(first):
    lines = metrics(first[1])
    assert [line["generation"] for line in lines] == list(range(12))
    assert [line["generation"] for line in lines if "bits_per_byte" in line] == [3, 7, 11]
    for line in lines:
        assert -16 < line["fitness_min"] <= line["fitness_mean"] <= line["fitness_max"] < 0.1
        assert 0 <= line["moved_share"] <= 1 and 0 <= line["tied_pairs"] <= 32 and line["fitness_std"] > 0
    assert [line["alpha"] for line in lines] == [pytest.approx(1 / (15 * t / 12 + 1)) for t in range(12)]


def test_summary(first, data):
    outcome, folder, said, _ = first
    summary = folder.read_json("summary.json")
    assert outcome.exit_status == 0 and summary == outcome.summary == json.loads(json.dumps(summary))
    corpus = load_corpus(str(data), validation_bytes=400)
    expected = reference_entropies(corpus.validation)
    assert summary["unigram_entropy"] == expected.unigram
    assert summary["bigram_entropy"] == expected.bigram
    assert summary["gzip_bits_per_byte"] == expected.gzip
    assert summary["corpus_sha256"] == corpus.sha256
    assert (summary["train_bytes"], summary["validation_bytes"]) == (len(corpus.train), len(corpus.validation))
    assert summary["parameters"] == sum(leaf.size for leaf in leaves(folder).values())
    assert (summary["eggroll"], summary["jax"]) == (metadata.version("eggroll-es"), jax.__version__)
    assert summary["python"] == sys.version.split()[0]
    assert summary["device"].startswith("cpu") and summary["devices"] == 2
    assert summary["peak_memory_bytes"] > 2**20 and summary["finished"]
    assert len(said) == 1 and f"{expected.gzip:.3f}" in said[0]


def test_config_json_says_all(first):
    _, folder, _, _ = first
    settings = folder.read_json("config.json")
    assert settings.keys() == {field.name for field in dataclasses.fields(PretrainConfig)} - {*NOT_RECORDED} | {"job"}
    assert {"job": "pretrain", "seed": 3, "width": 16, "chunk_size": 64}.items() <= settings.items()


def test_snapshots_are_int8(first):
    assert snapshots.generations(first[1]) == [6, 12]
    assert {leaf.dtype for leaf in leaves(first[1]).values()} == {np.dtype(np.int8)}


def test_the_state_is_int8(data):
    corpus = load_corpus(str(data), validation_bytes=400)
    job = make_job(TINY, Lanes(corpus.train, 8, 8), corpus.validation)
    assert {leaf.dtype for leaf in jax.tree.leaves((job.learner.parameters, job.carry))} == {np.dtype(np.int8)}
    assert job.carry.shape == (1, 2, 32, 16) and job.units == ("bytes", 512)


def test_a_second_run_in_other_chunks_is_the_same_run(run, first):
    _, folder, _ = run(chunk_size=16)
    assert without_times(metrics(folder)) == without_times(metrics(first[1]))
    for path, leaf in leaves(folder).items():
        np.testing.assert_array_equal(leaf, leaves(first[1])[path])


def test_chunks_divide_the_population():
    assert chunk_pairs(dataclasses.replace(TINY, chunk_size=16)) == 8
    assert 32 % chunk_pairs(TINY) == 0
    assert chunk_pairs(dataclasses.replace(TINY, population_size=2 * 4099, group_size=2)) == 1


def test_presets():
    for name in PRESETS:
        config = preset(name)
        assert config.preset == name and config.population_size % config.group_size == 0
    paper = preset("paper")
    assert (paper.layers, paper.width, paper.population_size, paper.seq_len) == (6, 256, 2**20, 100)
    assert paper.model().parameter_count == 4_856_064
    with pytest.raises(UsageError, match="expected --preset among demo, paper, tiny, got 'huge'; "):
        preset("huge")


def test_nothing_is_written_when_the_corpus_is_too_short(run, tmp_path):
    config = dataclasses.replace(TINY, seq_len=5000, run_dir=tmp_path / "run", data=(__file__,))
    with pytest.raises(UsageError, match="a corpus shorter than one window a lane; "):
        pretrain(config, report=pytest.fail)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("cuts", [(0, 32), (0, 16, 32), (0, 5, 6, 21, 32)])
def test_ranges_come_to_what_the_whole_population_does(data, cuts):
    corpus = load_corpus(str(data), validation_bytes=400)
    lanes = Lanes(corpus.train, 8, 8)
    job, work = make_job(TINY, lanes, corpus.validation), range_work(TINY, lanes)
    state = job.start()
    parts = []
    for first, end in itertools.pairwise(cuts):
        own = state._replace(carry=work.start_carry(first, end - first))
        for generation in (0, 1):
            part = work.evaluate(own, generation, first, end - first)
            own = own._replace(carry=part.carry)
        parts.append(part)
    whole = job.evaluate(state._replace(carry=job.evaluate(state, 0).carry), 1)
    values = np.concatenate([part.values for part in parts])
    found = work.combine(values, [part.tally for part in parts], state, 1)
    np.testing.assert_array_equal(found.weights, whole.weights)
    assert found.metrics == whole.metrics
    carry = np.concatenate([np.asarray(part.carry) for part in parts], axis=2)
    np.testing.assert_array_equal(carry, np.asarray(whole.carry))


@given(hnp.arrays(np.int32, st.tuples(st.just(2), st.integers(1, 9)), elements=st.integers(-(2**20), 100)))
def test_metrics_are_those_of_numpy(likelihood):
    found, fitness = population_metrics([tally(likelihood)], 8), likelihood / 128
    expected = {"mean": fitness.mean(), "max": fitness.max(), "min": fitness.min(), "std": fitness.std()}
    for name, value in expected.items():
        assert found[f"fitness_{name}"] == pytest.approx(value, rel=1e-9, abs=1e-9)
    assert found["tied_pairs"] == (likelihood[0] == likelihood[1]).sum()
