"""Rewards for stories, by import path."""

from __future__ import annotations

import re
from typing import Any

WORDS = ("day", "play", "say", "way", "away", "stay", "today", "may", "gray", "clay")


def dog(prompt: str, completion: str, facts: Any) -> float:
    """A dog is mentioned, as a word."""
    return float(re.search(r"\b(dog|dogs)\b", completion.lower()) is not None)


def short(prompt: str, completion: str, facts: Any) -> float:
    """As near as can be to 60 letters."""
    return max(0.0, 1 - abs(len(completion) - 60) / 60)


def rhyme(prompt: str, completion: str, facts: Any) -> float:
    """How many of its words rhyme with day, up to four."""
    said = [word.strip(".,!?\"'").lower() for word in completion.split()]
    return min(sum(word in WORDS for word in said), 4) / 4
