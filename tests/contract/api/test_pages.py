"""The pages: their shell is everyone's, their data asks for the key; headers, caching, status."""

from __future__ import annotations

import asyncio
import json

import pytest

from api_app import CHAT, JSON, MODEL, api, check_error, make_settings
from hostile_keys import KEY
from maestrale.api.backend import Backend
from maestrale.api.operations import pages
from maestrale.api.operations.status import snapshot

pytestmark = pytest.mark.anyio

KEYED = make_settings(api_key=(KEY,), host="0.0.0.0")
GOOD = {"authorization": f"Bearer {KEY}"}
SHELL = ["/", "/status", "/usage", "/web/js/chat.js", "/web/css/base.css",
         "/web/vendor/purify.min.mjs", "/web/scenarios.json"]  # fmt: skip


@pytest.mark.parametrize("path", SHELL)
async def test_the_shell_needs_no_key(path: str) -> None:
    async with api(KEYED) as server:
        answer = await server.client.get(path)
        assert answer.status_code == 200
        assert MODEL not in answer.text
        assert (await server.client.head(path)).status_code == 200
        for method in ("POST", "PUT", "DELETE"):
            check_error(await server.client.request(method, path), 401)


async def test_their_data_needs_one() -> None:
    async with api(KEYED) as server:
        for path in ("/status.json", "/v1/models", "/metrics"):
            check_error(await server.client.get(path), 401)
            assert (await server.client.get(path, headers=GOOD)).status_code == 200


@pytest.mark.parametrize("path", SHELL)
async def test_headers(path: str) -> None:
    async with api() as server:
        answer = await server.client.get(path)
    policy = dict(
        part.strip().partition(" ")[::2]
        for part in answer.headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["img-src"] == "'self' data:"
    assert policy["require-trusted-types-for"] == "'script'"
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert "http" not in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cache-control"] == "no-cache"


async def test_types() -> None:
    async with api() as server:
        for path, kind in (
            ("/", "text/html; charset=utf-8"),
            ("/web/js/chat.js", "text/javascript; charset=utf-8"),
            ("/web/vendor/purify.min.mjs", "text/javascript; charset=utf-8"),
            ("/web/css/chat.css", "text/css; charset=utf-8"),
            ("/web/icon.svg", "image/svg+xml"),
            ("/web/scenarios.json", "application/json"),
        ):
            assert (await server.client.get(path)).headers["content-type"] == kind


async def test_what_is_unchanged_is_not_sent_again() -> None:
    async with api() as server:
        first = await server.client.get("/web/js/chat.js")
        again = await server.client.get(
            "/web/js/chat.js", headers={"if-none-match": f'"other", {first.headers["etag"]}'}
        )
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == first.headers["etag"]
        assert "content-security-policy" in again.headers
        stale = await server.client.get("/web/js/chat.js", headers={"if-none-match": '"other"'})
        assert stale.status_code == 200


@pytest.mark.parametrize(
    "path",
    ["/web/", "/web/js", "/web/js/", "/web/../pages.py", "/web/%2e%2e/api/pages.py",
     "/web//etc/passwd", "/web/..%2f..%2fkeys.py", "/web/js/chat.js/", "/web/js/chat.js%00.css",
     "/web/__init__.py"],
)  # fmt: skip
async def test_only_the_pages_files(path: str) -> None:
    async with api(KEYED) as server:
        answer = await server.client.get(path)
        assert answer.status_code in (401, 404)
        check_error(answer, answer.status_code)


async def test_a_web_page_elsewhere_gets_neither_page_nor_data() -> None:
    async with api() as server:
        for path in ("/", "/status.json"):
            for headers in ({"host": "evil.example"}, {"origin": "http://evil.example"}):
                check_error(await server.client.get(path, headers=headers), 403)


async def test_status_tells_of_engine_load_and_errors() -> None:
    async with api(options={"length": "20"}) as server:
        assert (await server.chat()).status_code == 200
        check_error(await server.chat(model="no-such"), 404)
        check_error(await server.chat(model="no-such"), 404)
        check_error(await server.client.post(CHAT, content=b"{", headers=JSON), 400)
        status = (await server.client.get("/status.json")).json()
    assert status["state"] == "ready"
    assert status["models"] == [MODEL]
    assert status["engine"]["context_tokens"] == 4096
    assert status["now"]["running"] == status["now"]["waiting"] == 0
    assert status["totals"]["generation_tokens"] >= 20
    assert status["totals"]["restarts"] == 0
    newest, before = status["events"]
    assert (before["code"], before["count"], before["status"]) == ("model_not_found", 2, 404)
    assert newest["path"] == CHAT
    assert newest["request_id"].startswith("req-")


async def test_status_has_the_latency_of_what_was_answered() -> None:
    settings = make_settings()
    async with api(settings, options={"length": "30", "tokens_per_second": "200"}) as server:
        history = server.app._backend.deployments.default.history
        await asyncio.gather(*(server.chat() for _ in range(5)))
        history.take()
        status = (await server.client.get("/status.json")).json()
    assert status["latency"]["time_to_first_token"]["count"] == 5
    assert status["latency"]["inter_token"]["count"] == 5 * 30  # the end is a token
    assert 0 < status["latency"]["inter_token"]["p50"] < 1
    assert status["series"]["ttft_p50"][0] is None
    assert status["series"]["ttft_p50"][-1] > 0
    assert status["series"]["generation_tokens_per_second"][-1] > 0


async def test_status_while_starting() -> None:
    backend = Backend(make_settings())
    deployment = backend.deployments.default
    deployment.history.take()
    status = json.loads(json.dumps(await snapshot(backend, deployment)))
    assert status["state"] == "starting"
    assert status["engine"] is status["now"] is status["totals"] is None
    assert status["series"]["time"] == []


async def test_an_error_in_a_stream_is_among_the_last_errors() -> None:
    async with api(options={"lose_at_token": "3"}) as server:
        events = await server.events()
        assert "error" in events[-1]
        status = (await server.client.get("/status.json")).json()
    [event] = status["events"]
    assert event["status"] == 200
    assert event["code"] == events[-1]["error"]["code"]


def test_every_file_has_a_type_that_is_served() -> None:
    files = {path for path in pages.FOLDER.rglob("*") if path.is_file()}
    assert {path.suffix for path in files} <= set(pages.TYPES)
