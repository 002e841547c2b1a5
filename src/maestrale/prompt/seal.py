"""Keeps text that a client sent from turning into control tokens.

Before a template is rendered, every control token that stands in a client's text, or could
be completed at its edges by the text around it, is broken by a mark that none of the texts has.
In the rendered prompt only the template's own control tokens are whole; the prompt is cut there,
and the mark is taken out of the rest, which a tokenizer that knows no control tokens then
encodes. The mark is a row of digits: however a template prints a text (as JSON in ASCII, as
Python's `repr`, in capitals, for a URL), they stay what they are.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Iterator
from typing import Any

_DIGITS = 20


class Seal:
    """Breaks control tokens (of two characters or more) in text, with `mark`."""

    def __init__(self, tokens: Iterable[str]) -> None:
        self._tokens = sorted(tokens, key=len, reverse=True)
        alternatives = "|".join(map(re.escape, self._tokens))
        self._inside = re.compile(f"(?=(?:{alternatives}))") if self._tokens else None
        self._heads = tuple({t[:size] for t in self._tokens for size in range(1, len(t))})
        self._tails = tuple({t[size:] for t in self._tokens for size in range(1, len(t))})

    def apply(self, text: str, mark: str) -> str:
        """`text` with each control token in it, and each that it could be part of, broken."""
        trimmed = text.strip()
        if any(trimmed in token for token in self._tokens if len(trimmed) <= len(token)):
            # The template might write all the rest of a token around it.
            return text.replace(trimmed, mark + mark.join(trimmed) + mark, 1) if trimmed else text
        return self._apply_edges(text, mark)

    def apply_to_json(self, value: Any, mark: str) -> Any:
        """The same JSON value with the tokens broken in every text of it, keys as well.

        Texts that are only the middle of a token are left, since templates look for some of
        them by name ("function", "type"); they quote JSON as a whole.
        """
        if isinstance(value, str):
            return self._apply_edges(value, mark)
        if isinstance(value, dict):
            return {
                self._apply_edges(key, mark): self.apply_to_json(item, mark)
                for key, item in value.items()
            }
        if isinstance(value, list | tuple):
            return [self.apply_to_json(item, mark) for item in value]
        return value

    def _apply_edges(self, text: str, mark: str) -> str:
        if self._inside is None:
            return text
        parts, done = [], 0
        for match in self._inside.finditer(text):
            parts.append(text[done : match.start() + 1])
            done = match.start() + 1
        sealed = mark.join([*parts, text[done:]])
        # A template may trim the text, so the edges that count are those of the trimmed text.
        trimmed = sealed.strip()
        before = mark if trimmed.startswith(self._tails) else ""
        after = mark if trimmed.endswith(self._heads) else ""
        if not before and not after:
            return sealed
        start = sealed.index(trimmed)
        return sealed[:start] + before + trimmed + after + sealed[start + len(trimmed) :]


def unused_marks(value: Any, count: int) -> list[str]:
    """`count` rows of digits that are in none of the texts of a JSON value.

    They are drawn, so that nobody can send them. Only their first digit is a 1: so none can
    overlap with itself, and taking a mark out never takes other digits instead.
    """
    texts = [text for text in _texts(value) if len(text) >= _DIGITS]
    marks: list[str] = []
    while len(marks) < count:
        mark = "1" + "".join(secrets.choice("023456789") for _ in range(_DIGITS - 1))
        if mark not in marks and not any(mark in text for text in texts):
            marks.append(mark)
    return marks


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
