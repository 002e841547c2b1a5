"""Streams: the chunks' shapes, usage, errors after the 200, and clients that leave."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

import maestrale.api.sse as sse
from api_app import CHAT, Api, api, chat_body, make_settings
from maestrale.engines.base import GenerationRequest, TokenDelta
from maestrale.errors import EngineDied

pytestmark = pytest.mark.anyio

TEXT = 'Hi 🎉 there\n\ndata: [DONE]\n\n"quoted"\u2028data: [DONE]\u2029\x85'


def texts(events: list[Any], index: int = 0) -> str:
    return "".join(
        choice["delta"].get("content", "")
        for event in events
        if event != "[DONE]" and "choices" in event
        for choice in event["choices"]
        if choice["index"] == index
    )


async def test_chunks() -> None:
    async with api(options={"text": TEXT}) as server:
        events = await server.events()
        assert events[-1] == "[DONE]"
        chunks = events[:-1]
        assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
        assert all(chunk["object"] == "chat.completion.chunk" for chunk in chunks)
        assert all("finish_reason" in chunk["choices"][0] for chunk in chunks)
        assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
        assert all("role" not in chunk["choices"][0]["delta"] for chunk in chunks[1:])
        reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
        assert reasons == [None] * (len(chunks) - 1) + ["stop"]
        assert texts(events) == TEXT
        assert "\ufffd" not in texts(events)


async def test_usage_by_default_is_on_the_finishing_chunk() -> None:
    async with api(options={"text": "abc"}) as server:
        *chunks, last, done = await server.events()
        assert done == "[DONE]"
        assert last["usage"]["completion_tokens"] == 4
        assert last["choices"][0]["finish_reason"] == "stop"
        assert all("usage" not in chunk for chunk in chunks)


async def test_usage_on_a_chunk_of_its_own() -> None:
    async with api(options={"text": "abc"}) as server:
        *chunks, last, _ = await server.events(stream_options={"include_usage": True})
        assert last["choices"] == []
        assert last["usage"]["completion_tokens"] == 4
        assert all(chunk["usage"] is None for chunk in chunks)


async def test_no_usage() -> None:
    async with api(options={"text": "abc"}) as server:
        *chunks, _ = await server.events(stream_options={"include_usage": False})
        assert not any("usage" in chunk for chunk in chunks)


async def test_n_choices_in_one_stream() -> None:
    async with api() as server:
        whole = (await server.chat(n=3, seed=4)).json()
        events = await server.events(n=3, seed=4)
        for index, choice in enumerate(whole["choices"]):
            assert texts(events, index) == choice["message"]["content"]
        assert sum("usage" in event for event in events if event != "[DONE]") == 1
        assert events[-2]["usage"] == whole["usage"]


async def test_stop_string_never_leaks() -> None:
    async with api(options={"text": "one STO two STOP three"}) as server:
        events = await server.events(stop="STOP")
        assert texts(events) == "one STO two "


async def test_completions_stream() -> None:
    async with api(options={"text": "abc"}) as server:
        events = await server.events("/v1/completions", prompt="x")
        assert "".join(event["choices"][0]["text"] for event in events[:-1]) == "abc"
        assert events[-2]["choices"][0]["finish_reason"] == "stop"
        assert events[-2]["usage"]["completion_tokens"] == 4


def fail_after(server: Api, tokens: int) -> None:
    """From now on the engine dies after so many tokens of each answer."""
    generate = server.engine.generate

    async def dying(request: GenerationRequest) -> AsyncIterator[TokenDelta]:
        count = 0
        async for delta in generate(request):
            if count == tokens:
                raise EngineDied("the engine's process ended")
            yield delta
            count += 1

    server.engine.generate = dying  # type: ignore[method-assign]


async def test_failure_before_the_first_token_has_its_status() -> None:
    async with api(options={"length": "50"}) as server:
        fail_after(server, 0)
        for stream in (False, True):
            answer = await server.chat(stream=stream)
            assert answer.status_code == 503
            assert answer.headers["retry-after"]
            assert answer.json()["error"]["code"] == "engine_died"


async def test_failure_in_the_stream_is_an_event() -> None:
    async with api(options={"length": "50"}) as server:
        fail_after(server, 3)
        events = await server.events()
        assert events[-1]["error"]["code"] == "engine_died"
        assert "[DONE]" not in events


async def test_silence_is_filled_with_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "KEEP_ALIVE", 0.05)
    async with (
        api(options={"length": "3", "tokens_per_second": "5"}) as server,
        server.client.stream("POST", CHAT, json=chat_body(stream=True)) as answer,
    ):
        text = (await answer.aread()).decode()
        assert ": keep-alive\n\n" in text
        assert text.endswith("data: [DONE]\n\n")


async def test_queue_timeout() -> None:
    settings = make_settings(queue_timeout=0.05)
    async with api(settings, options={"tokens_per_second": "2"}, max_num_seqs=1) as server:
        held = asyncio.create_task(server.chat(max_tokens=3))
        await asyncio.sleep(0.01)
        answer = await server.chat()
        assert answer.status_code == 503
        assert answer.json()["code"] == "queue_timeout"
        await held
        await server.idle()


async def test_full_queue_is_refused_at_once_and_the_admitted_finish() -> None:
    settings = make_settings(max_waiting=2)
    # Paced, so that all have come before the first answer is whole.
    options = {"length": "20", "tokens_per_second": "40"}
    async with api(settings, options=options, max_num_seqs=2) as server:
        answers = await asyncio.gather(*(server.chat() for _ in range(40)))
        good = [answer for answer in answers if answer.status_code == 200]
        refused = [answer for answer in answers if answer.status_code == 503]
        assert len(good) == 4
        assert len(refused) == 36
        assert all(answer.headers["retry-after"] for answer in refused)
        assert all(answer.json()["choices"][0]["finish_reason"] == "stop" for answer in good)
        assert (await server.chat()).status_code == 200


async def test_a_full_queue_makes_no_prompts() -> None:
    settings = make_settings(max_waiting=0)
    async with api(settings, options={"tokens_per_second": "20"}, max_num_seqs=1) as server:
        held = asyncio.create_task(server.chat(max_tokens=40, ignore_eos=True))
        async with asyncio.timeout(5):
            while not server.engine.stats().running:
                await asyncio.sleep(0.005)

        def made(*args: object, **fields: object) -> None:
            raise AssertionError("a prompt was made")

        server.encoder.encode_chat = made  # type: ignore[method-assign, assignment]
        for _ in range(3):
            answer = await server.chat()
            assert answer.status_code == 503
            assert answer.json()["code"] == "queue_full"
        assert (await held).status_code == 200


@pytest.mark.parametrize("stream", [True, False])
async def test_disconnect_stops_the_engine(stream: bool, caplog: pytest.LogCaptureFixture) -> None:
    options = {"length": "1000000", "tokens_per_second": "200"}
    async with api(options=options, over_http=True, max_num_seqs=2) as server:
        body = chat_body(stream=stream)
        clients = [httpx.AsyncClient(base_url=server.client.base_url) for _ in range(4)]
        tasks = [asyncio.create_task(client.post(CHAT, json=body)) for client in clients]
        async with asyncio.timeout(5):  # two run and two are queued
            while server.engine.stats().waiting < 2:
                await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for client in clients:
            await client.aclose()
        await server.idle()
        assert (await server.chat(max_tokens=2)).status_code == 200
        load = await server.client.get("/load")
        assert load.json() == {"server_load": 0}
        # Nothing failed: not in the metrics, nor on the status page.
        metrics = (await server.client.get("/metrics")).text
        assert "internal_error" not in metrics
        assert (await server.client.get("/status.json")).json()["events"] == []
        assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_each_token_is_sent_as_it_comes() -> None:
    options = {"length": "1000000", "tokens_per_second": "100"}
    async with (
        api(options=options, over_http=True) as server,
        server.client.stream("POST", CHAT, json=chat_body(stream=True)) as answer,
    ):
        seen = 0
        async for line in answer.aiter_lines():
            if line.startswith("data: "):
                assert len(json.loads(line[6:])["choices"][0]["delta"]["content"]) <= 2
                seen += 1
            if seen == 5:
                break
        assert server.engine.stats().running == 1
