"""What the bundled collection's script says of JSON answers: that they make sense, or why not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from maestrale.verify.collection import bundled_collection, read_collection
from maestrale.verify.sandbox import Scopes, run_scripts

NAMED = {
    "type": "object",
    "required": ["city", "seats"],
    "properties": {
        "city": {"type": "string"},
        "seats": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"row": {"type": "integer"}},
                "required": ["row"],
            },
        },
    },
}
WORDS = "sense: JSON whose keys are words"
VALUES = "sense: JSON whose values say something"
KEYS = "exactly the keys that the schema names"


def failed(content: str, schema: dict[str, Any] | None = None) -> dict[str, str]:
    """The checks of JSON that an answer fails, and why."""
    form: dict[str, Any] = {"type": "json_object"}
    if schema is not None:
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    message = {"role": "assistant", "content": content}
    answer = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    asked = {"messages": [], "temperature": 0, "response_format": form}
    script = read_collection(bundled_collection()).requests[0].tests[0]
    found = run_scripts(
        [script],
        event="test",
        request={"method": "POST", "url": "http://h/v1/chat/completions", "headers": [],
                 "body": json.dumps(asked), "bodyMode": "raw"},
        response={"code": 200, "status": "OK", "headers": [], "body": json.dumps(answer),
                  "responseTime": 1, "responseSize": 1},
        scopes=Scopes(),
        location=("folder", "request"),
        request_id="7",
        seconds=10,
    )  # fmt: skip
    named = {each.name: each for each in found.assertions if each.name in (WORDS, VALUES, KEYS)}
    assert len(named) == (3 if schema else 2)
    return {
        name: each.failure.message if each.failure else ""
        for name, each in named.items()
        if not each.passed
    }


@pytest.mark.parametrize(
    ("content", "schema"),
    [
        ('{"city": "Paris", "year": 1994}', None),
        ('{"città": "東京", "ok": false, "none": null, "n": [0, -1.5]}', None),
        ('{"city": "Rome", "seats": [{"row": 1}, {"row": 2}]}', NAMED),
        ('{"city": "Rome", "seats": [], "more": 1}', {**NAMED, "additionalProperties": True}),
    ],
)
def test_what_makes_sense_passes(content: str, schema: dict[str, Any] | None) -> None:
    assert failed(content, schema) == {}


@pytest.mark.parametrize(
    ("content", "schema", "check", "told"),
    [
        ('{",": 1994}', None, WORDS, "','"),
        ('{"a": [{"12": "x"}]}', None, WORDS, "12"),
        ("{}", None, WORDS, "keys"),
        ('{"city": " "}', None, VALUES, "say nothing"),
        ('{"city": {"name": [" - "]}}', None, VALUES, " - "),
        ('{"city": {}}', None, VALUES, "values"),
        ('{"city": "Rome", "seats": [], "more": 1}', NAMED, KEYS, "more is too much"),
        ('{"city": "Rome"}', NAMED, KEYS, "seats is missing"),
        ('{"city": "R", "seats": [{"a": 1}]}', NAMED, KEYS, r"seats.0.a is too much"),
    ],
)
def test_what_does_not_fails_by_name(
    content: str, schema: dict[str, Any] | None, check: str, told: str
) -> None:
    assert told in failed(content, schema)[check]
