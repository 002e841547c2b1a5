"""Hostile HTTP, byte for byte: what each server of the tests must answer with an error."""

from __future__ import annotations

import json
import re
import socket
import time
from typing import Any

HOST = b"Host: a\r\n"
GOOD = b"GET /good HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
POST = b"POST /post HTTP/1.1\r\n" + HOST
GET = b"GET /get HTTP/1.1\r\n" + HOST
# With a type that is taken: else the head is refused alone, where the body comes in pieces.
CHUNKED = POST + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"

MALFORMED = {
    "content-length twice": POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    "two content-lengths": POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
    "list of lengths": POST + b"Content-Length: 3, 3\r\n\r\nabc",
    "length then chunked": POST
    + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "chunked then length": POST
    + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "negative length": POST + b"Content-Length: -3\r\n\r\nabc",
    "signed length": POST + b"Content-Length: +3\r\n\r\nabc",
    "length of letters": POST + b"Content-Length: abc\r\n\r\nabc",
    "no length": POST + b"Content-Length: \r\n\r\nabc",
    "length beyond 64 bits": POST + b"Content-Length: 99999999999999999999\r\n\r\nabc",
    "bad chunk size": CHUNKED + b"zz\r\nabc\r\n0\r\n\r\n",
    "negative chunk size": CHUNKED + b"-3\r\nabc\r\n0\r\n\r\n",
    "chunk size beyond 64 bits": CHUNKED + b"f" * 17 + b"\r\nabc\r\n0\r\n\r\n",
    "chunk longer than its size": CHUNKED + b"3\r\nabcd\r\n0\r\n\r\n",
    "chunk with bare line feeds": CHUNKED + b"3\nabc\n0\n\n",
    "chunk extension with no end": CHUNKED + b"3;" + b"a" * 200_000,
    "other coding": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked not last": POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "chunked twice": POST
    + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked in HTTP/1.0": CHUNKED.replace(b"1.1", b"1.0") + b"0\r\n\r\n",
    "folded header": GET + b"X: a\r\n b\r\n\r\n",
    "NUL in a header": GET + b"X: a\0b\r\n\r\n",
    "NUL in a name": GET + b"X\0: a\r\n\r\n",
    "bare CR": GET + b"X: a\rb\r\n\r\n",
    "bare LF": b"GET / HTTP/1.1\nHost: a\n\n",
    "space before colon": GET + b"X : a\r\n\r\n",
    "no Host": b"GET / HTTP/1.1\r\n\r\n",
    "two Hosts": GET + HOST + b"\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/2.0": b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS hello": bytes.fromhex("16030100c8010000c403"),
    "CONNECT": b"CONNECT a:80 HTTP/1.1\r\n" + HOST + b"\r\n",
    "unknown method": b"FOO / HTTP/1.1\r\n" + HOST + b"\r\n",
    "space in path": b"GET /a b HTTP/1.1\r\n" + HOST + b"\r\n",
    "bytes in path": b"GET /\xff HTTP/1.1\r\n" + HOST + b"\r\n",
    "WebSocket": GET + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    "upgrade with a body": POST
    + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 3\r\n\r\nabc",
}

TOO_LARGE = {
    "1 MB header": GET + b"X: " + b"a" * 1_000_000 + b"\r\n\r\n",
    "1 MB header name": GET + b"X" * 1_000_000 + b": a\r\n\r\n",
    "header with no end": GET + b"X: " + b"a" * 70_000,
    "10,000 headers": GET + b"".join(b"X%d: a\r\n" % i for i in range(10_000)) + b"\r\n",
    "101 headers": GET + b"X: a\r\n" * 100 + b"\r\n",
    "long URL": b"GET /" + b"a" * 9_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
    "URL with no end": b"GET /" + b"a" * 100_000,
    "101 trailers": CHUNKED + b"0\r\n" + b"X: a\r\n" * 101 + b"\r\n",
}


def read_to_end(client: socket.socket) -> bytes:
    parts = []
    while part := client.recv(65536):
        parts.append(part)
    return b"".join(parts)


def trickle(client: socket.socket, times: int, data: bytes = b"a", pause: float = 0.05) -> int:
    """Send `data` over and over; give how often it went before the server cut it off."""
    for sent in range(times):
        try:
            client.sendall(data)
        except OSError:
            return sent
        time.sleep(pause)
    return times


def statuses(answer: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]


def error_of(answer: bytes) -> dict[str, Any]:
    head, body = answer.rsplit(b"\r\n\r\n", 1)
    assert b"content-type: application/json" in head
    error = json.loads(body)
    assert error["object"] == "error"
    assert error["error"]["message"] == error["message"]
    return error["error"]
