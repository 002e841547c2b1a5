"""`maestrale bench` where the connection is lost: the answer goes on, and counts once."""

from __future__ import annotations

import asyncio
import json

import pytest

from maestrale.bench import client as module
from maestrale.bench.client import BenchTarget, Client, Exchange
from maestrale.bench.events import EventLog

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n%b\r\n"
KEPT = b"X-Stream-Id: stream-1\r\n"
BUSY = b"HTTP/1.1 503 Busy\r\nContent-Length: 2\r\n\r\n{}"


def event(number: int, text: str, finish: str | None = None) -> bytes:
    chunk = {"choices": [{"delta": {"content": text}, "finish_reason": finish}]}
    if finish:
        chunk["usage"] = {"prompt_tokens": 3, "completion_tokens": 4}  # type: ignore[assignment]
    return f"id: {number}\ndata: {json.dumps(chunk)}\n\n".encode()


END = event(3, "d", "stop") + b"id: 4\ndata: [DONE]\n\n"


async def asked(*answers: bytes) -> tuple[Exchange, list[bytes]]:
    """Ask a server that gives these answers, one a connection, and closes each."""
    heads: list[bytes] = []
    left = list(answers)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(left.pop(0))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        client = Client(BenchTarget(f"http://127.0.0.1:{port}"), timeout=10)
        return await client.ask(b"{}", keep_text=True), heads


def test_it_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RESUME_PAUSE", 0.0)
    begun = HEAD % KEPT + event(0, "a") + event(1, "b") + event(2, "c")[:-9]
    exchange, heads = asyncio.run(asked(begun, BUSY, HEAD % KEPT + event(2, "c") + END))
    assert exchange.error is None
    assert (exchange.text, exchange.pieces, exchange.finish_reason) == ("abcd", 4, "stop")
    assert exchange.usage is not None
    assert [head.split(b" HTTP")[0] for head in heads] == [
        b"POST /v1/chat/completions",
        *[b"GET /v1/streams/stream-1"] * 2,
    ]
    assert all(b"Last-Event-ID: 1\r\n" in head for head in heads[1:])


def test_a_stream_that_the_server_does_not_keep() -> None:
    exchange, heads = asyncio.run(asked(HEAD % b"" + event(0, "a")))
    assert exchange.error == "cut off before its end"
    assert len(heads) == 1


@pytest.mark.parametrize("at", range(len(event(2, "c"))))
def test_half_an_event_is_dropped(at: int) -> None:
    log = EventLog(keep_text=True)
    log.add(event(0, "a") + event(1, "b"), 1.0)
    log.add(event(2, "c")[:at], 2.0)
    assert log.cut() == b"1"
    log.add(event(2, "c") + END, 3.0)
    assert log.text() == "abcd"
    assert log.close().pieces == 4


def test_a_cut_before_the_first_event() -> None:
    log = EventLog()
    log.add(b'id: 0\ndata: {"cho', 1.0)
    assert log.cut() == b""
    log.add(event(0, "a"), 2.0)
    assert log.first_token == 2.0
