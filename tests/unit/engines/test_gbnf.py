"""llama.cpp's grammars give the texts that llama.cpp gives by them; bad ones say what is wrong."""

from __future__ import annotations

import pytest

from maestrale.engines.base import Constraint
from maestrale.engines.constraint import compile_constraint
from maestrale.engines.gbnf import is_gbnf
from maestrale.errors import ConstraintError
from maestrale.models.vocabulary import BYTE_EOS, byte_vocabulary

VOCABULARY = byte_vocabulary()
LIST = r"""
# a list of things
root ::= item ("," ws item)*
item ::= [a-z]+ | "\u00e9\x41" | "\"" [^"\\\x7F\x00-\x1F]* "\"" | "\x5b" | [0-9]{2,3}
ws ::= " "?   # or none
"""


def matches(grammar: str, text: str) -> bool:
    """Whether the grammar gives this text, and may end there."""
    state = compile_constraint(Constraint("grammar", grammar), VOCABULARY)
    for byte in text.encode():
        if state.finished or not state.allowed()[byte]:
            return False
        state.accept(byte)
    return state.finished or bool(state.allowed()[BYTE_EOS])


@pytest.mark.parametrize("text", ["abc", "a, b", "a,b,c", "éA", '"x y"', "[", "12", "123"])
def test_what_it_gives(text: str) -> None:
    assert matches(LIST, text)


@pytest.mark.parametrize("text", ["", "A", "é", "a,,b", "a,  b", '"x', "1", "1234", '"\\"'])
def test_what_it_does_not_give(text: str) -> None:
    assert not matches(LIST, text)


@pytest.mark.parametrize(
    ("escape", "character"),
    [
        (r"\u0041", "A"),
        (r"\u00e9", "é"),
        (r"\U0001F389", "🎉"),
        (r"\x22", '"'),
        (r"\u005c", "\\"),
        (r"\u002f", "/"),
        (r"\n", "\n"),
        (r"\\u0041", "\\u0041"),
    ],
)
def test_escapes_name_a_character(escape: str, character: str) -> None:
    assert matches(f'root ::= "{escape}"', character)
    if len(character) == 1:
        assert matches(f"root ::= [{escape}]", character)
        assert not matches(f"root ::= [^{escape}]", character)


def test_names_may_have_capitals_and_dashes() -> None:
    assert matches('root ::= my-Rule otherOne\nmy-Rule ::= "a"\notherOne ::= "b"', "ab")


@pytest.mark.parametrize(
    ("grammar", "said"),
    [
        ("root ::= x", "Rule 'x' not found"),
        ('foo ::= "a"', "No 'root' rule"),
        ('root ::= "a', "Unexpected end"),
        ('root ::= "\\', "ends within an escape"),
        (r'root ::= "\ud800"', "no character"),
        (r'root ::= "\U00110000"', "no character"),
        (r'root ::= "\q"', "Invalid escape"),
        ("root ::= " + "(" * 5000 + '"a"' + ")" * 5000, "nested too deep"),
        ("root ::= root", "no text satisfies it"),
        ('root ::= a-b a_b\na-b ::= "1"\na_b ::= "2"', "already exists"),
        ('root ::= "a" # %llguidance {}', "not allowed"),
    ],
)
def test_bad_ones_are_refused(grammar: str, said: str) -> None:
    with pytest.raises(ConstraintError, match="grammar can't be used") as caught:
        compile_constraint(Constraint("grammar", grammar), VOCABULARY)
    assert said in str(caught.value)


def test_lark_is_told_from_it() -> None:
    assert is_gbnf(LIST)
    assert not is_gbnf('start: "a ::= b" | /x ::= y/\n')
    assert matches('start: "a ::= b"\n', "a ::= b")
