"""Hostile bodies of /v1/chat/completions, and what each must be answered with."""

from __future__ import annotations

import json
from typing import Any

from api_app import chat_body

MESSAGES = '"messages":[{"role":"user","content":"Hello"}]'


def with_field(text: str) -> bytes:
    return f"{{{MESSAGES},{text}}}".encode()


def tool(name: str, **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **fields}}


BAD_JSON = {
    "empty": b"",
    "truncated": b'{"messages": [',
    "invalid UTF-8": b'{"messages":[{"role":"user","content":"\xff"}]}',
    "invalid UTF-8 in an ignored field": with_field('"metadata":{"a":"')[:-1] + b'\xff"}}',
    "UTF-16": json.dumps(chat_body()).encode("utf-16"),
    "two byte order marks": b"\xef\xbb\xbf" + json.dumps(chat_body()).encode("utf-8-sig"),
    "nothing but a byte order mark": b"\xef\xbb\xbf",
    "lone surrogate": b'{"messages":[{"role":"user","content":"\\ud800"}]}',
    "first half of a pair alone": b'{"messages":[{"role":"user","content":"\\ud83dx"}]}',
    "raw surrogate": b'{"messages":[{"role":"user","content":"\xed\xa0\x80"}]}',
    "depth 100,000": b'{"messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "depth 100,000 in an ignored field": with_field('"metadata":' + "[" * 100_000 + "]" * 100_000),
    "top-level array": b"[]",
    "top-level number": b"42",
    "top-level null": b"null",
    "NaN": with_field('"temperature":NaN'),
    "Infinity": with_field('"temperature":Infinity'),
    "1e400": with_field('"temperature":1e400'),
    "a 5,000-digit integer": with_field('"seed":' + "9" * 5000),
    "trailing garbage": with_field('"n":1') + b"x",
    "a million keys": with_field(",".join(f'"k{i}":0' for i in range(1_000_000))),
}

