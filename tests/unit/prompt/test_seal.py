"""No text of a client's becomes a control token, alone or with what stands around it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maestrale.errors import InvalidRequest
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


def test_the_mark_is_in_none_of_the_texts() -> None:
    assert unused_marks(["\ufdd0", {"\ufdd1": "\ufdd2"}, 3], 2) == ["\ufdd3", "\ufdd4"]


def test_texts_with_every_mark_are_refused() -> None:
    with pytest.raises(InvalidRequest) as refused:
        unused_marks("".join(map(chr, range(0xFDD0, 0xFDF0))), 1)
    assert refused.value.param == "messages"
