"""/v1/messages: Anthropic's Messages API on the wire, whole, as events, and every error."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from api_app import MODEL, Api, api, check_error, make_settings
from maestrale.api.anthropic.schemas import (
    IGNORED_FIELDS,
    IGNORED_PARTS,
    UNSUPPORTED_FIELDS,
    MessagesRequest,
    TextBlock,
    ThinkingBlock,
    ToolBody,
    ToolResultBlock,
    ToolUseBlock,
)
from maestrale.keys import add_key

pytestmark = pytest.mark.anyio

MESSAGES = "/v1/messages"
HELLO = {"role": "user", "content": "Hello"}
WEATHER = {
    "name": "get_weather",
    "description": "The weather.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'
TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "api_error",
    529: "overloaded_error",
}


def body(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "max_tokens": 50, "messages": [HELLO], **fields}


async def ask(server: Api, **fields: Any) -> httpx.Response:
    return await server.client.post(MESSAGES, json=body(**fields))


async def answer(server: Api, **fields: Any) -> dict[str, Any]:
    got = await ask(server, **fields)
    assert got.status_code == 200, got.text
    return dict(got.json())


async def events(server: Api, **fields: Any) -> list[dict[str, Any]]:
    """The data of a stream's events, whose names are checked against their types."""
    got = await ask(server, stream=True, **fields)
    assert got.status_code == 200, got.text
    found = []
    for block in got.text.split("\n\n"):
        if block and not block.startswith(":"):
            name, data = block.split("\n")
            found.append(json.loads(data.removeprefix("data: ")))
            assert name == f"event: {found[-1]['type']}"
    return found


def check_refused(got: httpx.Response, status: int, told: str = "") -> str:
    """An error in Anthropic's shape. Returns its message."""
    assert got.status_code == status, got.text
    error = got.json()
    assert set(error) == {"type", "error", "request_id"}
    assert error["type"] == "error"
    assert set(error["error"]) == {"type", "message"}
    assert error["error"]["type"] == TYPES[status]
    assert error["request_id"] == got.headers["request-id"] == got.headers["x-request-id"]
    message: str = error["error"]["message"]
    assert told in message
    return message


async def test_a_whole_message() -> None:
    async with api(options={"text": "Good day"}) as server:
        found = await answer(server)
        assert found["id"].startswith("msg_")
        assert found["content"] == [{"type": "text", "text": "Good day"}]
        fixed = {"type": "message", "role": "assistant", "model": MODEL}
        assert {name: found[name] for name in fixed} == fixed
        assert (found["stop_reason"], found["stop_sequence"]) == ("end_turn", None)
        assert found["usage"] == {
            "input_tokens": 12,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 9,
            "output_tokens_details": {"thinking_tokens": 0},
        }


async def test_how_it_ends() -> None:
    async with api(options={"text": "One, two, three"}) as server:
        cut = await answer(server, max_tokens=3)
        assert (cut["content"][0]["text"], cut["stop_reason"]) == ("One", "max_tokens")
        stopped = await answer(server, stop_sequences=["zzz", ", t"])
        assert stopped["content"][0]["text"] == "One"
        assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", ", t")
        last = (await events(server, stop_sequences=[", t"]))[-2]
        assert last["delta"] == {"stop_reason": "stop_sequence", "stop_sequence": ", t"}


