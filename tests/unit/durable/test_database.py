"""Files of SQLite on an event loop: groups in one commit, one faulty work, nobody who waits."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from maestrale.database import Layout
from maestrale.durable.database import AsyncDatabase, CannotKeep

pytestmark = pytest.mark.anyio

LAYOUT = Layout(steps=("CREATE TABLE numbers (number INTEGER)",), setting="--file")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def database(tmp_path: Path) -> AsyncDatabase:
    return AsyncDatabase(tmp_path / "numbers.db", LAYOUT, what="The numbers")


def add(number: int) -> Any:
    def work(db: sqlite3.Connection) -> int:
        db.execute("INSERT INTO numbers VALUES (?)", (number,))
        return number

    return work


def count(db: sqlite3.Connection) -> int:
    return int(db.execute("SELECT count(*) FROM numbers").fetchone()[0])


def changes(db: sqlite3.Connection) -> int:
    """Goes up with each commit of another connection."""
    return int(db.execute("PRAGMA data_version").fetchone()[0])


async def test_what_comes_at_once_is_one_commit(database: AsyncDatabase, tmp_path: Path) -> None:
    await database.do(count)
    other = sqlite3.connect(tmp_path / "numbers.db")
    versions = [changes(other)]
    results = await asyncio.gather(*(database.do(add(number)) for number in range(100)))
    versions.append(changes(other))
    assert results == list(range(100))
    assert count(other) == 100
    # The first one was written at once, the others together.
    assert versions[1] - versions[0] <= 2
    other.close()


async def test_a_faulty_work_leaves_the_others_alone(database: AsyncDatabase) -> None:
    def faulty(db: sqlite3.Connection) -> None:
        add(99)(db)
        raise ValueError("mine")

    works = [database.do(add(1)), database.do(add(2)), database.do(faulty), database.do(add(3))]
    found = await asyncio.gather(*works, return_exceptions=True)
    assert [str(each) for each in found] == ["1", "2", "mine", "3"]
    assert await database.do(count) == 3


async def test_what_nobody_waits_for_any_more_is_not_done(database: AsyncDatabase) -> None:
    first = asyncio.create_task(database.do(count))
    given_up = asyncio.create_task(database.do(add(1)))
    await asyncio.sleep(0)
    given_up.cancel()
    await first
    assert await database.do(count) == 0


async def test_after_a_failure_nobody_waits_again(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    resting = AsyncDatabase(path, LAYOUT, what="The numbers", rests=60.0)
    for _ in range(2):
        with pytest.raises(CannotKeep, match="The numbers can't be used"):
            await resting.do(count)
        path.rmdir() if path.exists() else None  # mended, and yet not tried at once
    awake = AsyncDatabase(path, LAYOUT, what="The numbers")
    assert await awake.do(count) == 0


async def test_without_a_file() -> None:
    nothing = AsyncDatabase(None, LAYOUT, what="The numbers")
    assert not nothing.enabled
    with pytest.raises(CannotKeep, match="--no-store"):
        await nothing.do(count)


def test_a_file_is_checked_before_it_is_used(tmp_path: Path) -> None:
    AsyncDatabase(tmp_path / "numbers.db", LAYOUT, what="The numbers").check()
    with pytest.raises(CannotKeep, match=r"The numbers can't be used: .*no file"):
        AsyncDatabase(Path("/dev/null"), LAYOUT, what="The numbers").check()
