"""Guesses at the tokens that come next, to be checked by the model several at a time.

The products of a step take up to four rows in about the time of one. So sequences also compute
rows for tokens that may follow: a token has the same bits in any step, and a guess that proves
wrong is thrown away. The answer is the same to the bit with and without guesses; only its speed
differs.
(Prompt lookup decoding: https://github.com/apoorvumang/prompt-lookup-decoding)
"""

from __future__ import annotations

from collections.abc import Sequence

LONGEST_GRAM = 3
ROWS_TOGETHER = 4  # rows that the kernel computes in about the time of one
MAX_DRAFT = 7  # tokens; a step of 8 rows takes half as long again as one of 4


class PromptLookup:
    """What followed the last time that the same few tokens stood in this sequence."""

    def __init__(self) -> None:
        self._grams = range(LONGEST_GRAM, 0, -1)
        self._next: dict[tuple[int, ...], int] = {}
        self._read = 1
        self._width = 1

    def guess(self, tokens: Sequence[int], free: int, most: int) -> list[int]:
        """Up to `most` tokens that may follow `tokens`, or none. `tokens` only ever grow.

        `free`: how many cost next to nothing; more only where long matches prove right.
        """
        for index in range(self._read, len(tokens)):
            for size in self._grams:
                if size <= index:
                    self._next[tuple(tokens[index - size : index])] = index
        self._read = max(self._read, len(tokens))
        for size in self._grams:
            at = self._next.get(tuple(tokens[-size:]))
            if at is not None:
                width = max(free, self._width) if size == LONGEST_GRAM else 1
                return list(tokens[at : at + min(width, most)])
        return []

    def learn(self, offered: int, right: int) -> None:
        """Tell how many of the `offered` guesses were right."""
        self._width = min(max(offered, 2 * self._width), MAX_DRAFT) if right == offered else 1
