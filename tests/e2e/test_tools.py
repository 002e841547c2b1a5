"""Tool calls with real clients: Mistral's format with Mistral's tokenizer, Hermes' on SmolLM2.

The tiny Mistral's weights are random and SmolLM2 never learned tools, so what is called is
noise. That a call is valid, whole and the same each time is not left to them.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_mistralai import ChatMistralAI
from langchain_openai import ChatOpenAI
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from mistralai.client import Mistral
from pydantic import SecretStr

from e2e_clients import TIMEOUT, strict_openai
from faults import hit
from maestrale.models.mistral_vocabulary import shipped_file
from serving import ROOT, Server, serving
from tiny_mistral import serving_tiny_mistral

pytestmark = [pytest.mark.model, pytest.mark.slow]

MISTRAL = "mistralai/Mistral-7B-Instruct-v0.3"
WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 10},
        "unit": {"enum": ["celsius", "fahrenheit"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city", "unit"],
    "additionalProperties": False,
}
TIME: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
SCHEMAS = {"get_weather": WEATHER, "get_time": TIME}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": name, "description": name, "parameters": schema}}
    for name, schema in SCHEMAS.items()
]
NAMED: Any = {"type": "function", "function": {"name": "get_weather"}}
ASK: list[Any] = [{"role": "user", "content": "What is the weather in Lyon?"}]


@pytest.fixture(scope="module")
def mistral(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving_tiny_mistral(tmp_path_factory.mktemp("tools"), MISTRAL, version="v3") as running:
        yield running


@pytest.fixture(scope="module")
def hermes(cache_dir: Path) -> Iterator[Server]:
    template = ROOT / "tests" / "templates" / "hermes.jinja"
    with serving(
        "--chat-template", str(template), "--served-model-name", "hermes", cache_dir=cache_dir
    ) as running:
        yield running


@pytest.fixture(params=["mistral", "hermes"])
def tooled(request: pytest.FixtureRequest) -> tuple[Server, str]:
    return request.getfixturevalue(
        request.param
    ), MISTRAL if request.param == "mistral" else "hermes"


def valid(name: str, arguments: str | dict[str, Any]) -> None:
    value = json.loads(arguments) if isinstance(arguments, str) else arguments
    jsonschema.validate(value, SCHEMAS[name])


def test_openai_s_client(tooled: tuple[Server, str]) -> None:
    server, model = tooled
    with strict_openai(server) as client:
        for choice in ("required", NAMED):
            asked: dict[str, Any] = {
                "model": model, "messages": ASK, "tools": TOOLS, "tool_choice": choice,
                "seed": 4, "parallel_tool_calls": False, "max_tokens": 200,
            }  # fmt: skip
            answer = client.chat.completions.create(**asked).choices[0]
            assert answer.finish_reason == "tool_calls"
            assert answer.message.content is None
            (call,) = answer.message.tool_calls or []
            assert call.type == "function"
            assert choice == "required" or call.function.name == "get_weather"
            valid(call.function.name, call.function.arguments)
            chunks = list(client.chat.completions.create(**asked, stream=True))
            deltas = [c for chunk in chunks for c in chunk.choices[0].delta.tool_calls or []]
            assert [(d.index, d.id, d.function and d.function.arguments) for d in deltas] == [
                (0, call.id, call.function.arguments)
            ]
            assert chunks[-1].choices[0].finish_reason == "tool_calls"
            # The SDK's own joining of a stream.
            with client.chat.completions.stream(**asked) as stream:
                joined = stream.get_final_completion().choices[0].message.tool_calls or []
            assert [(j.id, j.function.arguments) for j in joined] == [
                (call.id, call.function.arguments)
            ]
        card = client.models.list().data[0].model_dump()
        assert card["capabilities"]["function_calling"] is True


def test_mistral_s_client_and_a_second_turn(tooled: tuple[Server, str]) -> None:
    server, model = tooled
    with Mistral(server_url=server.url, api_key="none", timeout_ms=int(TIMEOUT * 1000)) as client:
        asked: dict[str, Any] = {
            "model": model, "tools": TOOLS, "random_seed": 4, "max_tokens": 300,
            "parallel_tool_calls": False,
        }  # fmt: skip
        answer = client.chat.complete(**asked, messages=ASK, tool_choice="any").choices[0]
        assert answer.finish_reason == "tool_calls"
        assert answer.message is not None
        calls = answer.message.tool_calls or []
        assert calls
        for call in calls:
            valid(call.function.name, call.function.arguments)
        events = list(client.chat.stream(**asked, messages=ASK, tool_choice="any"))
        streamed = [c for event in events for c in event.data.choices[0].delta.tool_calls or []]
        assert [(c.id, c.function.arguments) for c in streamed] == [
            (c.id, c.function.arguments) for c in calls
        ]
        results = [
            {"role": "tool", "name": c.function.name, "tool_call_id": c.id, "content": "21 °C"}
            for c in calls
        ]
        turns = [*ASK, answer.message, *results]
        asked["max_tokens"] = 8
        last = client.chat.complete(**asked, messages=turns, tool_choice="none")
        assert last.choices[0].finish_reason in ("stop", "length")


@pytest.mark.parametrize("kind", ["openai", "mistralai"])
def test_langchain_s_bind_tools(tooled: tuple[Server, str], kind: str) -> None:
    server, model = tooled
    chat: Any
    if kind == "openai":
        chat = ChatOpenAI(
            base_url=f"{server.url}/v1", api_key=SecretStr("none"), model=model, seed=4,
            timeout=TIMEOUT, max_retries=0, max_completion_tokens=300,
        )  # fmt: skip
    else:
        chat = ChatMistralAI(
            base_url=f"{server.url}/v1", api_key=SecretStr("none"), model_name=model,
            random_seed=4, timeout=int(TIMEOUT), max_retries=1, max_tokens=300,
        )  # fmt: skip
    bound = chat.bind_tools(TOOLS, tool_choice="any").bind(parallel_tool_calls=False)
    answer = bound.invoke([HumanMessage("What is the weather in Lyon?")])
    assert isinstance(answer, AIMessage)
    assert answer.tool_calls
    assert not answer.invalid_tool_calls
    for call in answer.tool_calls:
        valid(call["name"], call["args"])
    whole = None
    for chunk in bound.stream([HumanMessage("What is the weather in Lyon?")]):
        whole = chunk if whole is None else whole + chunk
    assert whole is not None
    assert [call["args"] for call in whole.tool_calls] == [c["args"] for c in answer.tool_calls]
    results = [ToolMessage("21 °C", tool_call_id=str(c["id"])) for c in answer.tool_calls]
    turns = [HumanMessage("What is the weather in Lyon?"), answer, *results]
    assert isinstance(chat.bind(max_tokens=8).invoke(turns), AIMessage)
    if kind == "mistralai":
        chat.client.close()


def test_the_prompt_is_mistral_common_s(mistral: Server) -> None:
    body: dict[str, Any] = {"messages": ASK, "tools": TOOLS}
    tokens = httpx.post(f"{mistral.url}/tokenize", json=body, timeout=TIMEOUT).json()["tokens"]
    tokenizer = MistralTokenizer.from_file(shipped_file("v3"))
    request = ChatCompletionRequest.from_openai(**body)
    assert tokens == tokenizer.encode_chat_completion(request).tokens


def test_a_crash_within_a_call_changes_no_byte(mistral: Server) -> None:
    schema = {"type": "object", "properties": {"text": {"type": "string", "minLength": 400,
              "maxLength": 500}}, "required": ["text"]}  # fmt: skip
    tool = {"type": "function", "function": {"name": "write", "parameters": schema}}
    body = {
        "messages": ASK, "tools": [tool], "tool_choice": "required", "seed": 11,
        "parallel_tool_calls": False, "max_tokens": 900,
    }  # fmt: skip
    url = f"{mistral.url}/v1/chat/completions"
    with httpx.Client(timeout=TIMEOUT) as client:
        before = client.post(url, json=body).json()["choices"]
        assert before[0]["finish_reason"] == "tool_calls"
        jsonschema.validate(
            json.loads(before[0]["message"]["tool_calls"][0]["function"]["arguments"]), schema
        )
        with client.stream("POST", url, json=body | {"stream": True}) as answer:
            lines = answer.iter_lines()
            next(lines)
            time.sleep(0.1)
            hit(mistral, signal.SIGKILL)
            events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    calls = [c for e in events for c in e["choices"][0]["delta"].get("tool_calls", [])]
    expected = before[0]["message"]["tool_calls"]
    assert [{k: v for k, v in call.items() if k != "index"} for call in calls] == expected


def test_a_model_that_knows_no_tools_is_told_of_them(server: Server) -> None:
    """The bundled model: auto answers, and what is required or named is one valid call."""
    url = f"{server.url}/v1/chat/completions"
    body: dict[str, Any] = {"messages": ASK, "tools": TOOLS, "max_tokens": 200, "seed": 3}
    card = httpx.get(f"{server.url}/v1/models", timeout=TIMEOUT).json()["data"][0]
    assert card["tool_call_format"] == "generic"
    assert card["capabilities"]["function_calling"] is True
    assert httpx.post(url, json=body, timeout=TIMEOUT).status_code == 200
    one = {"tool_choice": "required", "parallel_tool_calls": False}
    for choice in ({"tool_choice": NAMED}, one):
        answer = httpx.post(url, json=body | choice, timeout=TIMEOUT).json()["choices"][0]
        assert answer["finish_reason"] == "tool_calls"
        (call,) = answer["message"]["tool_calls"]
        valid(call["function"]["name"], json.loads(call["function"]["arguments"]))
    turns = [*ASK, answer["message"], {"role": "tool", "tool_call_id": call["id"], "content": "5"}]
    again = httpx.post(url, json=body | {"messages": turns, "max_tokens": 8}, timeout=TIMEOUT)
    assert again.status_code == 200
