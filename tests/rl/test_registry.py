"""Environments by name: spellings, refusals of one line, the length of an episode."""

import sys

import pytest

from eggroll.core.errors import UsageError
from eggroll.rl.environments.registry import environment_names, make, multi_agent_names


def test_the_papers_environments_are_listed():
    assert (len(environment_names()), len(multi_agent_names())) == (16, 3)


@pytest.mark.parametrize(
    "name", ["CartPole-v1", "cartpole-V1", "gymnax/CartPole-v1", "gymnax cartpole-v1", "Gymnax/cartpole-v1"]
)
def test_a_name_has_many_spellings(name):
    assert make(name).name == "CartPole-v1"


def test_other_environments_of_a_family_go_by_family_and_name():
    environment = make("gymnax/acrobot-v1")
    assert (environment.name, environment.max_steps) == ("gymnax/Acrobot-v1", 500)


def test_max_steps_replaces_the_environments_own():
    assert (make("CartPole-v1").max_steps, make("CartPole-v1", max_steps=7).max_steps) == (500, 7)
    with pytest.raises(UsageError, match="expected max_steps ≥ 1, got 0"):
        make("CartPole-v1", max_steps=0)


@pytest.mark.parametrize(
    ("name", "near"),
    [("CartPole", "near: CartPole-v1"), ("gymnax/Akrobot-v1", "near: gymnax/Acrobot-v1"), ("xyz", "known: CartPole")],
)
def test_an_unknown_name_is_refused_with_the_near_ones(name, near):
    with pytest.raises(UsageError, match=near) as refusal:
        make(name)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "package", "mend"),
    [
        ("CartPole-v1", "gymnax", 'pip install "eggroll-es[rl]"'),
        ("MPE_simple_spread_v3", "jaxmarl", 'pip install "eggroll-es[marl]"'),
    ],
)
def test_a_missing_package_is_refused_with_its_install_line(monkeypatch, name, package, mend):
    family = "mpe" if package == "jaxmarl" else package
    monkeypatch.delitem(sys.modules, f"eggroll.rl.environments.{family}", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError) as refusal:
        make(name)
    assert str(refusal.value) == f"expected the package {package} for the environment {name}, got none; {mend}"
