"""A workload's words in each API's: what becomes of a turn, and of an answer that comes whole."""

from __future__ import annotations

from typing import Any

import pytest

from maestrale.bench.apis import APIS, EMBEDDINGS, RERANK, RERANK_QUERY, read_whole
from maestrale.bench.conversation import BenchTurn, Message

SCHEMA = {"type": "object"}
SYSTEM = {"role": "system", "content": "Be brief."}
SAID: list[Message] = [
    SYSTEM,
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi."},
    {
        "role": "user",
        "content": [{"type": "text", "text": "And?"}, {"type": "text", "text": "So?"}],
    },
]
TURN = BenchTurn(
    "follow-up",
    (SAID[-1],),
    {
        "max_tokens": 9,
        "temperature": 0,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "a", "schema": SCHEMA, "strict": True},
        },
    },
)
PLAIN = "Be brief.\n\nHello\n\nHi.\n\nAnd?\nSo?"
USAGE = {"stream_options": {"include_usage": True}}
FORMAT = TURN.fields["response_format"]
BODIES: dict[str, dict[str, Any]] = {
    "chat": {"messages": SAID, "max_tokens": 9, "response_format": FORMAT, **USAGE},
    "completions": {"prompt": PLAIN, "max_tokens": 9, "response_format": FORMAT, **USAGE},
    "fim": {
        "prompt": "",
        "suffix": "And?\nSo?",
        "max_tokens": 9,
        "response_format": FORMAT,
        **USAGE,
    },
    "responses": {
        "input": SAID,
        "store": False,
        "max_output_tokens": 9,
        "text": {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA, "strict": True}},
    },
    "messages": {
        "system": "Be brief.",
        "messages": SAID[1:],
        "max_tokens": 9,
        "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
    },
}


@pytest.mark.parametrize("name", BODIES)
def test_a_turn_in_the_words_of_each_api(name: str) -> None:
    expected = {"model": "m", "temperature": 0, "stream": True, **BODIES[name]}
    assert APIS[name].body("m", TURN, SAID) == expected


def test_embeddings_are_of_the_turns_own_words() -> None:
    turn = BenchTurn("one", TURN.messages, {**TURN.fields, "dimensions": 7})
    assert EMBEDDINGS.body("m", turn, SAID) == {"model": "m", "input": "And?\nSo?", "dimensions": 7}


def test_scores_are_of_the_turns_own_words() -> None:
    turn = BenchTurn("one", TURN.messages, {**TURN.fields, "top_n": 1})
    expected = {"model": "m", "query": RERANK_QUERY, "documents": ["And?\nSo?"], "top_n": 1}
    assert RERANK.body("m", turn, SAID) == expected


def test_the_middle_of_a_turns_words_is_asked_for() -> None:
    turn = BenchTurn("one", ({"role": "user", "content": "one two three four five"},))
    body = APIS["fim"].body("m", turn, SAID)
    assert (body["prompt"], body["suffix"]) == ("one two", "three four five")


def test_messages_always_say_how_long_an_answer_may_be() -> None:
    assert APIS["messages"].body("m", BenchTurn("one", ()), [])["max_tokens"] > 0


def test_each_api_has_a_route_and_a_key_of_its_own() -> None:
    assert {*BODIES, "embeddings", "rerank"} == set(APIS)
    assert len({api.path for api in APIS.values()}) == len(APIS)
    keys = {name: api.key_headers("k") for name, api in APIS.items()}
    assert keys.pop("messages") == {"x-api-key": "k"}
    assert all(headers == {"Authorization": "Bearer k"} for headers in keys.values())
    assert all(api.key_headers(None) == {} for api in APIS.values())


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        (b'{"data": [{"embedding": [1]}], "usage": {"prompt_tokens": 3, "total_tokens": 3}}', 3),
        (b'{"results": [{"index": 0}], "usage": {"prompt_tokens": 3, "total_tokens": 3}}', 3),
        (b'{"data": [], "usage": {"prompt_tokens": 3}}', None),
        (b'{"results": [], "usage": {"prompt_tokens": 3}}', None),
        (b'{"data": [{"embedding": [1]}]}', None),
        (b'{"choices": [{"message": {}}], "usage": {"prompt_tokens": 3}}', None),
        (b'{"data": [1], "usage": {"prompt_tokens": -3}}', None),
        (b'{"data": ', None),
        (b"\xff", None),
        (b"[" * 100_000, None),
    ],
)
def test_an_answer_without_a_vector_or_a_score_is_none(body: bytes, tokens: int | None) -> None:
    usage = read_whole(body)
    assert (usage and usage.prompt_tokens) == tokens
