"""Environments by name: the paper's 19 by their short names, any other as FAMILY/NAME."""

from __future__ import annotations

import dataclasses
import difflib
import re
from importlib import import_module
from types import ModuleType
from typing import NamedTuple

from eggroll.core.errors import UsageError
from eggroll.rl.environments.base import Environment

_RL = 'pip install "eggroll-es[rl]"'
_FAMILIES = {  # module of the adapter → how to install its package
    "gymnax": _RL,
    "brax": _RL,
    "craftax": _RL,
    "jumanji": _RL,
    "kinetix": "scripts/install-kinetix.sh",
    "navix": _RL,
    "mpe": 'pip install "eggroll-es[marl]"',
}


class _Place(NamedTuple):
    """Where an environment is."""

    family: str
    own: str  # the family's own name


_SINGLE = {
    "CartPole-v1": _Place("gymnax", "CartPole-v1"),
    "Pendulum-v1": _Place("gymnax", "Pendulum-v1"),
    "Ant": _Place("brax", "ant"),
    "Humanoid": _Place("brax", "humanoid"),
    "InvertedDoublePendulum": _Place("brax", "inverted_double_pendulum"),
    "Craftax-Classic-Symbolic": _Place("craftax", "Craftax-Classic-Symbolic-v1"),
    "Craftax-Symbolic": _Place("craftax", "Craftax-Symbolic-v1"),
    "Game2048": _Place("jumanji", "Game2048-v1"),
    "Knapsack": _Place("jumanji", "Knapsack-v1"),
    "Snake": _Place("jumanji", "Snake-v1"),
    "l/hard_pinball": _Place("kinetix", "l/hard_pinball"),
    "m/h17_thrustcontrol_left": _Place("kinetix", "m/h17_thrustcontrol_left"),
    "s/h1_thrust_over_ball": _Place("kinetix", "s/h1_thrust_over_ball"),
    "DoorKey-8x8": _Place("navix", "Navix-DoorKey-8x8-v0"),
    "Dynamic-Obstacles-6x6-Random": _Place("navix", "Navix-Dynamic-Obstacles-6x6-Random-v0"),
    "FourRooms": _Place("navix", "Navix-FourRooms-v0"),
}
_MULTI = {
    name: _Place("mpe", name)
    for name in ("MPE_simple_spread_v3", "MPE_simple_reference_v3", "MPE_simple_speaker_listener_v4")
}
_SHORT = _SINGLE | _MULTI


def environment_names() -> tuple[str, ...]:
    """The short names of the paper's 16 environments of one agent."""
    return tuple(_SINGLE)


def multi_agent_names() -> tuple[str, ...]:
    """The short names of the paper's 3 environments of several agents."""
    return tuple(_MULTI)


def make(name: str, *, max_steps: int | None = None) -> Environment:
    """An environment by name, upper or lower case.

    Args:
      name: one of `environment_names()` or `multi_agent_names()`, also after its family as the paper writes it
        ("Brax Ant"); or FAMILY/NAME with the family's own name ("gymnax/Acrobot-v1").
      max_steps: length of an episode, ≥ 1, instead of the environment's own.
    Returns:
      An Environment; its `name` is the short one, or FAMILY/NAME.
    Raises:
      UsageError: unknown name; its package is not installed; `max_steps` < 1.
    """
    if max_steps is not None and max_steps < 1:
        raise UsageError(f"expected max_steps ≥ 1, got {max_steps}; leave it out for the environment's own")
    place = _place(name)
    environment = _build(place, name)
    return environment if max_steps is None else dataclasses.replace(environment, max_steps=max_steps)


def canonical_name(name: str) -> str:
    """The name that `make` gives an environment, without making it: a short one, or FAMILY/NAME as it was written.

    Raises:
      UsageError: unknown family or short name.
    """
    return _canonical(_place(name))


def _place(name: str) -> _Place:
    """The family and the name in it, which may be a short one, the family's, or unknown."""
    short = {_plain(known): place for known, place in _SHORT.items()}
    family, _, rest = re.sub(r"^(\w+)[ /]+", r"\1/", name.strip()).partition("/")
    if _plain(name) in short:
        return short[_plain(name)]
    if family.lower() not in _FAMILIES or not rest:
        raise _unknown(name, list(_SHORT))
    place = short.get(_plain(rest))
    return place if place is not None and place.family == family.lower() else _Place(family.lower(), rest)


def _plain(name: str) -> str:
    """What is left of a name when case, spaces and underscores do not count."""
    return re.sub(r"[\s_]", "", name).lower()


def _canonical(place: _Place) -> str:
    names = [name for name, known in _SHORT.items() if known == place]
    return names[0] if names else f"{place.family}/{place.own}"


def _build(place: _Place, name: str) -> Environment:
    """The family's environment of that name; `name` is what the user wrote."""
    try:
        adapter = import_module(f"eggroll.rl.environments.{place.family}")
        place = place._replace(own=_own_name(adapter, place, name))
        return dataclasses.replace(adapter.make(place.own), name=_canonical(place))
    except ModuleNotFoundError as error:
        package = (error.name or place.family).partition(".")[0]
        if package == "eggroll":
            raise
        raise UsageError(
            f"expected the package {package} for the environment {name}, got none; {_FAMILIES[place.family]}"
        ) from None


def _own_name(adapter: ModuleType, place: _Place, name: str) -> str:
    """The name as the family spells it; a family that lists no names checks them itself."""
    known: list[str] = adapter.names()
    spelled = {_plain(own): own for own in known}
    stem, colon, suffix = place.own.partition(":")  # kinetix: the kind of actions follows a colon
    for wanted in (stem, f"{place.family}_{stem}", f"{place.family}-{stem}-v0", f"{stem}-v0", f"{stem}-v1"):
        if _plain(wanted) in spelled:
            return spelled[_plain(wanted)] + colon + suffix
    if known:
        raise _unknown(name, [f"{place.family}/{own}" for own in known])
    return place.own


def _unknown(name: str, known: list[str]) -> UsageError:
    """The refusal, with the near names, or all where none is near."""
    plain = {_plain(each): each for each in known}
    near = [plain[each] for each in difflib.get_close_matches(_plain(name), list(plain), n=5, cutoff=0.5)]
    listed = f"near: {', '.join(near)}" if near else f"known: {', '.join(known)}"
    families = ", ".join(_FAMILIES)
    return UsageError(
        f"expected the name of an environment, got {name!r}; {listed}; or give FAMILY/NAME, FAMILY being {families}"
    )
