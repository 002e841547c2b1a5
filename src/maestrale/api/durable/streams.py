"""The answers of this process that can be asked for again, and those that are in the ledger."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from starlette.types import Scope

from maestrale.api.context import RequestContext
from maestrale.api.durable.lenders import Lenders
from maestrale.api.durable.run import Run
from maestrale.config.settings import Settings
from maestrale.durable.database import CannotKeep
from maestrale.durable.ledger import Entry, Ledger

LINGER_SECONDS = 10.0  # for which an answer goes on that nobody reads
IDEMPOTENCY_KEY = "Idempotency-Key"
MOST_HELD = 32 << 20  # bytes of answers at their end, in memory

Route = Callable[[Scope, Run], Awaitable[None]]


class Streams:
    """Runs in the making and, for a while, at their end. Each belongs to the key that asked."""

    def __init__(self, settings: Settings) -> None:
        self._keep = settings.durable_minutes * 60
        self.ledger = Ledger(
            settings.ledger_path, most_bytes=settings.store_size, keep_seconds=self._keep
        )
        self.durable = settings.durable
        """Streams are kept, also of requests without an Idempotency-Key."""
        self.lenders = Lenders()
        """Servers that this one took over from, and that still make streams."""
        self._tasks: dict[Run, asyncio.Task[None]] = {}
        self._by_key: dict[tuple[str, str], Run] = {}
        self._held: OrderedDict[Run, float] = OrderedDict()  # at their end, and since when
        self._size = 0

    def find(self, id: str, owner: str) -> Run | None:
        """One of this process, by its id."""
        self._let_go()
        for run in (*self._tasks, *self._held):
            if run.recorded and run.entry.id == id and run.entry.owner == owner:
                return run
        return None

    def find_key(self, key: str, owner: str) -> Run | None:
        """One of this process, by its Idempotency-Key."""
        self._let_go()
        return self._by_key.get((owner, key))

    async def has_key(self, key: str, owner: str) -> bool:
        """Whether there is an answer, done or running, with this Idempotency-Key."""
        if not key or self.find_key(key, owner) is not None:
            return bool(key)
        with contextlib.suppress(CannotKeep):
            return self.ledger.enabled and await self.ledger.find_key(key, owner) is not None
        return False

    async def tidy(self) -> None:
        """Let go of what was kept for long enough; not of what is still being made."""
        self._let_go()
        for run in self._tasks:
            run.mark()
        await self.ledger.tidy()

    def start(self, entry: Entry, context: RequestContext, scope: Scope, route: Route) -> Run:
        """Have an answer made: a new one, or one that was begun before."""
        run = Run(self.ledger, entry, context, streams=self.durable)
        if entry.key is not None:
            self._by_key[entry.owner, entry.key] = run
        task = self._tasks[run] = asyncio.create_task(run.make(scope, route))
        task.add_done_callback(lambda task: self._ended(run, task))
        return run

    async def leave(self, run: Run) -> None:
        """One reads it no more. If nobody does, it ends: soon, where somebody may come again."""
        if run.readers or run not in self._tasks:
            return
        if run.recorded and (run.status or run.entry.key is not None):
            asyncio.get_running_loop().call_later(LINGER_SECONDS, _stop_unread, run)
            return
        run.stop()
        await asyncio.wait({self._tasks[run]})

    async def forget(self, id: str, owner: str) -> bool:
        """Stop one, and let go of it. Whether there was one. Raises: CannotKeep."""
        run = self.find(id, owner)
        if run is not None:
            run.recorded = False  # nobody finds it any more
            run.stop()
            self.drop(run)
        lent = run is None and await self.lenders.forget(id, owner)
        return await self.ledger.forget(id, owner) or lent or run is not None

    def drop(self, run: Run) -> None:
        """It is found no more."""
        if self._held.pop(run, None) is not None:
            self._size -= run.size
        key = run.entry.key
        if key is not None and self._by_key.get((run.entry.owner, key)) is run:
            del self._by_key[run.entry.owner, key]

    def _ended(self, run: Run, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            task.exception()  # its readers were told
        self._tasks.pop(run, None)
        if not (run.complete and run.recorded):
            self.drop(run)
            return
        self._held[run] = time.monotonic()
        self._size += run.size
        self._let_go()

    def _let_go(self) -> None:
        """What is too old, and what is too much."""
        oldest = time.monotonic() - self._keep
        while self._held:
            run, since = next(iter(self._held.items()))
            if self._size <= MOST_HELD and since >= oldest:
                return
            self.drop(run)


def _stop_unread(run: Run) -> None:
    if not run.readers:
        run.stop()
