"""Requests with an Idempotency-Key: the same answer, once made, for an hour."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from api_app import (
    CHAT,
    MODEL,
    Api,
    api,
    chat_body,
    check_error,
    check_error_of_path,
    make_settings,
)
from durable_api import (
    BODIES,
    ONCE,
    SLOW,
    STREAMS,
    durable,
    events_of,
    kept,
    ledger_of,
    rest,
    settings,
)
from maestrale.api import sse
from maestrale.api.auth import OPEN_PATHS
from maestrale.api.durable.run import Run
from maestrale.engines.base import TaskChoice
from responses_api import RESPONSES

pytestmark = pytest.mark.anyio
HELLO = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}
POSTS: dict[str, dict[str, Any] | None] = {
    "/chat/completions": HELLO,
    "/completions": {"model": MODEL, "prompt": "Hello", "max_tokens": 5},
    "/fim/completions": {"model": MODEL, "prompt": "def f(", "suffix": "return a"},
    "/responses": {"model": MODEL, "input": "Hello"},
    "/responses/{response_id}/cancel": None,
    "/messages": {**HELLO, "max_tokens": 5},
    "/messages/count_tokens": HELLO,
    "/tokenize": {"model": MODEL, "prompt": "Hello"},
    "/detokenize": {"model": MODEL, "tokens": [72]},
    "/models/{model_id:path}/load": None,
    "/models/{model_id:path}/unload": None,
    "/embeddings": {"model": MODEL, "input": "Hello"},
    "/rerank": {"model": MODEL, "query": "Hello", "documents": ["One", "Two"]},
}
"""What each path takes; None: no body."""
TASKS: dict[str, TaskChoice] = {"/embeddings": "embed", "/rerank": "rerank"}
OTHERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "embeddings": (
        "/v1/embeddings",
        {"model": MODEL, "input": ["Hello", "world", "again"]},
        {"task": "embed", "max_num_seqs": 2},
    ),
    "fim": (
        "/v1/fim/completions",
        {"model": MODEL, "prompt": "def f(", "suffix": "return a", "stream": True},
        {"fills": True},
    ),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state" / "responses.db"


@pytest.fixture
async def server(file: Path) -> AsyncIterator[Api]:
    async with durable(file) as server:
        yield server


@pytest.mark.parametrize("durable_too", [False, True])
@pytest.mark.parametrize("kind", BODIES)
async def test_the_same_key_gives_the_same_answer(file: Path, kind: str, durable_too: bool) -> None:
    path, body = BODIES[kind]
    async with durable(file, durable=durable_too) as first:
        asked = [first.client.post(path, json=body, headers=ONCE) for _ in range(2)]
        one, two = await asyncio.gather(*asked)  # the second while the first is made
        assert one.status_code == two.status_code == 200
        three = await first.client.post(path, json=body, headers=ONCE)
        assert one.content == two.content == three.content
        assert "idempotent-replayed" not in one.headers
        assert two.headers["idempotent-replayed"] == three.headers["idempotent-replayed"] == "true"
        made = first.engine.stats().generation_tokens
    async with durable(file, durable=durable_too) as second:
        four = await second.client.post(path, json=body, headers=ONCE)
        assert four.content == one.content
        assert four.headers["idempotent-replayed"] == "true"
        assert four.headers["x-seed"] == one.headers["x-seed"]
        assert second.engine.stats().generation_tokens == 0 < made
        other = await second.client.post(path, json={**body, "user": "me"}, headers=ONCE)
        assert other.status_code == 409
        assert other.json()["error"]["type"] == "idempotency_error"
        free = await second.client.post(path, json=body, headers={"idempotency-key": "another"})
        assert "idempotent-replayed" not in free.headers


def posts(server: Api) -> list[str]:
    """The paths of all routes that take a POST, but for probes."""
    return [
        route.path
        for route in server.app._app.routes
        if "POST" in route.methods and route.path not in OPEN_PATHS
    ]


@pytest.mark.parametrize("task", ["generate", "embed", "rerank"])
async def test_every_post_has_it(file: Path, task: TaskChoice) -> None:
    """A new route that takes a POST gets its body in `POSTS`, or this fails."""
    async with api(settings(file, durable=False), task=task, fills=True) as server:
        steered: list[str] = []
        server.app._backend.steering = lambda model, steering: steered.append(steering)
        for number, path in enumerate(posts(server)):
            kind = path.removeprefix("/v1").removeprefix("/v2")
            body = POSTS[kind]
            if TASKS.get(kind, "generate") != task:
                continue
            place = path.replace("{model_id:path}", MODEL)
            if "{response_id}" in path:
                asked = {**POSTS["/responses"], "background": True}  # type: ignore[dict-item]
                place = place.format(
                    response_id=(await server.client.post(RESPONSES, json=asked)).json()["id"]
                )
            once = {"idempotency-key": str(number)}
            sent: dict[str, Any] = {} if body is None else {"json": body}
            got = [await server.client.post(place, headers=once, **sent) for _ in range(2)]
            assert got[0].is_success, (path, got[0].text)
            assert got[1].status_code == got[0].status_code
            assert got[1].content == got[0].content
            assert "idempotent-replayed" not in got[0].headers
            assert got[1].headers["idempotent-replayed"] == "true"
            other = {**(body or {}), "user": "me"}
            refused = await server.client.post(place, headers=once, json=other)
            assert refused.status_code == 409, path
            check_error_of_path(refused)
            assert refused.json()["error"]["type"] == "idempotency_error"
        assert steered == ([] if task != "generate" else ["load", "unload"] * 2)


async def test_another_path_is_another_request(server: Api) -> None:
    assert (await server.client.post(CHAT, json=chat_body(), headers=ONCE)).is_success
    for path in ("/chat/completions", "/v1/messages/count_tokens"):
        refused = await server.client.post(path, json=chat_body(), headers=ONCE)
        assert refused.status_code == 409
        check_error_of_path(refused)


async def test_an_answer_that_was_cut_off_is_made_again(file: Path) -> None:
    """Its process died: the ledger has the request, and no answer."""
    async with durable(file, durable=False) as first:
        one = await first.client.post(CHAT, json=chat_body(temperature=1), headers=ONCE)
    with contextlib.closing(sqlite3.connect(ledger_of(file))) as db:
        db.execute("UPDATE answers SET ended = 0, sent = 0, output = NULL")
        db.commit()
    async with durable(file, durable=False) as second:
        two = await second.client.post(CHAT, json=chat_body(temperature=1), headers=ONCE)
        assert two.content == one.content
        assert two.headers["idempotent-replayed"] == "true"
        assert second.engine.stats().generation_tokens > 0


async def test_to_wait_for_a_slow_answer_is_no_work(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after the time in which a stream would have been opened."""
    looks, news = 0, Run.news

    async def counted(run: Run) -> None:
        nonlocal looks
        looks += 1
        await news(run)

    monkeypatch.setattr(Run, "news", counted)
    monkeypatch.setattr(sse, "KEEP_ALIVE", 0.01)
    async with durable(file, {"text": "Good day", "tokens_per_second": "20"}) as server:
        got = await server.client.post(CHAT, json=chat_body(), headers=ONCE)
    assert got.status_code == 200
    assert looks < 10


