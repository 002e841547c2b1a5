"""The cached block that begins with most of the tokens that a sequence goes on with.

Prompts rarely part at a block's border: a chat's system prompt is often shorter than a block. Of
a block that begins as it should, the keys and values up to the first other token can be copied.
"""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Sequence

Tokens = tuple[int, ...]


class PartialBlocks:
    """Blocks by what comes before them, and there in the order of their tokens."""

    def __init__(self) -> None:
        # Sorted, so that the block with the longest common beginning is a neighbour.
        self._after: defaultdict[bytes, list[tuple[Tokens, int]]] = defaultdict(list)

    def add(self, before: bytes, tokens: Tokens, block: int) -> None:
        bisect.insort(self._after[before], (tokens, block))

    def remove(self, before: bytes, tokens: Tokens, block: int) -> None:
        entries = self._after[before]
        del entries[bisect.bisect_left(entries, (tokens, block))]
        if not entries:
            del self._after[before]

    def longest(self, before: bytes, tokens: Tokens) -> tuple[int, int]:
        """(block, how many of `tokens` it begins with); (-1, 0) where there is none."""
        entries = self._after.get(before, [])
        at = bisect.bisect_left(entries, (tokens, -1))
        best, count = -1, 0
        for known, block in entries[max(0, at - 1) : at + 1]:
            common = _common(known, tokens)
            if common > count:
                best, count = block, common
        return best, count


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count
