"""Prompt lookup: what is guessed, and how many at once."""

from __future__ import annotations

from maestrale.engines.cpu.prompt_lookup import MAX_DRAFT, PromptLookup


def test_what_followed_the_last_time_is_guessed() -> None:
    assert PromptLookup().guess([1, 2, 3, 4, 9, 1, 2, 3], 1, 5) == [4]
    assert PromptLookup().guess([1, 2, 3, 4, 2, 3, 5, 1, 2, 3], 1, 5) == [4], "the longest match"
    assert PromptLookup().guess([8, 2, 3, 7, 2, 3, 5, 1, 2, 3], 1, 5) == [5], "then the latest"


def test_nothing_is_guessed_without_a_match() -> None:
    assert PromptLookup().guess([1, 2, 3, 4], 1, 5) == []
    assert PromptLookup().guess([1, 2, 3, 1], 1, 5) == [2]
    assert PromptLookup().guess([4], 1, 5) == []


def test_more_at_once_while_guesses_prove_right() -> None:
    tokens = [*range(100), 5, 6, 7]
    lookup = PromptLookup()
    assert lookup.guess(tokens, 1, 50) == [8]
    for expected in (2, 4, MAX_DRAFT, MAX_DRAFT):
        lookup.learn(1, 1)
        assert lookup.guess(tokens, 1, 50) == list(range(8, 8 + expected))
    assert lookup.guess(tokens, 1, 3) == [8, 9, 10]
    lookup.learn(MAX_DRAFT, MAX_DRAFT - 1)
    assert lookup.guess(tokens, 1, 50) == [8]


def test_rows_that_are_free_hold_guesses_after_a_long_match() -> None:
    tokens = [*range(100), 5, 6, 7]
    assert PromptLookup().guess(tokens, 3, 50) == [8, 9, 10]
    assert PromptLookup().guess(tokens, 3, 2) == [8, 9]
    assert PromptLookup().guess([*range(100), 50], 3, 50) == [51], "a short match is often wrong"


def test_what_is_appended_is_found_later() -> None:
    tokens = [1, 2, 3]
    lookup = PromptLookup()
    assert lookup.guess(tokens, 1, 1) == []
    tokens += [4, 1, 2, 3]
    assert lookup.guess(tokens, 1, 1) == [4]
