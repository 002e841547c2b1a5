"""/v1/responses: OpenAI's Responses API on the wire, whole, as events, and every error."""

from __future__ import annotations

import json
from typing import Any

import pytest

from api_app import MODEL, api, check_error, make_settings
from responses_api import (
    RESPONSES,
    WEATHER,
    answer,
    ask,
    body,
    events,
    events_of,
    prompt_of,
    text_of,
)

pytestmark = pytest.mark.anyio

NO_SCHEMA = {"type": "object", "properties": {"a": {"type": "zork"}}}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'
SHAPE = {
    "type": "json_schema",
    "name": "shape",
    "schema": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
}


def space(*tools: Any) -> dict[str, Any]:
    """These in a namespace."""
    return {"type": "namespace", "name": "sky", "description": "Of the sky.", "tools": [*tools]}


async def test_a_whole_response() -> None:
    async with api(options={"text": "Good day"}) as server:
        found = await answer(server, metadata={"a": "b"}, instructions="Be kind.", user="u")
        assert found["id"].startswith("resp_")
        assert (found["object"], found["status"], found["model"]) == (
            "response",
            "completed",
            MODEL,
        )
        assert found["error"] is found["incomplete_details"] is None
        assert (found["metadata"], found["instructions"]) == ({"a": "b"}, "Be kind.")
        [item] = found["output"]
        assert (item["type"], item["role"], item["status"]) == ("message", "assistant", "completed")
        part = {"type": "output_text", "text": "Good day", "annotations": [], "logprobs": []}
        assert item["content"] == [part]
        assert found["usage"] == {
            "input_tokens": len("system: Be kind.\nuser: Hello\n"),
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": 9,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": found["usage"]["input_tokens"] + 9,
        }
        assert found["completed_at"] >= found["created_at"]


async def test_it_is_there_without_v1_and_knows_its_methods() -> None:
    async with api() as server:
        assert (await server.client.post("/responses", json=body())).status_code == 200
        check_error(await server.client.get(RESPONSES), 405)


async def test_an_answer_that_is_cut_is_incomplete() -> None:
    async with api(options={"text": "Good day"}) as server:
        found = await answer(server, max_output_tokens=4)
        assert (text_of(found), found["status"]) == ("Good", "incomplete")
        assert found["incomplete_details"] == {"reason": "max_output_tokens"}
        assert found["output"][0]["status"] == "incomplete"
        last = (await events(server, max_output_tokens=4))[-1]
        assert (last["type"], last["response"]["status"]) == ("response.incomplete", "incomplete")


async def test_an_answer_without_text_has_an_empty_message() -> None:
    async with api(options={"text": ""}) as server:
        assert (await answer(server))["output"][0]["content"][0]["text"] == ""
        assert len(await events(server)) == 8


async def test_a_stream_has_every_event_in_order() -> None:
    async with api(options={"text": "Good day"}) as server:
        found = await events(server)
        kinds = [each["type"].removeprefix("response.") for each in found]
        assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
        assert set(kinds[4:-4]) == {"output_text.delta"}
        assert kinds[-4:] == [
            *("output_text.done", "content_part.done", "output_item.done", "completed")
        ]
        assert "".join(each["delta"] for each in found[4:-4]) == found[-4]["text"] == "Good day"
        assert {each["item_id"] for each in found[3:-2]} == {found[2]["item"]["id"]}
        assert found[0]["response"]["status"] == "in_progress"
        assert found[-1]["response"]["output"] == [found[-2]["item"]]
        assert found[-1]["response"]["usage"]["output_tokens"] == 9


async def test_a_stream_ends_with_what_is_given_whole() -> None:
    async with api(tools=True, options={"text": f"So:{CALL}"}) as server:
        fields: dict[str, Any] = {"tools": [WEATHER], "seed": 7, "metadata": {"a": "b"}}
        whole, last = await answer(server, **fields), (await events(server, **fields))[-1]
        for response in (whole, last["response"]):
            for item in (response, *response["output"]):
                del item["id"]
            for name in ("created_at", "completed_at"):
                del response[name]
        del whole["usage"]["input_tokens_details"]
        del last["response"]["usage"]["input_tokens_details"]
        assert whole == last["response"]


