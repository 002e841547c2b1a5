"""Responses that are kept: one SQLite file, which several API processes may share.

Each is kept with the items that it answers, for the key that asked, and for nobody else. It is
kept for so many days after it was last used, as long as all together are no larger than they may
be; what goes takes its items along.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

from maestrale.database import Layout
from maestrale.durable.database import AsyncDatabase, CannotKeep

STALE_SECONDS = 15.0  # after which nobody works on a response that is not at its end
MOST_LIVES = 5  # that a response may have whose processes end with it
WORKING = ("queued", "in_progress")
SCHEMA = """
CREATE TABLE responses (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, previous TEXT, status TEXT NOT NULL,
    used REAL NOT NULL, beat REAL NOT NULL, cancelled INTEGER NOT NULL DEFAULT 0,
    streams INTEGER NOT NULL, bytes INTEGER NOT NULL, body BLOB NOT NULL
);
CREATE INDEX responses_by_use ON responses (used, bytes);
CREATE TABLE items (
    response TEXT NOT NULL REFERENCES responses (id) ON DELETE CASCADE, position INTEGER NOT NULL,
    given INTEGER NOT NULL, id TEXT NOT NULL, body BLOB NOT NULL,
    PRIMARY KEY (response, position)
) WITHOUT ROWID;
CREATE INDEX items_by_id ON items (id);
CREATE TABLE events (
    response TEXT NOT NULL REFERENCES responses (id) ON DELETE CASCADE, number INTEGER NOT NULL,
    body BLOB NOT NULL, PRIMARY KEY (response, number)
) WITHOUT ROWID;
"""
BEGUN_AGAIN = """
ALTER TABLE responses ADD COLUMN request BLOB;
ALTER TABLE responses ADD COLUMN lives INTEGER NOT NULL DEFAULT 1
"""
LAYOUT = Layout(
    steps=(SCHEMA, BEGUN_AGAIN),
    # secure_delete: what is deleted is not to be found in the file.
    pragmas=("auto_vacuum = INCREMENTAL", "foreign_keys = ON", "secure_delete = ON"),
    setting="--store-file",
)
_CHAIN = """
WITH RECURSIVE chain (id, previous, depth) AS (
    SELECT id, previous, 0 FROM responses WHERE id = ? AND owner = ?
    UNION ALL
    SELECT each.id, each.previous, depth + 1 FROM responses AS each
    JOIN chain ON each.id = chain.previous
)
"""
USE_CHAIN = f"{_CHAIN} UPDATE responses SET used = ? WHERE id IN (SELECT id FROM chain)"  # noqa: S608
CHAIN_BEGINS = f"{_CHAIN} SELECT previous FROM chain ORDER BY depth DESC LIMIT 1"  # noqa: S608
CHAIN_ITEMS = f"""{_CHAIN}
SELECT items.id, items.body, items.given FROM chain JOIN items ON items.response = chain.id
WHERE given OR depth > 0 OR ? ORDER BY depth DESC, position
"""  # noqa: S608


class Kept(Struct, frozen=True, kw_only=True):
    """A response as it is kept. `streams`: its events are kept, too. `alive`: its process works."""

    id: str
    status: str
    body: bytes
    streams: bool
    alive: bool


class KeptItem(Struct, frozen=True):
    """An item of a response: its id, and what is kept of it. `given`: of its input."""

    id: str
    body: bytes
    given: bool = True


class ResponseStore:
    """The kept responses of one server. `path` None: none are kept. For one event loop."""

    def __init__(self, path: Path | None, *, days: float, most_bytes: int) -> None:
        self.database = AsyncDatabase(path, LAYOUT, what="The kept responses")
        self._seconds = days * 86400
        self._most = most_bytes

    @property
    def enabled(self) -> bool:
        """Whether responses are kept at all."""
        return self.database.enabled

    async def add(
        self,
        *,
        id: str,
        owner: str,
        previous: str | None,
        status: str,
        body: bytes,
        items: Sequence[KeptItem],
        streams: bool = False,
        request: bytes | None = None,
    ) -> None:
        """Keep a response with its items; `request`: what it takes to begin it again, until its
        end. Raises: CannotKeep.
        """

        def work(db: sqlite3.Connection) -> None:
            now = time.time()
            size = len(body) + sum(len(item.body) for item in items) + len(request or b"")
            added = db.execute(
                "INSERT OR IGNORE INTO responses VALUES (?, ?, ?, ?, ?, ?, 0, ?, ?, ?, ?, 1)",
                (id, owner, previous, status, now, now, streams, size, body, request),
            )
            if not added.rowcount:  # it is made again, for a client that lost it on the way
                return
            _put_items(db, id, 0, items)
            if previous is not None:  # a conversation that goes on is kept from its beginning
                db.execute(USE_CHAIN, (previous, owner, now))
            self._sweep(db, now)

        await self.database.do(work)

    async def update(
        self,
        id: str,
        status: str,
        body: bytes,
        *,
        events: Sequence[tuple[int, bytes]] = (),
        items: Sequence[KeptItem] = (),
    ) -> bool:
        """What has become of a response; `items` and `events` are further ones. One that has ended
        stays as it is.

        Whether to go on: it is still there, and was not cancelled. Raises: CannotKeep.
        """

        def work(db: sqlite3.Connection) -> bool:
            grown = sum(len(event) for _, event in events) + sum(len(item.body) for item in items)
            changed = db.execute(
                "UPDATE responses SET status = ?, body = ?, beat = ?, bytes = bytes + ?, "
                "request = iif(?, request, NULL) WHERE id = ? AND status IN (?, ?) "
                "RETURNING cancelled",
                (status, body, time.time(), grown, status in WORKING, id, *WORKING),
            ).fetchone()
            if changed is None:
                return False
            rows = ((id, number, event) for number, event in events)
            # Some may be there: of a writer that was stopped just as it wrote.
            db.executemany("INSERT OR IGNORE INTO events VALUES (?, ?, ?)", rows)
            [position] = db.execute(
                "SELECT coalesce(max(position) + 1, 0) FROM items WHERE response = ?", (id,)
            ).fetchone()
            _put_items(db, id, position, items)
            return not changed[0]

        return await self.database.do(work)

    async def claim(self, id: str, owner: str) -> bytes | None:
        """What it takes to begin a response again that nobody works on any more; from now on
        somebody does. None: it isn't so, or it can't be. Raises: CannotKeep.
        """

        def work(db: sqlite3.Connection) -> bytes | None:
            now = time.time()
            row = db.execute(
                "UPDATE responses SET beat = ?, lives = lives + 1 WHERE id = ? AND owner = ? AND "
                "status IN (?, ?) AND beat <= ? AND lives < ? AND NOT cancelled "
                "AND request IS NOT NULL RETURNING request",
                (now, id, owner, *WORKING, now - STALE_SECONDS, MOST_LIVES),
            ).fetchone()
            return None if row is None else bytes(row[0])

        return await self.database.do(work)

    async def release(self, id: str, request: bytes | None = None) -> None:
        """This process works no longer on it, through no fault of its own: another may at once.
        `request`: in place of the one that is kept. Raises: CannotKeep.
        """

        def work(db: sqlite3.Connection) -> None:
            db.execute(
                "UPDATE responses SET beat = 0, lives = 1, request = coalesce(?, request) "
                "WHERE id = ? AND status IN (?, ?)",
                (request, id, *WORKING),
            )

        await self.database.do(work)

    async def get(self, id: str, owner: str) -> Kept | None:
        """One of this owner's. Raises: CannotKeep."""

        def work(db: sqlite3.Connection) -> Kept | None:
            self._sweep(db, time.time())
            row = db.execute(
                "SELECT status, body, streams, beat FROM responses WHERE id = ? AND owner = ?",
                (id, owner),
            ).fetchone()
            if row is None:
                return None
            status, body, streams, beat = row
            alive = status not in WORKING or beat > time.time() - STALE_SECONDS
            return Kept(id=id, status=status, body=body, streams=bool(streams), alive=alive)

        return await self.database.do(work)

    async def delete(self, id: str, owner: str) -> bool:
        """Whether there was one. Raises: CannotKeep."""

        def work(db: sqlite3.Connection) -> bool:
            gone = db.execute("DELETE FROM responses WHERE id = ? AND owner = ?", (id, owner))
            self.database.erased()
            return gone.rowcount > 0

        return await self.database.do(work)

    async def cancel(self, id: str, owner: str) -> None:
        """Whoever works on it shall stop. Raises: CannotKeep."""

        def work(db: sqlite3.Connection) -> None:
            db.execute("UPDATE responses SET cancelled = 1 WHERE id = ? AND owner = ?", (id, owner))

        await self.database.do(work)

    async def conversation(
        self, id: str, owner: str, *, with_output: bool
    ) -> list[KeptItem] | None:
        """The items of a response and of those before it, in order; None: one is not there.

        Raises: CannotKeep.
        """

        def work(db: sqlite3.Connection) -> list[KeptItem] | None:
            first = db.execute(CHAIN_BEGINS, (id, owner)).fetchone()
            if first is None or first[0] is not None:
                return None
            rows = db.execute(CHAIN_ITEMS, (id, owner, with_output))
            return [KeptItem(item, body, bool(given)) for item, body, given in rows]

        return await self.database.do(work)

    async def items(self, ids: Sequence[str], owner: str) -> dict[str, bytes]:
        """Items of this owner's responses, by id; those that there are. Raises: CannotKeep."""

        def work(db: sqlite3.Connection) -> dict[str, bytes]:
            found = {}
            for id in dict.fromkeys(ids):
                row = db.execute(
                    "SELECT items.body FROM items JOIN responses ON responses.id = response "
                    "WHERE items.id = ? AND owner = ? ORDER BY used DESC LIMIT 1",
                    (id, owner),
                ).fetchone()
                if row is not None:
                    found[id] = row[0]
            return found

        return await self.database.do(work) if ids else {}

    async def events(self, id: str, after: int, most: int) -> tuple[list[tuple[int, bytes]], bool]:
        """The next events of a response after number `after`, and whether more may come.

        Raises: CannotKeep.
        """

        def work(db: sqlite3.Connection) -> tuple[list[tuple[int, bytes]], bool]:
            row = db.execute("SELECT status, beat FROM responses WHERE id = ?", (id,)).fetchone()
            found = db.execute(
                "SELECT number, body FROM events WHERE response = ? AND number > ? "
                "ORDER BY number LIMIT ?",
                (id, after, most),
            ).fetchall()
            working = row is not None and row[0] in WORKING and row[1] > time.time() - STALE_SECONDS
            return found, working or len(found) == most

        return await self.database.do(work)

    def warn(self, error: CannotKeep) -> None:
        """Tell of a failure in the log, once as long as it stays the same."""
        self.database.warn(error)

    def _sweep(self, db: sqlite3.Connection, now: float) -> None:
        self.database.sweep(db, "responses", now - self._seconds, self._most)


def _put_items(
    db: sqlite3.Connection, response: str, first: int, items: Sequence[KeptItem]
) -> None:
    rows = (
        (response, position, item.given, item.id, item.body)
        for position, item in enumerate(items, start=first)
    )
    db.executemany("INSERT INTO items VALUES (?, ?, ?, ?, ?)", rows)
