"""Constrained answers of the real model: whatever it draws, they parse and validate."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import httpx
import jsonschema
import pytest

from e2e_clients import TIMEOUT
from schema_walks import assert_laid_out
from serving import Server

pytestmark = [pytest.mark.model, pytest.mark.anyio]

TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "value": {"type": "integer", "minimum": 0, "maximum": 9},
                "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
            },
            "required": ["value", "next"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}


def closed(**properties: Any) -> dict[str, Any]:
    """An object with exactly these properties."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


WORD = {"type": "string", "maxLength": 12}

SCHEMAS: dict[str, dict[str, Any]] = {
    "nested objects": closed(a=closed(b=closed(c=WORD))),
    "nested arrays": closed(
        grid={
            "type": "array",
            "items": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
            "minItems": 2,
            "maxItems": 3,
        }
    ),
    "string enum": closed(colour={"enum": ["red", "green", "blue"]}),
    "mixed enum": closed(value={"enum": [1, "one", None, True, [1], {"a": 1}]}),
    "enum of one control token's text": closed(value={"enum": ["<|im_end|>", "</s>"]}),
    "const": closed(version={"const": "1.0"}, exact={"const": 42}),
    "anyOf": closed(id={"anyOf": [{"type": "integer"}, {"type": "string", "maxLength": 5}]}),
    "nullable": closed(name={"type": ["string", "null"], "maxLength": 10}),
    "oneOf with a discriminator": {
        "oneOf": [
            closed(kind={"const": "circle"}, radius={"type": "integer", "maximum": 99}),
            closed(kind={"const": "square"}, side={"type": "integer", "maximum": 99}),
        ]
    },
    "allOf": {"allOf": [closed(a=WORD, b=WORD), {"required": ["a"]}]},
    "$ref": {"$defs": {"word": WORD}, **closed(a={"$ref": "#/$defs/word"})},
    "definitions, the older name": {
        "definitions": {"word": WORD},
        **closed(a={"$ref": "#/definitions/word"}),
    },
    "recursive $ref": TREE,
    "integer bounds": closed(age={"type": "integer", "minimum": 18, "maximum": 120}),
    "negative bounds": closed(depth={"type": "integer", "minimum": -250, "maximum": -7}),
    "exclusive bounds": closed(n={"type": "integer", "exclusiveMinimum": 1, "exclusiveMaximum": 4}),
    "number bounds": closed(score={"type": "number", "minimum": 0.5, "maximum": 1.5}),
    "multipleOf": closed(n={"type": "integer", "minimum": 0, "maximum": 100, "multipleOf": 5}),
    "pattern": closed(plate={"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"}),
    "pattern that isn't anchored": closed(x={"type": "string", "pattern": "[aeiou]{2}"}),
    "pattern with classes": closed(x={"type": "string", "pattern": r"^\d\w\s\d$"}),
    "length": closed(code={"type": "string", "minLength": 4, "maxLength": 6}),
    "date": closed(day={"type": "string", "format": "date"}),
    "date-time": closed(at={"type": "string", "format": "date-time"}),
    "uuid": closed(id={"type": "string", "format": "uuid"}),
    "ipv4": closed(address={"type": "string", "format": "ipv4"}),
    "minItems": closed(tags={"type": "array", "items": WORD, "minItems": 2, "maxItems": 4}),
    "prefixItems": closed(
        pair={
            "type": "array",
            "prefixItems": [WORD, {"type": "integer", "minimum": 0, "maximum": 9}],
            "items": False,
            "minItems": 2,
        }
    ),
    "an array at the top": {"type": "array", "items": {"type": "integer"}, "maxItems": 3},
    "a number at the top": {"type": "integer", "minimum": 1, "maximum": 10},
    "typed additionalProperties": {
        "type": "object",
        "properties": {"first": WORD},
        "required": ["first"],
        "additionalProperties": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "optional properties": {
        "type": "object",
        "properties": {"a": WORD, "b": WORD, "c": {"type": "boolean"}},
        "additionalProperties": False,
    },
    "names to be escaped": closed(**{'"quoted"\\': WORD, "ключ": WORD, "é\t": {"type": "null"}}),
    "any": {},
}


async def ask(client: httpx.AsyncClient, seed: int, response_format: Any) -> tuple[str, str]:
    """(text, finish reason) at temperature 1."""
    answer = await client.post(
        "/v1/chat/completions",
        json={
            "messages": [{"role": "user", "content": "Answer in JSON. Make something up."}],
            "response_format": response_format,
            "temperature": 1,
            "seed": seed,
            "max_tokens": 100,
        },
    )
    assert answer.status_code == 200, answer.text
    choice = answer.json()["choices"][0]
    return choice["message"]["content"], choice["finish_reason"]


def of_schema(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


async def test_every_answer_validates(server: Server) -> None:
    """All schemas with two seeds each, sixteen requests at a time."""
    at_once = asyncio.Semaphore(16)
    checker = jsonschema.FormatChecker()
    outcomes: dict[tuple[str, int], tuple[str, str]] = {}

    async with httpx.AsyncClient(base_url=server.url, timeout=TIMEOUT) as client:

        async def one(name: str, seed: int) -> None:
            async with at_once:
                outcomes[name, seed] = await ask(client, seed, of_schema(SCHEMAS[name]))

        await asyncio.gather(*(one(name, seed) for name in SCHEMAS for seed in (1, 2)))

    ended = 0
    for (name, seed), (text, reason) in outcomes.items():
        where = f"{name}, seed {seed}: {text!r}"
        assert_laid_out(text.rstrip())
        if reason == "length":
            continue
        ended += 1
        assert reason == "stop", where
        try:
            value = json.loads(text)
            jsonschema.Draft202012Validator(SCHEMAS[name], format_checker=checker).validate(value)
        except (ValueError, jsonschema.ValidationError) as error:
            pytest.fail(f"{where}: {error}")
        if name == "date-time":
            assert re.fullmatch(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d\S*", value["at"]), where
    # Nearly all of these are short: if most were cut off, nothing would have been shown.
    assert ended >= 0.8 * len(outcomes)


async def test_json_object(server: Server) -> None:
    async with httpx.AsyncClient(base_url=server.url, timeout=TIMEOUT) as client:
        answers = await asyncio.gather(
            *(ask(client, seed, {"type": "json_object"}) for seed in range(8))
        )
    for text, reason in answers:
        assert text.startswith("{")
        assert_laid_out(text.rstrip())
        if reason == "stop":
            assert isinstance(json.loads(text), dict)


async def test_the_same_seed_gives_the_same_document(server: Server) -> None:
    async with httpx.AsyncClient(base_url=server.url, timeout=TIMEOUT) as client:
        first = await ask(client, 3, of_schema(SCHEMAS["optional properties"]))
        others = [ask(client, seed, of_schema(SCHEMAS["nested arrays"])) for seed in range(6)]
        again, *_ = await asyncio.gather(
            ask(client, 3, of_schema(SCHEMAS["optional properties"])), *others
        )
    assert again == first
