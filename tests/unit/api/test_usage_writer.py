"""Usage is written in groups, before an answer ends; and what can't be written is told."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from maestrale.api.accounts import KeyAccounts
from maestrale.api.usage_writer import UsageWriter
from maestrale.errors import RateLimited
from maestrale.keys import Key
from maestrale.usage import UsageFile, UsageRow, day_of

pytestmark = pytest.mark.anyio
TODAY = day_of(time.time())


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Counted(UsageFile):
    """The file, with the number of its transactions."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.writes = 0

    def add(self, rows: Sequence[UsageRow], before: str = "") -> list[UsageRow]:
        self.writes += 1
        return super().add(rows, before)


def row(requests: int = 1, tokens: int = 10, key: str = "alice") -> UsageRow:
    return UsageRow(day=TODAY, key=key, model="m", requests=requests, completion_tokens=tokens)


def sums(path: Path) -> list[tuple[str, int, int]]:
    file = UsageFile(path)
    try:
        return [(each.key, each.requests, each.tokens) for each in file.read(["key"])]
    finally:
        file.close()


async def test_what_is_done_is_on_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "usage.db"
    writer = UsageWriter(UsageFile(path), lambda rows: None)
    for number in range(1, 6):
        await writer.write(row())
        assert sums(path) == [("alice", number, 10 * number)]
    await writer.close()


async def test_many_at_once_are_few_transactions(tmp_path: Path) -> None:
    file = Counted(tmp_path / "usage.db")
    writer = UsageWriter(file, lambda rows: None)
    await asyncio.gather(*(writer.write(row(key=f"k{n % 3}")) for n in range(3000)))
    assert file.writes < 10
    assert sums(file.path) == [(f"k{n}", 1000, 10000) for n in range(3)]
    await writer.close()


def no_folder(path: Path) -> None:
    path.parent.rename(path.parent.with_name("away"))
    path.parent.write_text("no folder")


def a_folder_again(path: Path) -> None:
    path.parent.unlink()
    path.parent.with_name("away").rename(path.parent)


def version(number: int) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with contextlib.closing(sqlite3.connect(path)) as db:
            db.execute(f"PRAGMA user_version = {number}")

    return change


WRONG = {"no folder": (no_folder, a_folder_again), "another version": (version(99), version(1))}


@pytest.mark.parametrize("wrong", WRONG)
async def test_answers_go_on_and_nothing_is_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, wrong: str
) -> None:
    path = tmp_path / "folder" / "usage.db"
    file = UsageFile(path)
    writer = UsageWriter(file, lambda rows: None)
    await writer.write(row())
    file.close()
    spoil, mend = WRONG[wrong]
    spoil(path)
    with caplog.at_level(logging.INFO, "maestrale"):
        for _ in range(5):
            await asyncio.wait_for(writer.write(row()), 5)
        [told] = caplog.messages  # once, not for each
        assert "Answers go on. Not counted so far: requests: 1, tokens: 10, of keys: alice" in told
        mend(path)
        await writer.write(row())
    assert "all that was not counted" in caplog.text
    assert sums(path) == [("alice", 7, 70)]
    await writer.close()


async def test_a_full_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "usage.db"
    file = UsageFile(path)
    writer = UsageWriter(file, lambda rows: None)
    await writer.write(row())
    assert file._database._db is not None
    file._database._db.execute("PRAGMA max_page_count = 1")
    with caplog.at_level(logging.ERROR, "maestrale"):
        await asyncio.wait_for(writer.write(row(key="k" * 20_000)), 5)
    assert "disk is full" in caplog.text
    await writer.write(row())  # on a connection of its own, as if there was room again
    assert [each[1] for each in sums(path)] == [2, 1]
    await writer.close()


async def test_what_is_never_written_is_told_at_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "folder").write_text("no folder")
    writer = UsageWriter(UsageFile(tmp_path / "folder" / "usage.db"), lambda rows: None)
    for key in ("alice", "bob"):
        await writer.write(row(key=key))
    with caplog.at_level(logging.ERROR, "maestrale"):
        await writer.close()
    last = caplog.messages[-1]
    assert "not counted at all: requests: 2, tokens: 20, of keys: alice, bob" in last


async def test_a_broken_file_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "usage.db"
    path.write_bytes(b"no database" * 1000)
    writer = UsageWriter(UsageFile(path), lambda rows: None)
    await writer.write(row())
    assert sums(path) == [("alice", 1, 10)]
    assert len(list(tmp_path.glob("usage.db.broken-*"))) == 1
    await writer.close()


async def test_limits_are_exact_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "usage.db"
    alice = Key(name="alice", sha256="aa" * 32, requests_per_day=3, tokens_per_month=100)
    for left in (2, 1):
        accounts = KeyAccounts(UsageFile(path))
        charge = accounts.reserve(alice, 40, _number(accounts.take_request(alice)))
        assert [each.remaining for each in accounts.levels(alice)] == [
            left,
            100 - 40 - 10 * (2 - left),
        ]
        await accounts.settle(alice, _number(charge), row())
        # No end of this process: what was settled is on the disk.
    accounts = KeyAccounts(UsageFile(path))
    accounts.take_request(alice)
    with pytest.raises(RateLimited):
        accounts.take_request(alice)
    with pytest.raises(RateLimited):
        accounts.reserve(alice, 81)
    assert accounts.reserve(alice, 80) is not None


async def test_a_refused_request_holds_nothing(tmp_path: Path) -> None:
    accounts = KeyAccounts()
    alice = Key(name="alice", sha256="aa" * 32, requests_per_minute=1, requests_per_day=5)
    accounts.take_request(alice)
    for _ in range(5):
        with pytest.raises(RateLimited, match="a minute"):
            accounts.take_request(alice)
    day = next(each for each in accounts.levels(alice) if each.window == "day")
    assert day.remaining == 4


def _number(charge: object) -> int | None:
    return getattr(charge, "number", None)
