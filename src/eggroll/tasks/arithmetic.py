"""Arithmetic that a model wrote, evaluated exactly and safely."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

MAX_LENGTH = 200
"""Characters of an expression; a longer one is not read."""

MAX_DIGITS = 12
"""Digits of a number in it."""

MAX_NUMBERS = 50
"""Numbers in it."""

_SIGNS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-"})
_RESULT = re.compile(r"=[ \t]*-?[0-9]+(\.[0-9]+)?[ \t]*$")
_ALLOWED = re.compile(r"[-+*/() \t0-9]+")
_LONG_NUMBER = re.compile(rf"[0-9]{{{MAX_DIGITS + 1}}}")
_OPERATORS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


class Evaluated(NamedTuple):
    """What an expression comes to."""

    value: Fraction
    numbers: tuple[int, ...]  # the literals, in the order written


def evaluate(text: str) -> Evaluated | None:
    """The exact value of an expression of whole numbers, + − * / and parentheses.

    × · ÷ and − are read as * * / and -; a trailing "= 24" is ignored. No power, no name, no call, no decimal point:
    only characters of arithmetic reach Python's parser, and nothing is executed.

    Args:
      text: at most `MAX_LENGTH` characters, with at most `MAX_NUMBERS` numbers of at most `MAX_DIGITS` digits.
    Returns:
      The value and the numbers used, or None where the text is no such expression or divides by 0; it never raises.
    """
    tree = _parsed(text)
    if tree is None:
        return None
    numbers: list[int] = []
    try:
        value = _value(tree, numbers)
    except (ArithmeticError, RecursionError, ValueError):
        return None
    return Evaluated(value, tuple(numbers)) if len(numbers) <= MAX_NUMBERS else None


def canonical(text: str) -> str | None:
    """An expression without spaces, needless parentheses and a trailing result, or None where `evaluate` gives None.

    Two expressions have the same canonical form where they are the same tree: "(3 × 5) + 7 = 22" and "3*5+7".
    """
    tree = _parsed(text)
    if tree is None or evaluate(text) is None:
        return None
    return ast.unparse(tree).replace(" ", "")


def _parsed(text: str) -> ast.expr | None:
    if len(text) > MAX_LENGTH:
        return None
    text = _RESULT.sub("", text.translate(_SIGNS).strip()).strip()
    if not _ALLOWED.fullmatch(text) or _LONG_NUMBER.search(text):
        return None
    try:
        return ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # nested too deep, in the last two
        return None


def _value(node: ast.expr, numbers: list[int]) -> Fraction:
    """The value of a tree, whose literals are put into `numbers`; ValueError for a node that is no arithmetic."""
    match node:
        case ast.Constant(value=int(number)):
            numbers.append(number)
            return Fraction(number)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, numbers)
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in _OPERATORS:
            return _OPERATORS[type(sign)](_value(left, numbers), _value(right, numbers))
    raise ValueError(f"no arithmetic: {type(node).__name__}")