async def test_log_probabilities() -> None:
    include = ["message.output_text.logprobs", "reasoning.encrypted_content"]
    async with api(options={"text": "Hi"}) as server:
        found = await answer(server, include=include, top_logprobs=2)
        [first, second] = found["output"][0]["content"][0]["logprobs"]
        assert (first["token"], second["token"]) == ("H", "i")
        assert (first["bytes"], len(first["top_logprobs"])) == ([72], 2)
        sent = await events(server, include=include)
        deltas = [each for each in sent if each["type"] == "response.output_text.delta"]
        spelled = [entry["token"] for each in deltas for entry in each["logprobs"]]
        assert spelled == ["H", "i"]
        check_error(await ask(server, top_logprobs=2), 400, "top_logprobs")
        check_error(await ask(server, include=["everything"]), 400, "include[0]")


async def test_calls_of_functions_in_a_namespace() -> None:
    """As Codex has them: the model knows such a function by a longer name, the client by two."""
    said = CALL.replace("get_weather", "sky__get_weather")
    fields: dict[str, Any] = {"tools": [space(WEATHER), WEATHER]}
    async with api(tools=True, options={"text": said}) as server:
        found = await answer(server, **fields)
        (call,) = found["output"]
        assert (call["namespace"], call["name"]) == ("sky", "get_weather")
        assert found["tools"][0]["type"] == "namespace"
        streamed = await events(server, **fields)
        items = [each["item"] for each in streamed if each["type"] == "response.output_item.done"]
        assert [(each["namespace"], each["name"]) for each in items] == [("sky", "get_weather")]
        gave = {"type": "function_call_output", "call_id": call["call_id"], "output": "5"}
        asked = [{"role": "user", "content": "?"}, call, gave]
        prompt = await prompt_of(server, input=asked, **fields)
    assert prompt.count("sky__get_weather") == 2  # among the tools, and called


async def test_calls_whole_and_as_events() -> None:
    async with api(tools=True, options={"text": f"So:{CALL}"}) as server:
        whole = await answer(server, tools=[WEATHER])
        message, call = whole["output"]
        assert message["content"][0]["text"] == "So:"
        assert (call["type"], call["name"], call["status"]) == (
            *("function_call", "get_weather", "completed"),
        )
        assert json.loads(call["arguments"]) == {"city": "Rome"}
        assert whole["tools"] == [{**WEATHER, "strict": False}]
        found = await events(server, tools=[WEATHER])
        added = [each for each in found if each["type"] == "response.output_item.added"]
        assert [each["output_index"] for each in added] == [0, 1]
        assert (added[1]["item"]["name"], added[1]["item"]["arguments"]) == ("get_weather", "")
        arguments = [each for each in found if "function_call_arguments" in each["type"]]
        assert json.loads(arguments[0]["delta"]) == {"city": "Rome"}
        assert arguments[1]["arguments"] == arguments[0]["delta"]
        assert {each["item_id"] for each in arguments} == {added[1]["item"]["id"]}


@pytest.mark.parametrize(
    ("choice", "called"),
    [
        ("none", False),
        ("required", True),
        ({"type": "function", "name": "get_weather"}, True),
        (
            {
                "type": "allowed_tools",
                "mode": "required",
                "tools": [{"type": "function", "name": "get_weather"}],
            },
            True,
        ),
    ],
)
async def test_tool_choice(choice: Any, called: bool) -> None:
    other = {**WEATHER, "name": "other"}
    async with api(tools=True, options={"text": CALL}) as server:
        found = await answer(server, tools=[WEATHER, other], tool_choice=choice)
        kinds = [item["type"] for item in found["output"]]
        assert kinds == (["function_call"] if called else ["message"])
        assert found["tool_choice"] == choice


async def test_a_conversation_of_items() -> None:
    items = [
        {"role": "developer", "content": "Be short."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Rome?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Hm"}]},
        {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "I look.", "annotations": []}],
        },
        {"type": "function_call", "call_id": "c1", "name": "get_weather", "arguments": "{}"},
        {"type": "function_call", "call_id": "c2", "name": "get_weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "Sun"},
        {
            "type": "function_call_output",
            "call_id": "c2",
            "output": [{"type": "input_text", "text": "Rain"}],
        },
    ]
    async with api(tools=True) as server:
        told = await prompt_of(server, input=items, instructions="Be kind.", tools=[WEATHER])
        assert told == (
            "get_weather?\n"
            "system: Be kind.\n\nBe short.\n"
            "user: Rome?\n"
            "assistant(c1=get_weather{} c2=get_weather{}): I look.\n"
            "tool(c1): Sun\n"
            "tool(c2): Rain\n"
        )


