"""Mutations of good bodies, and whatever our own OpenAPI document allows: never a failure of ours.

FUZZ_SECONDS (20 for each test by default) says how long; with more than that, every run tries
other inputs.
"""

from __future__ import annotations

import copy
import itertools
import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from api_app import check_error_of_path
from faults import CHAT

from .conftest import Target, good

pytestmark = [pytest.mark.model, pytest.mark.timeout(0)]

NORMAL = 20.0
SECONDS = float(os.environ.get("FUZZ_SECONDS", NORMAL))
PATIENCE = 60.0  # seconds for an answer to begin
REFUSALS = {400, 404, 405, 413, 415, 422, 431}

BATCH = settings(
    max_examples=25,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def attack(inputs: st.SearchStrategy[Any], seconds: float, once: Callable[[Any], None]) -> None:
    """Call `once` with inputs for so long. Hypothesis has no such limit: hence the batches."""
    ends = time.monotonic() + seconds
    first = 0 if SECONDS <= NORMAL else random.randrange(1 << 30)
    for number in itertools.count(first):
        if time.monotonic() >= ends:
            return

        @BATCH
        @seed(number)
        @given(inputs)
        def batch(value: Any) -> None:
            if time.monotonic() < ends:
                once(value)

        batch()


GOOD: list[dict[str, Any]] = [
    good(),
    good(stream=True, stream_options={"include_usage": True}),
    good(n=2, seed=1, logprobs=True, top_logprobs=2, temperature=0.5, top_p=0.9, top_k=5),
    good(stop=["a", "b"], presence_penalty=1, frequency_penalty=-1, repetition_penalty=1.1),
    good(response_format={"type": "json_object"}, random_seed=3, safe_prompt=True),
    good(
        response_format={
            "type": "json_schema",
            "json_schema": {
                "name": "x",
                "schema": {
                    "type": "object",
                    "properties": {"a": {"type": "string", "pattern": "^[a-z]+$", "maxLength": 9},
                                   "b": {"type": "array", "items": {"enum": [1, None, "x"]}}},
                    "required": ["a"],
                    "additionalProperties": False,
                },
            },
        }
    ),
    good(
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
            {"role": "assistant", "content": "Hi", "prefix": True},
        ],
        user="x", metadata={"a": "b"}, logit_bias={"5": 1.5}, min_p=0.1, min_tokens=1,
        stop_token_ids=[7], ignore_eos=True, service_tier="auto", store=False,
        tool_choice="none", max_completion_tokens=8,
    ),
]  # fmt: skip
NAMES = [
    *sorted({name for body in GOOD for name in body}),
    *("tools", "functions", "chat_template", "type", "pattern", "minLength", "maxItems"),
    *("items", "anyOf", "allOf", "oneOf", "$ref", "const", "minimum", "multipleOf", "not"),
]

