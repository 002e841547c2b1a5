"""How many sequences may be in flight: what the engine decodes at once, and a bounded queue."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from maestrale.errors import Unavailable

RETRY_AFTER = 2  # seconds


class Admission:
    """Counts sequences from admission to their end. Past `limit`, requests get 503 at once."""

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self.in_flight = 0  # sequences
        self.requests = 0
        self.idle = asyncio.Event()  # set while nothing is in flight
        self.idle.set()

    @contextmanager
    def admit(self, sequences: int, max_num_seqs: int) -> Iterator[None]:
        """Hold a place for `sequences`; the engine decodes `max_num_seqs` at once.

        Raises: Unavailable (503, Retry-After) when the queue is full.
        """
        limit = max_num_seqs + self._max_waiting
        if self.in_flight + sequences > limit:
            raise Unavailable(
                f"The queue is full: {self.in_flight} answers are in work or waiting, "
                f"and {limit} may be. Try again in a moment.",
                code="queue_full",
                retry_after=RETRY_AFTER,
            )
        self.in_flight += sequences
        self.requests += 1
        self.idle.clear()
        try:
            yield
        finally:
            self.in_flight -= sequences
            self.requests -= 1
            if not self.requests:
                self.idle.set()
