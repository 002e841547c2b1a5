"""Who is handed to the engine next: a bounded queue for each key, served in fair turns.

The engine takes its requests first come, first served. So that a key that floods can't put a
thousand requests before another's one, only as many sequences as the engine decodes at once
(and a few, so that it never waits for us) are handed on; the rest wait here. A free place goes
to the key that holds the fewest; among equals, to the one served longest ago. So every key
gets an equal share of the engine, and what one leaves over goes to the others. Where there are
several keys, an eighth of the places is kept for those that hold few: a key that comes while
another has taken all the rest need not wait until one of its answers ends.

While there is no engine to hand anything to, as the model is not loaded, all wait here: requests
have numbers in the order they came in, and go on up to a `horizon`.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from maestrale.errors import MaestraleError, Unavailable

RETRY_AFTER = 2  # seconds
MARGIN = 2
"""Sequences handed to the engine beyond what it decodes at once."""
RESERVED = 8
"""One place of so many is kept for keys that hold few, where there are several keys."""


class Arrivals(Protocol):
    """Who is told of each request's coming and going, by its number."""

    def arrived(self, number: int) -> None: ...
    def left(self, number: int) -> None: ...


class _Waiter:
    __slots__ = ("granted", "number", "sequences")

    def __init__(self, number: int, sequences: int, granted: asyncio.Future[None]) -> None:
        self.number = number
        self.sequences = sequences
        self.granted = granted


class _Queue:
    """One key's part: what it has in flight, and who waits."""

    __slots__ = ("in_flight", "waiters")

    def __init__(self) -> None:
        self.in_flight = 0  # sequences
        self.waiters: deque[_Waiter] = deque()

    @property
    def waiting(self) -> int:
        return sum(waiter.sequences for waiter in self.waiters)


