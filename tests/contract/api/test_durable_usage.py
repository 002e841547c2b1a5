"""What is asked for again costs nothing again, whichever process answers."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from api_app import CHAT, Api, api, chat_body, check_error, check_error_of_path
from durable_api import BODIES, MESSAGES, ONCE, SLOW, durable, events_of, ledger_of, rest, settings
from maestrale.api.durable import streams
from maestrale.keys import add_key, rotate_key
from maestrale.usage import UsageFile

pytestmark = pytest.mark.anyio
HELLO = {"n": 2, "max_tokens": 6, "stream_options": {"include_usage": True}}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state" / "responses.db"


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


@pytest.fixture
def alice(keys: Path) -> dict[str, str]:
    """Her key, as it is sent."""
    return bearer(add_key(keys, "alice", requests_per_day=8, tokens_per_day=100_000))


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


def counted(keys: Path) -> list[tuple[int, ...]]:
    """Of each key: requests, errors, tokens of prompts and of answers."""
    file = UsageFile(keys.with_name("usage.db"))
    try:
        return [
            (row.requests, row.errors, row.prompt_tokens, row.completion_tokens)
            for row in file.read(["key"])
        ]
    finally:
        file.close()


def post(server: Api, key: dict[str, str], **fields: Any) -> Any:
    once = ONCE if fields.pop("once", False) else {}
    return server.client.post(CHAT, json=chat_body(**fields), headers=key | once)


def killed(file: Path, keys: Path) -> None:
    """As a server leaves it that was killed before an answer's end."""
    with contextlib.closing(sqlite3.connect(ledger_of(file))) as db:
        db.execute("UPDATE answers SET ended = 0, counted = NULL, output = NULL")
        db.commit()
    with contextlib.closing(sqlite3.connect(keys.with_name("usage.db"))) as db:
        db.execute("DELETE FROM usage")
        db.commit()


async def test_the_rest_of_a_stream_costs_nothing(
    file: Path, keys: Path, alice: dict[str, str]
) -> None:
    async with durable(file, key_file=keys) as first:
        got = await post(first, alice, stream=True, **HELLO)
        id, used = got.headers["x-stream-id"], [(1, 0, 12, 12)]
        assert counted(keys) == used
        assert (await rest(first, id, 3, **alice)).status_code == 200
        assert counted(keys) == used
    async with durable(file, key_file=keys) as second:  # where it is made once more
        assert (await rest(second, id, None, **alice)).text == got.text
        assert counted(keys) == used
        assert second.engine.stats().generation_tokens > 0
        killed(file, keys)
    async with durable(file, key_file=keys) as third:
        assert (await rest(third, id, None, **alice)).text == got.text
        assert counted(keys) == used
        more = await post(third, alice)
        assert more.headers["x-ratelimit-remaining-requests-day"] == "6"
        left = 100_000 - sum(counted(keys)[0][2:])  # nothing is still set aside
        assert more.headers["x-ratelimit-remaining-tokens-day"] == str(left)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_retry_costs_nothing(
    file: Path, keys: Path, alice: dict[str, str], stream: bool
) -> None:
    fields = {"stream": stream, "once": True, **HELLO}
    if not stream:
        del fields["stream_options"]
    for turn in range(2):
        async with durable(file, key_file=keys) as server:
            got = await asyncio.gather(*(post(server, alice, **fields) for _ in range(4)))
            assert {answer.status_code for answer in got} == {200}
            assert counted(keys) == [(1, 0, 12, 12)]
            replayed = [answer.headers.get("idempotent-replayed") for answer in got]
            assert replayed.count("true") == (4 if turn else 3)
            last = await post(server, alice, **fields)
            assert last.headers["x-ratelimit-remaining-requests-day"] == "7"
            assert last.headers["x-ratelimit-remaining-tokens-day"] == str(100_000 - 24)


async def test_two_processes_charge_once(file: Path, keys: Path, alice: dict[str, str]) -> None:
    async with durable(file, key_file=keys) as one, durable(file, key_file=keys) as other:
        asked = [post(each, alice, once=True, max_tokens=6) for each in (one, other)]
        got = await asyncio.gather(*asked)
        assert {answer.status_code for answer in got} == {200}
        assert counted(keys) == [(1, 0, 12, 6)]


