"""Streams that are gone on with, and requests with an Idempotency-Key."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sqlite3
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from api_app import CHAT, Api, api, chat_body, check_error, check_error_of_path
from durable_api import (
    BODIES,
    ENDED,
    ONCE,
    SLOW,
    SPOILT,
    STREAMED,
    STREAMS,
    durable,
    events_of,
    kept,
    ledger_of,
    rest,
    settings,
    stream,
)
from maestrale.api.durable import streams
from maestrale.durable import ledger
from maestrale.keys import add_key
from maestrale.logs import FIELDS, REQUESTS

pytestmark = pytest.mark.anyio


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state" / "responses.db"


@pytest.fixture
async def server(file: Path) -> AsyncIterator[Api]:
    async with durable(file) as server:
        yield server


@pytest.mark.parametrize("kind", STREAMED)
async def test_a_stream_is_the_same_in_another_process(file: Path, kind: str) -> None:
    path, body = STREAMED[kind]
    async with durable(file) as first:
        got = await stream(first, path, body)
        id, events = got.headers["x-stream-id"], events_of(got.text)
        assert [event.splitlines()[0] for event in events] == [
            f"id: {number}" for number in range(len(events))
        ]
        again = await rest(first, id, 2)
        assert again.text == "".join(events[3:])
    async with durable(file) as second:  # that has not seen it
        for after in (None, 0, len(events) - 3):
            again = await rest(second, id, after)
            assert again.status_code == 200, again.text
            wanted = "".join(events[0 if after is None else after + 1 :])
            assert ENDED.sub("", again.text) == ENDED.sub("", wanted)
            assert again.headers["x-stream-id"] == id
            assert again.headers["x-seed"] == got.headers["x-seed"]
            assert again.headers["content-type"].startswith("text/event-stream")


async def test_without_durable_nothing_is_numbered_or_kept(file: Path) -> None:
    async with durable(file, durable=False) as server:
        got = await stream(server, CHAT, chat_body())
        assert "x-stream-id" not in got.headers
        assert "id:" not in got.text
        assert not ledger_of(file).exists()


async def test_answers_that_cannot_be_asked_for_again_are_not_kept(server: Api, file: Path) -> None:
    assert (await server.chat()).status_code == 200
    check_error(await server.chat(temperature=9), 400)
    for path, body in (BODIES["chat"], BODIES["responses"]):
        got = await stream(server, path, {**body, "store": False})
        assert "x-stream-id" not in got.headers
    assert kept(file) == []


async def test_what_is_kept_and_with_which_rights(server: Api, file: Path) -> None:
    got = await stream(server, CHAT, chat_body())
    await asyncio.sleep(0)
    count = len(events_of(got.text))
    assert kept(file) == [(got.headers["x-stream-id"], count, 1, 0)]
    for each in ledger_of(file).parent.iterdir():
        assert stat.S_IMODE(each.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


async def test_past_the_end_and_at_it(file: Path) -> None:
    async with durable(file) as first:
        got = await stream(first, CHAT, chat_body())
        id, last = got.headers["x-stream-id"], len(events_of(got.text)) - 1
        await at_the_end(first, id, last)
    async with durable(file) as second:
        await at_the_end(second, id, last)
        with contextlib.closing(sqlite3.connect(ledger_of(file))) as db:
            db.execute("UPDATE answers SET ended = 0, sent = 1")
            db.commit()
        await at_the_end(second, id, last)  # also where it has to be made again to know


async def at_the_end(server: Api, id: str, last: int) -> None:
    assert (await rest(server, id, last)).status_code == 204
    error = check_error(await rest(server, id, last + 1), 400, "starting_after")
    assert error["code"] == "past_the_end"
    for wrong in ("x", "-1", "1" * 20):
        check_error(await rest(server, id, None, **{"last-event-id": wrong}), 400, "starting_after")
    assert (await server.client.get(f"{STREAMS}/{id}?starting_after={last}")).status_code == 204
    check_error(await server.client.get(f"{STREAMS}/{id}?after=1"), 400, "after")


async def test_another_key_finds_nothing(file: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    mine, yours = add_key(keys, "me"), add_key(keys, "you")

    def with_key(key: str) -> dict[str, str]:
        return {"authorization": f"Bearer {key}"}

    async with durable(file, key_file=keys) as server:
        got = await stream(server, CHAT, chat_body(), **with_key(mine))
        id = got.headers["x-stream-id"]
        strange = await rest(server, "stream-nope", None, **with_key(yours))
        theirs = await rest(server, id, None, **with_key(yours))
        assert check_error(theirs, 404)["code"] == "stream_not_found"
        assert theirs.json()["message"].replace(id, "stream-nope") == strange.json()["message"]
        gone = await server.client.delete(f"{STREAMS}/{id}", headers=with_key(yours))
        check_error(gone, 404)
        check_error(await rest(server, id), 401)
        assert (await rest(server, id, None, **with_key(mine))).text == got.text
        # An Idempotency-Key is each key's own.
        once = {"idempotency-key": "a"}
        for key, content in ((mine, "Hello"), (yours, "Good bye")):
            body = chat_body(messages=[{"role": "user", "content": content}])
            answer = await server.client.post(CHAT, json=body, headers=with_key(key) | once)
            assert answer.status_code == 200
            assert "idempotent-replayed" not in answer.headers


async def test_what_is_deleted_is_not_in_the_file(server: Api, file: Path) -> None:
    secret = [{"role": "user", "content": "SECRET" * 100}]
    got = await stream(server, CHAT, chat_body(messages=secret))
    id = got.headers["x-stream-id"]
    assert b"SECRETSECRET" in everything(file)
    gone = await server.client.delete(f"{STREAMS}/{id}")
    assert gone.json() == {"id": id, "object": "stream", "deleted": True}
    assert b"SECRETSECRET" not in everything(file)
    check_error(await rest(server, id), 404)
    check_error(await server.client.delete(f"{STREAMS}/{id}"), 404)


def everything(file: Path) -> bytes:
    """All files of the ledger, its log of writes included."""
    return b"".join(each.read_bytes() for each in file.parent.glob("responses.ledger.db*"))


async def test_kept_for_an_hour(file: Path) -> None:
    async with durable(file) as first:
        got = await stream(first, CHAT, chat_body())
    async with durable(file, durable_minutes=0) as second:
        check_error(await rest(second, got.headers["x-stream-id"]), 404)
        assert kept(file) == []


async def test_another_engine_does_not_go_on(file: Path) -> None:
    async with durable(file) as first:
        got = await stream(first, CHAT, chat_body())
    id = got.headers["x-stream-id"]
    for script, model in (({"fingerprint": "fp_other"}, 4096), ({"nondeterministic": "1"}, 4096)):
        async with api(settings(file), options=script, max_model_len=model) as second:
            error = check_error(await rest(second, id, 3), 410)
            assert error["code"] == "cannot_resume"
    async with api(settings(file), max_model_len=2048) as second:  # max_tokens is another one
        assert check_error(await rest(second, id, 3), 410)["code"] == "cannot_resume"


@pytest.mark.parametrize("kind", ["chat", "responses", "messages"])
async def test_errors_are_in_the_words_of_the_api_that_was_asked(file: Path, kind: str) -> None:
    path, body = BODIES[kind]
    async with durable(file) as first:
        got = await stream(first, path, body)
        assert (await first.client.post(path, json=body, headers=ONCE)).status_code == 200
        conflict = await first.client.post(path, json={**body, "top_p": 0.5}, headers=ONCE)
        assert conflict.status_code == 409
        check_error_of_path(conflict)
    async with durable(file, {"fingerprint": "fp_other"}) as second:
        refused = await rest(second, got.headers["x-stream-id"])
        assert refused.status_code == 410
        words = set(refused.json())
        assert words == set(conflict.json())
        assert refused.json()["error"]["type"] == "invalid_request_error"


# Connections that are lost


@pytest.fixture
async def slow(file: Path) -> AsyncIterator[Api]:
    async with api(settings(file), options=SLOW, over_http=True) as server:
        yield server


async def begin(server: Api, events: int, path: str = CHAT, **headers: str) -> tuple[str, str]:
    """Read so many events, and lose the connection: the stream's id, what was read."""
    body = chat_body(stream=True, seed=7)
    got = ""
    async with server.client.stream("POST", path, json=body, headers=headers) as answer:
        async for text in answer.aiter_text():
            got += text
            if got.count("\n\n") >= events:
                break
        return answer.headers["x-stream-id"], got[: got.rindex("\n\n") + 2]


