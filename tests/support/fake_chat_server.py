"""A chat server without a model: known answers, and faults on demand.

For tests of what *asks* a server: `faults` names what shall be wrong with the answers.
"""

from __future__ import annotations

import base64
import contextlib
import json
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "fake/model"
CONTEXT = 4096

_ANSWERS = (
    (
        "name of the wind",
        '{"wind":"mistral","temperature":"cold","direction":"north",'
        '"places":["Alps","Avignon"],"helpsFarmers":true}',
    ),
    (
        "Anna Keller",
        '{"name":"Anna Keller","age":34,"address":{"city":"Berlin","country":"Germany"},'
        '"pets":[{"kind":"cat","name":"Mia"},{"kind":"dog","name":"Rex"}]}',
    ),
    ("continent as JSON", '{"city":"Paris","country":"France","continent":"Europe"}'),
    ("Rome is the capital", '{"city":"Rome","country":"Italy"}'),
    ("Give me a JSON object", '{"city":"Paris","country":"France"}'),
    (
        "build their houses",
        "They built their houses with the back to the north, because of the wind.",
    ),
    (
        "friend for farmers",
        "The wind dries the soil, which is bad for the farmers, but keeps grapes well.",
    ),
    (
        "what kind of wind",
        "The mistral is a cold and dry wind that blows in the valley of the Rhone.",
    ),
    ("Summarise", 'The mistral is a "cold" wind.\nIt blows in Provence, and people built for it.'),
    ("What is my name", "Your name is Alice."),
    ("days of the week", "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday and Sunday."),
    ("opposite of hot", "The opposite of hot is cold."),
    ("capital of France", "The capital of France is Paris."),
    ("the ocean", "The ocean is a vast body of water that is home to countless animals."),
    (
        "Lion king",
        "A young lion prince is cast out, grows up far from home, and returns to be king.",
    ),
)
_GIBBERISH = "Zxq vrrm plokt uhgw ::) qwrtz {{ 你好 मुझे krrp ñandú ztk §§ фыва brmpf glrk xx zz qq"

FAULTS_OF_EMBEDDINGS = ("unordered",)
FAULTS_OF_RANKINGS = ("unsorted",)
FAULTS = (
    "usage",
    "finish_reason",
    "markers",
    "random words",
    "wrong language",
    "off topic",
    "broken JSON",
    "JSON against its schema",
    "prose for JSON",
    "forgets",
    "no [DONE]",
    "ids that change",
    "errors as text",
    "accepts all",
    "unseeded",
    "server error",
)


@dataclass
class FakeServer:
    """`url` ends without a slash. `seen` holds the JSON bodies that came, in order."""

    url: str
    seen: list[Any] = field(default_factory=list)
    authorizations: list[str | None] = field(default_factory=list)


