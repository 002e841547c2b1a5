"""Streams of the real model: one token at a time, whole characters, and an end on disconnect."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from e2e_clients import TIMEOUT
from serving import Server

pytestmark = [pytest.mark.model, pytest.mark.anyio]

CHAT = "/v1/chat/completions"
STORY = [{"role": "user", "content": "Tell a long story about a lighthouse."}]
EMOJI = [
    {"role": "user", "content": "只用表情符号和中文回答。🎉🦁🇮🇹 Answer with emoji and 漢字 only."}
]


@pytest.fixture
async def http(server: Server, anyio_backend: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.url, timeout=TIMEOUT) as client:
        yield client


async def events(http: httpx.AsyncClient, **body: Any) -> AsyncIterator[tuple[float, str]]:
    """(time of arrival, data) of each event."""
    async with http.stream("POST", CHAT, json={"stream": True, **body}) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        async for line in answer.aiter_lines():
            if line.startswith("data: "):
                yield time.monotonic(), line.removeprefix("data: ")


async def texts(http: httpx.AsyncClient, **body: Any) -> list[str]:
    """The pieces of text of a stream that must end well."""
    received = [data async for _, data in events(http, **body)]
    assert received[-1] == "[DONE]"
    chunks = [json.loads(data) for data in received[:-1]]
    return [choice["delta"].get("content") or "" for c in chunks for choice in c["choices"]]


async def test_each_token_is_sent_as_it_comes(http: httpx.AsyncClient) -> None:
    body = {"messages": STORY, "temperature": 0, "max_tokens": 32, "ignore_eos": True}
    received = [each async for each in events(http, **body)]
    chunks = [json.loads(data) for _, data in received[:-1]]
    # A token for each chunk, but for those that wait for the rest of a character, and those that
    # were guessed right and so come with the one before them: up to seven.
    assert 4 <= len(chunks) <= 32
    assert chunks[-1]["usage"]["completion_tokens"] == 32
    # Had all been sent at the end, they would have come within a few milliseconds.
    times = [when for when, _ in received]
    assert len({round(when, 2) for when in times}) > 10
    assert times[-1] - times[0] > 5 * (times[-1] - times[-2])


async def test_a_stream_says_what_the_whole_answer_says(http: httpx.AsyncClient) -> None:
    body = {"messages": STORY, "seed": 9, "temperature": 1.2, "max_tokens": 40}
    whole = (await http.post(CHAT, json=body)).json()
    assert "".join(await texts(http, **body)) == whole["choices"][0]["message"]["content"]


async def test_characters_are_never_split(http: httpx.AsyncClient) -> None:
    """High temperatures draw byte tokens, which alone are parts of characters.

    Bytes that are no character in any order remain U+FFFD, as when all are decoded at once.
    """

    async def one(seed: int) -> tuple[list[str], str]:
        body = {"messages": EMOJI, "seed": seed, "temperature": 1.6, "max_tokens": 60}
        response = await http.post("/v1/chat/completions", json={**body, "logprobs": True})
        entries = response.json()["choices"][0]["logprobs"]["content"]
        spelled = b"".join(bytes(entry["bytes"]) for entry in entries)
        return await texts(http, **body), spelled.decode(errors="replace")

    answers = await asyncio.gather(*map(one, range(8)))
    for pieces, spelled in answers:
        assert "".join(pieces).rstrip("\ufffd") == spelled.rstrip("\ufffd")
        for piece in pieces:
            assert not any(0xD800 <= ord(character) < 0xE000 for character in piece)
    assert any(ord(character) > 0x2000 for _, spelled in answers for character in spelled)


async def test_emoji_forced_token_by_token(http: httpx.AsyncClient) -> None:
    """Each of these takes several tokens, and a pattern leaves no other way."""
    text = "🦁🇮🇹漢字👩‍🚀é"
    schema = {"type": "object", "properties": {"x": {"const": text}}, "required": ["x"],
              "additionalProperties": False}  # fmt: skip
    pieces = await texts(
        http, messages=EMOJI, max_tokens=120,
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
    )  # fmt: skip
    assert json.loads("".join(pieces)) == {"x": text}
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)


@pytest.mark.parametrize("stop", [" the", "e l", "ghthouse", "\n", ". "])
async def test_stop_strings_never_leak(http: httpx.AsyncClient, stop: str) -> None:
    """Not even their first letters, when they are spread over tokens."""
    body: dict[str, Any] = {"messages": STORY, "temperature": 0, "max_tokens": 40}
    free = "".join(await texts(http, **body))
    stopped = await texts(http, **body, stop=[stop, "never said"])
    assert "".join(stopped) == free.partition(stop)[0]
    assert free.startswith("".join(stopped))


async def test_text_can_not_end_the_stream(http: httpx.AsyncClient) -> None:
    breakout = "a\n\ndata: [DONE]\n\nevent: error\r\rdata: {}\u2028b\x85c"
    received = [
        data
        async for _, data in events(
            http,
            messages=[*STORY, {"role": "assistant", "content": breakout, "prefix": True}],
            max_tokens=6,
        )
    ]
    assert received.count("[DONE]") == 1
    assert received[-1] == "[DONE]"
    chunks = [json.loads(data) for data in received[:-1]]
    assert chunks[0]["choices"][0]["delta"]["content"].startswith(breakout)
    assert chunks[-1]["usage"]["completion_tokens"] >= 1


async def gauges(http: httpx.AsyncClient) -> tuple[float, float, float]:
    """(running, waiting, share of the KV cache in use)."""
    text = (await http.get("/metrics")).text

    def value(name: str) -> float:
        found = re.search(rf"^vllm:{name}{{[^}}]*}} (\S+)$", text, re.MULTILINE)
        assert found, f"no {name} in /metrics"
        return float(found[1])

    return (
        value("num_requests_running"),
        value("num_requests_waiting"),
        value("kv_cache_usage_perc"),
    )


async def idle(http: httpx.AsyncClient, within: float) -> tuple[float, float, float]:
    """Wait until nothing runs (the engine reports now and then) and return the gauges."""
    async with asyncio.timeout(within):
        while (found := await gauges(http))[:2] != (0, 0):
            await asyncio.sleep(0.05)
    return found


@pytest.mark.parametrize("stream", [True, False], ids=["streaming", "waiting for all of it"])
async def test_leaving_ends_the_work(http: httpx.AsyncClient, stream: bool) -> None:
    before = await idle(http, within=10)
    body = {
        "messages": STORY, "stream": stream, "ignore_eos": True, "max_tokens": 2000, "n": 3,
    }  # fmt: skip

    async def read() -> None:
        async with http.stream("POST", CHAT, json=body) as answer:
            async for _ in answer.aiter_bytes():
                pass

    reader = asyncio.create_task(read())
    while (await gauges(http))[0] < 3:
        assert not reader.done()
        await asyncio.sleep(0.05)
    assert (await gauges(http))[2] > before[2]
    reader.cancel()
    await asyncio.gather(reader, return_exceptions=True)
    left = time.monotonic()
    while await gauges(http) != before:
        # The aim is 1 s on an idle machine; without an abort, it would be minutes.
        assert time.monotonic() - left < 10, "the engine goes on for a client that left"
        await asyncio.sleep(0.02)
    print(f"\nidle {time.monotonic() - left:.2f} s after the client left")


async def test_many_that_leave_block_nobody(http: httpx.AsyncClient) -> None:
    """Some leave while queued, some in prefill, some in the middle of their answer."""
    body = {"messages": STORY, "stream": True, "ignore_eos": True, "max_tokens": 2000}

    async def leave(after: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(after):
                async for _ in events(http, **body):
                    pass
            pytest.fail("the answer ended before its client left")

    await asyncio.gather(*(leave(0.01 * number) for number in range(1, 60)))
    await idle(http, within=20)
    answer = await http.post(CHAT, json={"messages": STORY, "max_tokens": 4})
    assert answer.status_code == 200
