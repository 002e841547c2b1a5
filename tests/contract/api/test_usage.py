"""What keys use is counted before they learn of an answer's end; what they may is bounded."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from api_app import (
    CHAT,
    MODEL,
    Api,
    api,
    chat_body,
    check_error,
    check_error_of_path,
    make_settings,
)
from maestrale.keys import add_key, rotate_key
from maestrale.usage import UsageFile, UsageRow, day_of

pytestmark = pytest.mark.anyio
LIMITS = {"requests_per_day": 1, "tokens_per_month": 5000}
MESSAGES = "/v1/messages"


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


def counted(keys: Path, *by: str) -> list[UsageRow]:
    file = UsageFile(keys.with_name("usage.db"))
    try:
        return file.read(by or ["key"])
    finally:
        file.close()


async def ask(server: Api, secret: str, path: str = CHAT, **fields: Any) -> httpx.Response:
    if path != CHAT:
        body = {"max_tokens": 5, "messages": [{"role": "user", "content": "Hello"}], **fields}
    else:
        body = chat_body(**{"max_tokens": 5, **fields})
    return await server.client.post(path, json=body, headers=bearer(secret))


async def test_what_is_answered_is_counted_as_it_was_told(keys: Path) -> None:
    alice, bob = add_key(keys, "alice"), add_key(keys, "bob")
    async with api(make_settings(key_file=keys), options={"length": "9"}) as server:
        prompt = completion = 0
        asked: list[dict[str, Any]] = [{}, {"n": 2}, {"max_tokens": 3}]
        for fields in asked:
            usage = (await ask(server, alice, **fields)).json()["usage"]
            prompt += usage["prompt_tokens"]
            completion += usage["completion_tokens"]
            [row] = counted(keys)
            assert (row.prompt_tokens, row.completion_tokens) == (prompt, completion)
        assert row.requests == 3
        assert row.seconds > 0
        assert (await ask(server, bob, MESSAGES)).status_code == 200
        rows = counted(keys, "key", "model", "day")
        assert [(each.key, each.model, each.requests) for each in rows] == [
            ("alice", MODEL, 3),
            ("bob", MODEL, 1),
        ]
        assert {each.day for each in rows} <= {day_of(time.time()), day_of(time.time() - 60)}


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
async def test_a_stream_is_counted_before_its_last_event(keys: Path, path: str) -> None:
    alice = add_key(keys, "alice")
    last = b"[DONE]" if path == CHAT else b"message_stop"
    body = {**chat_body(max_tokens=4), "stream": True}
    async with (
        api(make_settings(key_file=keys), over_http=True) as server,
        server.client.stream("POST", path, json=body, headers=bearer(alice)) as answer,
    ):
        async for chunk in answer.aiter_bytes():
            if last in chunk:
                assert [(row.requests, row.completion_tokens) for row in counted(keys)] == [(1, 4)]
                break
        else:
            pytest.fail("the stream had no end")


async def test_errors_and_what_is_no_answer(keys: Path) -> None:
    alice = add_key(keys, "alice")
    async with api(make_settings(key_file=keys)) as server:
        assert (await ask(server, alice, model="gpt-4")).status_code == 404
        assert (await ask(server, alice, temperature=-1)).status_code == 400
        body = {"prompt": "Hello"}
        tokens = await server.client.post("/tokenize", json=body, headers=bearer(alice))
        assert tokens.status_code == 200
        assert (await server.client.get("/v1/models", headers=bearer(alice))).status_code == 200
        assert (await server.client.post(CHAT, json=chat_body())).status_code == 401
        rows = counted(keys, "key", "model")
        assert [(row.key, row.model, row.requests, row.errors, row.tokens) for row in rows] == [
            ("alice", "-", 2, 2, 0),
            ("alice", MODEL, 1, 0, 0),
        ]


async def test_a_client_that_leaves_has_used_what_it_got(keys: Path) -> None:
    alice = add_key(keys, "alice")
    options = {"length": "1000", "tokens_per_second": "50"}
    async with api(make_settings(key_file=keys), options=options, over_http=True) as server:
        body = chat_body(max_tokens=900, stream=True)
        async with server.client.stream("POST", CHAT, json=body, headers=bearer(alice)) as stream:
            await anext(stream.aiter_bytes())
        await server.idle()
        async with asyncio.timeout(2):
            while not counted(keys):
                await asyncio.sleep(0.01)
        [row] = counted(keys)
        assert (row.requests, row.errors, row.prompt_tokens) == (1, 0, 12)
        assert 1 <= row.completion_tokens < 100


async def test_without_keys_all_are_nobodys(tmp_path: Path) -> None:
    settings = make_settings(usage_file=tmp_path / "usage.db")
    async with api(settings) as server:
        await server.chat(max_tokens=2)
        found = (await server.client.get("/usage.json", params={"by": "key"})).json()
        assert [(row["key"], row["requests"]) for row in found["rows"]] == [("-", 1)]


@pytest.mark.parametrize("path", [CHAT, MESSAGES, "/v1/responses"])
async def test_a_day_is_bounded_in_the_words_of_each_api(keys: Path, path: str) -> None:
    alice = add_key(keys, "alice", **LIMITS)
    fields = {"input": "Hello", "max_tokens": None, "messages": None}
    async with api(make_settings(key_file=keys)) as server:
        more = {} if path != "/v1/responses" else fields
        body = {"max_tokens": 5, "messages": [{"role": "user", "content": "Hello"}], **more}
        body = {name: value for name, value in body.items() if value is not None}
        good, refused = [
            await server.client.post(path, json=body, headers=bearer(alice)) for _ in range(2)
        ]
        assert good.status_code == 200
        assert refused.status_code == 429
        check_error_of_path(refused)
        error = refused.json()["error"]
        assert "1 requests a day, and has used them. There are more from 20" in error["message"]
        assert 1 <= int(refused.headers["retry-after"]) <= 86400
        if path == MESSAGES:
            assert error["type"] == "rate_limit_error"
            assert refused.headers["anthropic-ratelimit-requests-limit"] == "1"
            assert refused.headers["anthropic-ratelimit-requests-remaining"] == "0"
            assert refused.headers["anthropic-ratelimit-requests-reset"].endswith("T00:00:00Z")
        else:
            assert error["code"] == "requests_per_day_exceeded"
            assert refused.headers["x-ratelimit-remaining-requests-day"] == "0"
            left = int(good.headers["x-ratelimit-remaining-tokens-month"])
            assert left == 5000 - counted(keys)[0].tokens
        assert [(row.requests, row.errors) for row in counted(keys)] == [(1, 0)]


async def test_tokens_of_a_day_are_never_exceeded_and_outlive_a_restart(keys: Path) -> None:
    alice = add_key(keys, "alice", tokens_per_day=1000)
    used = 0
    for _ in range(2):
        async with api(make_settings(key_file=keys), options={"length": "50"}) as server:
            answers = await asyncio.gather(*(ask(server, alice, max_tokens=50) for _ in range(30)))
            good = [answer for answer in answers if answer.status_code == 200]
            used += sum(answer.json()["usage"]["total_tokens"] for answer in good)
            assert used <= 1000
            assert {answer.status_code for answer in answers} <= {200, 429}
    assert used > 1000 - 62
    assert [(row.tokens, row.errors > 0) for row in counted(keys)] == [(used, True)]


async def test_models_that_a_key_may_ask(keys: Path) -> None:
    other = add_key(keys, "alice", models=("other",))
    this = add_key(keys, "bob", models=("other", "small"))
    settings = make_settings(key_file=keys, served_model_name=(MODEL, "small"))
    async with api(settings) as server:
        for path in (CHAT, MESSAGES):
            for model in ({"model": MODEL}, {"model": "small"}, {"model": None}):
                assert (await ask(server, this, path, **model)).status_code == 200
                refused = await ask(server, other, path, **model)
                assert refused.status_code == 403
                check_error_of_path(refused)
                assert f"may not ask the model '{MODEL}'" in refused.text
        for path, body in (("/tokenize", {"prompt": "x"}), ("/detokenize", {"tokens": [1]})):
            refused = await server.client.post(path, json=body, headers=bearer(other))
            assert check_error(refused, 403, "model")["code"] == "model_not_allowed"
        listed = [
            len((await server.client.get("/v1/models", headers=bearer(key))).json()["data"])
            for key in (other, this)
        ]
        assert listed == [0, 2]


async def test_keys_that_ended(keys: Path) -> None:
    late = add_key(keys, "alice", expires="2020-01-01T00:00:00Z")
    old = add_key(keys, "bob")
    new, _ = rotate_key(keys, "bob", 0)
    async with api(make_settings(key_file=keys)) as server:
        for secret, why in ((late, "valid until 2020-01-01"), (old, "was replaced")):
            for path in (CHAT, MESSAGES):
                refused = await ask(server, secret, path)
                assert refused.status_code == 401
                check_error_of_path(refused)
                assert why in refused.text
        assert (await ask(server, new)).status_code == 200


async def test_who_sees_what_of_it(keys: Path) -> None:
    alice, boss = add_key(keys, "alice"), add_key(keys, "boss", operator=True)
    async with api(make_settings(key_file=keys)) as server:
        for secret in (alice, boss):
            await ask(server, secret)
        for secret, names in ((alice, ["alice"]), (boss, ["alice", "boss"])):
            answer = await server.client.get("/usage.json", headers=bearer(secret))
            assert [row["key"] for row in answer.json()["rows"]] == names
            assert answer.headers["cache-control"] == "no-store"
        for query, name in (("since=x", "since"), ("by=key,hour", "by"), ("zork=1", "zork")):
            answer = await server.client.get(f"/usage.json?{query}", headers=bearer(boss))
            check_error(answer, 400, name)
    async with api() as server:
        error = check_error(await server.client.get("/usage.json"), 404)
        assert error["code"] == "usage_not_counted"


async def test_metrics_by_key_where_asked_for(keys: Path) -> None:
    alice = add_key(keys, "alice")
    for asked in (False, True):
        async with api(make_settings(key_file=keys, metrics_by_key=asked)) as server:
            await ask(server, alice)
            text = (await server.client.get("/metrics", headers=bearer(alice))).text
            line = f'maestrale_key_completion_tokens_total{{key="alice",model_name="{MODEL}"}} 5.0'
            assert (line in text) == asked
            assert ("alice" in text) == asked


async def test_a_file_that_cannot_be_written_stops_nothing(keys: Path) -> None:
    alice = add_key(keys, "alice", requests_per_day=2)
    keys.with_name("usage.db").mkdir()
    async with api(make_settings(key_file=keys)) as server:
        for status in (200, 200, 429):  # limits hold all the same, till the end of this process
            assert (await ask(server, alice)).status_code == status
        answer = await server.client.get("/usage.json", headers=bearer(alice))
        assert check_error(answer, 503)["code"] == "usage_unavailable"
        assert str(keys.parent) not in answer.text
