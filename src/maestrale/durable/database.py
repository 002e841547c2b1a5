"""What is kept in a file of SQLite, as one event loop uses it.

All work is done by one thread, and in groups: what is asked for while a group is being written goes
into the next one, so that many requests at once cost one commit.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from maestrale.database import Database, Layout
from maestrale.errors import DatabaseUnusable, Unavailable
from maestrale.logs import LOGGER

SWEEP_SECONDS = 60.0
MOST_AT_ONCE = 256  # pieces of work in one transaction
T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]


class CannotKeep(Unavailable):
    """The file can't be used: the message says why."""

    default_code = "store_unavailable"


class AsyncDatabase:
    """The file at `path`, made when it is first used; None: nothing is kept. For one event loop."""

    def __init__(self, path: Path | None, layout: Layout, *, what: str, rests: float = 0.0) -> None:
        """`what` it is called in errors. `rests`: for how long nothing is tried after a failure, so
        that not everybody waits for it again.
        """
        self._file = None if path is None else Database(path, layout)
        self._what = what
        self._rests = rests
        self._thread = ThreadPoolExecutor(1, "database")
        self._waiting: list[tuple[Work[Any], asyncio.Future[Any]]] = []
        self._writing = False
        self._erases = False
        self._failed: CannotKeep | None = None
        self._failed_at = 0.0
        self._swept = 0.0
        self._warned = ""

    @property
    def enabled(self) -> bool:
        """Whether anything is kept at all."""
        return self._file is not None

    async def do(self, work: Work[T]) -> T:
        """Its result, once what it wrote is committed. Raises: CannotKeep."""
        if self._failed is not None and time.monotonic() < self._failed_at + self._rests:
            raise CannotKeep(str(self._failed))
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append((work, future))
        self._next_group()
        return await future

    def warn(self, error: CannotKeep) -> None:
        """Tell of a failure in the log, once as long as it stays the same."""
        if self._file is not None and str(error) != self._warned:
            self._warned = str(error)
            LOGGER.warning("%s: %s Answers go on, and are not kept.", self._file.path, error)

    def check(self) -> None:
        """Open the file, here and now. Raises: CannotKeep."""
        outcome = self._group([lambda db: None])[0]
        if outcome is not None:
            raise outcome

    def sweep(
        self, db: sqlite3.Connection, table: str, oldest: float, most: int, *, now: bool = False
    ) -> None:
        """From time to time, or `now`: let go of what was last `used` before `oldest`, and of what
        was unused for longest where all together have more than `most` `bytes`.
        """
        moment = time.time()
        if moment - self._swept < SWEEP_SECONDS and not now:
            return
        self._swept = moment
        gone = db.execute(f"DELETE FROM {table} WHERE used < ?", (oldest,)).rowcount  # noqa: S608
        [size] = db.execute(f"SELECT coalesce(sum(bytes), 0) FROM {table}").fetchone()  # noqa: S608
        if size > most:
            ids = []
            for id, each in db.execute(f"SELECT id, bytes FROM {table} ORDER BY used"):  # noqa: S608
                ids.append((id,))
                size -= each
                if size <= most * 0.9:
                    break
            db.executemany(f"DELETE FROM {table} WHERE id = ?", ids)  # noqa: S608
            gone += len(ids)
        db.execute("PRAGMA incremental_vacuum")
        if gone:
            self.erased()

    def erased(self) -> None:
        """What was deleted shall be gone from the log of writes, too, once that is committed."""
        self._erases = True

    def _next_group(self) -> None:
        if self._writing:
            return
        wanted = [each for each in self._waiting if not each[1].done()]  # none was given up
        group, self._waiting = wanted[:MOST_AT_ONCE], wanted[MOST_AT_ONCE:]
        if not group:
            return
        self._writing = True
        works = [work for work, _ in group]
        done = asyncio.get_running_loop().run_in_executor(self._thread, self._group, works)

        def deliver(outcomes: asyncio.Future[list[Any]]) -> None:
            self._writing = False
            if outcomes.cancelled():
                return
            for (_, future), outcome in zip(group, outcomes.result(), strict=True):
                if future.done():  # nobody waits for it any more
                    continue
                if isinstance(outcome, BaseException):
                    future.set_exception(outcome)
                else:
                    future.set_result(outcome)
            self._next_group()

        done.add_done_callback(deliver)

    def _group(self, works: Sequence[Work[Any]]) -> list[Any]:
        """In the thread: one transaction. For each work its result, or the error to raise."""
        if self._file is None:
            return [CannotKeep("This server keeps nothing (--no-store).")] * len(works)
        try:
            results = self._file.write(lambda db: [work(db) for work in works])
            if self._erases:
                self._erases = not self._file.empty_log()
        except DatabaseUnusable as error:
            self._failed = CannotKeep(f"{self._what} can't be used: {error}.")
            self._failed_at = time.monotonic()
            return [self._failed] * len(works)
        except Exception as error:
            if len(works) == 1:
                return [error]
            return [outcome for work in works for outcome in self._group([work])]  # one is at fault
        self._failed = None
        return results
