"""Thoughts in chat completions: apart from the answer, in either API's words, and counted."""

from __future__ import annotations

import json
from typing import Any

import pytest

from api_app import api, chat_body, check_error

pytestmark = pytest.mark.anyio

THOUGHT, ANSWER = "Hm, 2 < 3.\n\nSo: naïve.", "It is four."
TEXT = f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}"
SAYS = {"text": TEXT}


def delta_of(event: Any) -> dict[str, Any]:
    delta: dict[str, Any] = event["choices"][0]["delta"]
    return delta


async def test_thoughts_are_no_content() -> None:
    async with api(options=SAYS, thinks=True) as server:
        answer = (await server.chat()).json()
        message = answer["choices"][0]["message"]
        assert message["content"] == ANSWER
        assert message["reasoning_content"] == message["reasoning"] == THOUGHT
        usage = answer["usage"]
        # The blanks and all of the tag but its last byte were tokens of the thought, too.
        inside = TEXT.index(">\n") + 1, TEXT.index("</think>") + len("</think") + 1
        assert usage["completion_tokens_details"]["reasoning_tokens"] == inside[1] - inside[0]
        assert usage["completion_tokens"] == len(TEXT.encode()) + 1


@pytest.mark.parametrize("at_once", ["1", "2", "3", "5", "64"])
async def test_streamed_as_they_come(at_once: str) -> None:
    async with api(options={**SAYS, "tokens_per_step": at_once}, thinks=True) as server:
        events = (await server.events())[:-1]
        deltas = [delta_of(event) for event in events]
        assert "".join(delta.get("reasoning", "") for delta in deltas) == THOUGHT
        assert "".join(delta.get("content", "") for delta in deltas) == ANSWER
        assert all(delta.get("reasoning") == delta.get("reasoning_content") for delta in deltas)
        kinds = ["reasoning" if "reasoning" in delta else "content" for delta in deltas[1:]]
        assert kinds == sorted(kinds, reverse=True)  # never a thought after the answer began
        assert kinds.count("reasoning") >= len(THOUGHT) // int(at_once) // 2
        assert events[-1]["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0


async def test_without_thoughts_nothing_changes() -> None:
    async with api(options={"text": "<think> is a tag."}) as server:
        message = (await server.chat()).json()["choices"][0]["message"]
        assert message["content"] == "<think> is a tag."
        assert "reasoning" not in message
        assert "reasoning_content" not in message
    async with api(options={"text": "Plain."}, thinks=True) as server:
        message = (await server.chat()).json()["choices"][0]["message"]
        assert message["content"] == "Plain."
        assert "reasoning" not in message


async def test_thoughts_can_be_left_out() -> None:
    async with api(options=SAYS, thinks=True) as server:
        for fields in ({"include_reasoning": False}, {"reasoning": {"exclude": True}}):
            answer = (await server.chat(**fields)).json()
            assert "reasoning" not in answer["choices"][0]["message"]
            assert answer["choices"][0]["message"]["content"] == ANSWER
            assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0
            events = (await server.events(**fields))[:-1]
            assert not any("reasoning" in delta_of(event) for event in events)


async def test_mistrals_way() -> None:
    async with api(options=SAYS, thinks=True) as server:
        answer = (await server.chat(prompt_mode="reasoning")).json()
        assert answer["choices"][0]["message"]["content"] == [
            {"type": "thinking", "thinking": [{"type": "text", "text": THOUGHT}]},
            {"type": "text", "text": ANSWER},
        ]
        thoughts = texts = ""
        for event in (await server.events(prompt_mode="reasoning"))[:-1]:
            content = delta_of(event).get("content", "")
            if isinstance(content, str):
                texts += content
                continue
            for chunk in content:
                if chunk["type"] == "thinking":
                    thoughts += "".join(part["text"] for part in chunk["thinking"])
                else:
                    texts += chunk["text"]
        assert (thoughts, texts) == (THOUGHT, ANSWER)


async def test_stop_strings_begin_after_the_thought() -> None:
    async with api(options=SAYS, thinks=True) as server:
        choice = (await server.chat(stop=["Hm", "four"])).json()["choices"][0]
        assert choice["message"]["content"] == "It is "
        assert choice["message"]["reasoning"] == THOUGHT
        assert choice["finish_reason"] == "stop"


async def test_calls_begin_after_the_thought() -> None:
    call = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    text = f"<think>I could say {call}, but no.</think>\n{call}"
    async with api(options={"text": text}, thinks=True, tools=True) as server:
        choice = (await server.chat(tools=tools)).json()["choices"][0]
        assert choice["finish_reason"] == "tool_calls"
        assert [each["function"]["name"] for each in choice["message"]["tool_calls"]] == ["f"]
        assert choice["message"]["reasoning"] == f"I could say {call}, but no."
        deltas = [delta_of(event) for event in (await server.events(tools=tools))[:-1]]
        assert sum("tool_calls" in delta for delta in deltas) == 1
        assert "".join(delta.get("reasoning", "") for delta in deltas).startswith("I could say <")


async def test_a_document_comes_after_the_thought() -> None:
    schema: dict[str, Any] = {"enum": [7, 42]}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    async with api(thinks=True) as server:
        for fields in ({"reasoning_effort": "none"}, {"enable_thinking": False}):
            answer = await server.chat(response_format=form, max_tokens=100, **fields)
            assert json.loads(answer.json()["choices"][0]["message"]["content"]) in (7, 42)
        thought = 0
        for seed in range(8):  # this model says anything that it may
            answer = await server.chat(response_format=form, max_tokens=100, seed=seed)
            message = answer.json()["choices"][0]["message"]
            thought += "reasoning" in message
            assert "reasoning" in message or json.loads(message["content"]) in (7, 42)
        assert 0 < thought < 8
        schema["type"] = "wizard"
        error = check_error(await server.chat(response_format=form), 400, "response_format")
        assert "JSON schema" in error["message"]


async def test_cut_within_the_thought() -> None:
    async with api(options=SAYS, thinks=True) as server:
        choice = (await server.chat(max_tokens=12)).json()["choices"][0]
        assert choice["finish_reason"] == "length"
        assert choice["message"]["content"] == ""
        assert choice["message"]["reasoning"] == "Hm,"


async def test_log_probabilities_tell_of_all_tokens() -> None:
    async with api(options={"text": "<think>ab</think>cd"}, thinks=True) as server:
        choice = (await server.chat(logprobs=True)).json()["choices"][0]
        tokens = [entry["token"] for entry in choice["logprobs"]["content"]]
        assert "".join(tokens) == "<think>ab</think>cd"
        events = (await server.events(logprobs=True))[:-1]
        entries = [event["choices"][0]["logprobs"] for event in events]
        streamed = [token["token"] for each in entries if each for token in each["content"]]
        assert streamed == tokens


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"thinking_token_budget": 5}, "thinking_token_budget"),  # the tags are no tokens here
        ({"reasoning": {"max_tokens": 5}}, "reasoning.max_tokens"),
        ({"thinking": {"type": "enabled", "budget_tokens": 5}}, "thinking.budget_tokens"),
        ({"reasoning_effort": "none", "enable_thinking": True}, "reasoning_effort"),
        ({"reasoning_effort": "low", "reasoning": {"effort": "high"}}, "reasoning.effort"),
        ({"chat_template_kwargs": {"thinking_budget": 5}}, "chat_template_kwargs.thinking_budget"),
    ],
)
async def test_what_cant_be_met_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    async with api(thinks=True) as server:
        check_error(await server.chat(**fields), 400, param)


@pytest.mark.parametrize(
    "fields",
    [
        {"reasoning_effort": "high"},
        {"reasoning": {"effort": "low", "enabled": True}},
        {"thinking": {"type": "adaptive"}},
        {"enable_thinking": True, "chat_template_kwargs": {"enable_thinking": True}},
        {"thinking_token_budget": -1},
    ],
)
async def test_what_changes_nothing_here(fields: dict[str, Any]) -> None:
    async with api(options=SAYS, thinks=True) as server:
        message = (await server.chat(**fields)).json()["choices"][0]["message"]
        assert message["reasoning"] == THOUGHT


async def test_earlier_thoughts_are_taken_back() -> None:
    async with api(options=SAYS, thinks=True) as server:
        for fields in ({}, {"prompt_mode": "reasoning"}):
            message = (await server.chat(**fields)).json()["choices"][0]["message"]
            user = {"role": "user", "content": "And?"}
            body = chat_body(messages=[user, message, user])
            again = await server.client.post("/v1/chat/completions", json=body)
            assert again.status_code == 200, again.text
        bad = {"role": "assistant", "content": [{"type": "thinking", "thinking": 7}]}
        answer = await server.chat(messages=[user, bad, user])
        check_error(answer, 400, "messages[1].content[0].thinking")