class Admission:
    """Hands out places for sequences: `async with admission.slot(key, n, max_num_seqs): ...`.

    Leaving the block, or being cancelled while waiting for it, gives the places back.
    Not thread-safe: for one event loop.
    """

    def __init__(self, max_waiting: int, several_keys: Callable[[], bool] = lambda: False) -> None:
        self._max_waiting = max_waiting
        self._several_keys = several_keys
        # In the order of last service: who was served longest ago is first.
        self._queues: dict[str, _Queue] = {}
        self._places = 0
        self._reserved = 0
        self._numbers = 0
        self._horizon = math.inf
        self.arrivals: Arrivals | None = None
        self.in_flight = 0
        """Sequences handed on and not at their end."""
        self.waiting = 0
        """Sequences in the queues."""
        self.requests = 0
        """Requests in flight or waiting."""
        self.idle = asyncio.Event()
        """Set while there are no requests."""
        self.idle.set()

    @contextlib.asynccontextmanager
    async def slot(self, key: str, sequences: int, max_num_seqs: int) -> AsyncIterator[None]:
        """Hold places for `sequences` of this key; the engine decodes `max_num_seqs` at once.

        A full queue makes room for a key by refusing the newest request of the key with the
        most waiting, if that is more than this one would have.

        Raises: Unavailable (503, Retry-After) when the queue is full, at once or while waiting.
        """
        self._places = max_num_seqs + MARGIN
        self._reserved = max_num_seqs // RESERVED if self._several_keys() else 0
        self._make_room(key, sequences, max_num_seqs)
        queue = self._queues.setdefault(key, _Queue())
        self._numbers += 1
        waiter = _Waiter(self._numbers, sequences, asyncio.get_running_loop().create_future())
        queue.waiters.append(waiter)
        self.waiting += sequences
        self.requests += 1
        self.idle.clear()
        try:
            if self.arrivals is not None:
                self.arrivals.arrived(waiter.number)
            self._grant()
            await waiter.granted
            yield
        finally:
            self._leave(key, queue, waiter)

    def let_on(self, horizon: float) -> None:
        """From now on the requests with numbers up to this one may go on."""
        if horizon != self._horizon:
            self._horizon = horizon
            self._grant()

    def refuse_waiting(self, error: MaestraleError) -> None:
        """Those in the queues end with this error, which their clients are told."""
        for queue in tuple(self._queues.values()):
            for waiter in queue.waiters:
                if not waiter.granted.done():
                    waiter.granted.set_exception(error)

    def check(self, key: str, sequences: int, max_num_seqs: int) -> None:
        """Whether `slot` would refuse this now, told before a prompt is made in vain.

        Raises: Unavailable.
        """
        limit = max_num_seqs + self._max_waiting
        if self.in_flight + self.waiting + sequences > limit:
            self._who_gives_way(key, sequences, limit)

    async def check_room(self, key: str, sequences: int, max_num_seqs: int) -> None:
        """As `check`, wherever the queue is. Raises: Unavailable."""
        self.check(key, sequences, max_num_seqs)

    def _make_room(self, key: str, sequences: int, max_num_seqs: int) -> None:
        """Raises: Unavailable when there is none."""
        limit = max_num_seqs + self._max_waiting
        while self.in_flight + self.waiting + sequences > limit:
            refused = self._who_gives_way(key, sequences, limit).waiters.pop()
            self.waiting -= refused.sequences
            if not refused.granted.done():
                refused.granted.set_exception(self._full(limit))

    def _who_gives_way(self, key: str, sequences: int, limit: int) -> _Queue:
        """The longest queue, if this key's wouldn't be as long. Raises: Unavailable."""
        own = self._queues.get(key)
        would_wait = (own.waiting if own is not None else 0) + sequences
        longest = max(self._queues.values(), key=lambda each: each.waiting, default=None)
        if longest is None or longest is own or longest.waiting <= would_wait:
            raise self._full(limit)
        return longest

    def _full(self, limit: int) -> Unavailable:
        return Unavailable(
            f"The queue is full: {self.in_flight + self.waiting} answers are in work or waiting, "
            f"and {limit} may be. Try again in a moment.",
            code="queue_full",
            retry_after=RETRY_AFTER,
        )

    def _grant(self) -> None:
        """Hand out the free places. A large request is waited for, so that it's never starved;
        one with more sequences than there are places runs alone.
        """
        while True:
            ready = [
                (key, queue)
                for key, queue in self._queues.items()
                if queue.waiters and queue.waiters[0].number <= self._horizon
            ]
            if not ready:
                return
            key, queue = min(ready, key=lambda each: each[1].in_flight)
            waiter = queue.waiters[0]
            if not self._fits(queue, waiter.sequences) and not waiter.granted.done():
                return
            queue.waiters.popleft()
            self.waiting -= waiter.sequences
            if waiter.granted.done():  # cancelled, and hasn't left yet
                continue
            self.in_flight += waiter.sequences
            queue.in_flight += waiter.sequences
            self._queues[key] = self._queues.pop(key)
            waiter.granted.set_result(None)

    def _fits(self, queue: _Queue, sequences: int) -> bool:
        holds_few = queue.in_flight + sequences <= self._reserved
        places = self._places if holds_few else self._places - self._reserved
        return not self.in_flight or self.in_flight + sequences <= places

    def _leave(self, key: str, queue: _Queue, waiter: _Waiter) -> None:
        granted = waiter.granted
        if waiter in queue.waiters:
            queue.waiters.remove(waiter)
            self.waiting -= waiter.sequences
        elif granted.done() and not granted.cancelled() and granted.exception() is None:
            queue.in_flight -= waiter.sequences
            self.in_flight -= waiter.sequences
        self.requests -= 1
        if not queue.in_flight and not queue.waiters and self._queues.get(key) is queue:
            del self._queues[key]
        if self.arrivals is not None:
            self.arrivals.left(waiter.number)
        self._grant()
        if not self.requests:
            self.idle.set()