@contextlib.contextmanager
def fake_chat_server(
    *faults: str,
    key: str | None = None,
    messages: bool = True,
    embeds: bool = False,
    ranks: bool = False,
) -> Iterator[FakeServer]:
    """Serve until the block ends. With `key`, every route under /v1 asks for it.

    `messages`: it has Anthropic's Messages API, too. `embeds`: it makes embeddings, and nothing
    else; `ranks`: it ranks documents, and nothing else.
    """
    unknown = set(faults) - {*FAULTS, *FAULTS_OF_EMBEDDINGS, *FAULTS_OF_RANKINGS}
    if unknown:
        raise ValueError(f"no such fault: {unknown}")
    fake = FakeServer("")

    class Handler(_Handler):
        server_faults = frozenset(faults)
        server_key = key
        has_messages = messages
        embeds_only = embeds
        ranks_only = ranks
        record = fake

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    fake.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Refused(Exception):
    def __init__(self, status: int, message: str, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": "invalid", "param": param, "code": code}}


class _Handler(BaseHTTPRequestHandler):
    server_faults: frozenset[str]
    server_key: str | None
    has_messages: bool
    embeds_only: bool
    ranks_only: bool
    record: FakeServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the tests say what matters."""

    def do_GET(self) -> None:
        if self.path == "/health":
            self._send(200, {})
        elif not self._authorized():
            self._send(401, _Refused(401, "wrong key", "invalid_api_key").body)
        elif self.path == "/v1/models":
            model = {"id": MODEL, "object": "model", "max_model_len": CONTEXT}
            self._send(200, {"object": "list", "data": [model]})
        else:
            self._send(404, _Refused(404, "no such route", "not_found").body)

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        try:
            if not self._authorized():
                raise _Refused(401, "wrong key", "invalid_api_key")
            if self.embeds_only and self.path == "/v1/embeddings":
                self._embed(json.loads(raw))
                return
            if self.ranks_only and self.path == "/v1/rerank":
                self._rank(json.loads(raw))
                return
            gone = ("/v1/responses", "/v1/embeddings", "/v1/rerank", "/v1/fim/")
            if self.embeds_only or self.ranks_only or self.path.startswith(gone):
                raise _Refused(404, "there is no such route", "not_found")
            if "server error" in self.server_faults:
                raise _Refused(500, "it broke", "internal_error")
            if self.path.startswith("/v1/messages"):
                if not self.has_messages:
                    raise _Refused(404, "no such route", "not_found")
                self._answer_message(_checked(raw, accept=False))
            else:
                self._answer(_checked(raw, "accepts all" in self.server_faults))
        except _Refused as refused:
            if "errors as text" in self.server_faults:
                self._send_bytes(refused.status, b"no", "text/plain")
            else:
                self._send(refused.status, refused.body)

    def _authorized(self) -> bool:
        given = self.headers.get("Authorization")
        self.record.authorizations.append(given)
        return self.server_key is None or given == f"Bearer {self.server_key}"

    def _answer(self, asked: dict[str, Any]) -> None:
        self.record.seen.append(asked)
        text = self._text(asked)
        count = min(len(text.split()) + 1, asked.get("max_tokens", 512))
        usage = {"prompt_tokens": 7, "completion_tokens": count, "total_tokens": 7 + count}
        if "usage" in self.server_faults:
            usage["total_tokens"] += 1
        finish = "model_length" if "finish_reason" in self.server_faults else "stop"
        if asked.get("stream"):
            self._stream(text, usage, finish, asked)
            return
        self._send(
            200,
            {
                "id": "cmpl-1",
                "object": "chat.completion",
                "created": 1700000000,
                "model": MODEL,
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": text},
                        "finish_reason": finish,
                    }
                ],
                "usage": usage,
            },
        )

    def _embed(self, asked: dict[str, Any]) -> None:
        texts = [asked["input"]] if isinstance(asked["input"], str) else asked["input"]
        if not texts:
            raise _Refused(400, "no input", "invalid_value", "input")
        vectors = [
            [len(text) / 100, float("Paris" in text), float("sofa" in text) / 9] for text in texts
        ]
        if "unordered" in self.server_faults:
            vectors.reverse()
        packed = [base64.b64encode(struct.pack("<3f", *each)).decode() for each in vectors]
        found = packed if asked.get("encoding_format") == "base64" else vectors
        data = [
            {"object": "embedding", "index": index, "embedding": each}
            for index, each in enumerate(found)
        ]
        usage = {"prompt_tokens": 7, "total_tokens": 7}
        self._send(200, {"object": "list", "model": MODEL, "data": data, "usage": usage})

    def _rank(self, asked: dict[str, Any]) -> None:
        if "query" not in asked:
            raise _Refused(400, "'query' is required", "missing_field", "query")
        texts = asked["documents"]
        scored = [(sum(word in text for word in asked["query"].split()), text) for text in texts]
        results: list[dict[str, Any]] = [
            {"index": index, "relevance_score": score / 9, "document": {"text": text}}
            for index, (score, text) in enumerate(scored)
        ]
        if "unsorted" not in self.server_faults:
            results.sort(key=lambda each: each["relevance_score"], reverse=True)
        self._send(200, {"model": MODEL, "results": results[: asked.get("top_n")]})

    def _answer_message(self, asked: dict[str, Any]) -> None:
        if self.path.endswith("/count_tokens"):
            self._send(200, {"input_tokens": 7})
            return
        text = self._text(asked)
        usage = {"input_tokens": 7, "output_tokens": len(text.split()) + 1}
        message = {"id": "msg_1", "type": "message", "role": "assistant", "model": MODEL}
        ended = {"stop_reason": "end_turn", "stop_sequence": None}
        if not asked.get("stream"):
            content = [{"type": "text", "text": text}]
            self._send(200, {**message, "content": content, **ended, "usage": usage})
            return
        block = {"index": 0, "content_block": {"type": "text", "text": ""}}
        events: list[dict[str, Any]] = [
            {"type": "message_start", "message": {**message, "content": [], "usage": usage}},
            {"type": "content_block_start", **block},
        ]
        for word in text.split(" "):
            delta = {"type": "text_delta", "text": f"{word} "}
            events.append({"type": "content_block_delta", "index": 0, "delta": delta})
        events.append({"type": "content_block_stop", "index": 0})
        events.append({"type": "message_delta", "delta": ended, "usage": usage})
        events.append({"type": "message_stop"})
        written = (f"event: {each['type']}\ndata: {json.dumps(each)}\n\n" for each in events)
        self._send_bytes(200, "".join(written).encode(), "text/event-stream")

    def _text(self, asked: dict[str, Any]) -> str:
        faults = self.server_faults
        messages = asked.get("messages") or [{"content": "Hello"}]
        if "forgets" in faults:
            messages = messages[-1:]
        question = str(messages[-1]["content"])
        text = next((answer for key, answer in _ANSWERS if key in question), "Hello, and welcome.")
        if "What is my name" in question and "Alice" not in str(messages[0]["content"]):
            text = "I do not know your name."
        if asked.get("response_format"):
            if "broken JSON" in faults:
                text = text[:-1]
            if "JSON against its schema" in faults:
                text = '{"unexpected":true}'
            if "prose for JSON" in faults:
                text = f"Here is the JSON: {text}"
            return text
        if "markers" in faults:
            text = f"<|im_start|>assistant\n{text}<|im_end|>"
        if "random words" in faults:
            text = _GIBBERISH
        if "wrong language" in faults:
            text = (
                "Я не знаю, что сказать по этому поводу, но это было давно и неправда, друзья мои."
            )
        if "off topic" in faults:
            text = (
                "It is a good idea to have a look at the list of what you would like to buy there."
            )
        if "unseeded" in faults:
            text = f"{text} That was answer number {len(self.record.seen)}."
        return text

    def _stream(self, text: str, usage: dict[str, int], finish: str, asked: dict[str, Any]) -> None:
        wants_usage = (asked.get("stream_options") or {}).get("include_usage")
        pieces = [f"{word} " for word in text.split(" ")]
        choices: list[list[dict[str, Any]]] = [
            [{"index": 0, "delta": {"content": piece}, "finish_reason": None}] for piece in pieces
        ]
        choices.append([{"index": 0, "delta": {}, "finish_reason": finish}])
        if wants_usage:
            choices.append([])
        events = []
        for number, one in enumerate(choices):
            chunk: dict[str, Any] = {
                "id": f"cmpl-{number if 'ids that change' in self.server_faults else 1}",
                "object": "chat.completion.chunk",
                "created": 1700000000,
                "model": MODEL,
                "choices": one,
            }
            if wants_usage:
                chunk["usage"] = usage if not one else None
            events.append(f"data: {json.dumps(chunk)}\n\n")
        if "no [DONE]" not in self.server_faults:
            events.append("data: [DONE]\n\n")
        self._send_bytes(200, "".join(events).encode(), "text/event-stream")

    def _send(self, status: int, body: dict[str, Any]) -> None:
        self._send_bytes(status, json.dumps(body).encode(), "application/json")

    def _send_bytes(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _checked(raw: bytes, accept: bool) -> dict[str, Any]:
    """The request, or a refusal: what a good server refuses, this one does."""
    try:
        asked = json.loads(raw)
    except ValueError as error:
        raise _Refused(400, "broken JSON", "invalid_json") from error
    if accept:
        return asked
    if "messages" not in asked:
        raise _Refused(400, "messages are missing", "missing", "messages")
    if not isinstance(asked.get("temperature", 1), int | float):
        raise _Refused(400, "temperature must be a number", "invalid", "temperature")
    if asked["model"] != MODEL:
        raise _Refused(404, f"no model {asked['model']}", "model_not_found", "model")
    if sum(len(str(one["content"]).split()) for one in asked["messages"]) >= CONTEXT:
        raise _Refused(400, "longer than the context", "context_length_exceeded", "messages")
    return asked