async def test_a_stream_has_every_event_in_order() -> None:
    async with api(options={"text": "Good day"}) as server:
        found = await events(server)
        kinds = [each["type"] for each in found]
        assert kinds[:2] == ["message_start", "content_block_start"]
        assert set(kinds[2:-3]) == {"content_block_delta"}
        assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
        start = found[0]["message"]
        assert (start["content"], start["stop_reason"]) == ([], None)
        assert (start["usage"]["input_tokens"], start["usage"]["output_tokens"]) == (12, 0)
        assert found[1]["content_block"] == {"type": "text", "text": ""}
        assert "".join(each["delta"]["text"] for each in found[2:-3]) == "Good day"
        assert {each["index"] for each in found[1:-2]} == {0}
        assert found[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
        assert found[-2]["usage"]["output_tokens"] == 9


async def test_calls_whole_and_as_events() -> None:
    async with api(tools=True, options={"text": f"So:{CALL}"}) as server:
        whole = await answer(server, tools=[WEATHER], max_tokens=200)
        text, call = whole["content"]
        assert text == {"type": "text", "text": "So:"}
        assert (call["type"], call["name"]) == ("tool_use", "get_weather")
        assert call["input"] == {"city": "Rome"}
        assert whole["stop_reason"] == "tool_use"
        found = await events(server, tools=[WEATHER], max_tokens=200)
        starts = [each for each in found if each["type"] == "content_block_start"]
        assert [each["index"] for each in starts] == [0, 1]
        assert starts[1]["content_block"]["name"] == "get_weather"
        assert starts[1]["content_block"]["input"] == {}
        parts = [each["delta"]["partial_json"] for each in found
                 if each.get("delta", {}).get("type") == "input_json_delta"]  # fmt: skip
        assert json.loads("".join(parts)) == {"city": "Rome"}
        stops = [each["index"] for each in found if each["type"] == "content_block_stop"]
        assert stops == [0, 1]
        assert found[-2]["delta"]["stop_reason"] == "tool_use"


@pytest.mark.parametrize("size", [1, 20, 40])
async def test_a_call_that_is_cut(size: int) -> None:
    """Half an object is no object; a stream has said what came of it."""
    choice = {"type": "tool", "name": "get_weather"}
    async with api(tools=True, options={"text": CALL}) as server:
        asked = {"tools": [WEATHER], "tool_choice": choice, "max_tokens": size}
        whole = await answer(server, **asked)
        assert whole["stop_reason"] == "max_tokens"
        assert all(block["input"] == {} for block in whole["content"])
        found = await events(server, **asked)
        assert found[-2]["delta"]["stop_reason"] == "max_tokens"
        starts = [each for each in found if each["type"] == "content_block_start"]
        assert len(starts) == len(whole["content"])


async def test_a_call_that_is_demanded() -> None:
    async with api(tools=True) as server:
        for choice in ({"type": "any"}, {"type": "tool", "name": "get_weather"}):
            whole = await answer(server, tools=[WEATHER], tool_choice=choice, max_tokens=500)
            assert {block["type"] for block in whole["content"]} == {"tool_use"}
        none = await answer(server, tools=[WEATHER], tool_choice={"type": "none"})
        assert {block["type"] for block in none["content"]} == {"text"}


async def prompt_of(server: Api, **fields: Any) -> str:
    """What the engine is given, as text: a token is a byte."""
    seen: list[tuple[int, ...]] = []
    generate = server.engine.generate

    def watched(request: Any) -> Any:
        seen.append(request.prompt)
        return generate(request)

    server.engine.generate = watched  # type: ignore[method-assign]
    await answer(server, **fields)
    server.engine.generate = generate  # type: ignore[method-assign]
    return bytes(seen[0]).decode()


async def test_what_reaches_the_prompt() -> None:
    text = {"type": "text", "text": "ther?", "cache_control": {"type": "ephemeral"}}
    call = {"type": "tool_use", "id": "t1", "name": "get_weather", "input": {"city": "Rome"}}
    sun = [{"type": "text", "text": "Sun"}]
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "Wea"}, text]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": "x"},
                {"type": "redacted_thinking", "data": "x"},
                {"type": "text", "text": "I look."},
                call,
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": sun},
                {"type": "tool_result", "tool_use_id": "t2", "content": "none", "is_error": True},
                {"type": "text", "text": "Well?"},
            ],
        },
    ]
    async with api(tools=True) as server:
        system = [{"type": "text", "text": "Be brief."}]
        found = await prompt_of(server, system=system, messages=turns, tools=[WEATHER])
        assert found.split("\n") == [
            "get_weather?",
            "system: Be brief.",
            "user: Weather?",
            'assistant(t1=get_weather{"city":"Rome"}): I look.',
            "tool(t1): Sun",
            "tool(t2): Error: none",
            "user: Well?",
            "",
        ]
        assert (await prompt_of(server, system="S")).startswith("system: S\nuser: Hello")


