"""A reward of one's own, which a model with random weights gets some of."""

from typing import Any


def low(prompt: str, completion: str, facts: Any) -> float:
    """How many of the characters are ASCII."""
    return sum(character.isascii() for character in completion) / max(len(completion), 1)
