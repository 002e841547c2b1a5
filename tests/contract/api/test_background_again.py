"""Responses in the background whose server ended: the next one goes on with them."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from api_app import Api, api, check_error, make_settings
from maestrale.api.openai.responses.store import STALE_SECONDS, ResponseStore
from maestrale.keys import add_key
from maestrale.usage import UsageFile
from responses_api import RESPONSES, WEATHER, body, events_of

pytestmark = pytest.mark.anyio

TEXT = "Good day to you, and to everybody else"
SLOW = {"text": TEXT, "tokens_per_second": "40"}
QUICK = {"text": TEXT}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state" / "responses.db"


def settings(file: Path, **fields: Any) -> Any:
    return make_settings(store=True, store_file=file, **fields)


@pytest.fixture
async def left(file: Path) -> AsyncIterator[dict[str, Any]]:
    async with api(settings(file), options=SLOW) as server:
        half = await begin(server)
        await kill(file)
        yield half


async def begin(server: Api, key: dict[str, str] | None = None, **fields: Any) -> dict[str, Any]:
    """One of which something was made: as it is then."""
    sent = body(background=True, temperature=1, max_output_tokens=100, **fields)
    made = (await server.client.post(RESPONSES, json=sent, headers=key)).json()
    await asyncio.sleep(0.3)
    return await get(server, made["id"], key)


async def get(server: Api, id: str, key: dict[str, str] | None = None) -> dict[str, Any]:
    got = await server.client.get(f"{RESPONSES}/{id}", headers=key)
    assert got.status_code == 200, got.text
    return dict(got.json())


async def ended(server: Api, id: str, key: dict[str, str] | None = None) -> dict[str, Any]:
    async with asyncio.timeout(5):
        while (found := await get(server, id, key))["status"] in ("queued", "in_progress"):
            await asyncio.sleep(0.02)
    return found


async def stop() -> None:
    """The server ends while it works on a response."""
    tasks = [
        task
        for task in asyncio.all_tasks()
        if getattr(task.get_coro(), "__qualname__", "") == "Run.run"
    ]
    assert tasks
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def kill(file: Path) -> None:
    """The server is killed while it works on a response, and some time goes by."""

    async def nothing(*args: Any) -> None:
        pass

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ResponseStore, "release", nothing)
        await stop()
    change(file, beat=0)


def change(file: Path, **columns: Any) -> None:
    with sqlite3.connect(file) as db:
        for name, value in columns.items():
            db.execute(f"UPDATE responses SET {name} = ?", (value,))


@pytest.mark.parametrize("fields", [{}, {"tools": [WEATHER], "truncation": "auto"}])
async def test_it_goes_on_in_another_process(file: Path, fields: dict[str, Any]) -> None:
    async with api(settings(file), options=SLOW, tools=True) as first:
        half = await begin(first, **fields)
        await kill(file)
        async with api(settings(file), options=QUICK, tools=True) as second:
            whole = await ended(second, half["id"])
            assert whole["status"] == "completed"
            assert (whole["id"], whole["created_at"]) == (half["id"], half["created_at"])
            assert whole["output"][0]["content"][0]["text"] == TEXT
            items = await second.client.get(f"{RESPONSES}/{half['id']}/input_items")
            assert len(items.json()["data"]) == 1
            # It can be gone on from, with each of its items once.
            more = body(previous_response_id=half["id"], max_output_tokens=1)
            assert (await second.client.post(RESPONSES, json=more)).status_code == 200
        await first.idle()
        assert await get(first, half["id"]) == whole


async def test_a_stream_goes_on_after_the_event_that_was_read(file: Path) -> None:
    async with api(settings(file), options=SLOW) as first:
        sent = body(background=True, stream=True)
        asked = asyncio.create_task(first.client.post(RESPONSES, json=sent))
        await asyncio.sleep(0.3)
        with sqlite3.connect(file) as db:
            [[id]] = db.execute("SELECT id FROM responses").fetchall()
        path, query = f"{RESPONSES}/{id}", {"stream": "true", "starting_after": "3"}
        # One reads already, of the process that is left, and waits through it.
        async with api(settings(file), options=QUICK) as second:
            waiting = asyncio.create_task(second.client.get(path, params=query))
            await kill(file)
            rest = await second.client.get(path, params=query)
            found = events_of(rest.text)
            assert [each["sequence_number"] for each in found] == list(range(4, 4 + len(found)))
            assert found[-1]["type"] == "response.completed"
            assert found[-1]["response"]["output"][0]["content"][0]["text"] == TEXT
            assert events_of((await waiting).text) == found
            head = await second.client.get(path, params={"stream": "true"})
            assert events_of(head.text)[4:] == found
        assert events_of((await asked).text)[4:] == found


async def test_a_stream_waits_for_an_engine_that_is_not_there(file: Path) -> None:
    async with api(settings(file), options=SLOW) as first:
        asked = asyncio.create_task(
            first.client.post(RESPONSES, json=body(background=True, stream=True))
        )
        await asyncio.sleep(0.3)
        with sqlite3.connect(file) as db:
            [[id]] = db.execute("SELECT id FROM responses").fetchall()
        asked.cancel()
        await kill(file)
        change(file, beat=time.time() - STALE_SECONDS + 0.5)
        async with api(settings(file), options=QUICK) as second:
            deployment = second.app._backend.deployments.default
            engine, deployment.engine = deployment.engine, None
            asking = second.client.get(f"{RESPONSES}/{id}", params={"stream": "true"})
            waiting = asyncio.create_task(asking)
            await asyncio.sleep(1.0)
            assert not waiting.done()
            deployment.engine = engine
            assert events_of((await waiting).text)[-1]["type"] == "response.completed"


async def test_a_server_that_is_stopped_leaves_it_to_the_next(file: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    alice, bob = (bearer(add_key(keys, name, tokens_per_day=1000)) for name in ("alice", "bob"))
    async with api(settings(file, key_file=keys), options=SLOW) as first:
        half = await begin(first, alice)
        await stop()
        async with api(settings(file, key_file=keys), options=QUICK) as second:
            other = await second.client.get(f"{RESPONSES}/{half['id']}", headers=bob)
            check_error(other, 404)
            whole = await ended(second, half["id"], alice)
            assert whole["status"] == "completed"
    usage = UsageFile(keys.with_name("usage.db"))
    [row] = usage.read(["key"])
    usage.close()
    assert (row.key, row.requests, row.errors) == ("alice", 1, 0)
    assert row.prompt_tokens == whole["usage"]["input_tokens"]
    assert row.completion_tokens == whole["usage"]["output_tokens"]


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


async def test_who_may_not_or_cannot(left: dict[str, Any], file: Path) -> None:
    async with api(settings(file), options={**QUICK, "fingerprint": "other"}) as second:
        change(file, streams=1)
        found = await get(second, left["id"])
        assert (found["status"], found["error"]["code"]) == ("failed", "server_error")
        assert "begun by another engine" in found["error"]["message"]
        change(file, status="in_progress", beat=0, lives=99)
        assert "Ask again" in (await get(second, left["id"]))["error"]["message"]


async def test_another_engine_begins_anew_what_nobody_read(
    left: dict[str, Any], file: Path
) -> None:
    async with api(settings(file), options={"text": "Else", "fingerprint": "other"}) as second:
        whole = await ended(second, left["id"])
        assert whole["output"][0]["content"][0]["text"] == "Else"


async def test_cancelled_while_nobody_works_on_it(left: dict[str, Any], file: Path) -> None:
    async with api(settings(file), options=QUICK) as second:
        got = await second.client.post(f"{RESPONSES}/{left['id']}/cancel")
        assert got.json()["status"] == "cancelled"
        assert (await get(second, left["id"]))["status"] == "cancelled"


async def test_it_waits_for_an_engine_that_is_not_there(left: dict[str, Any], file: Path) -> None:
    async with api(settings(file), options=QUICK) as second:
        deployment = second.app._backend.deployments.default
        engine, deployment.engine = deployment.engine, None
        check_error(await second.client.get(f"{RESPONSES}/{left['id']}"), 503)
        deployment.engine = engine
        assert (await ended(second, left["id"]))["status"] == "completed"