THINKS = {"text": "<think>\nHm, ä.\n</think>\n\nGood day"}


async def test_thoughts_are_blocks_of_their_own() -> None:
    async with api(options=THINKS, thinks=True) as server:
        whole = await answer(server)
        thinking, text = whole["content"]
        assert (thinking["type"], thinking["thinking"]) == ("thinking", "Hm, ä.")
        assert len(thinking["signature"]) >= 32
        assert text == {"type": "text", "text": "Good day"}
        assert 0 < whole["usage"]["output_tokens_details"]["thinking_tokens"] < 20
        found = await events(server)
        starts = [each["content_block"] for each in found if each["type"] == "content_block_start"]
        assert starts == [
            {"type": "thinking", "thinking": "", "signature": ""},
            {"type": "text", "text": ""},
        ]
        deltas = [each for each in found if each["type"] == "content_block_delta"]
        kinds = [each["delta"]["type"] for each in deltas]
        of_thought = kinds.index("signature_delta")
        assert set(kinds[:of_thought]) == {"thinking_delta"}
        assert set(kinds[of_thought + 1 :]) == {"text_delta"}
        assert {each["index"] for each in deltas[: of_thought + 1]} == {0}
        assert "".join(each["delta"]["thinking"] for each in deltas[:of_thought]) == "Hm, ä."
        assert deltas[of_thought]["delta"]["signature"] == thinking["signature"]
        # What was given goes back as it is, and the model is shown what it thought.
        turns = [HELLO, {"role": "assistant", "content": whole["content"]}, HELLO]
        assert "assistant: [Hm, ä.] Good day\n" in await prompt_of(server, messages=turns)


async def test_thoughts_that_are_not_shown() -> None:
    async with api(options=THINKS, thinks=True) as server:
        hidden = {"type": "adaptive", "display": "omitted"}
        thinking, text = (await answer(server, thinking=hidden))["content"]
        assert (thinking["thinking"], text["text"]) == ("", "Good day")
        assert thinking["signature"]
        found = await events(server, thinking=hidden)
        kinds = [each["delta"]["type"] for each in found if each["type"] == "content_block_delta"]
        assert kinds == ["signature_delta", *["text_delta"] * (len(kinds) - 1)]


async def test_a_thought_that_is_cut_or_forbidden() -> None:
    async with api(options=THINKS, thinks=True) as server:
        cut = await answer(server, max_tokens=10)
        assert [block["type"] for block in cut["content"]] == ["thinking"]
        assert cut["stop_reason"] == "max_tokens"
        found = await events(server, max_tokens=10)
        assert found[-3]["type"] == "content_block_stop"
        form = {"format": {"type": "json_schema", "schema": {"enum": [7]}}}
        fields = {"thinking": {"type": "disabled"}, "output_config": form}
        assert (await answer(server, **fields))["content"] == [{"type": "text", "text": "7"}]


async def test_an_answer_that_is_begun() -> None:
    begun = [HELLO, {"role": "assistant", "content": "Good"}]
    async with api(options={"text": " day"}) as server:
        whole = await answer(server, messages=begun)
        assert whole["content"][0]["text"].endswith(" day")
        form = {"format": {"type": "json_schema", "schema": {}}}
        got = await ask(server, messages=begun, output_config=form)
        check_refused(got, 400, "messages.1")


async def test_an_output_format() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"],
              "additionalProperties": False}  # fmt: skip
    async with api() as server:
        form = {"format": {"type": "json_schema", "schema": schema}, "effort": "low"}
        whole = await answer(server, output_config=form)
        assert set(json.loads(whole["content"][0]["text"])) == {"a"}


