"""What clients always send: null for any field, and fields at the value that is done anyway."""

from __future__ import annotations

import json
from typing import Any

import pytest

from api_app import MODEL, api, check_error
from maestrale.api.openai.foreign_fields import (
    CHAT_FIELDS,
    IGNORED_FIELDS,
    NEUTRAL_VALUES,
    OPTIONS_UNSUPPORTED,
    UNSUPPORTED_FIELDS,
)
from maestrale.api.openai.schemas import ChatRequest, CompletionRequest, Message

pytestmark = pytest.mark.anyio

# As their SDKs and servers have them in 2026; the models' own fields, and the bodies' frames.
OPENAI = [
    "messages",
    "model",
    "audio",
    "frequency_penalty",
    "function_call",
    "functions",
    "logit_bias",
    "logprobs",
    "max_completion_tokens",
    "max_tokens",
    "metadata",
    "modalities",
    "moderation",
    "n",
    "parallel_tool_calls",
    "prediction",
    "presence_penalty",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "reasoning_effort",
    "response_format",
    "safety_identifier",
    "seed",
    "service_tier",
    "stop",
    "store",
    "stream",
    "stream_options",
    "temperature",
    "tool_choice",
    "tools",
    "top_logprobs",
    "top_p",
    "user",
    "verbosity",
    "web_search_options",
]
MISTRAL = [
    "model",
    "messages",
    "temperature",
    "top_p",
    "max_tokens",
    "stream",
    "stop",
    "random_seed",
    "metadata",
    "response_format",
    "tools",
    "tool_choice",
    "presence_penalty",
    "frequency_penalty",
    "n",
    "prediction",
    "parallel_tool_calls",
    "prompt_mode",
    "guardrails",
    "prompt_cache_key",
    "reasoning_effort",
    "safe_prompt",
    "document_image_limit",
    "document_page_limit",
]
VLLM = [
    "use_beam_search",
    "top_k",
    "min_p",
    "repetition_penalty",
    "length_penalty",
    "stop_token_ids",
    "include_stop_str_in_output",
    "ignore_eos",
    "min_tokens",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "truncate_prompt_tokens",
    "prompt_logprobs",
    "allowed_token_ids",
    "bad_words",
    "echo",
    "add_generation_prompt",
    "continue_final_message",
    "add_special_tokens",
    "documents",
    "chat_template",
    "chat_template_kwargs",
    "mm_processor_kwargs",
    "media_io_kwargs",
    "structured_outputs",
    "priority",
    "request_id",
    "logits_processors",
    "return_tokens_as_token_ids",
    "return_token_ids",
    "cache_salt",
    "kv_transfer_params",
    "vllm_xargs",
    "include_reasoning",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "guided_decoding_backend",
    "guided_whitespace_pattern",
    "structural_tag",
    "thinking_token_budget",
    "repetition_detection",
]
COMPLETIONS = [
    "model",
    "prompt",
    "best_of",
    "echo",
    "frequency_penalty",
    "logit_bias",
    "logprobs",
    "max_tokens",
    "n",
    "presence_penalty",
    "seed",
    "stop",
    "stream",
    "stream_options",
    "suffix",
    "temperature",
    "top_p",
    "user",
    "top_k",
    "min_p",
    "repetition_penalty",
    "length_penalty",
    "use_beam_search",
    "prompt_logprobs",
    "add_special_tokens",
    "response_format",
    "priority",
    "prompt_embeds",
    "return_token_ids",
    "cache_salt",
    "truncate_prompt_tokens",
    "allowed_token_ids",
    "skip_special_tokens",
    "ignore_eos",
    "min_tokens",
    "stop_token_ids",
    "include_stop_str_in_output",
    "kv_transfer_params",
    "logits_processors",
    "structured_outputs",
]


async def test_null_is_taken_for_every_field_of_the_three() -> None:
    names = {*OPENAI, *MISTRAL, *VLLM} - {"messages"}
    async with api(options={"length": "1"}) as server:
        answer = await server.chat(**dict.fromkeys(names))
        assert answer.status_code == 200, answer.text
        body = {**dict.fromkeys(COMPLETIONS), "prompt": "x"}
        answer = await server.client.post("/v1/completions", json=body)
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("name", sorted(set(NEUTRAL_VALUES) - set(OPTIONS_UNSUPPORTED)))
async def test_a_field_at_the_value_that_is_done_anyway_changes_nothing(name: str) -> None:
    async with api() as server:
        plain = (await server.chat(seed=1)).json()["choices"]
        for value in (*NEUTRAL_VALUES[name], None):
            answer = await server.chat(seed=1, **{name: value})
            assert answer.status_code == 200, answer.text
            assert answer.json()["choices"] == plain


ACTED_ON = {"add_generation_prompt", "continue_final_message", "return_token_ids"}
OF_CHAT = sorted(set(UNSUPPORTED_FIELDS) - ACTED_ON)


@pytest.mark.parametrize("name", OF_CHAT)
async def test_what_asks_for_something_else_is_refused_by_name(name: str) -> None:
    async with api() as server:
        answer = await server.chat(**{name: {"some": "thing"}})
        error = check_error(answer, 400, name)
        assert error["code"] == "unsupported_parameter"
        assert UNSUPPORTED_FIELDS[name].split(";")[0] in error["message"]


def test_the_table_names_each_field_once() -> None:
    assert not set(IGNORED_FIELDS) & set(UNSUPPORTED_FIELDS)
    assert set(NEUTRAL_VALUES) <= {*UNSUPPORTED_FIELDS, *CHAT_FIELDS, *OPTIONS_UNSUPPORTED}
    known = {*ChatRequest.__struct_fields__, *CompletionRequest.__struct_fields__}
    assert {*IGNORED_FIELDS, *UNSUPPORTED_FIELDS} <= known


