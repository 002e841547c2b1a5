"""Hostile HTTP against the real server. The table is that of `tests/unit/api/test_protocol.py`."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import time
from urllib.parse import quote

import pytest

from api_app import check_error
from faults import CHAT
from hostile_bodies import BAD_MODELS, REFUSED_MEDIA_TYPES
from hostile_http import MALFORMED, TOO_LARGE, error_of, read_to_end, statuses

from .conftest import Target, good

pytestmark = pytest.mark.model

HEAD = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode()
LIMIT = 16 << 20  # --max-body-bytes, by default


def here(raw: bytes) -> bytes:
    """A request of the table, for this server and a path that it has."""
    raw = raw.replace(b"Host: a\r\n", b"Host: localhost\r\n")
    return raw.replace(b"/post ", CHAT.encode() + b" ").replace(b"/get ", b"/version ")


def test_malformed_is_400_and_closed(target: Target) -> None:
    for name, raw in MALFORMED.items():
        answer = target.exchange(here(raw))
        assert statuses(answer) == [400], name
        error_of(answer)


def test_too_large_a_head_is_431_and_closed(target: Target) -> None:
    for name, raw in TOO_LARGE.items():
        answer = target.exchange(here(raw))
        # Of a request with trailers the body is refused first.
        assert statuses(answer) in ([431], [415]), name
        error_of(answer)


@pytest.mark.parametrize(
    ("head", "every"), [(b"GET /version HTTP/1.1\r\nX: ", 0.2), (b"", 10.0), (b"GET /ver", 10.0)]
)
def test_slow_headers(target: Target, head: bytes, every: float) -> None:
    began = time.monotonic()
    with socket.create_connection(target.address, timeout=30) as client:
        client.sendall(head)
        client.settimeout(every)
        answer = b""
        while time.monotonic() - began < 25:
            try:
                answer = read_to_end(client)
                break
            except TimeoutError:
                client.sendall(b"a")
            except ConnectionError:
                break
        else:
            pytest.fail("the connection stays open")
    assert statuses(answer) in ([408], [])


@pytest.mark.parametrize("every", [0.2, 30.0], ids=["a byte at a time", "stopped"])
def test_slow_body(target: Target, every: float) -> None:
    body = json.dumps(good()).encode()
    began = time.monotonic()
    with socket.create_connection(target.address, timeout=30) as client:
        client.sendall(HEAD + b"Content-Length: 5000\r\n\r\n" + body[:10])
        client.settimeout(every)
        while time.monotonic() - began < 25:
            try:
                answer = read_to_end(client)
                break
            except TimeoutError:
                client.sendall(b" ")
        else:
            pytest.fail("the connection stays open")
    assert statuses(answer) == [408]
    assert error_of(answer)["code"] == "request_timeout"


def test_short_body_then_fin(target: Target) -> None:
    with socket.create_connection(target.address, timeout=30) as client:
        client.sendall(HEAD + b"Content-Length: 500\r\n\r\n{")
        client.shutdown(socket.SHUT_WR)
        assert read_to_end(client) == b""


def test_a_body_over_the_limit_is_not_read(target: Target) -> None:
    with socket.create_connection(target.address, timeout=30) as client:
        client.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % (LIMIT + 1))
        answer = read_to_end(client)
    assert statuses(answer) == [413]
    assert error_of(answer)["code"] == "payload_too_large"


def test_an_endless_chunked_body(target: Target) -> None:
    piece = b"10000\r\n" + b" " * 65536 + b"\r\n"
    with socket.create_connection(target.address, timeout=30) as client:
        client.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < 8 * LIMIT:
                client.sendall(piece)
                sent += 65536
        assert sent < 6 * LIMIT  # some is thrown away, so that the answer arrives
        client.settimeout(5)
        answer = b""
        with contextlib.suppress(ConnectionError):
            answer = read_to_end(client)
    assert statuses(answer) in ([413], [])  # [] where the reset overtook it


def test_many_bodies_that_never_end(target: Target) -> None:
    """30 times nearly the largest body would be half a gigabyte."""
    with contextlib.ExitStack() as stack:
        clients = []
        for _ in range(30):
            client = stack.enter_context(socket.create_connection(target.address, timeout=30))
            with contextlib.suppress(OSError):  # refused in the middle
                client.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % LIMIT + b" " * (LIMIT - 1))
            clients.append(client)
        assert target.memory() - target.resident < 300 << 20
        target.asks_well()
        codes = [code for client in clients for code in statuses(_last(client))]
    assert set(codes) <= {408, 503}
    assert 503 in codes


def _last(client: socket.socket) -> bytes:
    with contextlib.suppress(OSError):
        return read_to_end(client)
    return b""


@pytest.mark.parametrize("headers", REFUSED_MEDIA_TYPES)
def test_other_media_types(target: Target, headers: dict[str, str]) -> None:
    check_error(target.post(good(), **headers), 415)


def test_a_gzip_bomb(target: Target) -> None:
    bomb = gzip.compress(b" " * 100_000_000)
    check_error(target.post(bomb, **{"content-encoding": "gzip"}), 415)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE"])
def test_wrong_methods(target: Target, method: str) -> None:
    answer = target.client.request(method, CHAT)
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"
    if method != "HEAD":
        check_error(answer, 405)


def test_unknown_models_can_not_forge_the_log(target: Target) -> None:
    before = len(target.server.log())
    for name in [*BAD_MODELS, "x\r\n12:00:00 info    forged\u2028forged\x1b[2J"]:
        error = check_error(target.post(good(model=name)), 404, "model")
        assert error["code"] == "model_not_found"
        path = f"/v1/models/{quote(name)}x%0d%0aforged"
        assert target.client.get(path).status_code == 404
    check_error(target.client.get("/a%0d%0aforged%1b"), 404)
    lines = target.server.log()[before:].splitlines()
    assert not [line for line in lines if line.startswith(("forged", "12:00:00 info    forged"))]
    assert "\x1b" not in target.server.log()


@pytest.mark.parametrize(
    "host", ["x/health?y=", "localhost/health?y=", "localhost@evil.example", "[::1].evil.example"]
)
def test_host_can_not_open_a_route(target: Target, host: str) -> None:
    answer = target.exchange(
        f"GET /v1/models HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
    )
    assert statuses(answer) in ([403], [400])
    error_of(answer)


@pytest.mark.parametrize(
    "path",
    [
        *("/..%2f..%2fetc/passwd", "/v1/models/..%2f..%2f..%2fetc%2fpasswd", "/%00", "/%ff%fe"),
        *("//", "/v1//models", "/health/../v1/models", "/v1/models/" + "x" * 5000, "/docs/", "/*"),
    ],
)
def test_odd_paths(target: Target, path: str) -> None:
    answer = target.exchange(
        f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    )
    assert statuses(answer) == [404]
    assert b"root:" not in answer
    error_of(answer)
