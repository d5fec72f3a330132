"""The job end to end, on the real small model: run, killed and gone on with, replayed, exported."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from eggroll.runs import snapshots
from eggroll.runs.folder import RunFolder
from tests.vllm.models import STORIES

pytestmark = pytest.mark.skipif(not STORIES.is_dir(), reason="needs ../shared/models/stories260k")
ROOT = Path(__file__).resolve().parents[2]
FLAGS = ["--task=tests.vllm.stories:short", "--population-size=8", "--prompts=2", "--tokens=12", "--generations=5",
         "--sigma=0.05", "--learning-rate=0.01", "--validate-every=5", "--snapshot-every=2", "--chunk-size=4",
         "--validation-prompts=2"]  # fmt: skip


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "eggroll", *arguments]


def vllm(place: Path, *arguments: str) -> list[str]:
    data = place.parent / "stories.jsonl"
    starts = ["Once upon a time", "One day, a boy", "Lily and Tom", "The sun was"]
    data.write_text("\n".join(json.dumps({"prompt": text}) for text in starts * 2))
    return command("vllm", f"--model={STORIES}", f"--data={data}", f"--run-dir={place}", *FLAGS, *arguments)


def done(arguments: list[str]) -> dict:
    finished = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert finished.returncode == 0, finished.stderr[-2000:]
    return json.loads(finished.stdout.strip().splitlines()[-1])


def weights(place: Path) -> dict[str, np.ndarray]:
    return snapshots.load(RunFolder.open(place), only="parameters")[1]["parameters"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A run that nobody disturbs."""
    place = tmp_path_factory.mktemp("whole") / "run"
    return place, done(vllm(place))


def test_a_run_leaves_what_every_run_leaves(whole: tuple[Path, dict]) -> None:
    place, summary = whole
    assert summary["finished"] and summary["generations"] == 5 and summary["job"] == "vllm"
    names = {path.name for path in place.iterdir()}
    assert names >= {"config.json", "metrics.jsonl", "journal.egg", "snapshots", "summary.json", "checkpoint"}
    lines = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    assert [line["generation"] for line in lines] == list(range(5))
    assert all(line["fitness_std"] > 0 and line["update_seconds"] > 0 for line in lines)
    samples = [json.loads(line) for line in (place / "samples.jsonl").read_text().splitlines()]
    assert [sample["generation"] for sample in samples] == [0, 5] and all("⟶" in each["text"] for each in samples)
    assert summary["start_reward"] >= 0


def test_the_journal_rebuilds_the_weights(whole: tuple[Path, dict]) -> None:
    place, _ = whole
    told = done(command("replay", str(place)))
    assert told["generation"] == 5 and told["verified"] + told["differing"] == [4, 5]
    assert told["largest_difference"] < 1e-5


def test_the_checkpoint_loads_in_transformers_and_goes_on(whole: tuple[Path, dict], tmp_path: Path) -> None:
    place, summary = whole
    model = transformers.AutoModelForCausalLM.from_pretrained(place / "checkpoint", dtype=torch.float32)
    held, found = dict(model.named_parameters()), weights(place)
    assert len(found) == 35
    for name, value in found.items():
        np.testing.assert_array_equal(held[name].detach().numpy(), value)
    tokenizer = transformers.AutoTokenizer.from_pretrained(place / "checkpoint")
    assert tokenizer("Once upon a time")["input_ids"]
    next_run = [flag for flag in vllm(tmp_path / "next", "--generations=1") if not flag.startswith("--model")]
    told = done([*next_run, f"--model={place / 'checkpoint'}"])
    assert told["start_reward"] == pytest.approx(summary["reward"], abs=1e-9)


def test_a_run_killed_and_gone_on_with_is_the_run_that_was_not(whole: tuple[Path, dict], tmp_path: Path) -> None:
    place = tmp_path / "run"
    process = subprocess.Popen(vllm(place), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    metrics = place / "metrics.jsonl"
    for _ in range(1200):
        if metrics.exists() and len(metrics.read_text().splitlines()) >= 3:
            break
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (place / "summary.json").exists()
    told = done(command("vllm", f"--run-dir={place}", "--resume"))
    assert told["resumed_at"] >= 2
    for name, value in weights(whole[0]).items():
        np.testing.assert_array_equal(weights(place)[name], value)
    assert (place / "journal.egg").read_bytes()[-40:] == (whole[0] / "journal.egg").read_bytes()[-40:]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model=/no/such"], "expected a folder of a model"),
        (["--rank=1000"], "--rank of at most 64"),
        (["--trainable=*.nothing"], "leave some"),
        (['--engine-options={"no_such_option": 1}'], "expected vLLM to start"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], says: str, tmp_path: Path) -> None:
    flags = [flag for flag in vllm(tmp_path / "run") if not flag.startswith(arguments[0].split("=")[0] + "=")]
    finished = subprocess.run([*flags, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert finished.returncode == 2
    assert says in finished.stderr.strip().splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_two_engines_of_ray_come_to_the_same_weights(whole: tuple[Path, dict], tmp_path: Path) -> None:
    place = tmp_path / "run"
    told = done(vllm(place, "--ray", "--workers=2"))
    assert told["engines"] == 2 and told["engines_revived"] == 0
    for name, value in weights(whole[0]).items():
        np.testing.assert_array_equal(weights(place)[name], value)