async def test_tokens_are_counted_and_nothing_runs() -> None:
    async with api(tools=True) as server:
        counted = {"messages": [HELLO], "model": MODEL, "system": "S", "tools": [WEATHER]}
        got = await server.client.post(f"{MESSAGES}/count_tokens", json=counted)
        found = await answer(server, system="S", tools=[WEATHER])
        assert got.json() == {"input_tokens": found["usage"]["input_tokens"]}
        check_refused(
            await server.client.post(f"{MESSAGES}/count_tokens", json={"messages": []}), 400
        )


EDITS_FOR_NOTHING: list[dict[str, Any]] = [
    {"type": "clear_thinking_20251015", "keep": "all"},
    {"type": "clear_thinking_20251015", "keep": {"type": "all"}},
    {"type": "clear_tool_uses_20250919", "keep": {"type": "tool_uses", "value": 3}},
    {"type": "compact_20260112", "trigger": {"type": "input_tokens", "value": 50_000}},
]
"""What Claude Code sends, and what is for longer prompts than the model takes."""


async def test_what_changes_nothing_is_taken() -> None:
    async with api() as server:
        await answer(
            server,
            metadata={"user_id": "u"},
            service_tier="auto",
            cache_control={"type": "ephemeral"},
            thinking={"type": "disabled"},
            mcp_servers=[],
            container=None,
            betas=["a-2025-01-01"],
            anthropic_version="bedrock-2023-05-31",
            fallbacks="default",
            output_config={"task_budget": None},
            context_management={"edits": EDITS_FOR_NOTHING},
        )
        for shown in (None, "summarized", "updates"):
            await answer(server, thinking={"type": "adaptive", "display": shown})
        headers = {"anthropic-version": "2023-06-01", "anthropic-beta": "a,b"}
        got = await server.client.post(f"{MESSAGES}?beta=true", json=body(), headers=headers)
        assert got.status_code == 200


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"zork": 1}, "unknown field 'zork'"),
        ({"max_tokens": 0}, "'max_tokens' is not valid"),
        ({"messages": []}, "'messages' is not valid"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "'messages.0.role'"),
        ({"messages": [{"role": "user", "content": [{}]}]}, "messages.0.content.0: "),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]},
         "messages.0.content.0.text: 'text' is required."),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "", "x": 1}]}]},
         "messages.0.content.0.x: unknown field 'x'"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
         "messages.0.content.0.type: Content of type 'image' is not supported"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_use", "id": "a", "name": "b",
                                                     "input": {}}]}]}, "has no place"),
        ({"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "a",
                                                          "name": "b", "input": 1}]}]},
         "messages.0.content.0.input: "),
        ({"system": [{"type": "image"}]}, "system.0.type: "),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.0.type: "),
        ({"tools": [{"name": "f"}]}, "tools.0.input_schema: "),
        ({"tools": [{"name": "a b", "input_schema": {}}]}, "tools.0.name: "),
        ({"tools": [{"name": "f", "input_schema": 3}]}, "tools.0.input_schema: "),
        ({"tools": [WEATHER, WEATHER]}, "tools.1.name: "),
        ({"tool_choice": {"type": "any"}}, "'tool_choice' asks for a tool"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "g"}},
         "'tool_choice' names 'g'"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool"}}, "tool_choice.name: "),
        ({"thinking": {"type": "enabled", "budget_tokens": 20}},
         "'thinking.type' is not supported"),
        ({"thinking": {"type": "enabled", "budget_tokens": 50}}, "thinking.budget_tokens: "),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens: "),
        ({"thinking": {"type": "disabled", "budget_tokens": 5}}, "thinking.budget_tokens: "),
        ({"thinking": {"type": "between_tools"}}, "thinking.type: "),
        ({"thinking": {"type": "adaptive", "display": "loud"}}, "'thinking.display'"),
        ({"mcp_servers": [{"url": "x"}]}, "'mcp_servers' is not supported"),
        ({"thread": {"type": "create"}}, "'thread' is not supported"),
        ({"compaction": {"type": "summarize"}}, "'compaction' is not supported"),
        ({"context_management": {"edits": [*EDITS_FOR_NOTHING, {"type": "snip_20270101"}]}},
         "context_management.edits.4.type: 'snip_20270101' is not supported where"),
        ({"context_management": {"edits": [{"type": "clear_thinking_20251015"}]}},
         "context_management.edits.0.type: "),
        ({"context_management": {"edits": [{"type": "compact_20260112", "trigger": {
            "type": "input_tokens", "value": 999}}]}}, "context_management.edits.0.type: "),
        ({"context_management": {"edits": [{"type": "clear_tool_uses_20250919", "trigger": {
            "type": "tool_uses", "value": 10**6}}]}}, "context_management.edits.0.type: "),
        ({"context_management": {"edits": [{"type": "compact_20260112", "trigger": 5}]}},
         "context_management.edits.0.trigger"),
        ({"context_management": {"edits": [5]}}, "context_management.edits.0"),
        ({"context_management": {"edit": []}}, "unknown field 'context_management.edit'"),
        ({"output_config": {"task_budget": {"type": "tokens", "total": 9}}},
         "output_config.task_budget: "),
        ({"seed": 2**65}, "'seed' must fit in 64 bits"),
        ({"output_config": {"format": {"type": "json_schema", "schema": {"type": "no"}}}},
         "output_config.format.schema: "),
        ({"messages": [{"role": "user", "content": "x" * 5000}]}, "messages: "),
    ],
)  # fmt: skip
async def test_what_cannot_be_done_is_refused_by_name(fields: dict[str, Any], told: str) -> None:
    async with api(tools=True, max_model_len=1000) as server:
        check_refused(await ask(server, **fields), 400, told)