async def test_answers_by_a_schema() -> None:
    async with api() as server:
        found = await answer(server, text={"format": SHAPE}, max_output_tokens=100)
        assert isinstance(json.loads(text_of(found))["a"], int)
        assert found["text"]["format"] == SHAPE
        found = await answer(server, text={"format": {"type": "json_object"}}, temperature=0)
        assert isinstance(json.loads(text_of(found)), dict)


async def test_what_changes_nothing_is_taken() -> None:
    fields: dict[str, Any] = {
        "background": False,
        "conversation": None,
        "context_management": [],
        "max_tool_calls": 3,
        "max_tokens": None,
        "n": 1,
        "logprobs": False,
        "min_tokens": 0,
        "parallel_tool_calls": True,
        "prompt_cache_key": "k",
        "prompt_cache_retention": "24h",
        "client_metadata": {"session_id": "s"},
        "reasoning": {"effort": "low", "summary": "auto"},
        "safety_identifier": "s",
        "service_tier": "auto",
        "stream_options": {"include_obfuscation": False},
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "truncation": "disabled",
        "user": "u",
    }
    async with api() as server:
        found = await answer(server, **fields)
        assert found["reasoning"] == {"effort": "low", "summary": "auto"}
        assert found["truncation"] == "disabled"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": 5}, "input"),
        ({"input": [5]}, "input[0]"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "critic", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": 5}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": "x", "zork": 1}]}, "input[0].zork"),
        ({"input": [{"role": "user", "content": [{"text": "x"}]}]}, "input[0].content[0]"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input[0].content[0].type",
        ),
        ({"input": [{"type": "computer_call"}]}, "input[0].type"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].id"),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "f"}]}, "input[0].arguments"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "x"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": 2**63}, "max_output_tokens"),
        ({"top_logprobs": 10**9}, "top_logprobs"),
        ({"seed": 2**65}, "seed"),
        ({"stream": "yes"}, "stream"),
        ({"stop": ["x"] * 500}, "stop"),
        ({"n": 2}, "n"),
        ({"messages": []}, "messages"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"response_format": {"type": "text"}}, "response_format"),
        ({"enable_thinking": False}, "enable_thinking"),
        ({"thinking": {"type": "disabled"}}, "thinking"),
        ({"logprobs": True}, "logprobs"),
        ({"user": "u" * 2000}, "user"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"metadata": {str(number): "" for number in range(17)}}, "metadata"),
        ({"truncation": "some"}, "truncation"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format.schema"),
        ({"text": {"format": {**SHAPE, "schema": {"type": "zork"}}}}, "text.format.schema"),
        ({"text": {"format": {**SHAPE, "schema": 5}}}, "text.format.schema"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"background": True}, "background"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "name": "a b"}]}, "tools[0].name"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": [WEATHER, WEATHER]}, "tools[1].name"),
        ({"tools": [space(WEATHER, {**WEATHER, "name": "a b"})]}, "tools[0].tools[1].name"),
        ({"tools": [space({"type": "custom", "name": "c"})]}, "tools[0].tools[0].type"),
        ({"tools": [space(WEATHER), space(WEATHER)]}, "tools[1].tools[0].name"),
        (
            {"tools": [space(WEATHER), {**WEATHER, "strict": True, "parameters": NO_SCHEMA}]},
            "tools[1].parameters",
        ),
        ({"tools": [{**WEATHER, "parameters": 5}]}, "tools[0].parameters"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice.type"),
        (
            {"tools": [WEATHER], "tool_choice": {"type": "function", "name": "zork"}},
            "tool_choice",
        ),
    ],
)
async def test_bad_bodies(fields: dict[str, Any], param: str) -> None:
    async with api(tools=True) as server:
        error = check_error(await ask(server, **fields), 400)
        assert (error["param"] or "").replace("[...]", ".a") in (param, f"{param}.a"), error
        assert (await ask(server)).status_code == 200


