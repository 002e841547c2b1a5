"""Requests that leave nothing: `Cache-Control: no-store`, `store: false`, and those that asked for
nothing to be kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from api_app import CHAT, MODEL, Api, api, chat_body, check_error
from durable_api import ONCE, SLOW, STREAMS, durable, kept, ledger_of, rest, settings, stream
from maestrale.durable import database
from responses_api import RESPONSES

pytestmark = pytest.mark.anyio
SECRET = "Sesame " * 30
NO_STORE = {"cache-control": "max-age=0, No-Store"}
ASKED = [{"role": "user", "content": SECRET}]
REQUESTS: dict[str, dict[str, Any]] = {
    CHAT: {"model": MODEL, "messages": ASKED, "max_tokens": 9},
    "/v1/completions": {"model": MODEL, "prompt": SECRET, "max_tokens": 9},
    "/v1/fim/completions": {"model": MODEL, "prompt": SECRET, "max_tokens": 9},
    "/v1/messages": {"model": MODEL, "messages": ASKED, "max_tokens": 9},
    RESPONSES: {"model": MODEL, "input": SECRET, "max_output_tokens": 9},
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state" / "responses.db"


def left_in(file: Path) -> bool:
    """Whether anything of the prompt is in any file."""
    files = file.parent.iterdir() if file.parent.exists() else ()
    return any(b"Sesame" in each.read_bytes() for each in files)


async def all_of(server: Api, **headers: str) -> None:
    """Each request, whole and as a stream."""
    for path, body in REQUESTS.items():
        for streams in (False, True):
            got = await server.client.post(path, json={**body, "stream": streams}, headers=headers)
            assert got.status_code == 200, got.text
            assert "x-stream-id" not in got.headers


async def test_one_request_leaves_nothing(file: Path) -> None:
    async with api(settings(file), fills=True) as server:
        await all_of(server, **NO_STORE)
        assert kept(file) == []
        assert not left_in(file)
        response = await server.client.post(RESPONSES, json=REQUESTS[RESPONSES], headers=NO_STORE)
        assert response.json()["store"] is False
        gone = await server.client.get(f"{RESPONSES}/{response.json()['id']}")
        assert gone.status_code == 404
        background = {**REQUESTS[RESPONSES], "background": True}
        refused = await server.client.post(RESPONSES, json=background, headers=NO_STORE)
        assert "no-store" in check_error(refused, 400, "background")["message"]
        # And without it, there is something to be found.
        await server.client.post(CHAT, json={**REQUESTS[CHAT], "stream": True})
        assert left_in(file)


@pytest.mark.parametrize("how", [{"store": False}, {"durable": False}])
async def test_nothing_is_kept_of_who_did_not_ask(file: Path, how: dict[str, bool]) -> None:
    """But for responses, which are kept unless they say otherwise."""
    async with api(settings(file, **{"durable": False, **how}), fills=True) as server:
        for path, body in REQUESTS.items():
            for streams in (False, True):
                asked = {**body, "stream": streams}
                if path == RESPONSES and server.app._backend.settings.store:
                    asked["store"] = False
                assert (await server.client.post(path, json=asked)).status_code == 200
        assert not ledger_of(file).exists()
        assert not left_in(file)


ALIKE: dict[str, tuple[str, dict[str, Any], dict[str, str]]] = {
    "header": (CHAT, REQUESTS[CHAT], NO_STORE),
    "stream": (CHAT, {**REQUESTS[CHAT], "stream": True}, NO_STORE),
    "field": (CHAT, {**REQUESTS[CHAT], "store": False}, {}),
    "messages": ("/v1/messages", REQUESTS["/v1/messages"], NO_STORE),
    "tokens": ("/tokenize", {"model": MODEL, "prompt": SECRET}, NO_STORE),
}


@pytest.mark.parametrize("kind", ALIKE)
async def test_a_key_is_good_where_nothing_is_kept(file: Path, kind: str) -> None:
    """The ledger has a digest of the request; who asks again brings the request itself."""
    path, body, headers = ALIKE[kind]
    headers = headers | ONCE
    async with durable(file) as first:
        got = [await first.client.post(path, json=body, headers=headers) for _ in range(2)]
        assert got[0].status_code == 200
        assert got[0].content == got[1].content
        assert got[1].headers["idempotent-replayed"] == "true"
        assert not left_in(file)
    async with durable(file) as second:
        again = await second.client.post(path, json=body, headers=headers)
        assert again.content == got[0].content
        assert again.headers["idempotent-replayed"] == "true"
        other = await second.client.post(path, json={**body, "user": "me"}, headers=headers)
        assert other.status_code == 409
        assert not left_in(file)
        assert len(kept(file)) == 1
    if "x-stream-id" in got[0].headers:
        async with durable(file) as third:
            check_error(await rest(third, got[0].headers["x-stream-id"]), 404)


async def test_what_is_too_old_goes_from_all_files_though_nobody_asks(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with durable(file, durable_minutes=0.01) as server:
        body = {"model": MODEL, "messages": ASKED, "max_tokens": 9}
        await server.client.post(CHAT, json=body, headers=ONCE)
        await stream(server, CHAT, body)
        assert left_in(file)
        monkeypatch.setattr("maestrale.api.backend.SWEEP_SECONDS", 0.05)
        tidying = asyncio.create_task(server.app._backend.tend())
        async with asyncio.timeout(5):
            while left_in(file):
                await asyncio.sleep(0.05)
        tidying.cancel()
        assert kept(file) == []


async def test_what_is_deleted_goes_when_nobody_reads_the_log_any_more(file: Path) -> None:
    async with durable(file) as server:
        got = await stream(server, CHAT, REQUESTS[CHAT])
        with contextlib.closing(sqlite3.connect(ledger_of(file))) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT * FROM answers").fetchall()
            gone = await server.client.delete(f"{STREAMS}/{got.headers['x-stream-id']}")
            assert gone.status_code == 200
            assert left_in(file)  # another process still reads what was
        await server.app._backend.streams.tidy()
        assert not left_in(file)


async def test_what_is_still_made_is_not_too_old(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "SWEEP_SECONDS", 0.0)
    async with api(settings(file, durable_minutes=0.01), options=SLOW, over_http=True) as server:
        asking = asyncio.create_task(server.client.post(CHAT, json=chat_body(), headers=ONCE))
        while not kept(file):
            await asyncio.sleep(0.01)
        while not asking.done():
            await server.app._backend.streams.tidy()
            await asyncio.sleep(0.1)
            assert len(kept(file)) == 1
        again = await server.client.post(CHAT, json=chat_body(), headers=ONCE)
        assert again.content == (await asking).content
        assert again.headers["idempotent-replayed"] == "true"
