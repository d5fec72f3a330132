"""arithmetic.py: Python's own evaluation with fractions is the oracle; nothing else is evaluated."""

import ast
import sys
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eggroll.tasks.arithmetic import MAX_DIGITS, MAX_LENGTH, MAX_NUMBERS, canonical, evaluate
from tests.tasks import hostile

NUMBERS = st.integers(0, 10**MAX_DIGITS - 1).map(str)
EXPRESSIONS = st.recursive(
    NUMBERS,
    lambda inner: (
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/", " - ", " / "]), inner).map("".join)
        | inner.map("({})".format)
        | inner.map("-{}".format)
        | inner.map("( {} )".format)
    ),
    max_leaves=8,
).filter(lambda text: len(text) <= MAX_LENGTH)


class Wrap(ast.NodeTransformer):
    """Puts Fraction(…) around every literal, so that eval is exact."""

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        return ast.Call(ast.Name("Fraction", ast.Load()), [node], [])


def by_eval(text: str) -> Fraction | None:
    tree = ast.fix_missing_locations(Wrap().visit(ast.parse(text.strip(), mode="eval")))
    try:
        return eval(compile(tree, "", "eval"), {"Fraction": Fraction})
    except ZeroDivisionError:
        return None


@given(EXPRESSIONS)
def test_a_value_is_what_python_computes_with_fractions(text):
    found = evaluate(text)
    assert (None if found is None else found.value) == by_eval(text)


@given(EXPRESSIONS)
def test_the_numbers_are_the_literals_in_order(text):
    found = evaluate(text)
    digits = "".join(sign if sign.isdigit() else " " for sign in text)
    assert found is None or found.numbers == tuple(int(number) for number in digits.split())


@given(EXPRESSIONS)
def test_the_canonical_form_is_the_same_expression_and_a_fixed_point(text):
    short = canonical(text)
    assert (short is None) == (evaluate(text) is None)
    if short is not None:
        assert (evaluate(short), canonical(short), " " in short) == (evaluate(text), short, False)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3×5+7", 22),
        ("10 ÷ 4", Fraction(5, 2)),
        ("3 − 5", -2),
        ("(1+2)*8 = 24", 24),
        ("7 =22.5", 7),
        ("\t4 * 6\r\n", 24),
    ],
)
def test_signs_of_print_and_a_trailing_result_are_read(text, value):
    assert evaluate(text).value == value


@pytest.mark.parametrize(
    "text",
    [
        *("", "()", "3+", "2**3", "7//2", "7%2", "+3", "a", "f(3)", "3(4)", "1.5", "1,2", "[1]", "3 4", "1if 1else 2"),
        *("3\n+4", "3 = 3 = 3", "= 3", "=", "3#4", "0b1", "True", "~3", "007"),
        *("1" * (MAX_DIGITS + 1), "1+" * MAX_NUMBERS + "1", "1" + " " * MAX_LENGTH, "1/(2-2)"),
    ],
)
def test_all_else_is_refused(text):
    assert (evaluate(text), canonical(text)) == (None, None)


def test_numbers_up_to_the_bounds_are_read():
    assert evaluate("1+" * (MAX_NUMBERS - 1) + "1").value == MAX_NUMBERS
    assert evaluate("9" * MAX_DIGITS).value == 10**MAX_DIGITS - 1


@given(hostile.completions())
def test_no_text_makes_it_raise(text):
    assert evaluate(text) is None or isinstance(evaluate(text).value, Fraction)


@pytest.mark.parametrize("text", hostile.TEXTS, ids=lambda text: repr(text[:12]))
def test_no_horror_makes_it_raise(text):
    assert evaluate(text) is None or text.startswith("((((((((")


def test_it_does_not_raise_near_the_end_of_the_stack():
    def deep(frames: int) -> object:
        return evaluate("(" * 60 + "1" + "+1)" * 40 + ")" * 20) if frames == 0 else deep(frames - 1)

    frame, used = sys._getframe(), 0
    while frame is not None:
        frame, used = frame.f_back, used + 1
    free = sys.getrecursionlimit() - used
    answers = {deep(free - left) for left in range(60, 120, 7)}
    assert answers <= {None, evaluate("1" + "+1" * 40)._replace(numbers=(1,) * 41)}
