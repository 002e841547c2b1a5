"""Tools over the API: what is answered, streamed and refused, on the scripted engine."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from api_app import Api, api, chat_body, check_error, make_settings
from hostile_bodies import tool

pytestmark = pytest.mark.anyio

WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}, "days": {"enum": [1, 2]}},
    "required": ["city"],
}
TOOLS = [tool("get_weather", description="The weather.", parameters=WEATHER), tool("get_time")]
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Lyon"}}\n</tool_call>'


async def one(server: Api, **fields: Any) -> dict[str, Any]:
    answer = await server.chat(**{"tools": TOOLS, **fields})
    assert answer.status_code == 200, answer.text
    choice: dict[str, Any] = answer.json()["choices"][0]
    return choice


def check_calls(calls: list[dict[str, Any]]) -> None:
    for call in calls:
        assert call["type"] == "function"
        assert len(call["id"]) == 9
        arguments = json.loads(call["function"]["arguments"])
        named = call["function"]["name"] == "get_weather"
        jsonschema.validate(arguments, WEATHER if named else {"maxProperties": 0})


async def test_a_call_that_the_model_chose() -> None:
    async with api(tools=True, options={"text": f"Let me look.\n{CALL}"}) as server:
        choice = await one(server)
        assert choice["finish_reason"] == "tool_calls"
        message = choice["message"]
        assert message["content"] == "Let me look."
        (call,) = message["tool_calls"]
        assert call["function"] == {"name": "get_weather", "arguments": '{"city": "Lyon"}'}
        assert (await one(server, tool_choice="auto"))["message"]["tool_calls"][0]["type"]


async def test_a_call_alone_has_no_content() -> None:
    async with api(tools=True, options={"text": CALL}) as server:
        assert (await one(server))["message"]["content"] is None


async def test_text_without_calls_is_as_ever() -> None:
    async with api(tools=True, options={"text": "No tool <is> needed. "}) as server:
        choice = await one(server)
        assert choice["message"]["content"] == "No tool <is> needed. "
        assert choice["message"]["tool_calls"] is None
        assert choice["finish_reason"] == "stop"


async def test_none_calls_nothing_and_leaves_the_tools_out_of_the_prompt() -> None:
    async with api(tools=True, options={"text": CALL}) as server:
        choice = await one(server, tool_choice="none")
        assert choice["message"]["content"] == CALL
        assert choice["finish_reason"] == "stop"
        with_none = await server.chat(tools=TOOLS, tool_choice="none")
        without = await server.chat()
        counts = [each.json()["usage"]["prompt_tokens"] for each in (with_none, without)]
        assert counts[0] == counts[1]


@pytest.mark.parametrize("choice", ["required", "any"])
async def test_a_required_call_is_always_valid(choice: str) -> None:
    async with api(tools=True) as server:
        for seed in range(5):
            got = await one(server, tool_choice=choice, seed=seed)
            assert got["finish_reason"] == "tool_calls"
            assert got["message"]["content"] is None
            assert got["message"]["tool_calls"]
            check_calls(got["message"]["tool_calls"])


@pytest.mark.parametrize(
    "choice",
    [
        {"type": "function", "function": {"name": "get_weather"}},
        {"function": {"name": "get_weather"}},
        {
            "type": "allowed_tools",
            "allowed_tools": {
                "mode": "required",
                "tools": [{"type": "function", "function": {"name": "get_weather"}}],
            },
        },
    ],
)
async def test_a_named_tool_is_the_one_that_is_called(choice: dict[str, Any]) -> None:
    async with api(tools=True) as server:
        allowed = choice.get("type") == "allowed_tools"
        more = {"parallel_tool_calls": False} if allowed else {}
        got = await one(server, tool_choice=choice, seed=3, **more)
        assert got["finish_reason"] == "tool_calls"
        (call,) = got["message"]["tool_calls"]
        assert call["function"]["name"] == "get_weather"
        check_calls([call])


async def test_the_same_request_gives_the_same_bytes_ids_included() -> None:
    async with api(tools=True) as server:
        fields = {"tools": TOOLS, "tool_choice": "required", "seed": 7, "n": 2}
        first, again = [(await server.chat(**fields)).json()["choices"] for _ in range(2)]
        assert first == again
        ids = [call["id"] for choice in first for call in choice["message"]["tool_calls"]]
        assert len(set(ids)) == len(ids)


async def test_a_streamed_call_is_whole_in_one_delta() -> None:
    async with api(tools=True, options={"text": f"I see. {CALL}\n{CALL}"}) as server:
        events = await server.events(tools=TOOLS)
        choices = [event["choices"][0] for event in events[:-1]]
        deltas = [choice["delta"] for choice in choices]
        assert deltas[0]["role"] == "assistant"
        assert "".join(delta.get("content") or "" for delta in deltas) == "I see."
        calls = [call for delta in deltas for call in delta.get("tool_calls", [])]
        assert [call["index"] for call in calls] == [0, 1]
        assert len({call["id"] for call in calls}) == 2
        check_calls(calls)
        assert choices[-1]["finish_reason"] == "tool_calls"
        assert not any("tool_call" in (delta.get("content") or "") for delta in deltas)
        whole = (await one(server))["message"]["tool_calls"]
        seed: dict[str, Any] = {"seed": 1, "temperature": 0}
        whole = (await one(server, **seed))["message"]["tool_calls"]
        streamed = await server.events(tools=TOOLS, **seed)
        sent = [c for e in streamed[:-1] for c in e["choices"][0]["delta"].get("tool_calls", [])]
        assert [{k: v for k, v in call.items() if k != "index"} for call in sent] == whole


async def test_the_stream_begins_before_a_call_is_whole() -> None:
    async with api(tools=True, options={"text": CALL, "tokens_per_second": "200"}) as server:
        events = await server.events(tools=TOOLS)
        first = events[0]["choices"][0]
        assert first["delta"] == {"role": "assistant", "content": ""}
        assert first["finish_reason"] is None


async def test_a_broken_call_is_text_without_its_marker() -> None:
    async with api(tools=True, options={"text": '<tool_call>{"name": nope}</tool_call>'}) as server:
        choice = await one(server)
        assert choice["message"]["content"] == '{"name": nope}'
        assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize("size", [1, 9, 11, 30, 70])
async def test_a_named_call_cut_by_max_tokens_comes_as_far_as_it_came(size: int) -> None:
    named = {"type": "function", "function": {"name": "get_weather"}}
    fields: dict[str, Any] = {"tool_choice": named, "max_tokens": size, "seed": 4}
    async with api(tools=True) as server:
        choice = await one(server, **fields)
        assert choice["finish_reason"] == "length"
        assert choice["message"]["content"] is None
        (call,) = choice["message"]["tool_calls"]
        assert call["function"]["name"] == "get_weather"
        whole = await one(server, tool_choice=named, seed=4)
        arguments = whole["message"]["tool_calls"][0]["function"]["arguments"]
        assert arguments.startswith(call["function"]["arguments"])
        assert (size == 70) == bool(call["function"]["arguments"])
        events = await server.events(tools=TOOLS, **fields)
        choices = [event["choices"][0] for event in events[:-1]]
        assert "".join(each["delta"].get("content") or "" for each in choices) == ""
        (sent,) = [c for each in choices for c in each["delta"].get("tool_calls", [])]
        assert sent["function"] == call["function"]
        assert choices[-1]["finish_reason"] == "length"


@pytest.mark.parametrize("text", ["So: <tool_call>", "So: <tool_", "So: </tool_call>", "So: <"])
async def test_no_piece_of_a_marker_is_content(text: str) -> None:
    async with api(tools=True, options={"text": text + " and more"}) as server:
        size = len(text)
        choice = await one(server, max_tokens=size)
        assert choice["finish_reason"] == "length"
        assert (choice["message"]["content"] or "").strip() == "So:"
        events = await server.events(tools=TOOLS, max_tokens=size)
        deltas = [event["choices"][0]["delta"] for event in events[:-1]]
        assert "".join(delta.get("content") or "" for delta in deltas).strip() == "So:"


async def test_without_parallel_calls_the_first_is_the_last() -> None:
    async with api(tools=True, options={"text": CALL + CALL}) as server:
        choice = await one(server, parallel_tool_calls=False)
        assert len(choice["message"]["tool_calls"]) == 1
        assert choice["finish_reason"] == "tool_calls"
        await server.idle()
        assert len((await one(server))["message"]["tool_calls"]) == 2


async def test_stop_strings_do_not_cut_calls() -> None:
    async with api(tools=True, options={"text": f"Look. {CALL}"}) as server:
        choice = await one(server, stop=["Lyon"])
        assert choice["finish_reason"] == "tool_calls"
        choice = await one(server, stop=["ook"])
        assert choice["message"]["content"] == "L"
        assert choice["finish_reason"] == "stop"


async def test_logprobs_cover_calls_too() -> None:
    async with api(tools=True, options={"text": f"Look. {CALL}"}) as server:
        choice = await one(server, logprobs=True)
        assert len(choice["logprobs"]["content"]) == len(f"Look. {CALL}")
        events = await server.events(tools=TOOLS, logprobs=True)
        entries = [
            entry
            for event in events[:-1]
            for entry in (event["choices"][0]["logprobs"] or {"content": []})["content"]
        ]
        assert "".join(entry["token"] for entry in entries) == f"Look. {CALL}"


async def test_strict_tools_are_called_rightly_if_at_all() -> None:
    strict = [tool("get_weather", parameters=WEATHER, strict=True)]
    async with api(tools=True) as server:
        for seed in range(3):
            choice = await one(server, tools=strict, seed=seed, max_tokens=200)
            check_calls(choice["message"]["tool_calls"] or [])


async def test_with_a_response_format_it_is_json_or_a_call() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": WEATHER}}
    async with api(tools=True) as server:
        kinds = set()
        for seed in range(8):
            choice = await one(server, response_format=form, seed=seed)
            kinds.add(choice["finish_reason"])
            if choice["finish_reason"] == "stop":
                jsonschema.validate(json.loads(choice["message"]["content"]), WEATHER)
        assert kinds <= {"stop", "tool_calls"}
        choice = await one(server, response_format=form, tool_choice="required")
        assert choice["finish_reason"] == "tool_calls"


async def test_calls_and_results_reach_the_prompt() -> None:
    turns = [
        {"role": "user", "content": "Hi"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "a1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
                {"id": "a2", "index": 1, "function": {"name": "g", "arguments": {"b": 2}}},
            ],
        },
        {"role": "tool", "tool_call_id": "a1", "name": "f", "content": "sun"},
        {"role": "tool", "tool_call_id": "a2", "content": [{"type": "text", "text": "rain"}]},
    ]
    async with api(tools=True) as server:
        body = {"messages": turns, "tools": TOOLS}
        tokens = (await server.client.post("/tokenize", json=body)).json()["tokens"]
        assert bytes(tokens).decode() == (
            "get_weather?\nget_time?\nuser: Hi\n"
            'assistant(a1=f{"a":1} a2=g{"b": 2}): \ntool(a1): sun\ntool(a2): rain\n'
        )
        answer = await server.chat(**body)
        assert answer.json()["usage"]["prompt_tokens"] == len(tokens)


async def test_a_model_without_tools_says_so() -> None:
    async with api() as server:
        error = check_error(await server.chat(tools=TOOLS), 400, "tools")
        assert error["code"] == "unsupported_parameter"
        card = (await server.client.get("/v1/models")).json()["data"][0]
        assert card["capabilities"]["function_calling"] is False
        assert card["tool_call_format"] is None
    async with api(tools=True) as server:
        card = (await server.client.get("/v1/models")).json()["data"][0]
        assert card["capabilities"]["function_calling"] is True
        assert card["tool_call_format"] == "hermes"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": "required", "min_tokens": 3}, "min_tokens"),
        ({"tool_choice": "required", "ignore_eos": True}, "ignore_eos"),
        (
            {
                "tool_choice": "required",
                "messages": [
                    {"role": "user", "content": "x"},
                    {"role": "assistant", "content": "y", "prefix": True},
                ],
            },
            "messages[1].prefix",
        ),
        (
            {
                "tools": [
                    tool("a", parameters=WEATHER),
                    tool(
                        "b", parameters={"properties": {"x": {"type": "string", "pattern": "(["}}}
                    ),
                ],
                "tool_choice": "required",
            },
            "tools[1].function.parameters",
        ),
        (
            {"tools": [tool("b", parameters={"properties": {"x": {"type": "no"}}}, strict=True)]},
            "tools[0].function.parameters",
        ),
        (
            {
                "tools": [tool("b", parameters={"properties": {"x": {"uniqueItems": True}}})],
                "tool_choice": "any",
            },
            "tools[0].function.parameters",
        ),
    ],
)
async def test_what_contradicts_is_refused(fields: dict[str, Any], param: str) -> None:
    async with api(tools=True) as server:
        check_error(await server.chat(**{"tools": TOOLS, **fields}), 400, param)
        assert (await server.chat()).status_code == 200


async def test_a_deep_schema_is_refused() -> None:
    deep = '{"properties":{"a":' * 2500 + "{}" + "}}" * 2500
    body = chat_body(tool_choice="required", tools=["TOOL"])
    written = f'{{"type":"function","function":{{"name":"f","parameters":{deep}}}}}'
    raw = json.dumps(body).replace('"TOOL"', written)
    async with api(tools=True) as server:
        answer = await server.client.post(
            "/v1/chat/completions", content=raw, headers={"content-type": "application/json"}
        )
        assert "deep" in check_error(answer, 400)["message"]


async def test_the_operator_may_leave_the_choice_to_requests() -> None:
    settings = make_settings(enable_auto_tool_choice=False)
    async with api(settings, tools=True) as server:
        check_error(await server.chat(tools=TOOLS), 400, "tool_choice")
        assert (await one(server, tool_choice="required"))["finish_reason"] == "tool_calls"
        assert (await server.chat(tools=TOOLS, tool_choice="none")).status_code == 200
