"""A server with keys, every limit at its default: who has no key gets nothing, and costs little."""

from __future__ import annotations

import contextlib
import json
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from api_app import check_error
from faults import CHAT
from hostile_http import error_of, statuses
from hostile_keys import BAD_KEYS, CLOSED, KEY
from serving import serving

from .conftest import FLAGS, Target, attacked, good, unharmed

pytestmark = pytest.mark.model

OTHER = "sk-other"
IDLE = 10_000


@pytest.fixture(scope="module")
def keyed_server(cache_dir: Path, prepared_model: Path) -> Iterator[Target]:
    flags = (*FLAGS, "--api-key", KEY, "--api-key", OTHER)
    with (
        serving(*flags, cache_dir=cache_dir) as server,
        attacked(server, {"authorization": f"Bearer {KEY}"}) as target,
    ):
        yield target


@pytest.fixture
def target(keyed_server: Target) -> Iterator[Target]:
    with unharmed(keyed_server):
        yield keyed_server
        assert KEY not in keyed_server.server.log()


@pytest.mark.parametrize("headers", BAD_KEYS.values(), ids=BAD_KEYS)
def test_bad_keys_before_the_body_is_read(target: Target, headers: dict[str, str | bytes]) -> None:
    """The head comes, and the body never does."""
    lines = [f"POST {CHAT} HTTP/1.1", "Host: x", "Content-Type: application/json"]
    head = "\r\n".join([*lines, "Content-Length: 1000", ""]).encode()
    for name, value in headers.items():
        raw = value if isinstance(value, bytes) else value.encode()
        head += name.encode() + b": " + raw + b"\r\n"
    answer = target.exchange(head + b"\r\n", timeout=5)
    # A key of 1 MB is refused as a head that is too large, before it is looked at.
    assert statuses(answer) == [431 if len(head) > 65536 else 401]
    assert KEY.encode() not in answer
    error_of(answer)


def test_two_keys(target: Target) -> None:
    two = [("authorization", f"Bearer {KEY}"), ("authorization", "Bearer x")]
    check_error(target.client.get("/v1/models", headers=two), 400)


@pytest.mark.parametrize("query", [f"api_key={KEY}", f"key={KEY}", f"authorization=Bearer%20{KEY}"])
def test_a_key_in_the_query_is_none(target: Target, query: str) -> None:
    check_error(target.client.get(f"/v1/models?{query}"), 401)


@pytest.mark.parametrize("path", CLOSED)
def test_every_route_asks(target: Target, path: str) -> None:
    for method in ("GET", "POST", "HEAD", "OPTIONS"):
        assert target.client.request(method, path).status_code == 401
    for open_path in ("/health", "/ping"):
        assert target.client.get(open_path).status_code == 200


@pytest.mark.parametrize(
    "line",
    [
        "GET /v1/models HTTP/1.1\r\nHost: x/health?y=",
        "GET /v1/models?/health HTTP/1.1\r\nHost: x",
        "GET /health/../v1/models HTTP/1.1\r\nHost: x",
        "GET //health/../v1/models HTTP/1.1\r\nHost: x",
        "GET /health%2f..%2fv1/models HTTP/1.1\r\nHost: x",
        "GET /v1/models#/health HTTP/1.1\r\nHost: x",
        "GET http://x/health?/../v1/models HTTP/1.1\r\nHost: x",
        "GET http://health/v1/models HTTP/1.1\r\nHost: x",
        "GET /v1/models HTTP/1.1\r\nHost: x\r\nX-Original-URL: /health",
        "GET /v1/models HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 127.0.0.1",
    ],
)
def test_nothing_opens_a_closed_route(target: Target, line: str) -> None:
    answer = target.exchange(f"{line}\r\nConnection: close\r\n\r\n".encode())
    assert b"max_model_len" not in answer
    assert statuses(answer) in ([401], [400], [200])
    if statuses(answer) == [200]:
        assert b'"status":"ready"' in answer


def test_10_000_idle_sockets(target: Target) -> None:
    """They are capped, others are served, and the process doesn't run out of handles."""
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        opened = 0
        for number in range(IDLE):
            try:
                client = stack.enter_context(socket.create_connection(target.address, timeout=30))
            except OSError:  # this process's own limit
                break
            opened += 1
            if number % 3 == 0:
                with contextlib.suppress(OSError):
                    client.sendall(b"GET /health HTTP/1.1\r\nX: ")
        assert opened > 1500
        assert target.handles() < 1024 + 100
        for _ in range(5):
            assert target.server.process.poll() is None
            asked = socket.create_connection(target.address, timeout=30)
            with asked:
                asked.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                assert b"200 OK" in asked.recv(1000)
        assert target.memory() - target.resident < 100 << 20
        print(f"\n{opened} idle sockets in {time.monotonic() - began:.1f} s")


def test_one_key_floods_and_another_is_served(target: Target) -> None:
    body = json.dumps(good(max_tokens=16, ignore_eos=True)).encode()
    mine = {"authorization": f"Bearer {OTHER}"}
    over = threading.Event()
    seen: list[int] = []

    def flood() -> None:
        while not over.is_set():
            try:
                seen.append(target.post(body).status_code)
            except httpx.TransportError:  # so many at once: some connections must give way
                seen.append(0)
            if seen[-1] != 200:
                time.sleep(0.05)

    threads = [threading.Thread(target=flood) for _ in range(60)]
    for thread in threads:
        thread.start()
    try:
        target.until(lambda: 503 in seen, "it is no flood")
        waits = []
        for _ in range(3):
            began = time.monotonic()
            answer = target.post(body, **mine)
            waits.append(time.monotonic() - began)
            assert answer.status_code == 200, "the flood's key has the whole queue"
    finally:
        over.set()
        for thread in threads:
            thread.join(120)
    assert set(seen) <= {0, 200, 429, 503}
    assert seen.count(0) < len(seen) / 10
    print(f"\n{len(seen)} of the flood; the other's answers took {statistics.median(waits):.2f} s")


def test_what_comes_back_says_when_to_come_again(target: Target) -> None:
    """As many requests at once as make the queue full."""
    answers: list[Any] = []
    body = json.dumps(good(max_tokens=16, ignore_eos=True)).encode()
    threads = [
        threading.Thread(target=lambda: answers.append(target.post(body))) for _ in range(100)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    refused = [answer for answer in answers if answer.status_code != 200]
    assert refused
    for answer in refused:
        check_error(answer, 503)
        assert 1 <= int(answer.headers["retry-after"]) <= 30
