"""The ledger on disk: requests whose answers can be asked for again, and how far each was sent.

Of an answer nothing is kept but what it takes to make it once more: its request, and the facts that
were decided when it was accepted (seed, id, time). The tokens follow from these. Only an answer to
a request with an Idempotency-Key is kept itself, once it is whole, and not even that where nothing
of the request was to be kept: then its body is empty here, and who asks again brings it. All of a
request goes an hour after the last that was heard of it.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from maestrale.database import Layout
from maestrale.durable.database import AsyncDatabase, CannotKeep

MARK_SECONDS = 0.5  # at most between what was sent and the file's knowing of it
SCHEMA = """
CREATE TABLE answers (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, key TEXT, digest BLOB NOT NULL, used REAL NOT NULL,
    bytes INTEGER NOT NULL, path TEXT NOT NULL, body BLOB NOT NULL, facts BLOB NOT NULL,
    sent INTEGER NOT NULL DEFAULT 0, cached INTEGER, ended INTEGER NOT NULL DEFAULT 0, output BLOB,
    counted INTEGER
);
CREATE UNIQUE INDEX answers_by_key ON answers (owner, key) WHERE key IS NOT NULL;
CREATE INDEX answers_by_use ON answers (used, bytes)
"""
LAYOUT = Layout(
    steps=(SCHEMA,),
    # A first byte waits no longer for another writer than `busy_timeout` (milliseconds).
    pragmas=("auto_vacuum = INCREMENTAL", "secure_delete = ON", "busy_timeout = 1000"),
    setting="--store-file",
    synchronous="FULL",
)
RESTS = 2.0  # seconds in which nothing is tried after a failure
_FIND = (
    "SELECT id, owner, key, digest, path, body, facts, sent, cached, ended, output, counted "
    "FROM answers "
    "WHERE used >= ? AND owner = ? AND "
)


class Facts(Struct, frozen=True, kw_only=True):
    """What was decided once for an answer. `prompt`: a digest of what the engine was asked for."""

    answer: str = ""
    created: int = 0
    seed: int = 0
    fingerprint: str = ""
    prompt: bytes = b""


class Output(Struct, frozen=True):
    """A whole answer, as it was sent: events, or one body."""

    status: int
    headers: list[tuple[bytes, bytes]]
    parts: list[bytes]


class Entry(Struct, frozen=True, kw_only=True):
    """One request. `sent`: events that went out, `cached`: tokens of its prompt from the cache,
    `counted`: tokens that its key was charged for (api/accounts.py); None: not even for the prompt.
    """

    id: str
    owner: str
    key: str | None
    digest: bytes
    path: str
    body: bytes
    facts: Facts
    sent: int = 0
    cached: int | None = None
    ended: bool = False
    output: Output | None = None
    counted: int | None = None


def entry_id(answer: str) -> str:
    """The id of the entry of an answer of the model's, and of its stream."""
    return f"stream-{answer}"


