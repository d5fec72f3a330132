"""What evolves of a transformer: the matrices of its seven linear layers, by the checkpoint's own names.

This module imports neither JAX nor PyTorch.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from eggroll.core.errors import UsageError

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Names of the linear layers whose weights evolve."""


class Leaf(NamedTuple):
    """A matrix, as the checkpoint has it."""

    name: str  # "model.layers.0.self_attn.q_proj.weight"
    rows: int  # outputs
    columns: int  # inputs


@dataclass(frozen=True)
class Part:
    """The rows and columns of a leaf that one rank holds.

    Attributes:
      leaf: the whole of it.
      first_row, rows, first_column, columns: the part, of the whole leaf's.
    """

    leaf: Leaf
    first_row: int
    rows: int
    first_column: int
    columns: int

    @classmethod
    def whole(cls, leaf: Leaf) -> Part:
        """All of a leaf."""
        return cls(leaf, 0, leaf.rows, 0, leaf.columns)

    def as_json(self) -> list[object]:
        """For a message."""
        return [*self.leaf, self.first_row, self.rows, self.first_column, self.columns]

    @classmethod
    def from_json(cls, values: list[object]) -> Part:
        """Of a message."""
        name, rows, columns, *rest = values
        return cls(Leaf(name, rows, columns), *rest)  # type: ignore[arg-type]


def matches(patterns: Sequence[str], name: str) -> bool:
    """Whether a parameter's name is one that the patterns mean."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def check_cover(leaves: Iterable[Leaf], parts: Iterable[Part]) -> None:
    """Whether the parts of all ranks are together all of every leaf, each cell at least once.

    Raises:
      UsageError: a leaf that the engine has and the checkpoint has not, another shape, or cells that nobody holds.
    """
    known = {leaf.name: leaf for leaf in leaves}
    held: dict[str, list[Part]] = {name: [] for name in known}
    for part in parts:
        if known.get(part.leaf.name) != part.leaf:
            raise _unmapped(part.leaf, known.get(part.leaf.name))
        held[part.leaf.name].append(part)
    for name, own in held.items():
        if not _covers(known[name], own):
            raise UsageError(
                f"expected the engine to hold all of {name} {list(known[name][1:])}, got "
                f"{[part.as_json()[3:] for part in own]}; leave it out with --trainable"
            )


def _unmapped(found: Leaf, expected: Leaf | None) -> UsageError:
    want = "no such matrix" if expected is None else f"{list(expected[1:])}"
    return UsageError(
        f"expected {want} in the checkpoint where the engine has {found.name} {list(found[1:])}; this architecture is "
        "not mapped yet: leave that matrix out with --trainable"
    )


def _covers(leaf: Leaf, parts: list[Part]) -> bool:
    """Parts of a leaf differ in rows, or in columns, never in both: so ranges along one axis are to be covered."""
    by_row = all(part.columns == leaf.columns for part in parts)
    end, size = 0, leaf.rows if by_row else leaf.columns
    if not by_row and any(part.rows != leaf.rows for part in parts):
        return False
    spans = sorted({(p.first_row, p.rows) if by_row else (p.first_column, p.columns) for p in parts})
    for first, count in spans:
        if first > end:
            return False
        end = max(end, first + count)
    return end == size
