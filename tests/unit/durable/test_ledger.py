"""The ledger of requests: whose they are, how far they were sent, how long they stay."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from maestrale.durable import database, ledger
from maestrale.durable.database import CannotKeep
from maestrale.durable.ledger import Entry, Facts, Ledger, Output

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def kept(file: Path) -> Ledger:
    return Ledger(file, most_bytes=1 << 20)


def entry(id: str = "a", **fields: Any) -> Entry:
    given = {"owner": "me", "key": None, "digest": b"d", "path": "/p", "body": b"{}", **fields}
    return Entry(id=id, facts=Facts(answer="x", created=1, seed=2**64 - 1), **given)


async def test_an_entry_comes_back_as_it_was(kept: Ledger) -> None:
    first = entry(key="once")
    assert await kept.add(first)
    assert await kept.find("a", "me") == first
    assert await kept.find_key("once", "me") == first
    for nobody in (kept.find("a", "you"), kept.find_key("once", "you"), kept.find("b", "me")):
        assert await nobody is None
    output = Output(200, [(b"x", b"y")], [b"one", b"two"])
    await kept.end("a", 2, 7, output)
    found = await kept.find("a", "me")
    assert found is not None
    assert (found.sent, found.cached, found.ended, found.output) == (2, 7, True, output)


async def test_a_key_is_taken_once(kept: Ledger, file: Path) -> None:
    other = Ledger(file, most_bytes=1 << 20)  # of another process
    assert await kept.add(entry("a", key="once"))
    assert not await other.add(entry("b", key="once"))
    assert await other.add(entry("c", key="once", owner="you"))
    assert await other.add(entry("d", key=None))
    assert await kept.forget("a", "me")
    assert await other.add(entry("b", key="once"))


async def test_marks_are_written_soon(
    kept: Ledger, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "MARK_SECONDS", 0.05)
    await kept.add(entry())
    kept.mark("a", 1, 5, now=True)
    kept.mark("a", 2, 5)
    kept.mark("a", 3, 5)
    async with asyncio.timeout(5):
        while (found := await kept.find("a", "me")) is None or found.sent != 3:
            await asyncio.sleep(0.01)
    assert found.cached == 5
    assert not found.ended


async def test_a_key_is_charged_for_each_token_once(kept: Ledger, file: Path) -> None:
    other = Ledger(file, most_bytes=1 << 20)
    await kept.add(entry())
    charged = [
        await each.charge("a", tokens) for each, tokens in ((kept, 5), (other, 3), (kept, 9))
    ]
    assert charged == [None, 5, 5]
    found = await kept.find("a", "me")
    assert found is not None
    assert found.counted == 9
    assert await kept.charge("another", 1) is None


async def test_nothing_is_made_to_charge_for_what_is_not_kept(file: Path) -> None:
    for path in (None, file):
        assert await Ledger(path, most_bytes=1 << 20).charge("a", 1) is None
    assert not file.exists()


async def test_it_goes_an_hour_after_the_last_that_was_heard(
    kept: Ledger, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for id in ("old", "marked"):
        await kept.add(entry(id, key=id))
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3000)
    kept.mark("marked", 1, None, now=True)
    await asyncio.sleep(0)
    await kept.find("marked", "me")
    monkeypatch.setattr(time, "time", lambda: now + 3700)
    assert await kept.find("old", "me") is None
    assert await kept.find("marked", "me") is not None
    assert await kept.add(entry("new", key="old"))
    with contextlib.closing(sqlite3.connect(file)) as db:
        assert sorted(db.execute("SELECT id FROM answers")) == [("marked",), ("new",)]


async def test_all_together_stay_below_a_size(
    kept: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "SWEEP_SECONDS", 0.0)
    for number in range(40):
        await kept.add(entry(str(number), body=b"x" * 65536))
    left = [number for number in range(40) if await kept.find(str(number), "me") is not None]
    assert left == list(range(40 - len(left), 40))
    assert 8 <= len(left) <= 16


async def test_a_row_that_nobody_here_wrote(kept: Ledger, file: Path) -> None:
    await kept.add(entry())
    with contextlib.closing(sqlite3.connect(file)) as db:
        db.execute("UPDATE answers SET facts = x'00'")
        db.commit()
    with pytest.raises(CannotKeep, match="a row is broken"):
        await kept.find("a", "me")
