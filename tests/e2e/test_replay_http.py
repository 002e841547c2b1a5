"""What a client sees while the real engine is killed: a pause, and then the same bytes.

`tests/unit/supervise` and `test_replay_model.py` prove the same of tokens; this is HTTP.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from faults import (
    CHAT,
    TIMEOUT,
    Reply,
    ask,
    engine_pid,
    health,
    hit,
    kill,
    killed_in_work,
    metric,
    restarts,
    suspend,
    until,
    until_ready,
)
from maestrale.api.sse import PAUSE_KEEP_ALIVE
from serving import Server, serving

pytestmark = [pytest.mark.model, pytest.mark.slow, pytest.mark.anyio]

SCHEMA = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 30},
        "year": {"type": "integer", "minimum": 1900, "maximum": 2030},
        "cast": {"type": "array", "items": {"type": "string"}, "minItems": 2, "maxItems": 3},
    },
    "required": ["title", "year", "cast"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "film", "schema": SCHEMA}}
LONG_SCHEMA = {"type": "array", "items": {"type": "string", "minLength": 20}, "minItems": 10}
LONG_FORMAT = {
    "type": "json_schema",
    "json_schema": {
        "name": "list",
        "schema": {"type": "object", "properties": {"list": LONG_SCHEMA}, "required": ["list"]},
    },
}
LONG = "Here is a list: " + "bread, rain, tea, " * 150


def body(text: str = "Tell me a story about the sea.", **fields: Any) -> dict[str, Any]:
    """A stream of 32 tokens, unless `fields` say otherwise."""
    message = {"role": "user", "content": text}
    return {"messages": [message], "seed": 5, "max_tokens": 32, "stream": True, **fields}


@pytest.fixture(scope="module")
def server(cache_dir: Path, prepared_model: Path) -> Iterator[Server]:
    """One whose engine may die as often as these tests like."""
    with serving("--max-engine-failures", "1000", cache_dir=cache_dir) as running:
        yield running


@pytest.fixture
async def client(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.url, timeout=TIMEOUT) as client:
        await asyncio.to_thread(until_ready, server)
        yield client


def kill_at(server: Server, *events: int) -> Callable[[Reply], None]:
    """Kills the engine at the n-th event of a stream, for each n."""
    pending = sorted(events)

    def on_event(reply: Reply) -> None:
        if pending and reply.events >= pending[0]:
            pending.pop(0)
            kill(server)

    return on_event


def same(reply: Reply, undisturbed: Reply) -> None:
    assert reply.done
    assert reply.content() == undisturbed.content()


# One request


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 0, "stream_options": {"include_usage": True}},
        {"response_format": FORMAT, "max_tokens": 120},
        {"n": 2, "temperature": 1.2},
        {"logprobs": True, "top_logprobs": 3, "presence_penalty": 0.5},
    ],
    ids=["sampled", "greedy", "mid-JSON", "n=2", "logprobs"],
)
async def test_killed_mid_stream(
    server: Server, client: httpx.AsyncClient, fields: dict[str, Any]
) -> None:
    undisturbed = await ask(client, body(**fields))
    before = restarts(server)
    reply = await ask(client, body(**fields), kill_at(server, 6))
    same(reply, undisturbed)
    assert restarts(server) == before + 1
    if "response_format" in fields:
        assert set(json.loads(reply.choices[0].text)) == {"title", "year", "cast"}


async def test_killed_before_a_stop_string(server: Server, client: httpx.AsyncClient) -> None:
    text = (await ask(client, body())).choices[0].text
    # Of the second half, so that the engine dies before it.
    cuts = (text[at : at + 4] for at in range(len(text) // 2, len(text) - 4))
    stop = next(cut for cut in cuts if text.index(cut) >= len(text) // 2)
    undisturbed = await ask(client, body(stop=[stop]))
    assert undisturbed.choices[0].finish_reason == "stop"
    reply = await ask(client, body(stop=[stop]), kill_at(server, 6))
    same(reply, undisturbed)
    assert reply.choices[0].text == text[: text.index(stop)]


async def test_killed_twice_within_a_stream(server: Server, client: httpx.AsyncClient) -> None:
    undisturbed = await ask(client, body())
    before = restarts(server)
    same(await ask(client, body(), kill_at(server, 5, 14)), undisturbed)
    assert restarts(server) == before + 2


async def test_killed_three_times_in_a_row(server: Server, client: httpx.AsyncClient) -> None:
    """Again each time that it is back: as a rule before it has given the stream anything new."""
    undisturbed = await ask(client, body())
    before = restarts(server)
    asked = asyncio.create_task(ask(client, body(), kill_at(server, 8)))
    for number in range(1, 3):
        wanted = before + number
        await asyncio.to_thread(until, lambda wanted=wanted: restarts(server) == wanted)  # type: ignore[misc]
        kill(server)
    same(await asked, undisturbed)
    # A quick engine has given the rest before the last kill: then its successor is still to come.
    await asyncio.to_thread(until, lambda: restarts(server) == before + 3)


async def test_a_long_pause_is_kept_alive(server: Server, client: httpx.AsyncClient) -> None:
    """The next engine is held up in its start, so that the pause has a length."""
    undisturbed = await ask(client, body())
    loop = asyncio.get_running_loop()

    def on_event(reply: Reply) -> None:
        if reply.events == 6:
            kill(server)
            until(lambda: engine_pid(server) is not None)
            suspend(server)
            loop.call_later(2.5 * PAUSE_KEEP_ALIVE, hit, server, signal.SIGCONT)

    reply = await ask(client, body(), on_event)
    same(reply, undisturbed)
    assert reply.comments, "nothing kept the connection alive in the pause"


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_killed_before_the_first_token(
    server: Server, client: httpx.AsyncClient, stream: bool
) -> None:
    """Suspended first, so that it surely has not begun; a long prompt, so that it has to."""
    fields: dict[str, Any] = {"text": LONG + "What is it about?", "stream": stream}
    undisturbed = await ask(client, body(**fields))
    replayed = metric(server, "maestrale_replayed_requests_total")
    suspend(server)
    asked = asyncio.create_task(ask(client, body(**fields)))
    await asyncio.to_thread(until, lambda: server_load(server) == 1)
    await asyncio.sleep(0.3)
    kill(server)
    same(await asked, undisturbed)
    assert metric(server, "maestrale_replayed_requests_total") == replayed + 1


def server_load(server: Server) -> int:
    """Requests that the server has taken in and not answered."""
    load: int = httpx.get(f"{server.url}/load", timeout=TIMEOUT).json()["server_load"]
    return load


@pytest.mark.parametrize(
    "fields",
    [{}, {"n": 3}, {"response_format": LONG_FORMAT}],
    ids=["plain", "n=3", "JSON"],
)
async def test_killed_without_streaming(
    server: Server, client: httpx.AsyncClient, fields: dict[str, Any]
) -> None:
    whole = body(stream=False, max_tokens=400, **fields)
    undisturbed = await ask(client, whole)
    await asyncio.to_thread(until, lambda: metric(server, "vllm:num_requests_running") == 0)
    asked = asyncio.create_task(ask(client, whole))
    await killed_in_work(server)
    same(await asked, undisturbed)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_without_a_seed_the_one_reported_gives_the_answer_again(
    server: Server, client: httpx.AsyncClient, stream: bool
) -> None:
    free = body(stream=True, temperature=1.3, n=2)
    del free["seed"]
    reply = await ask(client, free, kill_at(server, 8))
    again = await ask(client, {**free, "seed": reply.seed, "stream": stream})
    same(reply, again)
    other = await ask(client, free)
    assert other.seed != reply.seed


@pytest.mark.parametrize("more", [{}, {"echo": True}, {"prompt_logprobs": 1}], ids="-".join)
async def test_plain_completions(
    server: Server, client: httpx.AsyncClient, more: dict[str, Any]
) -> None:
    asked = {"prompt": "Once upon a time", "seed": 3, "max_tokens": 400, "logprobs": 2, **more}
    undisturbed = (await client.post("/v1/completions", json=asked)).json()
    await asyncio.to_thread(until, lambda: metric(server, "vllm:num_requests_running") == 0)
    reply = asyncio.create_task(client.post("/v1/completions", json=asked))
    await killed_in_work(server)
    assert (await reply).json()["choices"] == undisturbed["choices"]


async def test_a_streamed_completion(server: Server, client: httpx.AsyncClient) -> None:
    asked = {"prompt": "Once upon a time", "seed": 3, "max_tokens": 60, "n": 2}
    undisturbed = (await client.post("/v1/completions", json=asked)).json()["choices"]
    before, texts, events = restarts(server), ["", ""], 0
    async with client.stream("POST", "/v1/completions", json={**asked, "stream": True}) as answer:
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                (choice,) = json.loads(line.removeprefix("data: "))["choices"]
                texts[choice["index"]] += choice["text"]
                events += 1
                if events == 8:
                    await asyncio.to_thread(kill, server)
    assert texts == [choice["text"] for choice in undisturbed]
    assert restarts(server) == before + 1


# Many


async def test_sixteen_in_flight(server: Server, client: httpx.AsyncClient) -> None:
    """Streams and whole answers, sampled and greedy, JSON, two choices, with logprobs."""
    kinds: list[dict[str, Any]] = [
        {"temperature": 0},
        {"stream": False},
        {"response_format": FORMAT, "max_tokens": 100},
        {"logprobs": True, "n": 2, "stream": False},
    ]
    bodies = [
        body(f"Say something about the number {number}.", **{"seed": number, **kinds[number % 4]})
        for number in range(16)
    ]
    undisturbed = [await ask(client, each) for each in bodies]
    before = restarts(server)
    total = 0
    pending = [40, 120]

    def count(reply: Reply) -> None:
        nonlocal total
        total += 1
        if pending and total >= pending[0]:
            pending.pop(0)
            kill(server)

    replies = await asyncio.gather(*(ask(client, each, count) for each in bodies))
    assert not pending
    for reply, alone in zip(replies, undisturbed, strict=True):
        same(reply, alone)
    assert restarts(server) == before + 2
    assert len({frame[0] for reply in replies for frame in reply.frames}) == 16


async def test_a_client_that_leaves_in_the_pause_leaves_nothing_behind(
    server: Server, client: httpx.AsyncClient
) -> None:
    for _ in range(3):
        async with client.stream("POST", CHAT, json=body(max_tokens=2000)) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data: "):
                    kill(server)
                    break
        await asyncio.to_thread(until_ready, server)
    await asyncio.to_thread(until, lambda: server_load(server) == 0)
    await asyncio.to_thread(until, lambda: metric(server, "vllm:num_requests_running") == 0)
    assert metric(server, "vllm:num_requests_waiting") == 0


# The watchdog, and what is said of the state


async def test_a_suspended_engine_is_replaced(server: Server, client: httpx.AsyncClient) -> None:
    undisturbed = await ask(client, body())
    before = restarts(server)
    suspended = False

    def on_event(reply: Reply) -> None:
        nonlocal suspended
        if reply.events == 6 and not suspended:
            suspended = True
            suspend(server)

    same(await ask(client, body(), on_event), undisturbed)
    assert restarts(server) == before + 1


async def test_health_tells_of_the_restart(server: Server, client: httpx.AsyncClient) -> None:
    """Degraded, not down: requests are taken, and wait."""
    assert health(server) == (200, "ready")
    undisturbed = await ask(client, body())
    kill(server)
    await asyncio.to_thread(until, lambda: health(server) == (200, "degraded"))
    same(await ask(client, body()), undisturbed)
    assert health(server) == (200, "ready")


def test_an_engine_that_keeps_dying_by_itself_is_said_to_be_dead_and_recovers(
    cache_dir: Path, prepared_model: Path
) -> None:
    """A crash, unlike somebody's SIGKILL, counts; who comes then gets a 503; then all is well."""
    flags = ("--max-engine-failures", "2", "--failure-window", "600")
    with serving(*flags, cache_dir=cache_dir) as server:
        hit(server, signal.SIGSEGV)
        until(lambda: restarts(server) == 1)
        hit(server, signal.SIGSEGV)
        until(lambda: health(server) == (503, "dead"))
        refused = httpx.post(server.url + CHAT, json=body(), timeout=TIMEOUT)
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) > 0
        assert health(server) == (503, "dead")
        until_ready(server)
        assert httpx.post(server.url + CHAT, json=body(), timeout=TIMEOUT).status_code == 200