@pytest.mark.parametrize("cut_off", [False, True])
@pytest.mark.parametrize("kind", ["embeddings", "fim"])
async def test_what_is_no_conversation(file: Path, kind: str, cut_off: bool) -> None:
    path, body, how = OTHERS[kind]
    async with api(settings(file), **how) as first:
        asked = [first.client.post(path, json=body, headers=ONCE) for _ in range(2)]
        one, two = await asyncio.gather(*asked)
        assert one.status_code == two.status_code == 200, one.text
        assert one.content == two.content
        assert two.headers["idempotent-replayed"] == "true"
    if cut_off:
        with contextlib.closing(sqlite3.connect(ledger_of(file))) as db:
            db.execute("UPDATE answers SET ended = 0, output = NULL")
            db.commit()
    async with api(settings(file), **how) as second:
        three = await second.client.post(path, json=body, headers=ONCE)
        assert three.content == one.content
        assert three.headers["idempotent-replayed"] == "true"
        other = await second.client.post(path, json={**body, "user": "me"}, headers=ONCE)
        assert other.json()["error"]["type"] == "idempotency_error"


async def test_two_processes_at_once(file: Path) -> None:
    async with durable(file) as one, durable(file) as other:
        body = chat_body(temperature=1)
        got = await asyncio.gather(
            *(each.client.post(CHAT, json=body, headers=ONCE) for each in (one, other) * 4)
        )
        assert {answer.status_code for answer in got} == {200}
        assert len({answer.content for answer in got}) == 1


async def test_errors_are_not_kept(file: Path) -> None:
    async with durable(file) as server:
        for _ in range(2):
            answer = await server.client.post(CHAT, json=chat_body(n=0), headers=ONCE)
            check_error(answer, 400, "n")
        assert kept(file) == []
        assert (await server.client.post(CHAT, json=chat_body(), headers=ONCE)).is_success


async def test_a_background_response_is_made_once(server: Api) -> None:
    body = {"model": MODEL, "input": "Hello", "background": True}
    got = [await server.client.post(RESPONSES, json=body, headers=ONCE) for _ in range(2)]
    assert got[0].json()["status"] == "queued"
    assert got[0].content == got[1].content


async def test_a_streamed_one_is_known_while_it_is_made(file: Path) -> None:
    """Asked again at another process, as after the end of the first."""
    body = {"model": MODEL, "input": "Hello", "background": True, "stream": True}
    async with durable(file, SLOW) as one, durable(file, SLOW) as other:
        first = asyncio.create_task(one.client.post(RESPONSES, json=body, headers=ONCE))
        async with asyncio.timeout(30):
            while not kept(file):
                await asyncio.sleep(0.01)
        asked = asyncio.create_task(other.client.post(RESPONSES, json=body, headers=ONCE))
        await asyncio.sleep(0.1)
        assert not first.done()  # its end is not what makes it known
        again = await asked
        assert again.headers["idempotent-replayed"] == "true"
        assert events_of(again.text) == events_of((await first).text)
        assert "response.completed" in again.text
        refused = await other.client.post(RESPONSES, json={**body, "user": "me"}, headers=ONCE)
        assert refused.status_code == 409
        assert (await other.client.post(RESPONSES, json=body, headers=ONCE)).text == again.text


@pytest.mark.parametrize("key", ["", "x" * 256, "caf\xe9", "a\tb"])
async def test_keys_that_are_none(server: Api, key: str) -> None:
    headers = [(b"idempotency-key", key.encode("latin-1"))]
    check_error(
        await server.client.post(CHAT, json=chat_body(), headers=headers), 400, "Idempotency-Key"
    )


async def test_more_than_one_key(server: Api) -> None:
    headers = [("idempotency-key", "a"), ("idempotency-key", "a")]
    check_error(await server.client.post(CHAT, json=chat_body(), headers=headers), 400)


async def test_a_server_that_keeps_nothing() -> None:
    async with api(make_settings()) as server:
        answer = await server.client.post(CHAT, json=chat_body(), headers=ONCE)
        assert check_error(answer, 400)["code"] == "unsupported_parameter"
        check_error(await rest(server, "stream-1"), 404)
        check_error(await server.client.delete(f"{STREAMS}/stream-1"), 404)
