"""Keys, and without keys: Host, Origin and CORS."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from api_app import CHAT, api, check_error, make_settings
from hostile_keys import BAD_KEYS, CLOSED, KEY

pytestmark = pytest.mark.anyio

KEYED = make_settings(api_key=("sk-other", KEY), host="0.0.0.0")


async def unread() -> Any:
    raise AssertionError("the body was read")
    yield b""


@pytest.mark.parametrize("path", CLOSED)
async def test_every_route_asks(path: str) -> None:
    async with api(KEYED) as server:
        for method in ("GET", "POST", "PUT"):
            answer = await server.client.request(method, path)
            check_error(answer, 401)
            assert answer.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize("path", ["/health", "/ping"])
async def test_open_routes(path: str) -> None:
    async with api(KEYED) as server:
        assert (await server.client.get(path)).status_code == 200


@pytest.mark.parametrize("headers", BAD_KEYS.values(), ids=BAD_KEYS)
async def test_bad_keys_before_the_body_is_read(headers: dict[str, Any]) -> None:
    async with api(KEYED, options={"length": "1"}) as server:
        kind = {"content-type": "application/json"}
        answer = await server.client.post(CHAT, content=unread(), headers={**kind, **headers})
        check_error(answer, 401)
        good = {"authorization": f"Bearer {KEY}"}
        answer = await server.client.get("/v1/models", headers=good)
        assert answer.status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {KEY}"},
        {"authorization": f"bearer {KEY}"},
        {"x-api-key": KEY},
        {"api-key": "sk-other"},
    ],
)
async def test_good_keys(headers: dict[str, str]) -> None:
    async with api(KEYED) as server:
        answer = await server.client.get("/v1/models", headers=headers)
        assert answer.status_code == 200


async def test_two_authorization_headers() -> None:
    async with api(KEYED) as server:
        headers = [("authorization", f"Bearer {KEY}"), ("authorization", "Bearer x")]
        check_error(await server.client.get("/v1/models", headers=headers), 400)


async def test_key_in_the_query_is_no_key() -> None:
    async with api(KEYED) as server:
        check_error(await server.client.get(f"/v1/models?api_key={KEY}"), 401)


@pytest.mark.parametrize("host", ["x/health?y=", "/health", "x/ping?"])
async def test_host_can_not_open_a_route(host: str) -> None:
    async with api(KEYED) as server:
        check_error(await server.client.get("/v1/models", headers={"host": host}), 401)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("localhost:8000", 200),
        ("127.0.0.1:8000", 200),
        ("127.8.8.8", 200),
        ("[::1]:8000", 200),
        ("proxy.example", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("192.168.1.5:8000", 403),
        ("localhost.evil.example", 403),
        ("[::1].evil.example", 403),
        ("127.0.0.1:80.evil.example", 403),
        ("", 403),
    ],
)
async def test_host_on_keyless_loopback(host: str, status: int) -> None:
    async with api(make_settings(allowed_hosts=("proxy.example",))) as server:
        answer = await server.client.get("/v1/models", headers={"host": host})
        assert answer.status_code == status
        if status != 200:
            check_error(answer, status)


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://127.0.0.1:8000", 200),
        ("https://127.0.0.1:8000", 200),  # a proxy ended TLS
        ("https://chat.example", 200),
        ("http://127.0.0.1:9000", 403),
        ("http://127.0.0.1", 403),
        ("ftp://127.0.0.1:8000", 403),
        ("https://evil.example", 403),
        ("null", 403),
    ],
)
@pytest.mark.parametrize("settings", [{}, {"host": "0.0.0.0", "no_auth": True}])
async def test_origin_without_keys(settings: dict[str, Any], origin: str, status: int) -> None:
    allowed = make_settings(allowed_origins=("https://chat.example",), **settings)
    async with api(allowed, options={"length": "1"}) as server:
        answer = await server.chat()
        assert answer.status_code == 200
        answer = await server.client.get("/v1/models", headers={"origin": origin})
        assert answer.status_code == status
        shared = answer.headers.get("access-control-allow-origin")
        assert shared == (origin if origin == "https://chat.example" else None)


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("chat.example", "https://chat.example", 200),
        ("chat.example:443", "https://chat.example", 200),
        ("chat.example", "http://chat.example:80", 200),
        ("127.0.0.1:8000", "https://chat.example", 200),  # the proxy calls us by our own name
        ("127.0.0.1:8000", "https://chat.example:8443", 200),
        ("chat.example", "https://evil.example", 403),
        ("chat.example", "https://chat.example.evil", 403),
        ("chat.example", "https://evil.example/chat.example", 403),
    ],
)
async def test_pages_by_way_of_a_tls_proxy(host: str, origin: str, status: int) -> None:
    async with api(make_settings(allowed_hosts=("chat.example",))) as server:
        headers = {"host": host, "origin": origin}
        answer = await server.client.get("/v1/models", headers=headers)
        assert answer.status_code == status


async def test_preflight() -> None:
    settings = make_settings(allowed_origins=("https://chat.example",), api_key=(KEY,))
    async with api(settings) as server:

        async def ask(origin: str) -> httpx.Response:
            return await server.client.options(
                CHAT,
                headers={
                    "origin": origin,
                    "access-control-request-method": "POST",
                    "access-control-request-headers": "authorization,content-type",
                },
            )

        answer = await ask("https://chat.example")
        assert answer.status_code == 204
        assert answer.headers["access-control-allow-origin"] == "https://chat.example"
        assert answer.headers["access-control-allow-headers"] == "authorization,content-type"
        check_error(await ask("https://evil.example"), 403)


async def test_cors_also_on_errors() -> None:
    settings = make_settings(allowed_origins=("https://chat.example",), api_key=(KEY,))
    async with api(settings) as server:
        answer = await server.client.get("/v1/models", headers={"origin": "https://chat.example"})
        check_error(answer, 401)
        assert answer.headers["access-control-allow-origin"] == "https://chat.example"
