"""A few places, and fair turns at them: who floods waits behind itself."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque


class FairTurns:
    """Hands out `places`, one to each key in turn. Not thread-safe: for one event loop."""

    def __init__(self, places: int) -> None:
        self._free = places
        # The key whose turn it is comes first; each waits in a line of its own.
        self._lines: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    async def acquire(self, key: str) -> None:
        """Wait for this key's turn. Cancelled while waiting, it holds nothing."""
        if self._free and not self._lines:
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._lines.setdefault(key, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it came at the same moment
                self.release()
            else:
                self._leave(key, turn)
            raise

    def release(self) -> None:
        """Give a place back: it goes to the next key in turn."""
        while self._lines:
            key, line = self._lines.popitem(last=False)
            turn = line.popleft()
            if line:
                self._lines[key] = line  # behind the others
            if not turn.done():  # else cancelled, and not gone yet
                turn.set_result(None)
                return
        self._free += 1

    def _leave(self, key: str, turn: asyncio.Future[None]) -> None:
        line = self._lines.get(key)
        if line is not None and turn in line:
            line.remove(turn)
            if not line:
                del self._lines[key]
