"""Hostile bodies: each gets its answer in the one shape, and a good request still works."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from api_app import CHAT, JSON, MODEL, Api, api, chat_body, check_error, make_settings
from maestrale.errors import ConstraintError

pytestmark = pytest.mark.anyio

MESSAGES = '"messages":[{"role":"user","content":"Hello"}]'


def with_field(text: str) -> bytes:
    return f"{{{MESSAGES},{text}}}".encode()


BAD_JSON = {
    "empty": b"",
    "truncated": b'{"messages": [',
    "invalid UTF-8": b'{"messages":[{"role":"user","content":"\xff"}]}',
    "invalid UTF-8 in an ignored field": with_field('"metadata":{"a":"')[:-1] + b'\xff"}}',
    "UTF-16": json.dumps(chat_body()).encode("utf-16"),
    "UTF-8 with a byte order mark": json.dumps(chat_body()).encode("utf-8-sig"),
    "lone surrogate": b'{"messages":[{"role":"user","content":"\\ud800"}]}',
    "raw surrogate": b'{"messages":[{"role":"user","content":"\xed\xa0\x80"}]}',
    "depth 100,000": b'{"messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "depth 100,000 in an ignored field": with_field('"metadata":' + "[" * 100_000 + "]" * 100_000),
    "top-level array": b"[]",
    "top-level number": b"42",
    "top-level null": b"null",
    "NaN": with_field('"temperature":NaN'),
    "Infinity": with_field('"temperature":Infinity'),
    "1e400": with_field('"temperature":1e400'),
    "a 5,000-digit integer": with_field('"seed":' + "9" * 5000),
    "trailing garbage": with_field('"n":1') + b"x",
    "a million keys": with_field(",".join(f'"k{i}":0' for i in range(1_000_000))),
}

# what is wrong → fields that replace the good ones, and the field to be named
BAD_FIELDS: dict[str, tuple[dict[str, Any], str]] = {
    "empty messages": ({"messages": []}, "messages"),
    "messages no list": ({"messages": "Hello"}, "messages"),
    "100,000 messages": (
        {"messages": [{"role": "user", "content": ""}] * 100_000},
        "messages",
    ),
    "100,000 parts of content": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": ""}] * 100_000}]},
        "messages[0].content",
    ),
    "unknown role": ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
    "content a number": ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
    "content missing": ({"messages": [{"role": "user"}]}, "messages[0].content"),
    "unknown field in a message": (
        {"messages": [{"role": "user", "content": "x", "zork": 1}]},
        "messages[0].zork",
    ),
    "temperature -1": ({"temperature": -1}, "temperature"),
    "temperature a text": ({"temperature": "x"}, "temperature"),
    "temperature a boolean": ({"temperature": True}, "temperature"),
    "top_p 0": ({"top_p": 0}, "top_p"),
    "top_p 1.1": ({"top_p": 1.1}, "top_p"),
    "min_p 2": ({"min_p": 2}, "min_p"),
    "presence_penalty 3": ({"presence_penalty": 3}, "presence_penalty"),
    "repetition_penalty 0": ({"repetition_penalty": 0}, "repetition_penalty"),
    "n 0": ({"n": 0}, "n"),
    "n 1,000,000": ({"n": 1_000_000}, "n"),
    "max_tokens -1": ({"max_tokens": -1}, "max_tokens"),
    "max_tokens 2^63": ({"max_tokens": 2**63}, "max_tokens"),
    "max_tokens given twice": (
        {"max_tokens": 1, "max_completion_tokens": 2},
        "max_completion_tokens",
    ),
    "min_tokens over max_tokens": ({"min_tokens": 9, "max_tokens": 3}, "min_tokens"),
    "top_logprobs 10^9": ({"logprobs": True, "top_logprobs": 10**9}, "top_logprobs"),
    "top_logprobs alone": ({"top_logprobs": 1}, "top_logprobs"),
    "logit_bias outside the vocabulary": ({"logit_bias": {"257": 1}}, "logit_bias"),
    "logit_bias of no token": ({"logit_bias": {"x": 1}}, "logit_bias"),
    "logit_bias of one token by two names": ({"logit_bias": {"1": 1, "01": 1}}, "logit_bias"),
    "100,000 biases": ({"logit_bias": {str(i): 1 for i in range(100_000)}}, "logit_bias"),
    "logit_bias of -1": ({"logit_bias": {"-1": 1}}, "logit_bias"),
    "logit_bias 1000": ({"logit_bias": {"1": 1000}}, "logit_bias[...]"),
    "stop_token_ids outside the vocabulary": ({"stop_token_ids": [999]}, "stop_token_ids"),
    "500,000 stop strings": ({"stop": ["x"] * 500_000}, "stop"),
    "an empty stop string": ({"stop": ""}, "stop"),
    "a long stop string": ({"stop": "x" * 100_000}, "stop"),
    "seed 2^65": ({"seed": 2**65}, "seed"),
    "random_seed -2^64": ({"random_seed": -(2**64)}, "random_seed"),
    "two seeds": ({"seed": 1, "random_seed": 2}, "random_seed"),
    "seed 1.5": ({"seed": 1.5}, "seed"),
    "stream yes": ({"stream": "yes"}, "stream"),
    "stream 1": ({"stream": 1}, "stream"),
    "stream_options without stream": (
        {"stream_options": {"include_usage": True}},
        "stream_options",
    ),
    "json_schema missing": (
        {"response_format": {"type": "json_schema"}},
        "response_format.json_schema",
    ),
    "json_schema without schema": (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
        "response_format.json_schema.schema",
    ),
    "json_schema a list": (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": []}}},
        "response_format.json_schema.schema",
    ),
    "json_schema of a bad type": (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"schema": {"type": "wizard"}},
            }
        },
        "response_format",
    ),
    "json_schema with a bad pattern": (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"schema": {"type": "string", "pattern": "(["}},
            }
        },
        "response_format",
    ),
    "a huge json_schema": (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"schema": {"enum": ["x" * 10] * 100_000}},
            }
        },
        "response_format.json_schema.schema",
    ),
    "response_format unknown": ({"response_format": {"type": "xml"}}, "response_format.type"),
    "ignore_eos with JSON": (
        {"ignore_eos": True, "response_format": {"type": "json_object"}},
        "ignore_eos",
    ),
    "tool_choice of no tool": (
        {"tool_choice": {"type": "function", "function": {"name": "f"}}},
        "tool_choice",
    ),
    "tool_choice required": ({"tool_choice": "required"}, "tool_choice"),
    "tool_choice nonsense": ({"tool_choice": "perhaps"}, "tool_choice"),
    "tools": ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    "tool calls in a message": (
        {"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]},
        "messages[0].tool_calls",
    ),
    "a tool's message": ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
    "prefix on a user's message": (
        {"messages": [{"role": "user", "content": "x", "prefix": True}]},
        "messages[0].prefix",
    ),
    "chat_template": ({"chat_template": "{{ 7 * 7 }}"}, "chat_template"),
    "chat_template_kwargs": ({"chat_template_kwargs": {"a": 1}}, "chat_template_kwargs"),
    "a file as image": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}],
                }
            ]
        },
        "messages[0].content[0].type",
    ),
    "the metadata service as image": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "Look:"},
                        {"type": "image_url", "image_url": "http://169.254.169.254/"},
                    ],
                }
            ]
        },
        "messages[0].content[1].type",
    ),
    "a long user": ({"user": "x" * 1_000_000}, "user"),
    "large metadata": ({"metadata": {"a": "x" * 100_000}}, "metadata"),
    "an unknown field": ({"zork": 1}, "zork"),
    "modalities": ({"modalities": ["audio"]}, "modalities"),
    "reasoning_effort": ({"reasoning_effort": "high"}, "reasoning_effort"),
}


async def still_works(server: Api) -> None:
    answer = await server.chat(max_tokens=3)
    assert answer.status_code == 200
    assert answer.json()["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize("body", BAD_JSON.values(), ids=BAD_JSON)
async def test_bad_json(body: bytes) -> None:
    settings = make_settings(max_body_bytes=32 << 20)
    async with api(settings, options={"length": "9"}) as server:
        answer = await server.client.post(CHAT, content=body, headers=JSON)
        check_error(answer, 400)
        await still_works(server)


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


@pytest.mark.parametrize("name", ["gpt-4", "", "x\r\nx-evil: 1", "../../etc/passwd", "x" * 500])
async def test_unknown_model(name: str) -> None:
    async with api() as server:
        error = check_error(await server.chat(model=name), 404, "model")
        assert error["code"] == "model_not_found"


async def test_unsupported_is_its_own_code() -> None:
    async with api() as server:
        error = check_error(await server.chat(tools=[{"type": "function"}]), 400, "tools")
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


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": "multipart/form-data; boundary=x"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": ""},
        {"content-type": "application/json; charset=utf-16"},
        {"content-type": "application/json", "content-encoding": "gzip"},
        {"content-type": "application/json", "content-encoding": "br"},
    ],
)
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
        for stream in (False, True):
            answer = await server.chat(messages=messages, max_tokens=4, stream=stream)
            error = check_error(answer, 400, "messages")
            assert error["code"] == "context_length_exceeded"
            assert "100" in error["message"]
            assert "97" in error["message"]
        answer = await server.chat(messages=messages)
        assert answer.json()["usage"]["completion_tokens"] == 3
        assert answer.json()["choices"][0]["finish_reason"] == "length"


async def test_prompt_that_fills_the_context() -> None:
    async with api(max_model_len=100) as server:
        answer = await server.chat(messages=[{"role": "user", "content": "x" * 93}])
        assert answer.status_code == 200
        assert answer.json()["choices"][0]["finish_reason"] == "length"
        assert answer.json()["usage"]["completion_tokens"] == 0
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
        if path == "/detokenize":
            assert len(answer.json()["prompt"]) == 50_000
        else:
            error = check_error(answer, 400, name)
            assert error["code"] == "context_length_exceeded"
            assert "50000" in error["message"]


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
