"""Answers computed once more, as the prompt of a follow-up has them, while nobody waits.

Where results are exact and OpenVINO's attention computes them, only what was computed in chunks may
enter the prefix cache, and an answer was computed token by token. When the engine has been idle for
a moment, the answers that ended last are therefore computed again in chunks, a block at a time and
then what is left: the follow-up then finds the whole conversation in the cache, and its time to
first token is that of the new question alone.
"""

from __future__ import annotations

from collections import deque

from maestrale.engines.openvino.kv_cache import BLOCK_SIZE, BlockManager, Digest, extend_digests

MIN_CHUNK = 2  # tokens of a prompt computed at once: one alone rounds as a generated one
KEPT = 8  # answers that wait to be computed again; the newest is the likeliest to go on
PAUSE = 0.25  # seconds of idleness before it begins: a program asks again sooner, a reader later
LONGEST = 0.25  # seconds for a block: who asks meanwhile waits; slower machines don't rehearse


class Rehearsals:
    """The conversations that ended last, newest at the end."""

    def __init__(self, blocks: BlockManager) -> None:
        self._blocks = blocks
        self._waiting: deque[tuple[list[int], list[Digest]]] = deque(maxlen=KEPT)

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, tokens: list[int], digests: list[Digest]) -> None:
        """Take a finished sequence's tokens, and the digests of its first blocks."""
        digests = list(digests)
        extend_digests(digests, tokens, len(tokens) // BLOCK_SIZE)
        self._waiting.append((tokens, digests))

    def next(self) -> tuple[list[int], list[Digest], list[int], int] | None:
        """(tokens, digests, cached blocks, count) of one that misses its next `count` tokens.

        None: all are there.
        """
        while self._waiting:
            tokens, digests = self._waiting[-1]
            cached = self._blocks.lookup(digests)
            start = len(cached) * BLOCK_SIZE
            missing = tokens[start : start + BLOCK_SIZE]
            if len(missing) >= MIN_CHUNK and self._has_room(cached):
                before = digests[len(cached) - 1] if cached else None
                if self._blocks.beginning(before, missing)[1] < len(missing):
                    return tokens, digests, cached, len(missing)
            self._waiting.pop()
        return None

    def _has_room(self, cached: list[int]) -> bool:
        return self._blocks.available > self._blocks.unused_among(cached)
