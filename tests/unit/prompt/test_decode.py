"""Tokens to text in pieces: however they are cut, the text is the same and nothing leaks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maestrale.errors import InvalidRequest
from maestrale.models.vocabulary import Vocabulary
from maestrale.prompt.decode import IncrementalDecoder, StopStrings, spell

# One token for each byte, then two control tokens: any cut of any text can be made of these.
BYTES = Vocabulary(
    token_bytes=(*(bytes([byte]) for byte in range(256)), b"", b""),
    control_ids={"<s>": 256, "</s>": 257},
    eos_token_ids=(257,),
)
SPACED = Vocabulary(
    token_bytes=(b" a", b"b", b" ", b"", b"  c"),
    control_ids={"<s>": 3},
    eos_token_ids=(3,),
    leading_space=True,
)


def pieces_of(text: str, cuts: list[int]) -> list[str]:
    ends = sorted({cut for cut in cuts if cut < len(text)})
    return [text[a:b] for a, b in zip([0, *ends], [*ends, len(text)], strict=True)]


@given(st.text(), st.lists(st.integers(0, 200)))
def test_any_cut_of_a_text_spells_it(text: str, cuts: list[int]) -> None:
    ids = list(text.encode())
    ends = sorted({cut for cut in cuts if cut < len(ids)})
    decoder = IncrementalDecoder(BYTES)
    pieces = [decoder.push(ids[a:b]) for a, b in zip([0, *ends], [*ends, len(ids)], strict=True)]
    assert "".join(pieces) + decoder.flush() == text
    assert all(text.startswith("".join(pieces[:count])) for count in range(len(pieces)))


@given(st.text(min_size=1))
def test_a_character_comes_with_its_last_byte(text: str) -> None:
    decoder = IncrementalDecoder(BYTES)
    for character in text:
        *first, last = character.encode()
        assert decoder.push(first) == ""
        assert decoder.push([last]) == character


def test_an_unfinished_character_at_the_end_is_left_out() -> None:
    decoder = IncrementalDecoder(BYTES)
    assert decoder.push("a\N{ROCKET}".encode()[:-1]) == "a"
    assert decoder.flush() == ""


@given(st.binary())
def test_bytes_that_are_no_text_never_fail(data: bytes) -> None:
    decoder = IncrementalDecoder(BYTES)
    whole = decoder.push(data)
    one_by_one = IncrementalDecoder(BYTES)
    assert "".join(one_by_one.push([byte]) for byte in data) == whole


def test_control_tokens_spell_nothing() -> None:
    assert IncrementalDecoder(BYTES).push([256, ord("a"), 257]) == "a"


@pytest.mark.parametrize(
    ("ids", "text"),
    [([0, 1], "ab"), ([3, 0, 0], "a a"), ([2, 0], " a"), ([4], " c"), ([1, 0], "b a")],
)
def test_the_first_space_of_sentencepiece_is_dropped(ids: list[int], text: str) -> None:
    assert IncrementalDecoder(SPACED).push(ids) == text
    one_by_one = IncrementalDecoder(SPACED)
    assert "".join(one_by_one.push([token]) for token in ids) == text


def test_the_first_space_stays_when_going_on_from_text() -> None:
    assert IncrementalDecoder(SPACED, continuing=True).push([0, 1]) == " ab"


def test_spell_shows_control_tokens() -> None:
    assert spell(BYTES, [256, *b"hi", 257]) == "<s>hi</s>"
    assert spell(SPACED, [3, 0, 3, 0]) == "<s>a<s> a"


@pytest.mark.parametrize("token", [-1, 258, 10**12])
def test_spell_refuses_ids_outside_the_vocabulary(token: int) -> None:
    with pytest.raises(InvalidRequest) as refused:
        spell(BYTES, [token])
    assert str(refused.value.at) == "tokens"


# A small alphabet, so that stop strings overlap and nearly match all the time.
few = st.text(alphabet="ab\N{ROCKET}", min_size=1, max_size=5)


def expected(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The plain definition: the first end of a stop string; of equal ends, the longest."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            longest = max(ending, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(
    st.text(alphabet="ab\N{ROCKET}", max_size=40),
    st.lists(few, min_size=1, max_size=4),
    st.lists(st.integers(0, 40)),
)
def test_stop_strings_are_found_however_the_text_is_cut(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    finder = StopStrings(stops)
    given_out, matched = "", None
    safe, stop = expected(text, stops)
    for piece in pieces_of(text, cuts):
        fresh, matched = finder.push(piece)
        given_out += fresh
        assert safe.startswith(given_out)  # never a part of the stop string
    if matched is None:
        given_out += finder.flush()
    assert (given_out, matched) == (safe, stop)


@given(st.text(alphabet="ab", max_size=30), st.lists(few, min_size=1, max_size=4))
def test_no_more_is_held_back_than_may_begin_a_stop_string(text: str, stops: list[str]) -> None:
    finder = StopStrings(stops)
    given_out = ""
    for length, character in enumerate(text, 1):
        fresh, matched = finder.push(character)
        given_out += fresh
        if matched is not None:
            return
        held = text[len(given_out) : length]
        assert held == "" or any(stop.startswith(held) for stop in stops)


def test_nothing_comes_after_a_match() -> None:
    finder = StopStrings(["END"])
    assert finder.push("go END of") == ("go ", "END")
    assert finder.push("more") == ("", "END")
    assert finder.flush() == ""


def test_the_first_stop_string_to_be_complete_wins() -> None:
    assert StopStrings(["abcd", "bc"]).push("abcd") == ("a", "bc")
    assert StopStrings(["bc", "abc"]).push("abcd") == ("", "abc")


def test_a_long_stop_string_takes_linear_time() -> None:
    finder = StopStrings(["a" * 50_000 + "b"])
    safe, matched = finder.push("a" * 200_000)
    assert matched is None
    assert len(safe) == 150_000


def test_without_stop_strings_nothing_is_held() -> None:
    assert StopStrings([]).push("text") == ("text", None)


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        StopStrings(["a", ""])
