"""A loss of power leaves the ledger as the last sync left it: each state of its files is tried."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct

from maestrale.durable.ledger import Entry, Facts, Ledger, Output

pytestmark = pytest.mark.anyio
PAGE = 4096
FRAME = 24 + PAGE  # of the log of writes (sqlite.org/walformat.html)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def entry(number: int) -> Entry:
    body = b"%d " % number * (number * 397 % 3000)
    facts = Facts(answer=str(number), created=1, seed=number)
    return Entry(
        id=f"stream-{number}", owner="-", key=None, digest=b"d", path="/p", body=body, facts=facts
    )


class State(Struct, frozen=True):
    """The files after a commit, and the rows that they had."""

    database: bytes
    log: bytes
    found: list[Any]


class Written:
    """A ledger under load, and its states after each commit."""

    def __init__(self, file: Path) -> None:
        self.ledger = Ledger(file, most_bytes=1 << 30)
        self.states: list[State] = []
        log, commit = Path(f"{file}-wal"), self.ledger.database._group

        def noted(works: Sequence[Any]) -> list[Any]:
            outcomes = commit(works)
            self.states.append(State(file.read_bytes(), log.read_bytes(), rows(file)))
            return outcomes

        self.ledger.database._group = noted  # type: ignore[method-assign]

    async def ask(self, number: int) -> None:
        """A request from its first byte to its end, or to its being let go of."""
        each = entry(number)
        assert await self.ledger.add(each)
        self.ledger.mark(each.id, 1, 5, now=True)
        if number % 3 == 0:
            await self.ledger.end(each.id, 2, 5, Output(200, [], [b"answer" * number]))
        elif number % 10 == 5:
            await self.ledger.forget(each.id, "-")


def rows(file: Path) -> list[Any]:
    with contextlib.closing(sqlite3.connect(file)) as db:
        columns = "id, sent, ended, length(body), length(output)"
        return db.execute(f"SELECT {columns} FROM answers ORDER BY id").fetchall()


async def check(folder: Path, database: bytes, log: bytes, wanted: list[Any]) -> None:
    """A server that starts on these files finds these rows, and goes on."""
    folder.mkdir()
    file = folder / "ledger.db"
    file.write_bytes(database)
    Path(f"{file}-wal").write_bytes(log)
    ledger = Ledger(file, most_bytes=1 << 30)
    ledger.database.check()
    assert rows(file) == wanted
    for id, *_ in wanted[:2]:
        kept = await ledger.find(id, "-")
        assert kept is not None
        assert kept.body == entry(int(id.rpartition("-")[2])).body
    assert await ledger.add(entry(999))
    assert not list(folder.glob("*.broken*"))


async def test_the_files_as_of_any_sync(tmp_path: Path) -> None:
    written = Written(tmp_path / "ledger.db")
    pragma = "PRAGMA synchronous"
    synced = await written.ledger.database.do(lambda db: db.execute(pragma).fetchone())
    assert synced == (2,)  # FULL: each commit is synced before it is told
    for first in (0, 4, 8):
        await asyncio.gather(*(written.ask(number) for number in range(first, first + 4)))
    assert len(written.states) > 6
    for number, (state, then) in enumerate(itertools.pairwise(written.states)):
        more = then.log[len(state.log) :] if then.log.startswith(state.log) else b""
        # Of the next commit, which was not synced: nothing, part of a frame, all frames but one.
        of_it = (0, FRAME // 2, max(0, len(more) - FRAME))[number % 3]
        log = state.log + more[:of_it]
        await check(tmp_path / str(number), state.database, log, state.found)


async def test_the_files_in_the_middle_of_a_checkpoint(tmp_path: Path) -> None:
    """It writes the log into the file: some pages are there by then, and some are not."""
    file = tmp_path / "ledger.db"
    written = Written(file)
    await asyncio.gather(*(written.ask(number) for number in (*range(5), *range(6, 10))))
    last = written.states[-1]
    with contextlib.closing(sqlite3.connect(file)) as db:
        db.execute("PRAGMA wal_checkpoint(PASSIVE)")
        after = file.read_bytes()
    assert len(after) > len(last.database)
    for which in (2, 3):
        pages = (
            (after if number % which else last.database)[at : at + PAGE].ljust(PAGE, b"\0")
            for number, at in enumerate(range(0, len(after), PAGE))
        )
        await check(tmp_path / str(which), b"".join(pages), last.log, last.found)
