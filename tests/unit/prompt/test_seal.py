"""No text of a client's becomes a control token, alone or with what stands around it."""

from __future__ import annotations

import itertools
import json
import secrets
import urllib.parse
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maestrale.prompt.seal import Seal, unused_marks

TOKENS = ["<|a|>", "<|ab|>", "|><", "[X]", "aa"]
MARK = "\ufdd0"
# Made of the tokens' own characters, so that whole, broken and overlapping ones abound.
texts = st.text(alphabet="<|ab>[X] \n", max_size=20)


def whole_tokens(text: str) -> list[str]:
    return [token for token in TOKENS if token in text]


@given(texts)
def test_no_token_is_whole_in_sealed_text(text: str) -> None:
    sealed = Seal(TOKENS).apply(text, MARK)
    assert whole_tokens(sealed) == []
    assert sealed.replace(MARK, "") == text


@given(texts, texts)
def test_no_token_forms_between_sealed_texts(left: str, right: str) -> None:
    seal = Seal(TOKENS)
    assert whole_tokens(seal.apply(left, MARK) + seal.apply(right, MARK)) == []
    # a template may trim what it is given
    assert whole_tokens(seal.apply(left, MARK).strip() + seal.apply(right, MARK).strip()) == []


@given(st.sampled_from(TOKENS), st.data())
def test_no_token_forms_with_a_template_s_text(token: str, data: st.DataObject) -> None:
    # The template writes the beginning and the end of a token; the client's text is the rest.
    start = data.draw(st.integers(0, len(token) - 1))
    end = data.draw(st.integers(start + 1, len(token)))
    sealed = Seal(TOKENS).apply(token[start:end], MARK)
    assert whole_tokens(token[:start] + sealed + token[end:]) == []
    blank = Seal(TOKENS).apply(f" {token[start:end]}\n", MARK)
    assert whole_tokens(token[:start] + blank.strip() + token[end:]) == []


@given(st.text())
def test_ordinary_text_is_left_alone(text: str) -> None:
    assert Seal([]).apply(text, MARK) == text
    assert Seal(["<|im_end|>"]).apply("no markup at all", MARK) == "no markup at all"


def test_all_texts_of_a_json_value_are_sealed() -> None:
    value = {"<|a|>": ["[X]", 1, None, {"k": "aa"}], "n": True}
    sealed = Seal(TOKENS).apply_to_json(value, MARK)
    assert whole_tokens(repr(sealed)) == []
    assert sealed["n"] is True


def test_the_marks_are_in_none_of_the_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = itertools.chain("0" * 19, "2" * 19, "3" * 19, "3" * 19, "4" * 19)
    monkeypatch.setattr(secrets, "choice", lambda _: next(drawn))
    texts = ["x1" + "0" * 30, {"k": ["1" + "2" * 19]}, 3]
    assert unused_marks(texts, 2) == ["1" + "3" * 19, "1" + "4" * 19]


@given(st.text(alphabet="0123456789", max_size=50), st.integers(0, 50))
def test_taking_a_mark_out_of_digits_leaves_the_digits(text: str, place: int) -> None:
    (mark,) = unused_marks([text], 1)
    assert (text[:place] + mark + text[place:]).replace(mark, "") == text


@pytest.mark.parametrize(
    "printed",
    [repr, json.dumps, str.upper, str.title, urllib.parse.quote, lambda text: f"{[text]}"],
)
def test_a_mark_stays_what_it_is_however_it_is_printed(printed: Callable[[str], str]) -> None:
    (mark,) = unused_marks([], 1)
    assert printed(f"<{mark}é").replace(mark, "") == printed("<é")
