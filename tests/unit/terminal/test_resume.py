"""`maestrale chat` where the connection is lost: it goes on by Last-Event-ID."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import httpx
import pytest

from maestrale.errors import CannotChat
from maestrale.terminal import server as module
from maestrale.terminal.server import AnswerOutcome, ChatServer

STREAM = {"x-stream-id": "stream-1", "x-seed": "7"}
Reply = Callable[[], httpx.Response]


def event(number: int, text: str) -> bytes:
    chunk = {"choices": [{"delta": {"content": text}, "finish_reason": None}]}
    return f"id: {number}\ndata: {json.dumps(chunk)}\n\n".encode()


DONE = b"id: 4\ndata: [DONE]\n\n"


def streamed(*parts: bytes | Exception, headers: dict[str, str] = STREAM) -> Reply:
    """An answer of these parts; at an exception the connection is lost."""

    def content() -> Iterator[bytes]:
        for part in parts:
            if isinstance(part, Exception):
                raise part
            yield part

    return lambda: httpx.Response(200, content=content(), headers=headers)


class Script:
    """Answers one request after the other, and keeps what was asked."""

    def __init__(self, *replies: Reply) -> None:
        self.asked: list[httpx.Request] = []
        self._replies = list(replies)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        return self._replies.pop(0)()

    @property
    def told(self) -> list[str]:
        return [
            f"{each.method} {each.url.path} {each.headers.get('last-event-id', '')}".strip()
            for each in self.asked
        ]


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch) -> Callable[[Script], ChatServer]:
    monkeypatch.setattr(module, "RESUME_PAUSE", 0.0)

    def made(script: Script) -> ChatServer:
        server = ChatServer("http://127.0.0.1:9")
        server._client = httpx.Client(
            base_url="http://127.0.0.1:9/v1", transport=httpx.MockTransport(script)
        )
        return server

    return made


LOST = httpx.ReadError("gone")


def refused() -> httpx.Response:
    raise httpx.ConnectError("refused")


def test_it_goes_on_where_it_was(chat: Callable[[Script], ChatServer]) -> None:
    script = Script(
        streamed(event(0, "a"), event(1, "b"), b'id: 2\ndata: {"cho', LOST),
        refused,
        lambda: httpx.Response(503, json={"error": {"message": "The server is starting."}}),
        streamed(event(2, "c"), LOST),
        streamed(event(3, "d"), DONE),
    )
    outcome = AnswerOutcome()
    told: list[str] = []
    pieces = list(chat(script).stream({}, outcome, told.append))
    assert "".join(piece.text for piece in pieces) == "abcd"
    assert script.told == [
        "POST /v1/chat/completions",
        *["GET /v1/streams/stream-1 1"] * 3,
        "GET /v1/streams/stream-1 2",
    ]
    assert outcome.seed == "7"
    assert len(told) == 4
    assert all("goes on" in text for text in told)


def test_a_stream_that_the_server_does_not_keep(chat: Callable[[Script], ChatServer]) -> None:
    script = Script(streamed(event(0, "a"), LOST, headers={}))
    with pytest.raises(CannotChat, match="broke: gone"):
        list(chat(script).stream({}, AnswerOutcome()))
    assert len(script.asked) == 1


def test_a_stream_that_is_gone(chat: Callable[[Script], ChatServer]) -> None:
    gone = httpx.Response(404, json={"error": {"message": "There is no such stream."}})
    script = Script(streamed(event(0, "a"), LOST), lambda: gone, lambda: httpx.Response(404))
    with pytest.raises(CannotChat, match="no such stream"):
        list(chat(script).stream({}, AnswerOutcome()))


def test_a_server_that_stays_away(
    chat: Callable[[Script], ChatServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RESUME_SECONDS", -1.0)
    script = Script(streamed(event(0, "a")), lambda: httpx.Response(404))
    with pytest.raises(CannotChat, match="cut off"):
        list(chat(script).stream({}, AnswerOutcome()))
    assert script.told[-1] == "DELETE /v1/streams/stream-1"


def test_an_error_of_a_server_that_ends(chat: Callable[[Script], ChatServer]) -> None:
    error = b'id: 1\ndata: {"error": {"message": "It ends.", "code": "draining"}}\n\n'
    script = Script(streamed(event(0, "a"), error), streamed(event(1, "b"), DONE))
    pieces = list(chat(script).stream({}, AnswerOutcome()))
    assert "".join(piece.text for piece in pieces) == "ab"
    assert script.told[-1] == "GET /v1/streams/stream-1 0"


def test_one_that_is_left_is_let_go(chat: Callable[[Script], ChatServer]) -> None:
    script = Script(streamed(event(0, "a"), event(1, "b"), DONE), lambda: httpx.Response(200))
    pieces = chat(script).stream({}, AnswerOutcome())
    assert next(pieces).text == "a"
    pieces.close()  # type: ignore[attr-defined]
    assert script.told == ["POST /v1/chat/completions", "DELETE /v1/streams/stream-1"]