async def test_other_errors() -> None:
    async with api(max_model_len=64) as server:
        error = check_error(await ask(server, model="gpt-5"), 404, "model")
        assert error["code"] == "model_not_found"
        error = check_error(await ask(server, input="x" * 100), 400, "input")
        assert error["code"] == "context_length_exceeded"
        items = [{"role": "user", "content": "a"}, {"role": "user", "content": "x" * 100}]
        error = check_error(await ask(server, input=items), 400)
        assert error["code"] == "context_length_exceeded"
        error = check_error(await ask(server, max_output_tokens=64, input="x" * 57), 400)
        assert "'max_output_tokens'" in error["message"]
    async with api(make_settings(api_key=("secret",))) as server:
        check_error(await ask(server), 401)


async def test_an_engine_that_fails_midway_ends_a_stream() -> None:
    async with api(options={"text": "Good day", "lose_at_token": "4"}) as server:
        got = await ask(server, stream=True)
        found = events_of(got.text)
        assert [each["type"] for each in found[-2:]] == ["error", "response.failed"]
        assert found[-1]["response"]["error"]["code"] == "server_error"
        assert found[-1]["response"]["error"]["message"] == found[-2]["message"]


async def test_truncation_drops_the_oldest() -> None:
    items = [{"role": "system", "content": "S"}]
    for number in range(30):
        items += [
            {"role": "user", "content": f"Question {number}"},
            {"role": "assistant", "content": f"Answer {number}"},
        ]
    items.append({"role": "user", "content": "Last"})
    async with api(max_model_len=200) as server:
        error = check_error(await ask(server, input=items), 400)
        assert error["code"] == "context_length_exceeded"
        told = await prompt_of(server, input=items, truncation="auto", max_output_tokens=40)
        assert told.startswith("system: S\nuser: Question ")
        assert told.endswith("user: Last\n")
        assert 100 < len(told) <= 160
        whole = await prompt_of(server, input=items[-1:], truncation="auto")
        assert whole == "user: Last\n"


THOUGHT = "Hm, 2 < 3."
THINKS = {"text": f"<think>\n{THOUGHT}\n</think>\n\nFour."}


async def test_thoughts_are_items_of_their_own() -> None:
    async with api(options=THINKS, thinks=True) as server:
        found = await answer(server, reasoning={"effort": "high", "summary": "auto"})
        thought, message = found["output"]
        assert thought["content"] == [{"type": "reasoning_text", "text": THOUGHT}]
        assert (thought["type"], thought["summary"], thought["status"]) == (
            *("reasoning", [], "completed"),
        )
        assert message["content"][0]["text"] == "Four."
        assert found["usage"]["output_tokens_details"]["reasoning_tokens"] >= len(THOUGHT)
        streamed = await events(server)
        kinds = [each["type"].removeprefix("response.") for each in streamed]
        assert "".join(
            each["delta"]
            for each in streamed
            if each["type"] == "response.reasoning_text.delta"
        ) == THOUGHT  # fmt: skip
        ends = kinds.index("reasoning_text.done")
        assert kinds[ends : ends + 5] == [
            *("reasoning_text.done", "content_part.done", "output_item.done"),
            *("output_item.added", "content_part.added"),
        ]
        assert [item["type"] for item in streamed[-1]["response"]["output"]] == [
            *("reasoning", "message")
        ]
        cut = await answer(server, max_output_tokens=12)
        assert [(item["type"], item["status"]) for item in cut["output"]] == [
            ("reasoning", "incomplete")
        ]


async def test_thoughts_come_back_with_what_was_said() -> None:
    async with api(options=THINKS, thinks=True) as server:
        made = await answer(server)
        items = [{"role": "user", "content": "Hello"}, *made["output"]]
        seen = []
        encode = server.encoder.encode_chat

        def spy(messages: Any, **options: Any) -> Any:
            seen.append(messages)
            return encode(messages, **options)

        server.encoder.encode_chat = spy  # type: ignore[method-assign]
        again = {"role": "user", "content": "Sure?"}
        await answer(server, input=[*items, again], reasoning={"effort": "none"})
        assert (seen[0][1].reasoning, seen[0][1].text) == (THOUGHT, "Four.")


async def test_the_numbers_of_a_stream_that_fails_have_no_gaps() -> None:
    async with api(options={"text": "Good day", "lose_at_token": "4"}) as server:
        found = events_of((await ask(server, stream=True)).text)
        assert [each["sequence_number"] for each in found] == list(range(len(found)))
        assert found[-3]["type"] == "response.output_item.done"
        assert found[-3]["item"]["status"] == "incomplete"