class Ledger:
    """The requests that are kept. `path` None: none are. For one event loop."""

    def __init__(self, path: Path | None, *, most_bytes: int, keep_seconds: float = 3600.0) -> None:
        self.database = AsyncDatabase(path, LAYOUT, what="The ledger of requests", rests=RESTS)
        self._path = path
        self._most = most_bytes
        self._keep = keep_seconds
        self._marks: dict[str, tuple[int, int | None]] = {}
        self._marking: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def enabled(self) -> bool:
        """Whether anything is kept at all."""
        return self.database.enabled

    async def add(self, entry: Entry) -> bool:
        """Keep a request. False: its Idempotency-Key is another one's. Raises: CannotKeep."""
        output = msgspec.msgpack.encode(entry.output) if entry.output is not None else None
        facts = msgspec.msgpack.encode(entry.facts)
        size = len(entry.body) + len(facts) + len(output or b"")

        def work(db: sqlite3.Connection) -> bool:
            now = time.time()
            self._sweep(db)
            if entry.key is not None:  # one that is too old, and was not swept yet
                db.execute(
                    "DELETE FROM answers WHERE owner = ? AND key = ? AND used < ?",
                    (entry.owner, entry.key, now - self._keep),
                )
            added = db.execute(
                "INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (entry.id, entry.owner, entry.key, entry.digest, now, size, entry.path,
                 entry.body, facts, entry.sent, entry.cached, entry.ended, output, entry.counted),
            )  # fmt: skip
            return added.rowcount > 0

        return await self.database.do(work)

    async def find(self, id: str, owner: str) -> Entry | None:
        """One of this owner's. Raises: CannotKeep."""
        return await self._find("id = ?", owner, id)

    async def find_key(self, key: str, owner: str) -> Entry | None:
        """This owner's with this Idempotency-Key. Raises: CannotKeep."""
        return await self._find("key = ?", owner, key)

    def mark(self, id: str, sent: int, cached: int | None, *, now: bool = False) -> None:
        """So many of its events went out: the file knows within `MARK_SECONDS`, or at once."""
        self._marks[id] = (sent, cached)
        if now:
            self._write_marks()
        elif self._marking is None:
            loop = asyncio.get_running_loop()
            self._marking = loop.call_later(MARK_SECONDS, self._write_marks)

    async def end(self, id: str, sent: int, cached: int | None, output: Output | None) -> None:
        """It is whole; with `output` it is kept itself, if its request is. Raises: CannotKeep."""
        self._marks.pop(id, None)
        written = msgspec.msgpack.encode(output) if output is not None else None

        def work(db: sqlite3.Connection) -> None:
            db.execute(
                "UPDATE answers SET sent = ?, cached = ?, ended = 1, used = ?, "
                "output = iif(length(body), ?, NULL), bytes = bytes + iif(length(body), ?, 0) "
                "WHERE id = ?",
                (sent, cached, time.time(), written, len(written or b""), id),
            )

        await self.database.do(work)

    async def charge(self, id: str, tokens: int) -> int | None:
        """A key is charged for so many tokens of it: for how many it was before, by whichever
        process. Raises: CannotKeep.
        """
        if not self._is_there():
            return None

        def work(db: sqlite3.Connection) -> int | None:
            row = db.execute("SELECT counted FROM answers WHERE id = ?", (id,)).fetchone()
            before: int | None = None if row is None else row[0]
            if before is None or before < tokens:
                db.execute("UPDATE answers SET counted = ? WHERE id = ?", (tokens, id))
            return before

        return await self.database.do(work)

    async def forget(self, id: str, owner: str) -> bool:
        """Let one go, with its prompt. Whether there was one. Raises: CannotKeep."""
        self._marks.pop(id, None)

        def work(db: sqlite3.Connection) -> bool:
            gone = db.execute("DELETE FROM answers WHERE id = ? AND owner = ?", (id, owner))
            self.database.erased()
            return gone.rowcount > 0

        return await self.database.do(work)

    async def tidy(self) -> None:
        """Let go of what is too old, also where nobody asks for anything. Never fails."""
        if not self._is_there():
            return
        try:
            await self.database.do(lambda db: self._sweep(db, now=True))
        except CannotKeep as error:
            self.database.warn(error)

    def _is_there(self) -> bool:
        """Whether there is a file already that this user may see."""
        return self._path is not None and os.path.exists(self._path)

    def _sweep(self, db: sqlite3.Connection, *, now: bool = False) -> None:
        self.database.sweep(db, "answers", time.time() - self._keep, self._most, now=now)

    async def _find(self, which: str, owner: str, value: str) -> Entry | None:
        def work(db: sqlite3.Connection) -> Entry | None:
            self._sweep(db)
            oldest = time.time() - self._keep
            row = db.execute(_FIND + which, (oldest, owner, value)).fetchone()
            return None if row is None else _entry(row)

        return await self.database.do(work)

    def _write_marks(self) -> None:
        if self._marking is not None:
            self._marking.cancel()
            self._marking = None
        task = asyncio.get_running_loop().create_task(self._keep_marks())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _keep_marks(self) -> None:
        marks, self._marks = self._marks, {}
        if not marks:
            return

        def work(db: sqlite3.Connection) -> None:
            now = time.time()
            db.executemany(
                "UPDATE answers SET sent = max(sent, ?), cached = coalesce(?, cached), used = ? "
                "WHERE id = ?",
                [(sent, cached, now, id) for id, (sent, cached) in marks.items()],
            )

        try:
            await self.database.do(work)
        except CannotKeep as error:
            self.database.warn(error)


def _entry(row: tuple[Any, ...]) -> Entry:
    """A row as it was kept. Raises: sqlite3.DatabaseError for one that nobody here wrote."""
    id, owner, key, digest, path, body, facts, sent, cached, ended, output, counted = row
    try:
        return Entry(
            id=id,
            owner=owner,
            key=key,
            digest=digest,
            path=path,
            body=body,
            facts=msgspec.msgpack.decode(facts, type=Facts),
            sent=sent,
            cached=cached,
            ended=bool(ended),
            output=None if output is None else msgspec.msgpack.decode(output, type=Output),
            counted=counted,
        )
    except (msgspec.MsgspecError, TypeError) as error:
        raise sqlite3.DatabaseError(f"a row is broken ({error})") from error
