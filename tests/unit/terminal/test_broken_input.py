"""What a hostile server sends to `maestrale chat`, and what a user names as its files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from maestrale.errors import CannotChat, ModelError
from maestrale.prompt.encode import read_template
from maestrale.terminal.conversation import TerminalConversation, read_schema
from maestrale.terminal.server import AnswerOutcome, ChatServer


def chat_server(reply: Callable[[httpx.Request], httpx.Response]) -> ChatServer:
    server = ChatServer("http://127.0.0.1:9")
    server._client = httpx.Client(  # no socket: what it sends is given here
        base_url="http://127.0.0.1:9/v1", transport=httpx.MockTransport(reply)
    )
    return server


@pytest.mark.parametrize(
    "event",
    ["5", "null", "[]", '"x"', "{", "[" * 100_000, '{"choices": 5}', '{"choices": [5]}',
     '{"choices": [{"delta": 5}]}', '{"choices": [{"delta": {"content": 5}}]}', '{"usage": 5}',
     '{"usage": {"prompt_tokens": "x"}}'],
)  # fmt: skip
def test_events_of_another_shape(event: str) -> None:
    server = chat_server(lambda request: httpx.Response(200, text=f"data: {event}\n\n"))
    with pytest.raises(CannotChat, match="The answer is broken"):
        list(server.stream({}, AnswerOutcome()))


def test_errors_and_empty_parts_of_other_servers() -> None:
    parts = ['{"choices": null, "usage": null}', '{"choices": [{"delta": null}]}',
             '{"choices": [{"delta": {"content": "a"}}]}', '{"error": "busy"}']  # fmt: skip
    text = "".join(f"data: {part}\n\n" for part in parts)
    outcome = AnswerOutcome()
    with pytest.raises(CannotChat, match=r"^busy$"):
        list(chat_server(lambda request: httpx.Response(200, text=text)).stream({}, outcome))
    assert outcome.text == ["a"]


def test_a_server_without_a_model() -> None:
    server = chat_server(lambda request: httpx.Response(200, json={"data": []}))
    with pytest.raises(CannotChat, match="serves no model"):
        server.models(lambda text: None)


def test_files_of_nobody_and_of_nonsense(tmp_path: Path) -> None:
    conversation = TerminalConversation("m")
    half = tmp_path / "half.json"
    half.write_text(json.dumps({"messages": [{"role": "user", "content": "\ud800"}]}))
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\x00")
    nobody = Path("~nobody-of-that-name/x")
    for path in (half, binary, nobody, tmp_path):
        with pytest.raises(CannotChat):
            conversation.load(path)
    for path in (nobody, tmp_path, Path("a\0b")):
        with pytest.raises(CannotChat, match="can't be written"):
            conversation.save(path)
    for text in (str(nobody), str(binary), '{"a":' * 100_000):
        with pytest.raises(CannotChat):
            read_schema(text)
    for path in (binary, tmp_path):
        with pytest.raises(ModelError):
            read_template(path)
