"""Completions that no verifier may choke on."""

from hypothesis import strategies as st

_SIGNS = "0123456789+-*/()^=., \n<>{}[]$%#!\\_eE\x00²٣×÷−\ud800"

TEXTS = (
    "",
    " ",
    "\n",
    "\x00",
    "3\x00+4",
    "\ud800",
    "²",
    "٣",
    "3+٣",
    "9**9**9**9",
    "1/0",
    "1//0",
    "1_000",
    "0x10",
    "1e999",
    "007",
    "__import__('os').system('true')",
    "(" * 10**5,
    "(" * 90 + "1" + ")" * 90,
    "-" * 10**5 + "1",
    "9" * 10**6,
    "1," * 10**5,
    "$" * 10**5,
    "#### " * 10**5,
    "<answer>" * 10**5,
    "</answer>" * 10**5,
    "\\boxed{" * 10**5,
    "}" * 10**5,
    "\\frac" * 10**4,
    "10^{10^{10}}",
    "((((9^{99})^{99})^{99})^{99})",
    "100000000!",
)
"""Named horrors, as they are; `wrapped` puts them where an answer is looked for."""


def wrapped(text: str) -> list[str]:
    """A text as a whole completion, in tags, in a box and after ####."""
    return [text, f"<answer>{text}</answer>", f"\\boxed{{{text}}}", f"#### {text}"]


def completions() -> st.SearchStrategy[str]:
    """Any text at all, lone surrogates too, and texts of the signs that verifiers look for."""
    pieces = st.sampled_from(["<answer>", "</answer>", "\\boxed{", "\\frac{", "}", "####", "answer is", "**", "9"])
    text = st.text(st.characters(exclude_categories=())) | st.text(st.sampled_from(_SIGNS))
    mixed = st.lists(pieces | text, max_size=12).map("".join)
    return (text | mixed).flatmap(lambda text: st.sampled_from(wrapped(text)))
