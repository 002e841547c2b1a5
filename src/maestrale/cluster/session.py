"""A replica's side of one API process: the deltas for it, and the requests it is owed."""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict

from msgspec import Struct

LEASE = 15.0
"""Seconds without a word from the API process after which its requests are dropped."""
ABORTS_REMEMBERED = 4096


def api_of(session: str) -> str:
    """A session is named after its API process, and numbered."""
    return session.rpartition("/")[0]


class StreamSession:
    """Messages wait here until the stream takes them, all that there are at once."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.held: dict[str, asyncio.Future[None]] = {}
        """The requests in work, by wire id; done when one is at its end."""
        self.closed = False
        self._outbox: list[Struct] = []
        self._wake = asyncio.Event()
        self._heard = asyncio.get_running_loop().time()
        self._aborted: OrderedDict[str, None] = OrderedDict()

    def put(self, message: Struct) -> None:
        self._outbox.append(message)
        self._wake.set()

    async def take(self, patience: float) -> list[Struct]:
        """All that came since the last call; waits for something, up to `patience` seconds."""
        if not self._outbox and not self.closed:
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), patience)
        outbox, self._outbox = self._outbox, []
        return outbox

    def heard(self) -> None:
        self._heard = asyncio.get_running_loop().time()

    @property
    def expired(self) -> bool:
        """The API process is gone, or can't reach this replica any more."""
        return asyncio.get_running_loop().time() - self._heard > LEASE

    def note_abort(self, wire_id: str) -> None:
        """An abort may overtake its request on the way."""
        self._aborted[wire_id] = None
        while len(self._aborted) > ABORTS_REMEMBERED:
            self._aborted.popitem(last=False)

    def was_aborted(self, wire_id: str) -> bool:
        return wire_id in self._aborted

    def finish(self, wire_id: str) -> None:
        done = self.held.pop(wire_id, None)
        if done is not None and not done.done():
            done.set_result(None)

    def close(self) -> None:
        self.closed = True
        for wire_id in tuple(self.held):
            self.finish(wire_id)
        self._wake.set()
