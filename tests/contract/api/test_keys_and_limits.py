"""Keys from a file, their limits and their queues, over the whole API."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from api_app import CHAT, api, chat_body, check_error, make_settings
from maestrale.keys import add_key

pytestmark = pytest.mark.anyio


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


async def test_a_key_of_the_file_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    secret = add_key(path, "alice")
    async with api(make_settings(key_file=path)) as app:
        check_error(await app.chat(), 401)
        answer = await app.client.post(CHAT, json=chat_body(), headers=bearer(secret))
        assert answer.status_code == 200
        assert not [name for name in answer.headers if name.startswith("x-ratelimit")]
        assert (await app.client.get("/health")).status_code == 200


async def test_requests_a_minute(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    secret = add_key(path, "alice", requests_per_minute=2)
    other = add_key(path, "bob")
    async with api(make_settings(key_file=path)) as app:
        for left in ("1", "0"):
            answer = await app.client.post(CHAT, json=chat_body(), headers=bearer(secret))
            assert answer.status_code == 200
            assert answer.headers["x-ratelimit-limit-requests"] == "2"
            assert answer.headers["x-ratelimit-remaining-requests"] == left
        answer = await app.client.post(CHAT, json=chat_body(), headers=bearer(secret))
        error = check_error(answer, 429)
        assert error["code"] == "requests_per_minute_exceeded"
        assert 1 <= int(answer.headers["retry-after"]) <= 30
        assert answer.headers["x-ratelimit-remaining-requests"] == "0"
        listed = await app.client.get("/v1/models", headers=bearer(secret))
        assert listed.status_code == 200
        answer = await app.client.post(CHAT, json=chat_body(), headers=bearer(other))
        assert answer.status_code == 200


async def test_tokens_a_minute_are_reserved_and_given_back(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    secret = add_key(path, "alice", tokens_per_minute=1000)
    async with api(make_settings(key_file=path), options={"length": "5"}) as app:
        client, headers = app.client, bearer(secret)
        answer = await client.post(CHAT, json=chat_body(max_tokens=300), headers=headers)
        used = answer.json()["usage"]["total_tokens"]
        assert answer.headers["x-ratelimit-reserved-tokens"] == str(12 + 300)
        assert int(answer.headers["x-ratelimit-remaining-tokens"]) >= 1000 - used
        streamed = await client.post(
            CHAT, json=chat_body(max_tokens=300, stream=True), headers=headers
        )
        assert int(streamed.headers["x-ratelimit-remaining-tokens"]) < 1000 - 300
        after = await client.post(CHAT, json=chat_body(max_tokens=1), headers=headers)
        assert int(after.headers["x-ratelimit-remaining-tokens"]) >= 1000 - 3 * used
        whole = await client.post(CHAT, json=chat_body(max_tokens=2000), headers=headers)
        assert check_error(whole, 429)["code"] == "tokens_per_minute_exceeded"
        assert int(whole.headers["retry-after"]) <= 5


async def test_many_at_once_stay_below_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    secret = add_key(path, "alice", tokens_per_minute=2000)
    async with api(make_settings(key_file=path), options={"length": "1000"}) as app:
        body = chat_body(max_tokens=120)
        answers = await asyncio.gather(
            *(app.client.post(CHAT, json=body, headers=bearer(secret)) for _ in range(60))
        )
        good = [answer for answer in answers if answer.status_code == 200]
        assert sum(answer.json()["usage"]["total_tokens"] for answer in good) <= 2000
        assert len(good) == 15
        assert {answer.status_code for answer in answers} == {200, 429}


async def test_a_client_that_leaves_gets_its_tokens_back(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    secret = add_key(path, "alice", tokens_per_minute=1000)
    options = {"length": "1000", "tokens_per_second": "50"}
    async with api(make_settings(key_file=path), options=options, over_http=True) as app:
        headers = bearer(secret)
        body = chat_body(max_tokens=900, stream=True)
        async with app.client.stream("POST", CHAT, json=body, headers=headers) as stream:
            assert stream.headers["x-ratelimit-reserved-tokens"] == "912"
            await anext(stream.aiter_bytes())
        await app.idle()
        answer = await app.client.post(CHAT, json=chat_body(max_tokens=1), headers=headers)
        assert int(answer.headers["x-ratelimit-remaining-tokens"]) > 800


async def test_a_client_that_leaves_the_queue_leaves_nothing(tmp_path: Path) -> None:
    async with api(options={"tokens_per_second": "100"}, max_num_seqs=1, over_http=True) as app:
        long = chat_body(max_tokens=2000, ignore_eos=True)
        tasks = [asyncio.ensure_future(app.client.post(CHAT, json=long)) for _ in range(30)]
        await asyncio.sleep(0.5)
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert not [r for r in results if isinstance(r, httpx.Response) and r.status_code >= 500]
        async with asyncio.timeout(5):
            while (await app.client.get("/load")).json()["server_load"]:
                await asyncio.sleep(0.02)
        await app.idle()
        assert (await app.chat()).status_code == 200
