"""What was used is written before a client reads that its answer is whole, in groups.

One thread writes; what comes meanwhile is the next group, so an answer waits for two commits at
most, and a thousand at once need no more. Where the file can't be written answers go on: what isn't
written is told in the log, kept, and tried again with whatever comes next.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from maestrale.errors import DatabaseUnusable
from maestrale.logs import LOGGER
from maestrale.usage import UsageFile, UsageRow, day_of, merged

PATIENCE = 2.0  # seconds that an answer waits for the file at most
MOST_NAMED = 10  # keys in one line of the log
TELL_SECONDS = 60.0  # between two lines of the log about the same failure


class UsageWriter:
    """Writes into the file of usage, if there is one. For one event loop."""

    def __init__(self, file: UsageFile | None, known: Callable[[Sequence[UsageRow]], None]) -> None:
        """`known` is called once, in the event loop or before it is asked for anything, with what
        the file has of this month.
        """
        self._file = file
        self._known = known
        self._thread = ThreadPoolExecutor(1, "usage")
        self._coming: list[UsageRow] = []
        self._waiting: list[asyncio.Future[None]] = []
        self._writing: asyncio.Task[None] | None = None
        self._unwritten: list[UsageRow] = []  # of the thread
        self._has_read = file is None  # of the thread
        self._told = ("", 0.0)
        self._closed = False
        # Opened beside whatever else a start has to do.
        self._first = self._thread.submit(self._write, []) if file is not None else None

    def begin(self) -> None:
        """Have what the file knows, if that can be had now; it was asked at the start."""
        if self._first is not None:
            with contextlib.suppress(TimeoutError):
                known = self._first.result(PATIENCE)
                self._first = None
                self._take(known)

    def write(self, row: UsageRow) -> asyncio.Future[None]:
        """Add this; done when it is written, or can't be now."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._file is None:
            done.set_result(None)
            return done
        if self._closed:
            LOGGER.error("%s: not counted at the end: %s.", self._file.path, _told([row]))
            done.set_result(None)
            return done
        self._coming.append(row)
        self._waiting.append(done)
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._go_on())
        return done

    async def close(self) -> None:
        """Write what is left, and say what can't be."""
        if self._file is None:
            return
        if self._writing is not None:
            await asyncio.gather(self._writing, return_exceptions=True)
        loop = asyncio.get_running_loop()
        if self._unwritten:
            await loop.run_in_executor(self._thread, self._write, [])
        self._closed = True
        if self._unwritten:
            LOGGER.error("%s: not counted at all: %s.", self._file.path, _told(self._unwritten))
        await loop.run_in_executor(self._thread, self._file.close)
        self._thread.shutdown(wait=False)

    async def _go_on(self) -> None:
        loop = asyncio.get_running_loop()
        if self._first is not None:
            first, self._first = self._first, None
            self._take(await asyncio.wrap_future(first))
        while self._coming:
            rows, self._coming = self._coming, []
            waiting, self._waiting = self._waiting, []
            try:
                self._take(await loop.run_in_executor(self._thread, self._write, rows))
            finally:
                for each in waiting:
                    if not each.done():
                        each.set_result(None)

    def _take(self, known: Sequence[UsageRow]) -> None:
        if known:
            self._known(known)

    def _write(self, rows: Sequence[UsageRow]) -> Sequence[UsageRow]:
        """In the thread: what the file had of this month, the first time that it can be read."""
        assert self._file is not None
        rows = merged([*self._unwritten, *rows])
        try:
            month = "" if self._has_read else day_of(time.time())[:7]
            known = self._file.add(rows, month)
        except DatabaseUnusable as error:
            self._unwritten = rows
            self._tell(str(error))
            return []
        if self._unwritten:
            LOGGER.info("%s is written again, and has all that was not counted.", self._file.path)
        self._has_read, self._unwritten, self._told = True, [], ("", 0.0)
        return known

    def _tell(self, reason: str) -> None:
        assert self._file is not None
        last, at = self._told
        if reason != last or time.monotonic() - at > TELL_SECONDS:
            self._told = (reason, time.monotonic())
            LOGGER.error(
                "%s can't be written: %s. Answers go on. Not counted so far: %s.",
                *(self._file.path, reason.rstrip("."), _told(self._unwritten)),
            )


def _told(rows: Sequence[UsageRow]) -> str:
    if not rows:
        return "nothing yet"
    keys = sorted({row.key for row in rows})
    more = f" and {len(keys) - MOST_NAMED} more" if len(keys) > MOST_NAMED else ""
    requests, tokens = sum(row.requests for row in rows), sum(row.tokens for row in rows)
    return f"requests: {requests}, tokens: {tokens}, of keys: {', '.join(keys[:MOST_NAMED])}{more}"
