"""A model that thinks, on the real engine: budgets, what comes after, clients, and replay."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from mistralai.client import Mistral
from openai import OpenAI

from e2e_clients import TIMEOUT, strict_openai
from faults import kill, killed_in_work, metric, restarts, until, until_ready
from serving import Server, serving
from thinking_model import write_thinking_model

pytestmark = [pytest.mark.model, pytest.mark.slow, pytest.mark.anyio, pytest.mark.timeout(600)]

ASK: list[Any] = [{"role": "user", "content": "Explain how rain is made, step by step."}]
CITY = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 20},
        "words": {"type": "array", "items": {"type": "string", "minLength": 12}, "minItems": 4},
    },
    "required": ["city", "words"],
    "additionalProperties": False,
}
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY}}
PLACE = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}},
         "required": ["city"]}  # fmt: skip
TOOL: Any = {"type": "function", "function": {"name": "weather", "parameters": PLACE}}
BUDGET = {"thinking_token_budget": 12}


@pytest.fixture(scope="module")
def server(cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    from maestrale.config.settings import BUNDLED_MODEL
    from maestrale.models.catalog import find_model, packaged_weights

    known = find_model(BUNDLED_MODEL)
    weights = packaged_weights(known) if known else None
    assert weights is not None
    model = write_thinking_model(weights, tmp_path_factory.mktemp("thinking") / "thinking.gguf")
    flags = ("--model", str(model), "--max-engine-failures", "1000")
    with serving(*flags, cache_dir=cache_dir) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[OpenAI]:
    with strict_openai(server) as client:
        yield client


@pytest.fixture
async def http(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.url, timeout=TIMEOUT) as client:
        await asyncio.to_thread(until_ready, server)
        yield client


def test_a_budget_and_a_document(client: OpenAI, server: Server) -> None:
    until_ready(server)
    asked: dict[str, Any] = {
        "model": "thinking", "messages": ASK, "seed": 3, "max_tokens": 200,
        "response_format": FORMAT, "extra_body": BUDGET,
    }  # fmt: skip
    whole = client.chat.completions.create(**asked)
    message = whole.choices[0].message
    assert set(json.loads(message.content or "")) == {"city", "words"}
    thought = (message.model_extra or {})["reasoning"]
    assert thought
    assert whole.usage is not None
    assert whole.usage.completion_tokens_details is not None
    assert 0 < (whole.usage.completion_tokens_details.reasoning_tokens or 0) <= 12
    streamed, text = "", ""
    for chunk in client.chat.completions.create(**asked, stream=True):
        delta = chunk.choices[0].delta
        streamed += (delta.model_extra or {}).get("reasoning_content") or ""
        text += delta.content or ""
    assert (streamed, text) == (thought, message.content)


def test_a_call_comes_after_the_thought(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="thinking", messages=ASK, temperature=0, max_tokens=200, tools=[TOOL],
        tool_choice="required", parallel_tool_calls=False, extra_body=BUDGET,
    )  # fmt: skip
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    calls: list[Any] = choice.message.tool_calls or []
    (call,) = calls
    assert set(json.loads(call.function.arguments)) == {"city"}
    assert (choice.message.model_extra or {})["reasoning"]


def test_off_by_the_template_and_by_a_budget_of_nothing(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": "thinking", "messages": ASK, "max_tokens": 16}
    off = client.chat.completions.create(**asked, temperature=0, reasoning_effort="none")
    assert off.choices[0].message.content
    assert "reasoning" not in (off.choices[0].message.model_extra or {})
    for seed in range(3):
        none = client.chat.completions.create(
            **asked, seed=seed, extra_body={"thinking_token_budget": 0}
        )
        assert "reasoning" not in (none.choices[0].message.model_extra or {})


def test_mistrals_client_is_given_chunks(server: Server) -> None:
    with Mistral(server_url=server.url, api_key="none", timeout_ms=int(TIMEOUT * 1000)) as client:
        asked: dict[str, Any] = {
            "model": "thinking", "messages": ASK, "temperature": 0, "max_tokens": 20,
            "prompt_mode": "reasoning", "response_format": {"type": "json_object"},
        }  # fmt: skip
        answer = client.chat.complete(**asked)
        message = answer.choices[0].message
        assert message is not None
        chunk = message.content[0]
        assert chunk.type == "thinking"
        thought = chunk.thinking[0].text
        streamed = ""
        for event in client.chat.stream(**asked):
            content = event.data.choices[0].delta.content
            for part in content if isinstance(content, list) else ():
                streamed += part.thinking[0].text
        assert streamed == thought
        again = [*ASK, message.model_dump(), *ASK]
        assert client.chat.complete(**{**asked, "messages": again}).choices


# Replay


def chat(**fields: Any) -> dict[str, Any]:
    return {"messages": ASK, "seed": 3, "max_tokens": 80, **BUDGET, **fields}


def messages(**fields: Any) -> dict[str, Any]:
    return {"messages": ASK, "temperature": 0, "max_tokens": 80, **fields}


THINKS = {"type": "enabled", "budget_tokens": 24}
SHAPED = {"output_config": {"format": {"type": "json_schema", "schema": CITY}}}
BODIES: list[Any] = [
    pytest.param("/v1/chat/completions", chat(response_format=FORMAT), id="chat"),
    pytest.param("/v1/messages", messages(thinking={"type": "disabled"}), id="message"),
    pytest.param("/v1/messages", messages(**SHAPED), id="a thought that is cut"),
    pytest.param("/v1/messages", messages(thinking=THINKS, **SHAPED), id="thought and JSON"),
]


def without_names(found: Any) -> Any:
    """Without what differs from request to request: ids, the time, what the cache had."""
    if isinstance(found, list):
        return [without_names(each) for each in found]
    if not isinstance(found, dict):
        return found
    changing = ("id", "created", "usage", "x_groq")
    return {name: without_names(each) for name, each in found.items() if name not in changing}


WORDS = {"content", "reasoning", "reasoning_content", "text", "thinking"}


def parted(found: Any, words: list[str]) -> Any:
    """An event with nothing where its words are; these go to `words`."""
    if isinstance(found, list):
        return [parted(each, words) for each in found]
    if not isinstance(found, dict):
        return found
    shape = {}
    for name, each in found.items():
        if name in WORDS and isinstance(each, str):
            words.append(each)
            each = ""
        shape[name] = parted(each, words)
    return shape


def joined(events: list[Any]) -> list[tuple[Any, list[str]]]:
    """Events that differ in their words alone as one: a slow reader gets several at once."""
    found: list[tuple[Any, list[str]]] = []
    for event in events:
        words: list[str] = []
        shape = parted(event, words)
        if found and found[-1][0] == shape:
            words = [one + more for one, more in zip(found.pop()[1], words, strict=True)]
        found.append((shape, words))
    return found


async def streamed(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], server: Server | None = None
) -> list[tuple[Any, list[str]]]:
    """The events of a stream, joined; with `server`, its engine is killed after the fourth."""
    found: list[Any] = []
    async with client.stream("POST", path, json={**body, "stream": True}) as answer:
        assert answer.status_code == 200, await answer.aread()
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            found.append(without_names(json.loads(line.removeprefix("data: "))))
            if server is not None and len(found) == 4:
                kill(server)
    return joined(found)


@pytest.mark.parametrize(("path", "body"), BODIES)
async def test_killed_mid_stream(
    server: Server, http: httpx.AsyncClient, path: str, body: dict[str, Any]
) -> None:
    undisturbed = await streamed(http, path, body)
    before = restarts(server)
    assert await streamed(http, path, body, server) == undisturbed
    await asyncio.to_thread(until, lambda: restarts(server) == before + 1)
    assert sum(len(text) for _, words in undisturbed for text in words) > 60


@pytest.mark.parametrize(("path", "body"), BODIES)
async def test_killed_without_streaming(
    server: Server, http: httpx.AsyncClient, path: str, body: dict[str, Any]
) -> None:
    body = {**body, "max_tokens": 300}
    undisturbed = await http.post(path, json=body)
    assert undisturbed.status_code == 200
    await asyncio.to_thread(until, lambda: metric(server, "vllm:num_requests_running") == 0)
    asked = asyncio.create_task(http.post(path, json=body))
    await killed_in_work(server)
    assert without_names((await asked).json()) == without_names(undisturbed.json())
