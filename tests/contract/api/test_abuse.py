"""Hostile bodies: each gets its answer in the one shape, and a good request still works."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from api_app import CHAT, JSON, MODEL, Api, api, chat_body, check_error, make_settings
from hostile_bodies import BAD_FIELDS, BAD_JSON, BAD_MODELS, REFUSED_MEDIA_TYPES, tool
from maestrale.errors import ConstraintError

pytestmark = pytest.mark.anyio


async def still_works(server: Api) -> None:
    answer = await server.chat(max_tokens=3)
    assert answer.status_code == 200
    assert answer.json()["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize("path", [CHAT, "/v1/responses", "/v1/fim/completions"])
@pytest.mark.parametrize("body", BAD_JSON.values(), ids=BAD_JSON)
async def test_bad_json(body: bytes, path: str) -> None:
    settings = make_settings(max_body_bytes=32 << 20)
    async with api(settings, options={"length": "9"}) as server:
        answer = await server.client.post(path, content=body, headers=JSON)
        check_error(answer, 400)
        await still_works(server)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (b"\\ud83d", "\\ud83d (byte 39)"),
        (b"\\uDE00 x", "\\uDE00"),
        (b"\\ud83d\\ud83d\\ude00", "\\ud83d (byte 39)"),
        (b"\\\\ud83d \\ud83d", "\\ud83d (byte 47)"),
        (b"\xed\xa0\xbd", "U+D83D"),
    ],
)
async def test_half_a_surrogate_pair_is_named(text: bytes, shown: str) -> None:
    async with api(options={"length": "1"}) as server:
        body = b'{"messages":[{"role":"user","content":"%b"}]}' % text
        answer = await server.client.post(CHAT, content=body, headers=JSON)
        error = check_error(answer, 400)
        assert "half of a surrogate pair" in error["message"]
        assert shown in error["message"]


async def test_a_byte_order_mark_is_taken_off() -> None:
    async with api(options={"length": "1"}) as server:
        for text in ("Hello", "\U0001f600"):
            body = json.dumps(chat_body(messages=[{"role": "user", "content": text}]))
            content = body.encode("utf-8-sig")
            answer = await server.client.post(CHAT, content=content, headers=JSON)
            assert answer.status_code == 200


@pytest.mark.parametrize(("fields", "param"), BAD_FIELDS.values(), ids=BAD_FIELDS)
async def test_bad_fields(fields: dict[str, Any], param: str) -> None:
    async with api(options={"length": "9"}) as server:
        answer = await server.chat(**fields)
        check_error(answer, 400, param)
        if not {"stream", "stream_options"} & set(
            fields
        ):  # a stream is refused in the same way, before any 200
            check_error(await server.chat(**fields, stream=True), 400)
        await still_works(server)


async def test_missing_messages() -> None:
    async with api() as server:
        answer = await server.client.post(CHAT, json={"model": MODEL})
        check_error(answer, 400, "messages")


@pytest.mark.parametrize("name", BAD_MODELS)
async def test_unknown_model(name: str) -> None:
    async with api() as server:
        error = check_error(await server.chat(model=name), 404, "model")
        assert error["code"] == "model_not_found"


async def test_unsupported_is_its_own_code() -> None:
    async with api() as server:
        error = check_error(await server.chat(tools=[tool("f")]), 400, "tools")
        assert error["code"] == "unsupported_parameter"
        assert "template" in error["message"]


async def test_unknown_field_is_named() -> None:
    async with api() as server:
        error = check_error(await server.chat(zork=1), 400, "zork")
        assert error["message"] == "unknown field 'zork'"


async def test_body_over_the_limit_is_refused_unread() -> None:
    settings = make_settings(max_body_bytes=2000)

    async def never() -> Any:
        raise AssertionError("the body was read")
        yield b""

    async with api(settings, options={"length": "9"}) as server:
        headers = {**JSON, "content-length": "2001"}
        answer = await server.client.post(CHAT, content=never(), headers=headers)
        check_error(answer, 413)
        await still_works(server)


async def test_endless_chunked_body_is_cut_off() -> None:
    settings = make_settings(max_body_bytes=2000)
    sent = 0

    async def endless() -> Any:
        nonlocal sent
        while True:
            sent += 100
            assert sent < 10_000
            yield b" " * 100

    async with api(settings, options={"length": "9"}) as server:
        answer = await server.client.post(CHAT, content=endless(), headers=JSON)
        check_error(answer, 413)
        await still_works(server)


@pytest.mark.parametrize("headers", REFUSED_MEDIA_TYPES)
async def test_other_media_types(headers: dict[str, str]) -> None:
    async with api() as server:
        answer = await server.client.post(
            CHAT, content=json.dumps(chat_body()).encode(), headers=headers
        )
        check_error(answer, 415)


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "Application/JSON"])
async def test_json_by_other_names(kind: str) -> None:
    async with api(options={"length": "3"}) as server:
        body = json.dumps(chat_body()).encode()
        answer = await server.client.post(CHAT, content=body, headers={"content-type": kind})
        assert answer.status_code == 200


async def test_context_exactly_one_less_one_more() -> None:
    text = "x" * 90  # and "user: " and a line end: 97 tokens
    messages = [{"role": "user", "content": text}]
    async with api(max_model_len=100, options={"length": "1000"}) as server:
        for max_tokens in (2, 3):
            answer = await server.chat(messages=messages, max_tokens=max_tokens)
            assert answer.json()["usage"]["total_tokens"] == 97 + max_tokens
        for stream in (False, True):  # beyond the room: as many as there is room for
            answer = await server.chat(messages=messages, max_tokens=4000, stream=stream)
            assert answer.status_code == 200
            assert answer.headers["x-max-tokens"] == "3"
        answer = await server.chat(messages=messages, max_tokens=-1)
        assert answer.json()["usage"]["completion_tokens"] == 3
        answer = await server.chat(messages=messages, max_tokens=2)
        assert answer.headers["x-max-tokens"] == "2"
        answer = await server.chat(messages=messages, max_tokens=4000, min_tokens=4)
        check_error(answer, 400, "min_tokens")
        answer = await server.chat(messages=messages)
        assert answer.json()["usage"]["completion_tokens"] == 3
        assert answer.json()["choices"][0]["finish_reason"] == "length"


async def test_prompt_that_fills_the_context() -> None:
    async with api(max_model_len=100) as server:
        answer = await server.chat(messages=[{"role": "user", "content": "x" * 93}])
        assert answer.status_code == 200
        assert answer.json()["choices"][0]["finish_reason"] == "length"
        assert answer.json()["usage"]["completion_tokens"] == 0
        full = [{"role": "user", "content": "x" * 93}]
        answer = await server.chat(messages=full, max_tokens=1)
        error = check_error(answer, 400, "messages")
        assert error["code"] == "context_length_exceeded"
        assert "no room" in error["message"]
        answer = await server.chat(messages=[{"role": "user", "content": "x" * 94}])
        check_error(answer, 400, "messages")


async def test_ten_megabytes_in_one_word() -> None:
    settings = make_settings(max_body_bytes=32 << 20)
    async with api(settings, options={"length": "9"}) as server:
        answer = await server.chat(messages=[{"role": "user", "content": "x" * 10_000_000}])
        error = check_error(answer, 400)
        assert error["code"] == "context_length_exceeded"
        await still_works(server)


async def test_a_slow_template_holds_up_nobody() -> None:
    async with api(options={"length": "3"}) as server:
        encode, free = server.encoder.encode_chat, threading.Event()

        def slow(*args: Any, **fields: Any) -> Any:
            free.wait(10)
            return encode(*args, **fields)

        server.encoder.encode_chat = slow  # type: ignore[method-assign]
        held = asyncio.create_task(server.chat())
        for _ in range(5):
            assert (await server.client.get("/health")).status_code == 200
        assert not held.done()
        free.set()
        assert (await held).status_code == 200


@pytest.mark.parametrize("path", ["/v1/completions", "/detokenize"])
async def test_a_million_token_ids(path: str) -> None:
    async with api(options={"length": "3"}) as server:
        name = "tokens" if path == "/detokenize" else "prompt"
        answer = await server.client.post(path, json={name: [1] * 1_100_000})
        check_error(answer, 400, name)
        answer = await server.client.post(path, json={name: [1] * 50_000})
        error = check_error(answer, 400, name)
        assert "50000" in error["message"]
        assert "4096" in error["message"]


async def test_large_bodies_share_a_budget_and_small_ones_do_not_wait() -> None:
    async with api(options={"length": "3"}) as server:
        bodies = server.app._backend.bodies
        bodies._budget = 300_000
        gate, sent = asyncio.Event(), asyncio.Event()

        async def stopping() -> AsyncIterator[bytes]:
            yield b" " * 200_000
            sent.set()
            await gate.wait()
            yield b"{}"

        held = asyncio.create_task(server.client.post(CHAT, content=stopping(), headers=JSON))
        await sent.wait()
        while not bodies.held:
            await asyncio.sleep(0)
        answer = await server.client.post(CHAT, content=b" " * 200_000, headers=JSON)
        check_error(answer, 503)
        assert answer.headers["retry-after"]
        await still_works(server)
        gate.set()
        check_error(await held, 400, "messages")
        assert bodies.held == 0
        answer = await server.client.post(CHAT, content=b" " * 200_000, headers=JSON)
        check_error(answer, 400)


async def test_the_slowest_of_large_bodies_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maestrale.api.http.body.GRACE", 0.05)
    async with api(options={"length": "3"}) as server:
        bodies = server.app._backend.bodies
        bodies._budget = 500_000
        gate = asyncio.Event()

        async def stopping(size: int) -> AsyncIterator[bytes]:
            yield b" " * size
            await gate.wait()
            yield b"{}"

        slowest, slow = [
            asyncio.create_task(server.client.post(CHAT, content=stopping(size), headers=JSON))
            for size in (100_000, 300_000)
        ]
        while bodies.held < 400_000:
            await asyncio.sleep(0)
        await asyncio.sleep(0.1)
        quick = await server.client.post(CHAT, content=b" " * 190_000 + b"{}", headers=JSON)
        check_error(quick, 400, "messages")
        assert "KiB/s" in check_error(await slowest, 408)["message"]
        gate.set()
        check_error(await slow, 400, "messages")
        assert bodies.held == 0


async def test_a_constraint_that_fails_in_the_engine_is_the_request_s_fault() -> None:
    async with api(options={"length": "3"}) as server:

        async def failing(request: Any) -> AsyncIterator[Any]:
            raise ConstraintError("The constraint allows no text at this point.")
            yield

        server.engine.generate = failing  # type: ignore[method-assign]
        check_error(await server.chat(response_format={"type": "json_object"}), 400)


async def test_unexpected_failure_tells_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async with api() as server:

        def broken() -> None:
            raise ZeroDivisionError("/secret/path")

        server.engine.stats = broken  # type: ignore[method-assign, assignment]
        answer = await server.client.get("/metrics", headers={"x-request-id": "my-id"})
        check_error(answer, 500)
        assert "secret" not in answer.text
        assert "ZeroDivision" not in answer.text
        assert "my-id" in caplog.text
        del server.engine.stats
        assert (await server.client.get("/metrics")).status_code == 200
