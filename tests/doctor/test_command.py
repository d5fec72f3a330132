"""`eggroll doctor` as a person runs it, on a machine that is well and on one that is not."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from eggroll import cli
from eggroll.doctor import checks, oracle
from eggroll.doctor.command import Diagnosis
from eggroll.doctor.packages import Package

PROJECT = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text())["project"]
REFUSING = """
import sys

class Refusing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {package!r}:
            raise {error}

sys.meta_path.insert(0, Refusing())
from eggroll.cli import main
raise SystemExit(main(["doctor", "--json"]))
"""


@pytest.fixture(scope="module")
def found():
    """What it says here, as JSON."""
    with pytest.MonkeyPatch.context() as patch:
        said = []
        patch.setattr("builtins.print", lambda text, **_: said.append(text))
        assert cli.main(["doctor", "--json", "--parameters", "3000000"]) == 0
    return json.loads(said[-1])


def test_everything_is_told(found):
    assert found["holds"] and found["problems"] == []
    assert {re.match(r"[\w-]+", line)[0] for line in PROJECT["dependencies"]} <= {*found["packages"]}
    assert found["extras"].keys() == PROJECT["optional-dependencies"].keys()
    for name, extra in found["extras"].items():
        assert f'pip install "eggroll-es[{name}]"' in extra["install"] and extra["present"] == (not extra["missing"])
    assert [own["name"] for own in found["devices"]] == ["cpu:0", "cpu:1"]
    made = {(own["device"], own["name"]) for own in found["checks"]}
    assert made == {(device, name) for device in ("cpu:0", "cpu:1") for name in checks.CHECKS}
    assert all(own["holds"] and own["seconds"] > 0 for own in found["checks"])
    assert found["memory"][0]["where"] == "host" and found["memory"][0]["free_bytes"] > 0
    policy, demo, own = found["populations"]
    assert policy["model"].startswith("a 3×256 policy") and own["model"].startswith("3 layers of 1000×1000")
    assert all(2 <= each["at_a_time"] <= each["holds"] < 2**31 for each in (policy, demo, own))


def test_what_a_person_reads():
    text = Diagnosis(
        [Package("jax", "0.10.2", ""), Package("tyro", "", "absent"), Package("optax", "0.1", "expected >=0.2.4")],
        {"hf": [Package("datasets", "", "absent")], "ray": [Package("ray", "2.60", "")]},
        devices=[{"name": "cpu:0", "kind": "cpu"}],
        checks=[checks.Check("noise", "cpu:0", "", 0.25), checks.Check("oracle", "cpu:0", "is off", 1.0)],
        problems=["expected the package tyro, got none; pip install -U tyro"],
    ).as_text()
    for line in (
        "  jax 0.10.2",
        "  tyro absent",
        "  optax 0.1 (expected >=0.2.4)",
        'extra hf: absent: pip install "eggroll-es[hf]" (missing: datasets)',
        "extra ray: present",
        "device cpu:0: cpu",
        "check cpu:0 noise: holds, 0.25 s",
        "check cpu:0 oracle: does not hold, 1.00 s",
        "wrong: expected the package tyro, got none; pip install -U tyro",
    ):
        assert line in text.splitlines()


def test_a_check_that_does_not_hold_is_told(capsys, monkeypatch):
    monkeypatch.setattr(checks, "CHECKS", {"noise": lambda: "3 of 4 draws differ", "oracle": lambda: 1 / 0})
    monkeypatch.setattr("eggroll.doctor.room.populations", lambda *_: [])
    assert cli.main(["doctor"]) == 1
    wrong = [line for line in capsys.readouterr().out.splitlines() if line.startswith("wrong: ")]
    assert len(wrong) == 4 and all(re.fullmatch("wrong: expected .+, got.+; .+", line) for line in wrong)
    assert "the check noise to hold on cpu:0, got: 3 of 4 draws differ; " in wrong[0]
    assert "the check oracle to hold on cpu:0, got: got ZeroDivisionError: division by zero; " in wrong[1]


@pytest.mark.parametrize(
    ("package", "error"),
    [
        ("optax", "ImportError('it is broken', name=name)"),
        ("tyro", "ModuleNotFoundError('it is broken', name=name)"),
        ("numpy", "ImportError('it is broken', name=name)"),
        ("jax", "RuntimeError('it is broken')"),
    ],
)
def test_one_broken_package_hides_nothing_else(package, error):
    code = REFUSING.format(package=package, error=error)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "eggroll" not in done.stderr, done.stderr  # jaxlib prints one of its own
    found = json.loads(done.stdout.splitlines()[-1])
    assert any(package in line for line in found["problems"])
    assert all(re.fullmatch("expected .+, got .+; .+", line) for line in found["problems"])
    assert found["extras"].keys() == PROJECT["optional-dependencies"].keys()
    if package == "tyro":
        assert found["checks"] and all(own["holds"] for own in found["checks"])


CHANGES = {
    "noise": ("bits", lambda kept: lambda *args, **counters: kept(*args, **counters) ^ 1, "draws of the law"),
    "oracle": ("member", lambda kept: lambda params, *_, **__: params, "away from that of matrices written out"),
    "integers": ("integer_product", lambda kept: lambda *args, shift: kept(*args, shift=shift + 1), "int8 products"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_each_check_can_fail(name, monkeypatch):
    function, change, says = CHANGES[name]
    assert checks.CHECKS[name]() == ""
    monkeypatch.setattr(oracle, function, change(getattr(oracle, function)))
    assert says in checks.CHECKS[name]()


@pytest.mark.parametrize(
    ("name", "function", "change", "says"),
    [
        (
            "oracle",
            "ascent",
            lambda found: {path: 1.01 * value for path, value in found.items()},
            "a loop over members",
        ),
        ("integers", "integer_update", lambda found: found + 1, "weights after an integer update"),
    ],
)
def test_each_update_can_fail(name, function, change, says, monkeypatch):
    kept = getattr(oracle, function)
    monkeypatch.setattr(oracle, function, lambda *args, **settings: change(kept(*args, **settings)))
    assert says in checks.CHECKS[name]()
