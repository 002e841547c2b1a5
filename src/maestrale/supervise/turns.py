"""A few places, and fair turns at them: who floods waits behind itself."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque


class FairTurns:
    """Hands out `places`, one to each key in turn. Not thread-safe: for one event loop."""

    def __init__(self, places: int, each: int | None = None) -> None:
        """`each`: how many of them one key may hold."""
        self._free = places
        self._each = each or places
        self._held: Counter[str] = Counter()
        # The key whose turn it is comes first; each waits in a line of its own.
        self._lines: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    async def acquire(self, key: str) -> None:
        """Wait for this key's turn. Cancelled while waiting, it holds nothing."""
        if self._free and self._held[key] < self._each:
            self._take(key)  # while places are free nobody waits who may have one
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._lines.setdefault(key, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it came at the same moment
                self.release(key)
            else:
                self._leave(key, turn)
            raise

    def release(self, key: str) -> None:
        """Give a place of this key back: it goes to the next key in turn."""
        self._free += 1
        self._held[key] -= 1
        if not self._held[key]:
            del self._held[key]
        while self._free:
            waiting = (each for each in self._lines if self._held[each] < self._each)
            following = next(waiting, None)
            if following is None:
                return
            line = self._lines.pop(following)
            turn = line.popleft()
            if line:
                self._lines[following] = line  # behind the others
            if not turn.done():  # else cancelled, and not gone yet
                self._take(following)
                turn.set_result(None)

    def _take(self, key: str) -> None:
        self._free -= 1
        self._held[key] += 1

    def _leave(self, key: str, turn: asyncio.Future[None]) -> None:
        line = self._lines.get(key)
        if line is not None and turn in line:
            line.remove(turn)
            if not line:
                del self._lines[key]
