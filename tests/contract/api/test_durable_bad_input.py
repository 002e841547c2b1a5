"""Streams that are asked for by the wrong key, of a wrong model, from a wrong place on."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from api_app import CHAT, Api, api, chat_body, check_error
from durable_api import (
    BODIES,
    ONCE,
    SLOW,
    STREAMS,
    durable,
    events_of,
    kept,
    ledger_of,
    rest,
    settings,
    stream,
)
from maestrale.keys import add_key, read_keys, revoke_key, write_keys

pytestmark = pytest.mark.anyio


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state" / "responses.db"


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


@pytest.mark.parametrize("place", [f"{STREAMS}/ID", "retry"])
async def test_a_key_that_may_not_ask_the_model_any_more(
    file: Path, tmp_path: Path, place: str
) -> None:
    """Nor may it read what the model told it; a key that is revoked is none."""
    keys = tmp_path / "keys.json"
    mine = bearer(add_key(keys, "me"))
    body, headers, id = chat_body(stream=True), mine | ONCE, ""

    async def ask(server: Api) -> Any:
        if place == "retry":
            return await server.client.post(CHAT, json=body, headers=headers)
        return await rest(server, id, None, **mine)

    async def refused(server: Api, status: int) -> dict[str, Any]:
        async with asyncio.timeout(10):  # the file is read again from time to time
            while (answer := await ask(server)).status_code == 200:
                await asyncio.sleep(0.05)
        return check_error(answer, status)

    async with durable(file, key_file=keys) as first:
        got = await first.client.post(CHAT, json=body, headers=headers)
        id = got.headers["x-stream-id"]
        assert (await ask(first)).text == got.text
        write_keys(keys, [structs.replace(each, models=("other",)) for each in read_keys(keys)])
        assert (await refused(first, 403))["code"] == "model_not_allowed"
    async with durable(file, key_file=keys) as second:
        assert (await refused(second, 403))["code"] == "model_not_allowed"
    write_keys(keys, [structs.replace(each, models=()) for each in read_keys(keys)])
    async with durable(file, key_file=keys) as third:
        assert (await ask(third)).text == got.text
        add_key(keys, "you")
        revoke_key(keys, "me")
        await refused(third, 401)


@pytest.mark.parametrize("kind", ["chat", "messages"])
async def test_a_model_that_is_gone(file: Path, kind: str) -> None:
    path, body = BODIES[kind]
    async with durable(file, served_model_name=("first", "second")) as first:
        got = await stream(first, path, {**body, "model": "second"})
        whole = await first.client.post(path, json={**body, "model": "second"}, headers=ONCE)
    id = got.headers["x-stream-id"]
    with contextlib.closing(sqlite3.connect(ledger_of(file))) as db:
        db.execute("UPDATE answers SET ended = 0 WHERE key IS NULL")
        db.commit()
    async with durable(file, served_model_name=("first",)) as second:
        refused = await rest(second, id, 0)
        assert refused.status_code == 410, refused.text
        assert refused.json()["error"]["type"] == "invalid_request_error"
        assert "its request is refused by now" in refused.text
        assert "second" in refused.text
        # What is whole needs no model.
        again = await second.client.post(path, json={**body, "model": "second"}, headers=ONCE)
        assert again.content == whole.content


async def test_an_answer_with_a_key_that_another_engine_had_begun(file: Path) -> None:
    """It says what to do about it: the same key would be refused again."""
    async with durable(file) as first:
        await first.chat()
        await first.client.post(CHAT, json=chat_body(), headers=ONCE)
    with contextlib.closing(sqlite3.connect(ledger_of(file))) as db:
        db.execute("UPDATE answers SET ended = 0, output = NULL")
        db.commit()
    async with durable(file, {"fingerprint": "fp_other"}) as second:
        refused = await second.client.post(CHAT, json=chat_body(), headers=ONCE)
        assert "another Idempotency-Key" in check_error(refused, 410)["message"]


@pytest.mark.parametrize(
    "last", ["", "abc", "-1", "1.5", "9" * 10, "9" * 400, "\u00b2", "1 2", "0x1", "1_0"]
)
async def test_last_event_ids_that_are_none(file: Path, last: str) -> None:
    async with durable(file) as server:
        got = await stream(server, CHAT, chat_body())
        place = f"{STREAMS}/{got.headers['x-stream-id']}"
        header = [(b"last-event-id", last.encode())]
        if not last:  # as an EventSource sends that has read nothing
            assert (await server.client.get(place, headers=header)).text == got.text
        else:
            check_error(await server.client.get(place, headers=header), 400, "starting_after")
        answer = await server.client.get(place, params={"starting_after": last})
        check_error(answer, 400, "starting_after")
        both = await server.client.get(place, params={"starting_after": 1}, headers=header)
        assert both.status_code == (400 if last else 200)


@pytest.fixture
async def slow(file: Path) -> AsyncIterator[Api]:
    async with api(settings(file), options=SLOW, over_http=True) as server:
        yield server


async def test_deleted_while_others_read_it(slow: Api, file: Path) -> None:
    """Their connections are cut, not ended: what they have is not whole."""
    ids: list[str] = []

    async def read(method: str, place: str, **more: Any) -> str:
        got = ""
        with contextlib.suppress(Exception):
            async with slow.client.stream(method, place, **more) as answer:
                ids.append(answer.headers["x-stream-id"])
                async for text in answer.aiter_text():
                    got += text
        return got

    first = asyncio.create_task(read("POST", CHAT, json=chat_body(stream=True)))
    while not ids:
        await asyncio.sleep(0.01)
    second = asyncio.create_task(read("GET", f"{STREAMS}/{ids[0]}"))
    while len(ids) < 2:
        await asyncio.sleep(0.01)
    assert (await slow.client.delete(f"{STREAMS}/{ids[0]}")).status_code == 200
    for got in await asyncio.gather(first, second):
        assert "[DONE]" not in got
    assert kept(file) == []
    check_error(await rest(slow, ids[0]), 404)


async def test_what_the_first_bytes_promise_is_on_the_disk(
    slow: Api, file: Path, tmp_path: Path
) -> None:
    """The ledger as it is when a first event is read: from it the stream can be had."""

    async def ask(number: int) -> tuple[str, str, Path]:
        body, got, copied = chat_body(stream=True, seed=number), "", tmp_path / f"copy{number}"
        async with slow.client.stream("POST", CHAT, json=body) as answer:
            async for text in answer.aiter_text():
                if not got:
                    copied.mkdir()
                    for each in sorted(file.parent.glob("*"), reverse=True):  # the log first
                        if not each.name.endswith("-shm"):
                            shutil.copy(each, copied)
                got += text
            return answer.headers["x-stream-id"], got, copied

    for id, got, copied in await asyncio.gather(*map(ask, range(4))):
        async with durable(copied / file.name, SLOW | {"tokens_per_second": "9999"}) as server:
            again = await rest(server, id, 3)
            assert again.status_code == 200, again.text
            assert again.text == "".join(events_of(got)[4:])


async def test_a_ledger_that_breaks_under_way(file: Path) -> None:
    """Its file is overwritten: what was in it is lost, and what comes is kept in a new one."""
    async with durable(file) as server:
        old = await stream(server, CHAT, chat_body())
        for each in file.parent.glob("*.ledger.db*"):
            each.write_bytes(b"nothing" * 4096)
        new = await stream(server, CHAT, chat_body())
        assert new.text.endswith("data: [DONE]\n\n")
        newer = await stream(server, CHAT, chat_body())
        assert "x-stream-id" in newer.headers
        assert (await rest(server, newer.headers["x-stream-id"])).text == newer.text
        # Held in memory still.
        assert (await rest(server, old.headers["x-stream-id"])).text == old.text
