"""Rows of data from JSON Lines, in two splits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from eggroll.core.errors import UsageError
from eggroll.runs.hub import load_splits
from eggroll.tasks.base import SPLITS

Row = TypeVar("Row")

_MEND = "give one JSON object a line"


def read_hub(value: str, convert: Callable[[dict[str, Any]], Row]) -> dict[str, list[Row]]:
    """The rows of a Hugging Face data set: its splits "train" and "test", or else "validation"; of one split alone the
    last tenth is the test split.

    Args:
      value: hf:NAME, hf:NAME:CONFIG or hf:/saved/folder.
      convert: as in `read_splits`.
    Raises:
      UsageError: no such data set, no package to read it, a row that `convert` refuses, or no rows.
    """
    try:
        found = load_splits(value)
    except ImportError:
        mend = 'pip install "eggroll-es[hf]"'
        raise UsageError(f"expected the package datasets for {value}, got no such package; {mend}") from None
    except Exception as error:  # the network, the hub and every data set's own builder
        why = f"{type(error).__name__}: {error}".partition("\n")[0][:200]
        raise UsageError(f"expected a data set at {value}, got {why}; check its name and the network") from None
    sides = {"train": found.get("train"), "test": found.get("test", found.get("validation"))}
    named = {split: rows for split, rows in sides.items() if rows is not None}
    rows = {
        split: [_converted(value, number, dict(row), convert) for number, row in enumerate(own, 1)]
        for split, own in named.items()
    }
    if not any(rows.values()):
        raise UsageError(f"expected a split train or test in {value}, got {', '.join(found) or 'none'}; choose another")
    if len(rows) == 1:
        return _divided([(None, row) for own in rows.values() for row in own], Path(value))
    return rows


def read_splits(path: Path, convert: Callable[[dict[str, Any]], Row]) -> dict[str, list[Row]]:
    """The rows of a folder with `train.jsonl` and `test.jsonl` (one may be absent), or of one file.

    One file is split by its rows' field `split` where they have it; else its last tenth, at least one row of two, is
    the test split.

    Args:
      path: a folder or a file of JSON Lines.
      convert: a row's object → what is kept; a KeyError, TypeError or ValueError says what is wrong with it.
    Raises:
      UsageError: nothing there; a line that is no object or that `convert` refuses (its number is named); no rows.
    """
    if path.is_dir():
        files = {split: path / f"{split}.jsonl" for split in SPLITS}
        rows = {split: _rows(file, convert) if file.is_file() else [] for split, file in files.items()}
    else:
        rows = _divided(_rows(path, lambda row: (row.get("split"), convert(row))), path)
    if not any(rows.values()):
        raise UsageError(f"expected rows in {path}, got none; give a .jsonl file, or a folder with train.jsonl")
    return rows


def _rows(path: Path, convert: Callable[[dict[str, Any]], Row]) -> list[Row]:
    try:
        lines = path.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"expected to read {path}, got {type(error).__name__}; give a .jsonl file of UTF-8") from None
    return [_row(path, number, line, convert) for number, line in enumerate(lines, 1) if line.strip()]


def _row(path: Path, number: int, line: str, convert: Callable[[dict[str, Any]], Row]) -> Row:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise UsageError(f"expected JSON in line {number} of {path}, got {line[:40]!r}; {_MEND}") from None
    if not isinstance(value, dict):
        raise UsageError(f"expected an object in line {number} of {path}, got {type(value).__name__}; {_MEND}")
    return _converted(path, number, value, convert)


def _converted(path: Path | str, number: int, value: dict[str, Any], convert: Callable[[dict[str, Any]], Row]) -> Row:
    try:
        return convert(value)
    except UsageError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        reason = error.args[0] if error.args else type(error).__name__
        raise UsageError(f"expected {reason} in line {number} of {path}, got {list(value)}; mend that line") from None


def _divided(rows: list[tuple[Any, Row]], path: Path) -> dict[str, list[Row]]:
    named = [split for split, _ in rows if split is not None]
    if not named:
        first = len(rows) - max(len(rows) // 10, min(1, len(rows) - 1)) if rows else 0
        return {"train": [row for _, row in rows[:first]], "test": [row for _, row in rows[first:]]}
    wrong = next((split for split, _ in rows if split not in SPLITS), None)
    if len(named) < len(rows) or wrong is not None:
        raise UsageError(f"expected train or test as every split in {path}, got {wrong!r}; mend it or leave all out")
    return {split: [row for name, row in rows if name == split] for split in SPLITS}