numbers = st.one_of(
    st.integers(-3, 20),
    st.sampled_from([0, -1, 2**31, 2**31 - 1, 2**53, 2**63, 2**64, -(2**63) - 1, 10**30]),
    st.sampled_from([0.0, -0.0, 1e-320, 1e308, 0.5, 1.0000001, -1e-9]),
)
texts = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ["", "\0", "\ud7ff\ufffe", "<|im_end|>", "[INST]", "(a+)+$", "([", "$", "x" * 3000,
         "\r\n\r\n", "\u202e", "🏳️‍🌈", "e\u0301" * 50, "#/$defs/a", "../../etc/passwd"]
    ),
)  # fmt: skip
junk = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(NAMES) | texts, inner, max_size=4)
    ),
    max_leaves=8,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all that is within, the whole left out."""
    inner: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))
    found = []
    for key, item in inner:
        found += [(*path, key), *places(item, (*path, key))]
    return found


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """One of the good bodies with a few things changed; now and then a few bytes as well."""
    body = copy.deepcopy(draw(st.sampled_from(GOOD)))
    for _ in range(draw(st.integers(1, 4))):
        paths = places(body)
        if not paths:
            break
        path = draw(st.sampled_from(paths))
        holder: Any = body
        for key in path[:-1]:
            holder = holder[key]
        match draw(st.sampled_from(["replace", "replace", "remove", "add", "repeat", "swap"])):
            case "replace":
                holder[path[-1]] = draw(junk)
            case "remove":
                del holder[path[-1]]
            case "add" if isinstance(holder, dict):
                holder[draw(st.sampled_from(NAMES) | texts)] = draw(junk)
            case "repeat" if isinstance(holder, list):
                holder *= draw(st.integers(2, 30))
            case "swap":
                other = draw(st.sampled_from(paths))
                holder[path[-1]] = draw(st.just(copy.deepcopy(_at(body, other))))
    raw = bytearray(json.dumps(body, ensure_ascii=draw(st.booleans())).encode())
    if draw(st.integers(0, 9)) == 0:
        for _ in range(draw(st.integers(1, 3))):
            raw[draw(st.integers(0, len(raw) - 1))] = draw(st.integers(0, 255))
    return bytes(raw)


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        if not isinstance(value, dict | list) or (isinstance(value, dict) and key not in value):
            return None
        if isinstance(value, list) and (not isinstance(key, int) or key >= len(value)):
            return None
        value = value[key]
    return value


def judge(target: Target, method: str, path: str, **sent: Any) -> int:
    """Send it, and look at the answer: of a good one, no more than its beginning is waited for."""
    timeout = httpx.Timeout(PATIENCE, read=3.0)
    try:
        with target.client.stream(method, path, timeout=timeout, **sent) as answer:
            if answer.status_code == 200:
                begun = b""
                for part in answer.iter_bytes():
                    begun += part
                    if len(begun) > 2000:
                        break
                assert b"Traceback" not in begun
                return 200
            answer.read()
    except httpx.ReadTimeout:
        return 0  # a long answer that isn't a stream: leaving it is a test as well
    if answer.status_code in (503, 529):  # 529: overloaded, in Anthropic's words
        assert int(answer.headers["retry-after"]) >= 1
        check_error_of_path(answer)
    else:
        assert answer.status_code in REFUSALS, (answer.status_code, answer.text[:500])
        if method != "HEAD":
            check_error_of_path(answer)
    return answer.status_code


def report(counts: Counter[int]) -> None:
    print(f"\n{sum(counts.values())} requests: {dict(sorted(counts.items()))} (0: left)")


def test_mutated_chat_bodies(target: Target) -> None:
    counts: Counter[int] = Counter()

    def once(body: bytes) -> None:
        headers = {"content-type": "application/json"}
        counts[judge(target, "POST", CHAT, content=body, headers=headers)] += 1

    attack(mutated(), SECONDS, once)
    report(counts)
    assert counts[400] > 5
    assert sum(counts.values()) > 10


def test_our_own_openapi_document(target: Target) -> None:
    """schemathesis makes requests that the document allows, and such as it forbids."""
    import schemathesis
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    conformance = [content_type_conformance, response_schema_conformance, status_code_conformance]
    schema = schemathesis.openapi.from_url(f"{target.server.url}/openapi.json")
    modes = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]
    found: list[Any] = list(schema.get_all_operations())
    operations = [each.ok() for each in found]
    assert len(operations) > 10
    counts: Counter[int] = Counter()

    def once(case: Any) -> None:
        request = case.as_transport_kwargs(base_url=target.server.url)
        sent = {
            name: request[name]
            for name in ("headers", "json", "data", "params")
            if request.get(name) is not None
        }
        if isinstance(sent.get("data"), str | bytes):
            sent["content"] = sent.pop("data")
        status = judge(target, request["method"], request["url"], **sent)
        counts[status] += 1
        if status not in (0, 200):
            answer = target.client.request(request["method"], request["url"], **sent)
            case.validate_response(answer, checks=conformance)

    for operation in operations:
        bodies = bool(operation.body)
        for mode in modes if bodies else modes[:1]:
            inputs = operation.as_strategy(generation_mode=mode)
            attack(inputs, SECONDS / 8 if bodies else SECONDS / 40, once)
    report(counts)
    assert counts[200] > 5
    assert counts[400] > 5
