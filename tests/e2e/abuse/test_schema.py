"""Fields out of range, and schemas that are bad, costly, or too many."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from api_app import check_error
from faults import engine_pid
from hostile_bodies import BAD_FIELDS

from .conftest import GROWTH, Target, good

pytestmark = pytest.mark.model

SCHEMAS = int(os.environ.get("ABUSE_SCHEMAS", "1200"))  # 10,000 on demand


def formed(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


@pytest.mark.parametrize(("fields", "param"), BAD_FIELDS.values(), ids=BAD_FIELDS)
def test_bad_fields(target: Target, fields: dict[str, Any], param: str) -> None:
    check_error(target.post(good() | fields), 400, param)
    if not {"stream", "stream_options"} & set(fields):
        check_error(target.post(good() | fields | {"stream": True}), 400, param)


def test_no_messages(target: Target) -> None:
    check_error(target.post({"max_tokens": 1}), 400, "messages")


def test_a_10_mb_user(target: Target) -> None:
    check_error(target.post(good(user="x" * 10_000_000)), 400, "user")


def test_no_image_is_fetched(target: Target) -> None:
    """Not even from a server that would answer."""
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.5)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/x.png"
        for part in (
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "image_url", "image_url": url},
            {"type": "input_audio", "input_audio": {"data": url, "format": "wav"}},
            {"type": "file", "file": {"file_url": url}},
            {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}},
            {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest/meta-data"}},
            {"type": "document_url", "document_url": url},
        ):
            body = good(messages=[{"role": "user", "content": [part]}])
            check_error(target.post(body), 400, "messages[0].content[0].type")
        schema = {"$ref": url}
        check_error(target.post(good(response_format=formed(schema))), 400, "response_format")
        with contextlib.suppress(TimeoutError):
            asked.append(listener.accept())
    assert asked == []


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


def text(pattern: str) -> dict[str, Any]:
    return {"type": "string", "pattern": pattern}


COSTLY: dict[str, Any] = {
    "(a+)+b": text("(a+)+b"),
    "(a|a)*b": text("^(a|a)*b$"),
    "exponential automaton": text("^(a|b)*a(a|b){30}$"),
    "nested repeats": text("((a{0,100}){0,100}){0,100}"),
    "a repeat of 10^9": text("^[a-z]{1,1000000000}$"),
    "many alternatives": text("|".join(f".*{number}.{{20}}" for number in range(100))),
    "64 KB of pattern": text("a?" * 15_000 + "a" * 15_000),
    "a long broken pattern": text("(" + "x" * 60_000),
    "look-ahead": text("^(?=a)b"),
    "a back reference": text(r"(a)\1"),
    "patterns at once": {"allOf": [text(f"{letter}.{{30}}x") for letter in "abcdefgh"]},
    "multiples at once": {
        "allOf": [{"type": "integer", "multipleOf": n} for n in (9973, 9967, 9949, 9941)]
    },
    "minLength 10^9": {"type": "string", "minLength": 10**9},
    "minItems 10^9": {"type": "array", "minItems": 10**9},
    "maxItems 10^9": {"type": "array", "items": {"type": "string"}, "maxItems": 10**9},
    "an integer of 300 digits": {"type": "integer", "minimum": -(10**300), "maximum": 10**300},
    "60 deep": deep(60),
    "300 deep": deep(300),
    "an enum of 5,000": {"enum": [f"value {number}" for number in range(5000)]},
    "2,000 properties": {"properties": {f"p{n}": {"type": "string"} for n in range(2000)}},
    "500 alternatives": {"anyOf": [text(f".*{number}.*") for number in range(500)]},
    "patternProperties": {"patternProperties": {f".*{n}.*": {} for n in range(50)}},
    "itself": {"$ref": "#"},
    "a circle": {
        "$ref": "#/$defs/a",
        "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
    },
    "a tree": {
        "$ref": "#/$defs/a",
        "$defs": {"a": {"type": "object", "properties": {"left": {"$ref": "#/$defs/a"}}}},
    },
    "never ends": {
        "$ref": "#/$defs/a",
        "$defs": {
            "a": {"type": "object", "properties": {"a": {"$ref": "#/$defs/a"}}, "required": ["a"]}
        },
    },
    "an outside $ref": {"$ref": "file:///etc/passwd"},
    "an outside $schema": {"$schema": "http://127.0.0.1:9/x", "type": "string"},
    "an outside $id": {"$id": "http://127.0.0.1:9/x", "$ref": "other.json"},
    "a long $ref": {"$ref": "#/$defs/" + "y" * 60_000},
    "a long keyword": {"z" * 60_000: 1},
    "a long type": {"type": "z" * 60_000},
    "x-guidance": {"x-guidance": {"lenient": True}, "type": "object"},
    "nothing satisfies it": {"type": "string", "minLength": 5, "maxLength": 2},
    "NUL": {"const": "\0"},
    "control tokens": {"const": "<|im_end|>"},
    "oneOf": {"oneOf": [{"type": "string"}, {"const": "x"}]},
    "not": {"not": {"type": "string"}},
    "dynamic": {"$dynamicRef": "#x", "$dynamicAnchor": "x"},
}


@pytest.mark.parametrize("schema", COSTLY.values(), ids=COSTLY)
def test_costly_schemas(target: Target, schema: Any) -> None:
    """It works or is a 400; others aren't kept waiting by it, be it compiled or followed."""
    done = threading.Event()
    failed: list[str] = []

    def others() -> None:
        while not done.is_set():
            answer = target.post(good(max_tokens=1))
            if answer.status_code != 200:
                failed.append(answer.text)
            time.sleep(0.1)

    watcher = threading.Thread(target=others)
    watcher.start()
    began = time.monotonic()
    try:
        answer = target.post(good(response_format=formed(schema), max_tokens=12, seed=1))
    finally:
        done.set()
        watcher.join()
    seconds = time.monotonic() - began
    assert not failed
    assert seconds < 60, "it holds the server"
    if answer.status_code == 200:
        choice = answer.json()["choices"][0]
        if choice["finish_reason"] == "stop":
            json.loads(choice["message"]["content"])
    else:
        error = check_error(answer, 400)
        assert error["param"].startswith("response_format")
        assert len(error["message"]) < 600


def test_many_different_schemas(target: Target) -> None:
    """More than are remembered; neither process keeps them all."""
    engine = engine_pid(target.server)

    def engine_memory() -> int:
        with open(f"/proc/{engine}/statm") as statm:
            return int(statm.read().split()[1]) * 4096

    def ask(number: int) -> int:
        """Every twentieth is followed by the engine; the others are found bad by the vetter."""
        pattern = f"^[a-z]{{{number}}}$" if number % 20 == 0 else f"([{number}"
        answer = target.post(good(response_format=formed(text(pattern)), max_tokens=2))
        if number % 20:
            check_error(answer, 400, "response_format")
        else:
            assert answer.status_code == 200
        return answer.status_code

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, range(100)))
        before, engine_before = target.memory(), engine_memory()
        began = time.monotonic()
        codes = set(pool.map(ask, range(100, 100 + SCHEMAS)))
    print(
        f"\n{SCHEMAS} schemas in {time.monotonic() - began:.1f} s; the API process has grown by "
        f"{(target.memory() - before) >> 20} MiB, the engine by "
        f"{(engine_memory() - engine_before) >> 20} MiB"
    )
    assert codes == {200, 400}
    assert target.memory() - before < GROWTH
    assert engine_memory() - engine_before < GROWTH
