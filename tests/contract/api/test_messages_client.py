"""Anthropic's own package, strict, against the app on a real port."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import pytest

from api_app import MODEL, api, make_settings

pytestmark = pytest.mark.anyio

HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
TOOL: Any = {
    "name": "get_weather",
    "description": "The weather.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'


def strict(url: Any, key: str = "none") -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(
        base_url=str(url), api_key=key, max_retries=0, _strict_response_validation=True
    )


async def test_messages() -> None:
    async with (
        api(options={"text": "Hi 🎉"}, over_http=True) as server,
        strict(server.client.base_url) as client,
    ):
        whole = await client.messages.create(model=MODEL, max_tokens=50, messages=HELLO)
        assert whole.content[0].type == "text"
        assert whole.content[0].text == "Hi 🎉"
        assert whole.stop_reason == "end_turn"
        assert whole._request_id
        async with client.messages.stream(model=MODEL, max_tokens=50, messages=HELLO) as stream:
            text = "".join([piece async for piece in stream.text_stream])
            final = await stream.get_final_message()
        assert text == "Hi 🎉"
        assert [block.type for block in final.content] == ["text"]
        assert final.usage.output_tokens == whole.usage.output_tokens == 8
        counted = await client.messages.count_tokens(model=MODEL, messages=HELLO)
        assert counted.input_tokens == whole.usage.input_tokens
        beta = await client.beta.messages.create(
            model=MODEL, max_tokens=50, messages=HELLO, betas=["context-1m-2025-08-07"]
        )
        assert beta.stop_reason == "end_turn"


async def test_a_call_and_its_result() -> None:
    async with (
        api(options={"text": f"So:{CALL}"}, over_http=True, tools=True) as server,
        strict(server.client.base_url) as client,
    ):
        asked: dict[str, Any] = {"model": MODEL, "max_tokens": 100, "tools": [TOOL]}
        whole = await client.messages.create(messages=HELLO, **asked)
        call = whole.content[1]
        assert call.type == "tool_use"
        assert (call.name, call.input) == ("get_weather", {"city": "Rome"})
        async with client.messages.stream(messages=HELLO, **asked) as stream:
            final = await stream.get_final_message()
        assert [block.type for block in final.content] == ["text", "tool_use"]
        assert final.stop_reason == "tool_use"
        # What the client was given goes back as it is.
        given = [json.loads(block.to_json()) for block in whole.content]
        result = {"type": "tool_result", "tool_use_id": call.id, "content": "Sun"}
        turns: list[Any] = [
            *HELLO,
            {"role": "assistant", "content": given},
            {"role": "user", "content": [result]},
        ]
        after = await client.messages.create(messages=turns, **asked)
        assert after.usage.input_tokens > whole.usage.input_tokens


async def test_errors() -> None:
    async with (
        api(make_settings(api_key=("secret",)), over_http=True) as server,
        strict(server.client.base_url, "secret") as client,
    ):
        with pytest.raises(anthropic.BadRequestError) as refused:
            await client.messages.create(model=MODEL, max_tokens=0, messages=HELLO)
        assert "max_tokens" in refused.value.message
        with pytest.raises(anthropic.NotFoundError):
            await client.messages.create(model="claude", max_tokens=1, messages=HELLO)
        async with strict(server.client.base_url, "wrong") as other:
            with pytest.raises(anthropic.AuthenticationError):
                await other.messages.create(model=MODEL, max_tokens=1, messages=HELLO)


async def test_a_full_queue_is_overloaded() -> None:
    """The package knows the error by its type, in the 529's body."""
    settings, options = make_settings(max_waiting=0), {"tokens_per_second": "20"}
    async with (
        api(settings, over_http=True, options=options, max_num_seqs=1) as server,
        strict(server.client.base_url) as client,
        client.messages.stream(model=MODEL, max_tokens=40, messages=HELLO) as first,
    ):
        await anext(aiter(first))
        with pytest.raises(anthropic.APIStatusError) as full:
            await client.messages.create(model=MODEL, max_tokens=1, messages=HELLO)
        assert full.value.status_code == 529
        assert full.value.type == "overloaded_error"


async def test_thoughts_and_back() -> None:
    text = "<think>Hm.</think>Yes."
    async with (
        api(options={"text": text}, over_http=True, thinks=True) as server,
        strict(server.client.base_url) as client,
    ):
        adaptive: Any = {"type": "adaptive"}
        asked: dict[str, Any] = {"model": MODEL, "max_tokens": 50, "thinking": adaptive}
        whole = await client.messages.create(messages=HELLO, **asked)
        assert [block.type for block in whole.content] == ["thinking", "text"]
        assert whole.content[0].type == "thinking"
        assert whole.content[0].thinking == "Hm."
        assert whole.usage.output_tokens_details is not None
        assert whole.usage.output_tokens_details.thinking_tokens > 0
        async with client.messages.stream(messages=HELLO, **asked) as stream:
            thoughts = [each.thinking async for each in stream if each.type == "thinking"]
            final = await stream.get_final_message()
        assert "".join(thoughts) == "Hm."
        assert final.content[0] == whole.content[0]
        turns: list[Any] = [*HELLO, {"role": "assistant", "content": whole.content}, *HELLO]
        assert (await client.messages.create(messages=turns, **asked)).content == whole.content
