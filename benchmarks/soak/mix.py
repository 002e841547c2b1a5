"""What is asked for in a soak: questions in every dialect, and requests that are to be refused."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
RESPONSES = "/v1/responses"
MESSAGES = "/v1/messages"
EMBEDDINGS = "/v1/embeddings"
MODEL = "smollm2-135m-instruct"
EMBEDDER = "tiny-embedder"
TOPICS = ("Rome", "the sea", "bread", "chess", "rain")
SCHEMA = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 24},
        "year": {"type": "integer", "minimum": 1900, "maximum": 2030},
    },
    "required": ["title", "year"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Question:
    """A request. `streams`: it can also be asked for as a stream."""

    name: str
    path: str
    body: dict[str, Any]
    streams: bool = True


def questions() -> list[Question]:
    """Of each topic eleven: greedy, sampled, JSON, logprobs, penalties, choices, long prompts."""
    found = []
    for number, topic in enumerate(TOPICS):
        ask = f"Tell me about {topic}."
        said = [{"role": "user", "content": ask}]
        long = f"Here is a list: {(topic + ', ') * 150} What is it about?"
        tokens = 24 + number
        seed = {"model": MODEL, "seed": 1000 + number}
        short = seed | {"max_tokens": tokens}
        form = {"type": "json_schema", "json_schema": {"name": "film", "schema": SCHEMA}}
        text = {"format": {"type": "json_schema", "name": "film", "schema": SCHEMA}}
        chat = short | {"messages": said}
        response = seed | {"input": ask, "max_output_tokens": tokens}
        listed = {
            "greedy": (CHAT, chat | {"temperature": 0}),
            "sampled": (CHAT, chat | {"temperature": 0.9, "top_p": 0.9, "n": 1 + number % 2}),
            "JSON": (CHAT, chat | {"response_format": form, "max_tokens": 80}),
            "logprobs": (CHAT, chat | {"logprobs": True, "top_logprobs": 2, "n": 2}),
            "long prompt": (CHAT, chat | {"messages": [{"role": "user", "content": long}]}),
            "long answer": (CHAT, chat | {"max_tokens": 160, "frequency_penalty": 0.5}),
            "completions": (COMPLETIONS, short | {"prompt": [ask, topic], "temperature": 0.7}),
            "responses": (RESPONSES, response | {"text": text, "max_output_tokens": 80}),
            "background": (RESPONSES, response | {"background": True}),
            "messages": (MESSAGES, chat | {"temperature": 0.8}),
        }
        found += [Question(f"{name}, {topic}", path, body) for name, (path, body) in listed.items()]
        inputs = {"model": EMBEDDER, "input": [ask, long[:200]]}
        found.append(Question(f"embeddings, {topic}", EMBEDDINGS, inputs, streams=False))
    return found


@dataclass(frozen=True)
class Bad:
    """A request that is to be refused. `code` None: any."""

    name: str
    content: bytes
    status: int
    code: str | None = None


def bad_requests() -> list[Bad]:
    """Broken JSON, values out of range, hostile schemas, too much."""
    hello = [{"role": "user", "content": "Hello"}]
    pattern = {"type": "object", "properties": {"a": {"type": "string", "pattern": "(["}}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": pattern}}
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("invalid_value", {"temperature": -1}),
        ("invalid_value", {"top_p": 0}),
        ("invalid_value", {"n": 1_000_000}),
        ("invalid_value", {"max_tokens": 2**63}),
        ("invalid_value", {"logit_bias": {"99999999": 1}}),
        ("invalid_value", {"response_format": form}),
        ("unknown_field", {"zork": 1}),
        ("context_length_exceeded", {"messages": [{"role": "user", "content": "word " * 20_000}]}),
    ]
    return [
        Bad("empty body", b"", 400),
        Bad("truncated JSON", b'{"messages": [', 400),
        Bad("lone surrogate", b'{"messages":[{"role":"user","content":"\\ud800"}]}', 400),
        Bad("nested JSON", b"[" * 100_000, 400),
        Bad("not a number", b'{"temperature": NaN}', 400),
        Bad("no messages", b"{}", 400, "missing_field"),
        Bad("model", json.dumps({"messages": hello, "model": "gpt-5"}).encode(), 404,
            "model_not_found"),
        *(
            Bad(str(fields)[:40], json.dumps({"messages": hello, **fields}).encode(), 400, code)
            for code, fields in wrong
        ),
    ]  # fmt: skip