async def test_errors_before_the_route(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    secret = add_key(path, "alice", requests_per_minute=2)
    settings = make_settings(key_file=path, max_body_bytes=2000)
    async with api(settings) as server:
        check_refused(await ask(server), 401)
        post = server.client.post
        key = {"x-api-key": secret}
        got = await post(MESSAGES, json=body(), headers=key)
        assert got.status_code == 200
        assert got.headers["anthropic-ratelimit-requests-remaining"] == "1"
        assert got.headers["anthropic-ratelimit-requests-reset"].endswith("Z")
        check_refused(await post(MESSAGES, json=body(system="x" * 3000), headers=key), 413)
        got = await post(MESSAGES, json=body(), headers={"authorization": f"Bearer {secret}"})
        check_refused(got, 429)
        assert got.headers["retry-after"]
        check_refused(await server.client.get(MESSAGES, headers=key), 405)
        check_refused(await server.client.get(f"{MESSAGES}/x", headers=key), 404)
        check_error(await server.client.get("/v1/x", headers=key), 404)


async def test_a_full_queue_is_overloaded() -> None:
    settings = make_settings(max_waiting=0)
    async with api(settings, options={"tokens_per_second": "20"}, max_num_seqs=1) as server:
        first = asyncio.create_task(ask(server, max_tokens=20))
        while not server.engine.stats().running:
            await asyncio.sleep(0.01)
        got = await ask(server)
        check_refused(got, 529, "The queue is full")
        assert got.headers["retry-after"]
        assert (await first).status_code == 200


async def test_a_seed_gives_the_same_again() -> None:
    async with api(options={"length": "20"}) as server:
        first = await ask(server, temperature=1)
        again = await ask(server, temperature=1, seed=int(first.headers["x-seed"]))
        assert again.json()["content"] == first.json()["content"]


async def test_the_reference_lists_fields_that_are_there() -> None:
    told = {**IGNORED_FIELDS, **UNSUPPORTED_FIELDS}
    assert told.keys() <= set(MessagesRequest.__struct_fields__)
    parts = (TextBlock, ThinkingBlock, ToolUseBlock, ToolResultBlock, ToolBody)
    known = {name for part in parts for name in part.__struct_fields__}
    assert known >= IGNORED_PARTS.keys()


async def test_another_model_is_not_found() -> None:
    async with api() as server:
        check_refused(await ask(server, model="claude"), 404, "'claude'")


async def test_a_dead_engine() -> None:
    async with api() as server:
        await server.engine.close()
        check_refused(await ask(server), 503)
