"""`eggroll pretrain --resume` and `eggroll replay` as a person gives them, on a tiny corpus."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from eggroll import cli
from eggroll.integer import model
from eggroll.pretrain import population as population_module
from eggroll.pretrain.sample import load_model
from eggroll.runs import snapshots
from eggroll.runs.folder import RunFolder
from eggroll.runs.journal import Journal
from tests import compiled

SETTINGS = (
    *("--preset", "tiny", "--population-size", "64", "--group-size", "8", "--seq-len", "8", "--generations", "7"),
    *("--validation-bytes", "200", "--snapshot-every", "3", "--validate-every", "4", "--sample-bytes", "8"),
    *("--data", "data.txt"),
)


@pytest.fixture(autouse=True, scope="module")
def compiled_once(tmp_path_factory):
    """Every command compiles the same few functions: keep what the compiler made."""
    with compiled.kept_in(tmp_path_factory.mktemp("compiled")):
        yield


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    (tmp_path / "data.txt").write_text("the hen lays an egg, the egg rolls. " * 80)
    (tmp_path / "more.txt").write_text("an egg rolls on and on, said the hen. " * 80)
    monkeypatch.chdir(tmp_path)


def command(capsys, *flags):
    """Exit status, the closing line of JSON if there is one, and what was for a person."""
    status = cli.main(list(flags))
    out, err = capsys.readouterr()
    return status, json.loads(out.splitlines()[-1]) if out else None, err


def pretrain(capsys, run, *flags):
    return command(capsys, "pretrain", "--run-dir", run, *flags)


def killed(monkeypatch, capsys, run, generation, *flags):
    """A run whose evaluation fails in the middle: no snapshot, no summary."""
    population = population_module.population_metrics
    count = []

    def fail(*args):
        count.append(1)
        if len(count) > generation:
            raise OSError("killed")
        return population(*args)

    with monkeypatch.context() as patch:
        patch.setattr(population_module, "population_metrics", fail)
        with pytest.raises(OSError, match="killed"):
            pretrain(capsys, run, *SETTINGS, *flags)
    capsys.readouterr()


def end_of(run):
    folder = RunFolder.open(Path(run))
    generation, tree = snapshots.load(folder)
    return generation, {path: leaf.tobytes() for path, leaf in model.flat(tree["parameters"]).items()}


def metrics(run):
    lines = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if "seconds" not in k and "per_second" not in k} for line in lines]


def is_one_line(text):
    return re.fullmatch(r"eggroll( \w+)?: expected [^\n]+, got [^\n]+; [^\n]+\n", text) is not None


def test_resumed_it_is_the_run_that_never_stopped(capsys, monkeypatch):
    assert pretrain(capsys, "whole", *SETTINGS)[0] == 0
    killed(monkeypatch, capsys, "run", 5)
    status, summary, _ = pretrain(capsys, "run", "--resume")
    assert status == 0 and summary["finished"] and summary["resumed_at"] == 3
    assert end_of("run") == end_of("whole") and metrics("run") == metrics("whole")
    assert Path("run/journal.egg").read_bytes() == Path("whole/journal.egg").read_bytes()
    samples = [Path(run, "samples.jsonl").read_text() for run in ("run", "whole")]
    assert samples[0] == samples[1] and len(samples[0].splitlines()) == 3


def test_a_finished_run_says_so(capsys):
    pretrain(capsys, "run", *SETTINGS)
    before = end_of("run")
    status, summary, err = pretrain(capsys, "run", "--resume")
    assert status == 0 and summary == RunFolder.open(Path("run")).read_json("summary.json")
    assert err == "the run in run is finished, after 7 generations; nothing to do\n"
    assert end_of("run") == before


def test_changed_settings(capsys, monkeypatch):
    killed(monkeypatch, capsys, "run", 5)
    before = Path("run/journal.egg").read_bytes()
    changed = ("run", "--resume", "--alpha", "0.5", "--generations", "9")
    status, _, err = pretrain(capsys, *changed)
    assert status == 2 and is_one_line(err)
    assert "got generations 7 → 9, alpha 4.0 → 0.5; add --on-change given or --on-change recorded" in err
    assert Path("run/journal.egg").read_bytes() == before
    status, summary, _ = pretrain(capsys, *changed, "--on-change", "given")
    assert status == 0 and summary["generations"] == 9
    assert [line["alpha"] for line in metrics("run")][4:] == [pytest.approx(1 / (15 * 4 / 30 + 1)), *[0.5] * 4]
    config = RunFolder.open(Path("run")).read_json("config.json")
    assert (config["alpha"], config["generations"]) == (0.5, 9)
    assert [segment.generation for segment in Journal.open(Path("run/journal.egg")).segments] == [0, 5]
    status, found, _ = command(capsys, "replay", "run")
    assert status == 0 and found["generation"] == 9 and found["verified"] == [6, 9]


def test_recorded_settings_win_when_told_to(capsys, monkeypatch):
    pretrain(capsys, "whole", *SETTINGS)
    killed(monkeypatch, capsys, "run", 5)
    assert pretrain(capsys, "run", "--resume", "--alpha", "0.5", "--on-change", "recorded")[0] == 0
    assert end_of("run") == end_of("whole")


def test_settings_that_no_run_can_change(capsys, monkeypatch):
    """They are refused, and the run is as it was."""
    killed(monkeypatch, capsys, "run", 5)
    for flags in ("--width 64", "--population-size 128", "--seed 1", "--generations 3", "--layers 2"):
        status, _, err = pretrain(capsys, "run", "--resume", *flags.split(), "--on-change", "given")
        assert status == 2 and is_one_line(err), err
    assert pretrain(capsys, "run", "--resume")[0] == 0
    with Journal.open(Path("run/journal.egg")) as journal:
        assert len(journal.segments) == 1


def test_a_group_size_changes_no_array_and_can_change(capsys, monkeypatch):
    killed(monkeypatch, capsys, "run", 5)
    assert pretrain(capsys, "run", "--resume", "--group-size", "64", "--on-change", "given")[0] == 0


def test_observers_are_no_change(capsys, monkeypatch):
    killed(monkeypatch, capsys, "run", 5)
    status, _, err = pretrain(capsys, "run", "--resume", "--log-every", "2", "--chunk-size", "auto")
    assert status == 0 and "pretrain 6/7" in err


BAD = {
    "no folder": "pretrain --resume",
    "a folder that is no run": "pretrain --resume --run-dir nowhere",
    "replay of nothing": "replay nowhere",
    "replay of another file": "replay data.txt",
    "replay beyond the end": "replay run --to 8",
    "replay backwards": "replay run --to -1",
    "replay from another base": "replay run --base other",
    "replay from nothing": "replay run --base nowhere",
    "replay from no safetensors": "replay run --base bad.safetensors",
    "replay over something": "replay run --out data.txt",
    "export over something": "replay run --export data.txt",
    "resume under another preset": "pretrain --resume --run-dir run --preset demo",
}


def test_bad_input_is_one_line_and_changes_nothing(capsys):
    pretrain(capsys, "run", *SETTINGS)
    pretrain(capsys, "other", *SETTINGS, "--seed", "9")
    Path("bad.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    for name, flags in BAD.items():
        status, out, err = command(capsys, *flags.split())
        assert (status, out) == (2, None) and is_one_line(err), (name, err)
    assert "leaf 'blocks/" in command(capsys, "replay", "run", "--base", "other")[2]
    assert {path: path.read_bytes() for path in before} == before
    assert {path for path in Path().rglob("*") if path.is_file()} == set(before)


def test_damaged_settings_are_one_line(capsys):
    pretrain(capsys, "run", *SETTINGS)
    Path("run/journal.egg").unlink()
    for change in ({"width": "wide"}, {"job": "rl"}, {"track": [3]}, {"alpha": True}, {"preset": None}):
        config = RunFolder.open(Path("run")).read_json("config.json") | change
        Path("broken").mkdir(exist_ok=True)
        Path("broken/config.json").write_text(json.dumps(config))
        status, _, err = pretrain(capsys, "broken", "--resume")
        assert status == 2 and is_one_line(err), err


def test_publishing_a_fine_tune(capsys):
    """Base model, fine-tuned on other data; whoever has the base and the journal gets the same weights."""
    from safetensors.numpy import save_file

    pretrain(capsys, "base", *SETTINGS)
    status, summary, _ = pretrain(capsys, "tuned", *SETTINGS, "--data", "more.txt", "--start-from", "base")
    assert status == 0 and summary["start_bits_per_byte"] < 8.3
    status, found, _ = command(capsys, "replay", "tuned", "--to", "5", "--export", "tuned.egg")
    assert status == 0 and found["exported"] == "tuned.egg"
    leaves = {
        path: np.asarray(leaf)
        for path, leaf in model.flat(snapshots.load(RunFolder(Path("base")))[1]["parameters"]).items()
    }
    save_file(leaves, "base.safetensors")
    Path("base").rename("elsewhere")
    for base in ("elsewhere", "elsewhere/snapshots/00000007", "base.safetensors"):
        out = f"out-{base.replace('/', '-')}"
        status, found, _ = command(capsys, "replay", "tuned.egg", "--base", base, "--out", out)
        assert status == 0 and found["generation"] == 5, base
        assert snapshots.generations(RunFolder.open(Path(out))) == [5]
        assert model.flat(load_model(Path(out))[1]).keys() == leaves.keys()
    assert end_of("out-elsewhere") == end_of("out-base.safetensors")
    leaves["blocks/W1"] = leaves["blocks/W1"] + np.int8(1)
    save_file(leaves, "changed.safetensors")
    status, _, err = command(capsys, "replay", "tuned.egg", "--base", "changed.safetensors")
    assert status == 2 and "with leaf 'blocks/W1' of SHA-256" in err and is_one_line(err)


def test_a_version_that_is_not_known_is_refused(capsys):
    pretrain(capsys, "run", *SETTINGS)
    with Journal.open(Path("run/journal.egg")) as journal:
        header = journal.header
    for change, text in (
        ({"format": 2}, "format 1, got 2"),
        (
            {"strategy": header["strategy"] | {"noise": "9/table_normal"}},
            "noise '9/table_normal', as the journal says, got '1/",
        ),
        (
            {"job": "knitting"},
            "a journal of pretrain, rl, marl, finetune, distill, vllm, trade-pretrain, trade-execute, got one of "
            "'knitting'",
        ),
        ({"config": None}, "settings in the journal's header, got none"),
        ({"start_sha256": 1}, "hashes of the start parameters"),
    ):
        Journal.create(Path("forged.egg"), header | change).close()
        status, _, err = command(capsys, "replay", "forged.egg")
        assert status == 2 and text in err and is_one_line(err), err


def test_a_run_in_use(capsys):
    pretrain(capsys, "run", *SETTINGS)
    folder = RunFolder.open(Path("run"))
    (folder.path / "summary.json").unlink()
    with folder.locked():
        status, _, err = pretrain(capsys, "run", "--resume")
    assert status == 2 and "in use by process" in err and is_one_line(err.splitlines(keepends=True)[-1])