@pytest.mark.parametrize(
    "fields",
    [
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"chat_template_kwargs": {"thinking": False}},
        {"enable_thinking": False},
        {"skip_special_tokens": True, "spaces_between_special_tokens": True},
        {"document_image_limit": 8, "document_page_limit": 64},
        {"use_beam_search": False, "length_penalty": 1.0, "early_stopping": False},
        {"add_special_tokens": False, "add_generation_prompt": True, "echo": False},
        {"bad_words": [], "allowed_token_ids": None, "priority": 0},
        {"thinking": {"type": "disabled"}, "reasoning": {"effort": "none"}},
        {"modalities": ["text"], "store": False, "parallel_tool_calls": None},
    ],
    ids=lambda fields: "-".join(fields),
)
async def test_what_clients_send_by_default(fields: dict[str, Any]) -> None:
    async with api() as server:
        plain = (await server.chat(seed=1)).json()["choices"]
        answer = await server.chat(seed=1, **fields)
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"] == plain


async def test_an_answer_given_back_as_it_came_is_taken() -> None:
    async with api() as server:
        message = (await server.chat()).json()["choices"][0]["message"]
        message |= dict.fromkeys(set(Message.__struct_fields__) - set(message))
        messages = [{"role": "user", "content": "a"}, message, {"role": "user", "content": "b"}]
        assert (await server.chat(messages=messages)).status_code == 200


@pytest.mark.parametrize("kind", ["json_object", "json_schema"])
async def test_a_schema_beside_the_type_holds(kind: str) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"enum": ["x"]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    async with api() as server:
        form = {"type": kind, "schema": schema}
        answer = await server.chat(response_format=form, max_tokens=100)
        assert json.loads(answer.json()["choices"][0]["message"]["content"]) == {"a": "x"}
        answer = await server.chat(response_format={"type": kind, "schema": {"type": "wizard"}})
        check_error(answer, 400)


async def test_usage_in_every_chunk() -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    async with api(options={"length": "5"}) as server:
        for path, fields in (
            ("/v1/chat/completions", {}),
            ("/v1/completions", {"prompt": "x", "model": MODEL}),
        ):
            events = await server.events(path, stream_options=options, **fields)
            counts = [event["usage"]["completion_tokens"] for event in events[:-1]]
            assert counts == sorted(counts)
            assert counts[0] >= 1
            assert counts[-1] == 6
            assert events[-2]["choices"] == []
            plain = await server.events(path, stream_options={"include_usage": True}, **fields)
            assert [event["usage"] for event in plain[:-2]] == [None] * (len(plain) - 2)


async def test_addresses_without_v1() -> None:
    async with api(options={"length": "1"}) as server:
        messages = [{"role": "user", "content": "Hello"}]
        answer = await server.client.post("/chat/completions", json={"messages": messages})
        assert answer.json()["object"] == "chat.completion"
        answer = await server.client.post("/completions", json={"prompt": "x"})
        assert answer.json()["object"] == "text_completion"
        listed = (await server.client.get("/models")).json()
        assert listed == (await server.client.get("/v1/models")).json()
        assert (await server.client.get(f"/models/{MODEL}")).json() == listed["data"][0]


async def test_the_tokenizer_tells_of_itself() -> None:
    async with api() as server:
        told = (await server.client.get("/tokenizer_info")).json()
        assert told["eos_token"] == "</s>"
        assert told["bos_token"] is None
        assert told["vocab_size"] == 257
        assert told["model_max_length"] == 4096
        assert "chat_template" in told


async def test_tokenize_takes_vllms_fields() -> None:
    async with api() as server:
        messages = [{"role": "user", "content": "Hello"}]
        fields: dict[str, Any] = {"add_generation_prompt": True, "continue_final_message": False,
                  "chat_template": None, "chat_template_kwargs": {}}  # fmt: skip
        plain = (await server.client.post("/tokenize", json={"messages": messages})).json()
        answer = await server.client.post("/tokenize", json={"messages": messages, **fields})
        assert answer.json() == plain
        answer = await server.client.post(
            "/tokenize", json={"messages": messages, "add_generation_prompt": False}
        )
        check_error(answer, 400, "add_generation_prompt")


# What Open WebUI's page sends beside the messages.
OPEN_WEBUI: dict[str, Any] = {
    "params": {}, "files": [], "filter_ids": [], "tool_ids": None, "skill_ids": None,
    "tool_servers": [], "terminal_id": None, "variables": {}, "model_item": {"id": MODEL},
    "features": {
        "voice": False, "image_generation": False, "code_interpreter": False, "web_search": False
    },
    "session_id": "s", "chat_id": "c", "id": "m", "parent_id": "p",
    "parent_message": {"id": "p", "role": "user"}, "user_message": {"id": "u"},
    "background_tasks": {"title_generation": True, "tags_generation": True},
}  # fmt: skip


async def test_open_webuis_fields_are_taken_unless_they_ask_for_more() -> None:
    async with api(options={"length": "1"}) as server:
        answer = await server.chat(**OPEN_WEBUI)
        assert answer.status_code == 200, answer.text
        for name, asked in (
            ("features", {**OPEN_WEBUI["features"], "web_search": True}),
            ("features", {"voice": "yes"}),
            ("features", {str(number): False for number in range(100)}),
            ("terminal_id", "t"),
            ("skill_ids", ["s"]),
            ("tool_ids", ["t"]),
        ):
            check_error(await server.chat(**{**OPEN_WEBUI, name: asked}), 400, name)