async def test_what_refuses_is_counted_and_called_as_its_client_calls_it(
    file: Path, keys: Path, alice: dict[str, str]
) -> None:
    async with durable(file, key_file=keys) as server:
        refused = await post(server, alice, once=True, stream=True, max_completion_tokens=0)
        check_error(refused, 400, "max_completion_tokens")
        assert counted(keys) == [(1, 1, 0, 0)]
        body = {**BODIES["messages"][1], "temperature": 9}
        refused = await server.client.post(MESSAGES, json=body, headers=alice | ONCE)
        assert refused.status_code == 400
        check_error_of_path(refused)
        assert counted(keys) == [(2, 2, 0, 0)]


async def test_a_retry_has_room_where_a_day_is_used_up(file: Path, keys: Path) -> None:
    bob = bearer(add_key(keys, "bob", requests_per_day=1))
    for _ in range(2):
        async with durable(file, key_file=keys) as server:
            for _ in range(2):
                assert (await post(server, bob, once=True)).status_code == 200
            refused = await post(server, bob)
            assert check_error(refused, 429)["code"] == "requests_per_day_exceeded"
            another = bob | {"idempotency-key": "another"}
            assert (await post(server, another)).status_code == 429
    assert [row[0] for row in counted(keys)] == [1]


@pytest.fixture
async def slow(file: Path, keys: Path, alice: dict[str, str]) -> AsyncIterator[Api]:
    asked = settings(file, key_file=keys)
    async with api(asked, options=SLOW, over_http=True) as server:
        yield server


async def begin(server: Api, key: dict[str, str], events: int) -> tuple[str, str]:
    """Read so many events, and lose the connection: the stream's id, what was read."""
    got = ""
    asked = chat_body(stream=True)
    async with server.client.stream("POST", CHAT, json=asked, headers=key) as answer:
        async for text in answer.aiter_text():
            got += text
            if got.count("\n\n") >= events:
                break
        return answer.headers["x-stream-id"], got[: got.rindex("\n\n") + 2]


@pytest.mark.parametrize("lingers", [0.05, 10.0])
async def test_what_goes_on_after_its_client_left_is_counted_once(
    slow: Api,
    file: Path,
    keys: Path,
    alice: dict[str, str],
    lingers: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where it stopped meanwhile, and where it went on, here or in another process."""
    monkeypatch.setattr(streams, "LINGER_SECONDS", lingers)
    id, got = await begin(slow, alice, 3)
    if lingers < 1:
        async with asyncio.timeout(5):
            while not counted(keys):  # it is a moment after the engine has stopped
                await asyncio.sleep(0.01)
        [(requests, errors, prompt, completion)] = counted(keys)
        assert (requests, errors, prompt) == (1, 0, 12)
        assert 0 < completion < len(SLOW["text"])
    async with durable(file, SLOW, key_file=keys) as other:
        rests = [rest(each, id, len(events_of(got)) - 1, **alice) for each in (slow, other)]
        for again in await asyncio.gather(*rests):
            assert (got + again.text).endswith("data: [DONE]\n\n")
        assert counted(keys) == [(1, 0, 12, len(SLOW["text"]) + 1)]


async def test_a_rest_that_cannot_be_had_now_can_be_had_later(
    file: Path, keys: Path, alice: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with durable(file, key_file=keys) as first:
        got = await post(first, alice, stream=True)
    id = got.headers["x-stream-id"]
    async with durable(file, key_file=keys) as second:
        backend = second.app._backend
        deployment = backend.deployments.default
        engine, deployment.engine = deployment.engine, None
        refused = await rest(second, id, 3, **alice)
        assert refused.status_code == 503
        check_error_of_path(refused)
        deployment.engine = engine
        assert got.text.endswith((await rest(second, id, 3, **alice)).text)


async def test_a_stream_stays_its_keys_when_that_is_rotated(
    file: Path, keys: Path, alice: dict[str, str]
) -> None:
    async with durable(file, key_file=keys) as server:
        got = await post(server, alice, stream=True)
        new, _ = rotate_key(keys, "alice", 0)
    async with durable(file, key_file=keys) as server:
        again = await rest(server, got.headers["x-stream-id"], None, **bearer(new))
        assert again.text == got.text
