"""Which replica's cache holds the beginning of a prompt, as far as this process knows.

Prompts are remembered in blocks of tokens, each block known by all before it as well, so the
longest beginning that was sent somewhere before is found block by block. A replica's own cache
may have dropped it since: then the request costs what it would have cost anywhere.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping

BLOCK = 32  # tokens
BLOCKS_REMEMBERED = 200_000


class PrefixTable:
    """Prompt beginnings and the replicas that they were sent to. Not thread-safe."""

    def __init__(self, block: int = BLOCK, remembered: int = BLOCKS_REMEMBERED) -> None:
        self._block = block
        self._remembered = remembered
        self._sent: OrderedDict[int, set[str]] = OrderedDict()  # block → replicas, oldest first

    def matches(self, prompt: tuple[int, ...], among: Iterable[str]) -> dict[str, int]:
        """How many tokens of `prompt`, from its beginning, each replica has seen."""
        left = set(among)
        found = dict.fromkeys(left, 0)
        for count, block in enumerate(self._blocks(prompt), 1):
            left &= self._sent.get(block, set())
            if not left:
                break
            for replica in left:
                found[replica] = count * self._block
        return found

    def add(self, prompt: tuple[int, ...], replica: str) -> None:
        for block in self._blocks(prompt):
            self._sent.setdefault(block, set()).add(replica)
            self._sent.move_to_end(block)
        while len(self._sent) > self._remembered:
            self._sent.popitem(last=False)

    def forget(self, replica: str) -> None:
        """It is gone, and its cache with it."""
        for block, replicas in tuple(self._sent.items()):
            replicas.discard(replica)
            if not replicas:
                del self._sent[block]

    def _blocks(self, prompt: tuple[int, ...]) -> Iterator[int]:
        before = 0
        for start in range(0, len(prompt) - self._block + 1, self._block):
            before = hash((before, prompt[start : start + self._block]))
            yield before


def pick(loads: Mapping[str, int], matches: Mapping[str, int], capacity: int, turn: int) -> str:
    """The replica for a prompt: the one that has most of it, unless that one is overloaded.

    `loads`: requests on each replica. `matches`: tokens of the prompt that each has seen.
    Overloaded is who is full (`capacity`), or has an eighth of `capacity` (at least 2) more to do
    than the idlest. Without a match, the idlest; among equals, by `turn`.
    """
    idlest = min(loads.values())
    allowed = idlest + max(2, capacity // 8)
    holders = [
        name
        for name, load in loads.items()
        if matches.get(name, 0) and load <= allowed and (load < capacity or load == idlest)
    ]
    if holders:
        return max(holders, key=lambda name: (matches[name], -loads[name], name))
    equals = sorted(name for name, load in loads.items() if load == idlest)
    return equals[turn % len(equals)]
