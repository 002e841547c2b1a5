"""LiteLLM, which other programs use to reach any server: each of its ways to ours."""

from __future__ import annotations

import json
from typing import Any

import litellm
import pytest
from pydantic import BaseModel

from script import MODEL, SAID, SUNNY
from serving import Server

WAYS = ("openai", "hosted_vllm", "mistral", "anthropic")
ASK = [{"role": "user", "content": "What is the weather in Lyon?"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


class Person(BaseModel):
    name: str
    age: int


@pytest.fixture(params=WAYS)
def asked(request: pytest.FixtureRequest, scripted: Server) -> dict[str, Any]:
    """What every question says of where it goes."""
    base = scripted.url if request.param == "anthropic" else f"{scripted.url}/v1"
    return {"model": f"{request.param}/{MODEL}", "api_base": base, "api_key": "none"}


def test_an_answer(asked: dict[str, Any]) -> None:
    done = litellm.completion(**asked, messages=[{"role": "user", "content": "Hello"}])
    assert done.choices[0].message.content == SAID
    assert done.choices[0].finish_reason == "stop"
    assert done.usage.completion_tokens > 0


def test_a_stream(asked: dict[str, Any]) -> None:
    chunks = list(
        litellm.completion(
            **asked,
            messages=[{"role": "user", "content": "Hello"}],
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(texts) == SAID
    assert len([text for text in texts if text]) > 1
    assert litellm.stream_chunk_builder(chunks).usage.completion_tokens > 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool(asked: dict[str, Any], stream: bool) -> None:
    done = litellm.completion(**asked, messages=ASK, tools=[TOOL], stream=stream)
    if stream:
        done = litellm.stream_chunk_builder(list(done))
    message = done.choices[0].message
    assert done.choices[0].finish_reason == "tool_calls"
    (call,) = message.tool_calls
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": "Lyon"}
    result = {"role": "tool", "tool_call_id": call.id, "content": "21 degrees"}
    turns = [*ASK, message.model_dump(exclude_none=True), result]
    last = litellm.completion(**asked, messages=turns, tools=[TOOL])
    assert last.choices[0].message.content == SUNNY


def test_an_output_type(asked: dict[str, Any]) -> None:
    if asked["model"].startswith("anthropic/"):
        pytest.skip("LiteLLM makes a tool of it for models that it doesn't know")
    done = litellm.completion(
        **asked,
        messages=[{"role": "user", "content": "Extract: Ada is 36."}],
        response_format=Person,
    )
    assert json.loads(done.choices[0].message.content) == {"name": "Ada", "age": 36}


def test_responses(scripted: Server) -> None:
    done = litellm.responses(
        model=f"openai/{MODEL}", api_base=f"{scripted.url}/v1", api_key="none", input="Hello"
    )
    assert done.output[0].content[0].text == SAID


def test_an_unknown_model(asked: dict[str, Any]) -> None:
    kind = asked["model"].partition("/")[0]
    with pytest.raises(litellm.NotFoundError, match="'nope'"):
        litellm.completion(**{**asked, "model": f"{kind}/nope"}, messages=ASK, num_retries=0)