async def test_a_lost_connection_is_gone_on_with_where_it_was(slow: Api) -> None:
    id, got = await begin(slow, 5)
    last = len(events_of(got)) - 1
    one, other = await asyncio.gather(rest(slow, id, last), rest(slow, id))  # two at once
    assert got + one.text == other.text
    assert other.text.endswith("data: [DONE]\n\n")
    whole = await stream(slow, CHAT, chat_body(seed=7))
    assert text_of(whole.text) == text_of(other.text)
    # It was made once for both: there was no other.
    assert slow.engine.stats().generation_tokens == 2 * len(SLOW["text"]) + 2


def text_of(text: str) -> list[str]:
    found = []
    for event in events_of(text):
        data = event.partition("data: ")[2].strip()
        if data != "[DONE]":
            found += [c["delta"].get("content") or "" for c in json.loads(data)["choices"]]
    return found


def told(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """What the log says of requests."""
    return [vars(each)[FIELDS] for each in caplog.records if each.name == REQUESTS.name]


async def test_it_ends_when_nobody_comes_again(
    slow: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", REQUESTS.name)
    monkeypatch.setattr(streams, "LINGER_SECONDS", 0.05)
    id, got = await begin(slow, 3)
    assert slow.engine.stats().running == 1
    await slow.idle()
    async with asyncio.timeout(2):  # a line when its client left, and one of its end
        while len(lines := told(caplog)) < 2:
            await asyncio.sleep(0.01)
    assert lines[0]["id"] == lines[1]["id"]
    assert lines[0]["completion_tokens"] < lines[1]["completion_tokens"]
    assert lines[1]["status"] == 499
    again = await rest(slow, id, len(events_of(got)) - 1)  # made once more
    assert (got + again.text).endswith("data: [DONE]\n\n")
    assert len(text_of(got + again.text)) > 10


async def test_a_client_that_leaves_before_its_first_event_ends_it(file: Path) -> None:
    script = {"text": "x" * 50, "tokens_per_second": "2"}
    async with api(settings(file), options=script, over_http=True, max_num_seqs=1) as server:
        asking = [
            asyncio.create_task(server.client.post(CHAT, json=chat_body(stream=True)))
            for _ in range(3)
        ]
        while not server.engine.stats().running:
            await asyncio.sleep(0.01)
        for task in asking[1:]:
            task.cancel()
        async with asyncio.timeout(3):
            while (await server.client.get("/load")).json()["server_load"] != 1:
                await asyncio.sleep(0.02)
        asking[0].cancel()


@pytest.mark.parametrize("kind", ["chat", "responses", "messages"])
async def test_after_an_error_the_rest_can_be_asked_for(
    file: Path, tmp_path: Path, kind: str
) -> None:
    path, body = BODIES[kind]
    accident = {"text": "Good day to you", "lose_at_token": "7", "marker": str(tmp_path / "m")}
    async with durable(file, accident) as server:
        got = await stream(server, path, body)
        numbered = [event for event in events_of(got.text) if event.startswith("id: ")]
        assert len(numbered) < len(events_of(got.text))  # what tells of it has no number
        assert "error" not in "".join(numbered[-1:])
    async with durable(file, accident) as server:
        again = await rest(server, got.headers["x-stream-id"], len(numbered) - 1)
        assert again.status_code == 200, again.text
        found = [*numbered, *events_of(again.text)]
        assert [event.splitlines()[0] for event in found] == [
            f"id: {number}" for number in range(len(found))
        ]


async def test_deleted_while_it_is_made(slow: Api) -> None:
    id, _ = await begin(slow, 3)
    assert (await slow.client.delete(f"{STREAMS}/{id}")).status_code == 200
    await slow.idle()
    check_error(await rest(slow, id), 404)


# Files that can't be used


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
async def test_a_ledger_that_cannot_be_used(file: Path, spoil: Any) -> None:
    """Streams go on and are not numbered; what needs the file says so, and nothing of where."""
    file.parent.mkdir()
    spoil(ledger_of(file))
    async with durable(file) as server:
        got = await stream(server, CHAT, chat_body())
        assert got.text.endswith("data: [DONE]\n\n")
        assert "x-stream-id" not in got.headers
        assert "id: " not in got.text
        for refused in (
            await rest(server, "stream-1"),
            await server.client.delete(f"{STREAMS}/stream-1"),
            await server.client.post(CHAT, json=chat_body(), headers=ONCE),
        ):
            assert check_error(refused, 503)["code"] == "store_unavailable"
            assert str(file.parent) not in refused.text


async def test_a_ledger_that_is_locked_or_full(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pragmas = (*ledger.LAYOUT.pragmas, "busy_timeout = 100")
    monkeypatch.setattr(ledger, "LAYOUT", structs.replace(ledger.LAYOUT, pragmas=pragmas))
    monkeypatch.setattr(ledger, "RESTS", 0.0)
    async with durable(file) as server:
        assert "x-stream-id" in (await stream(server, CHAT, chat_body())).headers
        with contextlib.closing(sqlite3.connect(ledger_of(file))) as db:
            db.execute("BEGIN IMMEDIATE")
            assert "x-stream-id" not in (await stream(server, CHAT, chat_body())).headers
            db.execute("ROLLBACK")
        assert "x-stream-id" in (await stream(server, CHAT, chat_body())).headers


async def test_a_full_disk(server: Api) -> None:
    database = server.app._backend.streams.ledger.database
    await database.do(lambda db: None)

    def shrink(db: sqlite3.Connection) -> None:
        db.execute("COMMIT")
        db.execute("PRAGMA max_page_count = 1")
        db.execute("BEGIN")

    await database.do(shrink)
    long = [{"role": "user", "content": "word " * 780}]
    got = await stream(server, CHAT, chat_body(messages=long, max_tokens=3))
    assert "x-stream-id" not in got.headers
    assert got.text.endswith("data: [DONE]\n\n")


async def test_a_broken_ledger_is_begun_anew(file: Path) -> None:
    file.parent.mkdir()
    ledger_of(file).write_bytes(b"no database" * 1000)
    async with durable(file) as server:
        got = await stream(server, CHAT, chat_body())
        assert (await rest(server, got.headers["x-stream-id"])).text == got.text
        assert len(kept(file)) == 1


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
async def test_a_folder_that_is_read_only(file: Path) -> None:
    file.parent.mkdir(mode=0o500)
    async with durable(file) as server:
        assert "x-stream-id" not in (await stream(server, CHAT, chat_body())).headers
