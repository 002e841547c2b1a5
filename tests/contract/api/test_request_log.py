"""One line a request: what it tells, in both forms, and what it never tells."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from api_app import CHAT, Api, api, chat_body, make_settings
from maestrale.logs import REQUESTS, JsonFormatter, TextFormatter

pytestmark = pytest.mark.anyio
SECRET = "a very private question"


class Lines(logging.Handler):
    """Keeps what is logged, formatted as JSON and as text."""

    def __init__(self) -> None:
        super().__init__()
        self.json: list[dict[str, Any]] = []
        self.text: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.json.append(json.loads(JsonFormatter().format(record)))
        self.text.append(TextFormatter().format(record))


@pytest.fixture
def lines() -> Iterator[Lines]:
    kept = Lines()
    before = REQUESTS.level
    REQUESTS.addHandler(kept)
    REQUESTS.setLevel(logging.INFO)
    yield kept
    REQUESTS.removeHandler(kept)
    REQUESTS.setLevel(before)


def messages(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_line_tells_all_of_a_request(lines: Lines, stream: bool) -> None:
    settings = make_settings(api_key=("key-of-somebody",))
    async with api(settings, options={"text": "hello"}) as server:
        answer = await server.client.post(
            CHAT,
            json=chat_body(messages=messages(SECRET), max_tokens=4, seed=9, stream=stream),
            headers={"authorization": "Bearer key-of-somebody", "x-request-id": "my-id"},
        )
        assert answer.status_code == 200
        assert answer.headers["x-request-id"] == "my-id"
        await server.client.get("/health")
    assert len(lines.json) == len(lines.text) == 1  # one line, and none for a probe
    line = lines.json[0]
    assert line["id"] == "my-id"
    assert line["status"] == 200
    assert line["key"] not in ("-", "", "key-of-somebody")
    assert line["model"] == chat_body()["model"]
    assert line["prompt_tokens"] > line["completion_tokens"] == 4
    assert line["cached_tokens"] == 0
    assert 0 <= line["queue"] <= line["ttft"] <= line["seconds"] < 60
    assert line["tokens_per_second"] > 0
    assert line["finish"] == "length"
    assert line["seed"] == 9
    assert "refused" not in line
    for field in ("id=my-id", "queue=", "ttft=", "tokens_per_second=", "finish=length"):
        assert field in lines.text[0]
    assert "\n" not in lines.text[0]
    assert SECRET not in str((lines.json, lines.text))
    assert "key-of-somebody" not in str((lines.json, lines.text))


async def test_thoughts_are_told_where_there_are_some(lines: Lines) -> None:
    async with api(options={"text": "<think>Hm.</think>Yes."}, thinks=True) as server:
        usage = (await server.chat()).json()["usage"]
        await server.chat(reasoning_effort="none", max_tokens=1)
    thought = usage["completion_tokens_details"]["reasoning_tokens"]
    assert [line.get("reasoning_tokens") for line in lines.json] == [thought, None]
    assert thought > 3


async def test_an_id_is_made_where_none_is_sent(lines: Lines) -> None:
    async with api() as server:
        for sent in ({}, {"x-request-id": "with space"}, {"x-request-id": "x" * 200}):
            answer = await server.client.post(CHAT, json=chat_body(max_tokens=1), headers=sent)
            assert answer.headers["x-request-id"].startswith("req-")
            assert lines.json[-1]["id"] == answer.headers["x-request-id"]
    assert len({line["id"] for line in lines.json}) == 3


async def test_refused_requests_have_a_line_with_the_reason(lines: Lines) -> None:
    async with api() as server:
        await server.chat(temperature=-1)
        await server.chat(model="gpt-5")
    assert [line["refused"] for line in lines.json] == ["invalid_value", "model_not_found"]
    assert [line["status"] for line in lines.json] == [400, 404]


async def test_how_answers_end(lines: Lines) -> None:
    async with api(options={"text": "hello"}) as server:
        await server.chat(n=2, max_tokens=3)
        assert lines.json[-1]["finish"] == "length"
    async with api(options={"lose_at_token": "2"}) as server:
        await server.chat()
        assert lines.json[-1]["finish"] == "error"
    async with api(options={"tokens_per_second": "20"}, over_http=True) as server:
        await leave_in_the_midst(server)
        assert lines.json[-1]["finish"] == "abort"
        assert lines.json[-1]["status"] == 499


async def leave_in_the_midst(server: Api) -> None:
    body = chat_body(stream=True, max_tokens=1000, ignore_eos=True)
    async with server.client.stream("POST", CHAT, json=body) as answer:
        await anext(answer.aiter_lines())
    await server.idle()
    await asyncio.sleep(0.05)  # the line is written once the connection is seen to be gone


async def test_prompts_and_answers_only_when_asked_for(lines: Lines) -> None:
    settings = make_settings(log_prompts=True)
    async with api(settings, options={"text": "hello"}) as server:
        await server.chat(messages=messages(SECRET), n=2)
    assert SECRET in lines.json[0]["prompt"]
    assert lines.json[0]["answer"] == "hello | hello"
