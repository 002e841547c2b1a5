"""Which block of the KV cache belongs to whom, and the prefix cache over them.

A block holds the keys and values of `BLOCK_SIZE` consecutive tokens of a sequence. A full
block is named by a digest chained over all tokens up to its end, so equal digests mean equal
content, and a new sequence can share the blocks of a prompt that was seen before. Of a block that
only begins with the right tokens, the beginning can be copied (`PartialBlocks`). A block that
nobody uses keeps its content until it is needed: the least recently used goes first.
"""

from __future__ import annotations

import bisect
import hashlib
from array import array
from collections import OrderedDict, defaultdict
from collections.abc import Sequence

from maestrale.models.fit_cpu import BLOCK

BLOCK_SIZE = BLOCK  # tokens

BlockDigest = bytes
_ROOT: BlockDigest = b"maestrale-kv-1"


def block_digest(parent: BlockDigest | None, tokens: Sequence[int]) -> BlockDigest:
    """The name of a full block: its tokens, and by way of `parent` all tokens before it."""
    return hashlib.blake2b(
        (parent or _ROOT) + array("i", tokens).tobytes(), digest_size=16
    ).digest()


def extend_digests(digests: list[BlockDigest], tokens: Sequence[int], count: int) -> None:
    """Append to the `digests` of a sequence's first blocks until there are `count` of them."""
    for index in range(len(digests), count):
        start = index * BLOCK_SIZE
        parent = digests[-1] if digests else None
        digests.append(block_digest(parent, tokens[start : start + BLOCK_SIZE]))


class BlockManager:
    """Blocks 0..num_blocks-1: reference counts, the prefix cache and its eviction."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))
        self._references = [0] * num_blocks
        self._digests: list[BlockDigest | None] = [None] * num_blocks
        self._cached: dict[BlockDigest, int] = {}
        self._partial = PartialBlocks()
        self._partial_of: list[tuple[BlockDigest, Tokens] | None] = [None] * num_blocks
        self._unused: OrderedDict[int, None] = OrderedDict()  # cached, no references; LRU first

    @property
    def available(self) -> int:
        """Blocks that `allocate` can give: never used, or cached and unused."""
        return len(self._free) + len(self._unused)

    @property
    def in_use(self) -> int:
        """Blocks that a sequence holds."""
        return self.num_blocks - self.available

    def allocate(self) -> int | None:
        """An empty block with one reference, or None when every block is in use."""
        if self._free:
            block = self._free.pop()
        elif self._unused:
            block, _ = self._unused.popitem(last=False)
            self._forget(block)
        else:
            return None
        self._references[block] = 1
        return block

    def lookup(self, digests: Sequence[BlockDigest]) -> list[int]:
        """The cached blocks for the longest known beginning of `digests`; takes no reference."""
        blocks = []
        for digest in digests:
            block = self._cached.get(digest)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def unused_among(self, blocks: Sequence[int]) -> int:
        """How many of `blocks` count as available now, and would not once they are shared."""
        return sum(1 for block in blocks if self._references[block] == 0)

    def share(self, block: int) -> None:
        """Take one more reference to a block that `lookup` gave."""
        if self._references[block] == 0:
            del self._unused[block]
        self._references[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """Give back one reference to each of a sequence's blocks, listed first to last."""
        # The end of a sequence goes first in the LRU order: a prefix is worth more.
        for block in reversed(blocks):
            self._references[block] -= 1
            if self._references[block] > 0:
                continue
            if self._digests[block] is None and self._partial_of[block] is None:
                self._free.append(block)
            else:
                self._unused[block] = None

    def publish(self, block: int, digest: BlockDigest) -> None:
        """Enter a full, computed block in the prefix cache; the first of equals stays."""
        if digest not in self._cached:
            self._cached[digest] = block
            self._digests[block] = digest

    def publish_partial(
        self, block: int, before: BlockDigest | None, tokens: Sequence[int]
    ) -> None:
        """Say that a block begins with `tokens` [1 to BLOCK_SIZE], after the block `before`.

        What follows these in the block may change.
        """
        if self.partial(before, tokens)[1] == len(tokens):
            return
        self._forget_partial(block)
        entry = (before or _ROOT, tuple(tokens))
        self._partial_of[block] = entry
        self._partial.add(*entry, block)

    def partial(self, before: BlockDigest | None, tokens: Sequence[int]) -> tuple[int, int]:
        """(block, how many of `tokens` it begins with) after `before`; takes no reference."""
        return self._partial.longest(before or _ROOT, tuple(tokens))

    def _forget(self, block: int) -> None:
        digest = self._digests[block]
        if digest is not None:
            del self._cached[digest]
            self._digests[block] = None
        self._forget_partial(block)

    def _forget_partial(self, block: int) -> None:
        entry = self._partial_of[block]
        if entry is not None:
            self._partial.remove(*entry, block)
            self._partial_of[block] = None


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
