"""Packages as they are found, without importing any."""

import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from eggroll.doctor import packages
from eggroll.doctor.packages import Requirement, package

PROJECT = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("jax>=0.10", ("jax", (), ">=0.10")),
        ("jax[cuda12]>=0.10", ("jax", ("cuda12",), ">=0.10")),
        ("jax[cuda12, k8s] >= 0.10, < 0.12", ("jax", ("cuda12", "k8s"), ">= 0.10, < 0.12")),
        ("torch ; python_version < '3.13'", ("torch", (), "")),
        ("rwkv==0.8.32", ("rwkv", (), "==0.8.32")),
        (
            "jax-plugin[with-cuda]<=0.10.2,>=0.10.2; extra == 'cuda12'",
            ("jax-plugin", ("with-cuda",), "<=0.10.2,>=0.10.2"),
        ),
    ],
)
def test_a_line_is_taken_apart(line, found):
    assert packages._requirement(line, "") == Requirement(*found, "")


def test_ours_are_those_of_the_project():
    names = {(own.name, own.extra) for own in packages.requirements()}
    lines = [(line, "") for line in PROJECT["dependencies"]]
    lines += [(line, extra) for extra, own in PROJECT["optional-dependencies"].items() for line in own]
    assert names == {(re.match(r"[\w.-]+", line)[0], extra) for line, extra in lines}


def test_an_installed_one_is_read_like_a_checkout():
    """The names of its core; what is installed may be older than the checkout."""
    try:
        metadata.version(packages.NAME)
    except metadata.PackageNotFoundError:
        pytest.skip("needs eggroll-es installed")
    core = {own.name for own in packages._requirements_of(packages.NAME) if not own.extra}
    assert {"jax", "numpy", "optax", "tyro"} <= core and "ray" not in core


def test_what_is_there_and_what_is_not(monkeypatch):
    assert package(Requirement("jax", (), ">=0.1", "")).is_well
    assert package(Requirement("no-such-package", (), "", "")).problem == "absent"
    old = package(Requirement("jax", (), ">=99", ""))
    assert old.version and old.problem == "expected >=99" and not old.is_well
    monkeypatch.setitem(sys.modules, "optax", None)
    assert "module optax cannot be found" in package(Requirement("optax", (), "", "")).problem


def test_every_core_package_is_well_here():
    assert all(own.is_well for own in packages.core_packages()), packages.core_packages()


def test_modules_of_the_extras_are_found_by_name():
    """A distribution that is installed is not told to be missing because its module has another name."""
    for name, own in packages.extras().items():
        assert not [each for each in own if "cannot be found" in each.problem], name


def test_an_extra_of_a_requirement_is_looked_into(monkeypatch):
    """As `jax[cuda12]`, which jax alone does not fulfil."""
    monkeypatch.setattr(packages, "requirements", lambda: (Requirement("jax", ("cuda12",), "", "cuda"),))
    found = packages.extras()["cuda"]
    assert found[0].name == "jax" and {own.name for own in found[1:]} >= {"jax-cuda12-plugin"}


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("gymnax", 'pip install "eggroll-es[rl]"'),
        ("math_verify", 'pip install "eggroll-es[llm]"'),
        ("optax", "pip install eggroll-es"),
        ("sklearn", "pip install sklearn"),
    ],
)
def test_how_one_gets_a_module(module, line):
    assert packages.mend_for(module) == line
