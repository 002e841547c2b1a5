"""The Responses API as its tests ask for it: what comes back is what the client's types have."""

from __future__ import annotations

import json
from typing import Any

import httpx
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from api_app import MODEL, Api

RESPONSES = "/v1/responses"
EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}


def body(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "input": "Hello", **fields}


async def ask(server: Api, **fields: Any) -> httpx.Response:
    return await server.client.post(RESPONSES, json=body(**fields))


async def answer(server: Api, **fields: Any) -> dict[str, Any]:
    """A whole response, which the client's own types accept."""
    got = await ask(server, **fields)
    assert got.status_code == 200, got.text
    Response.model_validate(got.json(), strict=True)
    return dict(got.json())


def events_of(text: str) -> list[dict[str, Any]]:
    """The data of a stream's events, all of them as the client's own types have them."""
    found = []
    for block in text.split("\n\n"):
        if block and not block.startswith(":"):
            name, data = block.split("\n")
            found.append(json.loads(data.removeprefix("data: ")))
            assert name == f"event: {found[-1]['type']}"
            EVENTS.validate_python(found[-1], strict=True)
    return found


async def events(server: Api, **fields: Any) -> list[dict[str, Any]]:
    got = await ask(server, stream=True, **fields)
    assert got.status_code == 200, got.text
    found = events_of(got.text)
    assert [each["sequence_number"] for each in found] == list(range(len(found)))
    return found


def text_of(response: dict[str, Any]) -> str:
    return Response.model_validate(response).output_text


async def prompt_of(server: Api, **fields: Any) -> str:
    """The prompt that the model gets, as text."""
    seen = []
    generate = server.engine.generate

    def spy(request: Any) -> Any:
        seen.append(request)
        return generate(request)

    server.engine.generate = spy  # type: ignore[method-assign]
    try:
        await answer(server, **fields)
    finally:
        server.engine.generate = generate  # type: ignore[method-assign]
    return server.encoder.decode(seen[0].prompt)
