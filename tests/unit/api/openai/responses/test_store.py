"""The file of kept responses: whose they are, how long, how much, and what several writers do."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from maestrale.api.openai.responses import store as module
from maestrale.api.openai.responses.store import KeptItem, ResponseStore
from maestrale.durable import database
from maestrale.durable.database import CannotKeep

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "responses.db"


@pytest.fixture
def store(file: Path) -> ResponseStore:
    return ResponseStore(file, days=30, most_bytes=1 << 30)


def written(file: Path) -> bytes:
    """The file, with what was written beside it."""
    with contextlib.closing(sqlite3.connect(file)) as db:
        assert db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
    return file.read_bytes()


async def add(store: ResponseStore, id: str, owner: str = "me", **fields: Any) -> None:
    given = {"previous": None, "status": "completed", "body": b"{}", **fields}
    items = given.pop("items", [KeptItem(f"in-{id}", b"in"), KeptItem(f"out-{id}", b"out", False)])
    await store.add(id=id, owner=owner, items=items, **given)


async def chain(store: ResponseStore, id: str, owner: str = "me", *, whole: bool = True) -> Any:
    found = await store.conversation(id, owner, with_output=whole)
    return None if found is None else [item.id for item in found]


async def test_conversations_are_chains(store: ResponseStore) -> None:
    await add(store, "a")
    await add(store, "b", previous="a")
    await add(store, "c", previous="b")
    await add(store, "other", previous="a")
    assert await chain(store, "c") == ["in-a", "out-a", "in-b", "out-b", "in-c", "out-c"]
    assert await chain(store, "b", whole=False) == ["in-a", "out-a", "in-b"]
    assert await chain(store, "other") == ["in-a", "out-a", "in-other", "out-other"]
    assert await chain(store, "c", "you") is None
    assert await store.delete("a", "you") is False
    assert await store.delete("a", "me") is True
    assert await chain(store, "c") is None
    assert await store.items(["in-a", "in-b", "nope"], "me") == {"in-b": b"in"}
    assert await store.items(["in-b"], "you") == {}


async def test_a_long_conversation(store: ResponseStore) -> None:
    for number in range(1200):
        await add(store, str(number), previous=str(number - 1) if number else None)
    assert len(await chain(store, "1199")) == 2400


async def test_what_is_old_goes_and_what_is_used_stays(
    store: ResponseStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for id in ("old", "root"):
        await add(store, id)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 29 * 86400)
    await add(store, "leaf", previous="root")
    monkeypatch.setattr(time, "time", lambda: now + 31 * 86400)
    assert await store.get("old", "me") is None
    assert await store.get("root", "me") is not None
    assert await store.items(["in-old", "in-root"], "me") == {"in-root": b"in"}
    assert await chain(store, "leaf") == ["in-root", "out-root", "in-leaf", "out-leaf"]


async def test_all_together_stay_below_a_size(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "SWEEP_SECONDS", 0.0)
    store = ResponseStore(file, days=30, most_bytes=1 << 20)
    for number in range(60):
        await add(store, str(number), body=b"x" * 65536)
    left = [number for number in range(60) if await store.get(str(number), "me") is not None]
    assert left == list(range(60 - len(left), 60))  # the newest
    assert 8 <= len(left) <= 16
    assert b"x" * 1000 in (left_there := written(file))
    assert len(left_there) < 3 << 20


async def test_what_is_deleted_is_not_in_the_file(store: ResponseStore, file: Path) -> None:
    await add(store, "a", body=b"SECRET" * 1000, items=[KeptItem("i", b"PROMPT" * 1000)])
    await store.delete("a", "me")
    left = written(file)
    assert b"SECRET" not in left
    assert b"PROMPT" not in left


async def test_progress_and_events(store: ResponseStore) -> None:
    await add(store, "a", status="queued", streams=True, items=[KeptItem("i", b"in")])
    assert await store.events("a", -1, 10) == ([], True)
    sent = [(0, b"zero"), (1, b"one"), (2, b"two")]
    assert await store.update("a", "in_progress", b"{1}", events=sent)
    assert await store.events("a", -1, 2) == (sent[:2], True)
    assert await store.events("a", 1, 2) == (sent[2:], True)
    output = [KeptItem("o", b"out", False)]
    assert await store.update("a", "completed", b"{2}", events=[(3, b"three")], items=output)
    assert await store.events("a", 2, 2) == ([(3, b"three")], False)
    kept = await store.get("a", "me")
    assert kept is not None
    assert (kept.status, kept.body, kept.streams, kept.alive) == ("completed", b"{2}", True, True)
    assert await chain(store, "a") == ["i", "o"]


async def test_cancelled_and_deleted_ones_do_not_go_on(store: ResponseStore) -> None:
    await add(store, "a", status="in_progress")
    await store.cancel("a", "you")
    assert await store.update("a", "in_progress", b"{}") is True
    await store.cancel("a", "me")
    assert await store.update("a", "in_progress", b"{}") is False
    await store.delete("a", "me")
    assert await store.update("a", "in_progress", b"{}", events=[(0, b"x")]) is False


async def test_who_has_not_written_for_long_is_dead(
    store: ResponseStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await add(store, "a", status="in_progress")
    await add(store, "b")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + module.STALE_SECONDS + 1)
    for id, alive in (("a", False), ("b", True)):
        kept = await store.get(id, "me")
        assert kept is not None
        assert kept.alive is alive
    assert await store.events("a", -1, 10) == ([], False)


async def test_one_process_goes_on_with_what_another_left(
    store: ResponseStore, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = ResponseStore(file, days=30, most_bytes=1 << 30)
    await add(store, "a", status="in_progress", request=b"PROMPT")
    await add(store, "old", status="in_progress")  # of an earlier version
    assert await other.claim("a", "me") is None  # it is worked on
    later = time.time()
    for life in range(1, module.MOST_LIVES):
        later += module.STALE_SECONDS + 1
        monkeypatch.setattr(time, "time", lambda now=later: now)
        assert await store.claim("a", "you") is None
        assert await other.claim("old", "me") is None
        claims = await asyncio.gather(*(each.claim("a", "me") for each in (store, other)))
        assert sorted(claims, key=bool) == [None, b"PROMPT"], life
    later += module.STALE_SECONDS + 1
    assert await store.claim("a", "me") is None  # whoever works on it dies
    await store.release("a", b"PROMPT again")
    assert await other.claim("a", "me") == b"PROMPT again"
    assert b"PROMPT" in written(file)
    assert await other.update("a", "completed", b"{}", items=[KeptItem("i", b"")])
    assert b"PROMPT" not in written(file)
    # What ended stays as it ended, whoever thinks that it goes on.
    assert await store.update("a", "in_progress", b"{}", items=[KeptItem("j", b"")]) is False
    await store.release("a")
    kept = await store.get("a", "me")
    assert kept is not None
    assert (kept.status, kept.alive) == ("completed", True)


async def test_a_file_of_the_version_before(file: Path) -> None:
    with contextlib.closing(sqlite3.connect(file)) as db:
        db.executescript(f"{module.SCHEMA}; PRAGMA user_version = 1")
        row = ("a", "me", None, "completed", 9e9, 0, 0, 0, 2, b"{}")
        db.execute(f"INSERT INTO responses VALUES ({', '.join('?' * len(row))})", row)
        db.commit()
    store = ResponseStore(file, days=30, most_bytes=1 << 30)
    assert await store.get("a", "me") is not None
    await add(store, "b", request=b"x", status="queued")
    with contextlib.closing(sqlite3.connect(file)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (2,)


async def test_several_writers_at_once(file: Path) -> None:
    stores = [ResponseStore(file, days=30, most_bytes=1 << 30) for _ in range(4)]
    await asyncio.gather(
        *(add(store, f"{place}-{n}") for place, store in enumerate(stores) for n in range(50))
    )
    for place in range(4):
        assert await stores[0].get(f"{place}-49", "me") is not None


async def test_a_file_that_is_mended_is_used_again(store: ResponseStore, file: Path) -> None:
    file.mkdir()
    with pytest.raises(CannotKeep, match="directory"):
        await add(store, "a")
    file.rmdir()
    await add(store, "a")
    assert await store.get("a", "me") is not None


async def test_a_full_disk(store: ResponseStore, file: Path) -> None:
    await add(store, "a")

    def shrink(db: sqlite3.Connection) -> None:
        db.execute("COMMIT")
        db.execute("PRAGMA max_page_count = 1")
        db.execute("BEGIN")

    await store.database.do(shrink)
    with pytest.raises(CannotKeep, match="full"):
        await add(store, "b", body=b"x" * 1_000_000)
    assert await store.get("b", "me") is None
    assert await store.get("a", "me") is not None
