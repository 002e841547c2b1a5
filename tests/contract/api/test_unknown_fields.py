"""An unknown field on each route: refused with the nearest known one, or ignored with a header."""

from __future__ import annotations

from typing import Any

import pytest

from api_app import api, check_error, check_error_of_path, make_settings

pytestmark = pytest.mark.anyio

HELLO = [{"role": "user", "content": "Hello"}]
ROUTES: list[tuple[str, dict[str, Any], str, str]] = [
    ("/v1/chat/completions", {"messages": HELLO}, "temprature", "temperature"),
    ("/v1/completions", {"prompt": "x"}, "max_token", "max_tokens"),
    ("/v1/fim/completions", {"prompt": "x"}, "sufix", "suffix"),
    ("/v1/responses", {"input": "x"}, "instruction", "instructions"),
    ("/v1/messages", {"messages": HELLO, "max_tokens": 5}, "stop_sequence", "stop_sequences"),
    ("/v1/messages/count_tokens", {"messages": HELLO}, "sytem", "system"),
    ("/tokenize", {"prompt": "x"}, "mesages", "messages"),
]


@pytest.mark.parametrize(
    ("path", "body", "wrong", "known"), ROUTES, ids=lambda each: str(each)[:30]
)
async def test_refused_with_the_nearest_known_one(
    path: str, body: dict[str, Any], wrong: str, known: str
) -> None:
    async with api(fills=True) as server:
        answer = await server.client.post(path, json={**body, wrong: 1})
        assert answer.status_code == 400
        check_error_of_path(answer)
        assert wrong in answer.text
        assert f"the nearest known one is '{known}'" in answer.json()["error"]["message"]
        assert "x-ignored-fields" not in answer.headers


@pytest.mark.parametrize(
    ("path", "body", "wrong", "known"), ROUTES, ids=lambda each: str(each)[:30]
)
async def test_ignored_with_a_header_where_the_operator_says_so(
    path: str, body: dict[str, Any], wrong: str, known: str
) -> None:
    settings = make_settings(unknown_fields="ignore")
    async with api(settings, options={"length": "3"}, fills=True) as server:
        plain = await server.client.post(path, json=body)
        assert plain.status_code == 200, plain.text
        assert "x-ignored-fields" not in plain.headers
        answer = await server.client.post(path, json={**body, wrong: {"a": 1}})
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-ignored-fields"] == wrong
        bad = await server.client.post(path, json={**body, wrong: 1, "model": 5})
        assert bad.status_code == 400
        check_error_of_path(bad)


async def test_streams_say_so_too_and_others_are_not_touched() -> None:
    async with api(make_settings(unknown_fields="ignore")) as server:
        body = {"messages": HELLO, "stream": True, "zork": 1}
        answer = await server.client.post("/v1/chat/completions", json=body)
        assert answer.headers["x-ignored-fields"] == "zork"
        answer = await server.chat(mirostat=2)  # known, and refused for its reason
        check_error(answer, 400, "mirostat")
        tool = {"type": "function", "function": {"name": "f", "colour": "red"}}
    async with api(make_settings(unknown_fields="ignore"), tools=True) as server:
        answer = await server.chat(tools=[tool])
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-ignored-fields"] == "tools[0].function.colour"
        responses = {"input": [{"role": "user", "content": "x", "mood": "good"}]}
        answer = await server.client.post("/v1/responses", json=responses)
        assert answer.headers["x-ignored-fields"] == "input[0].mood"