# what is wrong → fields that replace the good ones, and the field to be named
BAD_FIELDS: dict[str, tuple[dict[str, Any], str]] = {
    "empty messages": ({"messages": []}, "messages"),
    "messages no list": ({"messages": "Hello"}, "messages"),
    "100,000 messages": (
        {"messages": [{"role": "user", "content": ""}] * 100_000},
        "messages",
    ),
    "100,000 parts of content": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": ""}] * 100_000}]},
        "messages[0].content",
    ),
    "unknown role": ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
    "content a number": ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
    "content missing": ({"messages": [{"role": "user"}]}, "messages[0].content"),
    "unknown field in a message": (
        {"messages": [{"role": "user", "content": "x", "zork": 1}]},
        "messages[0].zork",
    ),
    "temperature -1": ({"temperature": -1}, "temperature"),
    "temperature a text": ({"temperature": "x"}, "temperature"),
    "temperature a boolean": ({"temperature": True}, "temperature"),
    "top_p 0": ({"top_p": 0}, "top_p"),
    "top_p 1.1": ({"top_p": 1.1}, "top_p"),
    "min_p 2": ({"min_p": 2}, "min_p"),
    "presence_penalty 3": ({"presence_penalty": 3}, "presence_penalty"),
    "repetition_penalty 0": ({"repetition_penalty": 0}, "repetition_penalty"),
    "repetition_penalty 1e-300": ({"repetition_penalty": 1e-300}, "repetition_penalty"),
    "n 0": ({"n": 0}, "n"),
    "n 1,000,000": ({"n": 1_000_000}, "n"),
    "max_tokens -2": ({"max_tokens": -2}, "max_tokens"),
    "max_tokens 0": ({"max_tokens": 0}, "max_tokens"),
    "max_completion_tokens 0": ({"max_completion_tokens": 0}, "max_completion_tokens"),
    "max_tokens 2^63": ({"max_tokens": 2**63}, "max_tokens"),
    "max_tokens given twice": (
        {"max_tokens": 1, "max_completion_tokens": 2},
        "max_completion_tokens",
    ),
    "min_tokens over max_tokens": ({"min_tokens": 9, "max_tokens": 3}, "min_tokens"),
    "top_logprobs 10^9": ({"logprobs": True, "top_logprobs": 10**9}, "top_logprobs"),
    "top_logprobs alone": ({"top_logprobs": 1}, "top_logprobs"),
    "logit_bias outside the vocabulary": ({"logit_bias": {"1000000": 1}}, "logit_bias"),
    "logit_bias of no token": ({"logit_bias": {"x": 1}}, "logit_bias"),
    "logit_bias of one token by two names": ({"logit_bias": {"1": 1, "01": 1}}, "logit_bias"),
    "100,000 biases": ({"logit_bias": {str(i): 1 for i in range(100_000)}}, "logit_bias"),
    "logit_bias of -1": ({"logit_bias": {"-1": 1}}, "logit_bias"),
    "logit_bias 1000": ({"logit_bias": {"1": 1000}}, "logit_bias[...]"),
    "stop_token_ids outside the vocabulary": ({"stop_token_ids": [1000000]}, "stop_token_ids"),
    "500,000 stop strings": ({"stop": ["x"] * 500_000}, "stop"),
    "an empty stop string": ({"stop": ""}, "stop"),
    "a long stop string": ({"stop": "x" * 100_000}, "stop"),
    "seed 2^65": ({"seed": 2**65}, "seed"),
    "random_seed -2^64": ({"random_seed": -(2**64)}, "random_seed"),
    "two seeds": ({"seed": 1, "random_seed": 2}, "random_seed"),
    "seed 1.5": ({"seed": 1.5}, "seed"),
    "stream yes": ({"stream": "yes"}, "stream"),
    "stream 1": ({"stream": 1}, "stream"),
    "stream_options without stream": (
        {"stream_options": {"include_usage": True}},
        "stream_options",
    ),
    "json_schema missing": (
        {"response_format": {"type": "json_schema"}},
        "response_format.json_schema",
    ),
    "json_schema without schema": (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
        "response_format.json_schema.schema",
    ),
    "json_schema a list": (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": []}}},
        "response_format.json_schema.schema",
    ),
    "json_schema of a bad type": (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"schema": {"type": "wizard"}},
            }
        },
        "response_format",
    ),
    "json_schema with a bad pattern": (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"schema": {"type": "string", "pattern": "(["}},
            }
        },
        "response_format",
    ),
    "a huge json_schema": (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"schema": {"enum": ["x" * 10] * 100_000}},
            }
        },
        "response_format.json_schema.schema",
    ),
    "response_format unknown": ({"response_format": {"type": "xml"}}, "response_format.type"),
    "a schema with json_object": (
        {"response_format": {"type": "json_object", "json_schema": {"schema": {}}}},
        "response_format.type",
    ),
    "an unknown field in a text": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "zork": 1}]}]},
        "messages[0].content[0].zork",
    ),
    "an image in a text": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "x", "image_url": 1}]}
            ]
        },
        "messages[0].content[0].image_url",
    ),
    "ignore_eos with JSON": (
        {"ignore_eos": True, "response_format": {"type": "json_object"}},
        "ignore_eos",
    ),
    "tool_choice of no tool": (
        {"tool_choice": {"type": "function", "function": {"name": "f"}}},
        "tool_choice",
    ),
    "tool_choice required": ({"tool_choice": "required"}, "tool_choice"),
    "tool_choice nonsense": ({"tool_choice": "perhaps"}, "tool_choice"),
    "a tool call without function": (
        {"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]},
        "messages[0].tool_calls[0].function",
    ),
    "tool calls of a user": (
        {
            "messages": [
                {"role": "user", "content": "x", "tool_calls": [{"function": {"name": "f"}}]}
            ]
        },
        "messages[0].tool_calls",
    ),
    "1,000 tool calls in a message": (
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f"}}] * 1000}]},
        "messages[0].tool_calls",
    ),
    "1,000 tools": ({"tools": [tool(f"f{index}") for index in range(1000)]}, "tools"),
    "2 MB of tools": ({"tools": [tool("f", description="x" * 2_000_000)]}, "tools"),
    "two tools of one name": ({"tools": [tool("f"), tool("f")]}, "tools[1].function.name"),
    "a tool without function": ({"tools": [{"type": "function"}]}, "tools[0].function"),
    "a tool of another type": ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    "a tool that is a number": ({"tools": [7]}, "tools[0]"),
    "a tool with a name for Lark": (
        {"tools": [tool('f" | <[5]> | "')]},
        "tools[0].function.name",
    ),
    "a tool with an unknown field": (
        {"tools": [tool("f", zork=1)]},
        "tools[0].function.zork",
    ),
    "parameters a list": ({"tools": [tool("f", parameters=[])]}, "tools[0].function.parameters"),
    "parameters of type array": (
        {"tools": [tool("f", parameters={"type": "array"})]},
        "tools[0].function.parameters.type",
    ),
    "100 kB of parameters": (
        {"tools": [tool("f", parameters={"description": "x" * 100_000})]},
        "tools[0].function.parameters",
    ),
    "tool_choice of an unknown tool": (
        {
            "tools": [tool("f")],
            "tool_choice": {"type": "function", "function": {"name": "g"}},
        },
        "tool_choice",
    ),
    "tool_choice that allows nothing": (
        {
            "tools": [tool("f")],
            "tool_choice": {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "auto", "tools": []},
            },
        },
        "tool_choice.allowed_tools",
    ),
    "prefix on a user's message": (
        {"messages": [{"role": "user", "content": "x", "prefix": True}]},
        "messages[0].prefix",
    ),
    "chat_template": ({"chat_template": "{{ 7 * 7 }}"}, "chat_template"),
    "chat_template_kwargs": ({"chat_template_kwargs": {"a": 1}}, "chat_template_kwargs.a"),
    "chat_template_kwargs of another type": (
        {"chat_template_kwargs": {"enable_thinking": "no"}},
        "chat_template_kwargs.enable_thinking",
    ),
    "chat_template_kwargs a number": ({"chat_template_kwargs": 7}, "chat_template_kwargs"),
    "a large chat_template_kwargs": (
        {"chat_template_kwargs": {"thinking": "a" * 2000}},
        "chat_template_kwargs",
    ),
    "messages for the template": (
        {"chat_template_kwargs": {"messages": []}},
        "chat_template_kwargs.messages",
    ),
    "reasoning_effort without thoughts": ({"reasoning_effort": "high"}, "reasoning_effort"),
    "reasoning_effort of no kind": ({"reasoning_effort": "hard"}, "reasoning_effort"),
    "prompt_mode without thoughts": ({"prompt_mode": "reasoning"}, "prompt_mode"),
    "a budget without thoughts": ({"thinking_token_budget": 5}, "thinking_token_budget"),
    "a budget below -1": ({"thinking_token_budget": -2}, "thinking_token_budget"),
    "two minds": (
        {"enable_thinking": False, "reasoning": {"enabled": True}},
        "reasoning.enabled",
    ),
    "skip_special_tokens false": ({"skip_special_tokens": False}, "skip_special_tokens"),
    "echo in a chat": ({"echo": True}, "echo"),
    "length_penalty true": ({"length_penalty": True}, "length_penalty"),
    "guided_json": ({"guided_json": {"type": "wizard"}}, "guided_json"),
    "an unfinished guided_regex": ({"guided_regex": "(a"}, "guided_regex"),
    "a grammar that names tokens": ({"guided_grammar": "start: <[2]>"}, "guided_grammar"),
    "a llama.cpp grammar, nested": (
        {"grammar": "root ::= " + "(" * 20_000},
        "grammar",
    ),
    "500,000 choices": ({"guided_choice": ["x"] * 500_000}, "guided_choice"),
    "two constraints": ({"guided_regex": "a", "grammar": 'start: "a"'}, "grammar"),
    "a schema beside text": (
        {"response_format": {"type": "text", "schema": {}}},
        "response_format.schema",
    ),
    "two schemas": (
        {"response_format": {"type": "json_schema", "schema": {}, "json_schema": {"schema": {}}}},
        "response_format.schema",
    ),
    "prompt_logprobs in a stream": ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
    "prompt_logprobs 21": ({"prompt_logprobs": 21}, "prompt_logprobs"),
    "a file as image": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}],
                }
            ]
        },
        "messages[0].content[0].type",
    ),
    "the metadata service as image": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "Look:"},
                        {"type": "image_url", "image_url": "http://169.254.169.254/"},
                    ],
                }
            ]
        },
        "messages[0].content[1].type",
    ),
    "a long user": ({"user": "x" * 1_000_000}, "user"),
    "large metadata": ({"metadata": {"a": "x" * 100_000}}, "metadata"),
    "an unknown field": ({"zork": 1}, "zork"),
    "modalities": ({"modalities": ["audio"]}, "modalities"),
    "reasoning_effort": ({"reasoning_effort": "high"}, "reasoning_effort"),
}

BAD_MODELS = ["gpt-4", "", "x\r\nx-evil: 1", "../../etc/passwd", "x" * 500]

REFUSED_MEDIA_TYPES: list[dict[str, str]] = [
    {"content-type": "text/plain"},
    {"content-type": "multipart/form-data; boundary=x"},
    {"content-type": "application/x-www-form-urlencoded"},
    {"content-type": ""},
    {"content-type": "application/json; charset=utf-16"},
    {"content-type": "application/json", "content-encoding": "gzip"},
    {"content-type": "application/json", "content-encoding": "br"},
]
