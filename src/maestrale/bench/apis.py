"""The APIs that can be loaded: each one's route, how a turn becomes its body, what answers say.

A workload is written in the words of chat completions. Here its fields get the names that an API
has for them; what has none there is sent as it is, so that the server refuses it by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec

from maestrale.bench.conversation import BenchTurn, Message

DONE = b"[DONE]"
_FAILURES = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

_Tokens = Annotated[int, msgspec.Meta(ge=0, le=10**9)]


class ReportedUsage(msgspec.Struct, frozen=True):
    """Token counts as the server gives them."""

    prompt_tokens: _Tokens = 0
    completion_tokens: _Tokens = 0
    prompt_tokens_details: dict[str, Any] | None = None

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that the server had in its cache; 0 where it doesn't say."""
        told = (self.prompt_tokens_details or {}).get("cached_tokens")
        return told if type(told) is int and 0 <= told <= self.prompt_tokens else 0


class StreamEvent(msgspec.Struct):
    """What one event of a stream says, whatever the API. `thought`: text that is no answer."""

    text: str = ""
    thought: str = ""
    usage: ReportedUsage | None = None
    finish_reason: str | None = None
    error: Any = None
    done: bool = False


@dataclass(frozen=True)
class BenchApi:
    """One API. `mark`: what each event with text has in its bytes, once. `read` takes an event's
    data; None for what is no event of this API. An API without a mark answers whole.
    """

    name: str
    path: str
    body: Callable[[str, BenchTurn, list[Message]], dict[str, Any]]
    """Of the model, the turn, and the conversation so far, the turn's messages included."""
    mark: bytes = b""
    read: Callable[[bytes], StreamEvent | None] = lambda _: None
    headers: Mapping[str, str] = field(default_factory=dict)
    key_header: str = "Authorization"

    @property
    def streams(self) -> bool:
        return bool(self.mark)

    def key_headers(self, key: str | None) -> dict[str, str]:
        """The header that holds a server's key, if it asks for one."""
        if not key:
            return {}
        return {self.key_header: f"Bearer {key}" if self.key_header == "Authorization" else key}


def text_of(messages: list[Message]) -> str:
    """The words of messages, with an empty line between two."""
    return "\n\n".join(_text(message.get("content")) for message in messages)


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


# Chat completions and completions


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)
    text: str | None = None
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: ReportedUsage | None = None
    error: Any = None


_chunk = msgspec.json.Decoder(_Chunk).decode


def _read_completion(data: bytes) -> StreamEvent | None:
    if data.strip() == DONE:
        return StreamEvent(done=True)
    try:
        chunk = _chunk(data)
    except _FAILURES:
        return None
    choice = chunk.choices[0] if chunk.choices else _Choice()
    return StreamEvent(
        text=choice.delta.content or choice.text or "",
        thought=choice.delta.reasoning_content or "",
        usage=chunk.usage,
        finish_reason=choice.finish_reason,
        error=chunk.error,
    )


_STREAM = {"stream": True, "stream_options": {"include_usage": True}}


def _chat_body(model: str, turn: BenchTurn, said: list[Message]) -> dict[str, Any]:
    return {"model": model, "messages": said, **turn.fields, **_STREAM}


def _completion_body(model: str, turn: BenchTurn, said: list[Message]) -> dict[str, Any]:
    return {"model": model, "prompt": text_of(said), **turn.fields, **_STREAM}


def _fim_body(model: str, turn: BenchTurn, said: list[Message]) -> dict[str, Any]:
    """The middle of the turn's own words is what is asked for."""
    words = text_of(list(turn.messages)).split(" ")
    half = len(words) // 2
    gap = {"prompt": " ".join(words[:half]), "suffix": " ".join(words[half:])}
    return {"model": model, **gap, **turn.fields, **_STREAM}


# Responses


class _Counts(msgspec.Struct):
    """Of Responses and of Messages, which leaves what was cached out of `input_tokens`."""

    input_tokens: _Tokens | None = None
    output_tokens: _Tokens | None = None
    input_tokens_details: dict[str, Any] | None = None
    cache_read_input_tokens: _Tokens | None = None
    cache_creation_input_tokens: _Tokens | None = None

    def usage(self) -> ReportedUsage:
        read, written = self.cache_read_input_tokens, self.cache_creation_input_tokens or 0
        return ReportedUsage(
            (self.input_tokens or 0) + (read or 0) + written,
            self.output_tokens or 0,
            self.input_tokens_details if read is None else {"cached_tokens": read},
        )


class _Response(msgspec.Struct):
    status: str | None = None
    usage: _Counts | None = None
    error: Any = None


class _ResponseEvent(msgspec.Struct):
    type: str
    delta: Any = None
    response: _Response | None = None
    code: Any = None
    message: Any = None
    error: Any = None


_response_event = msgspec.json.Decoder(_ResponseEvent).decode
_ENDS = ("response.completed", "response.incomplete", "response.failed")


def _read_response(data: bytes) -> StreamEvent | None:
    try:
        event = _response_event(data)
    except _FAILURES:
        return None
    found = StreamEvent()
    if event.type == "response.output_text.delta" and isinstance(event.delta, str):
        found.text = event.delta
    elif event.type.endswith("_text.delta") and isinstance(event.delta, str):
        found.thought = event.delta
    elif event.type == "error":
        found.error = event.error or {"code": event.code, "message": event.message}
    elif event.type in _ENDS:
        response = event.response or _Response()
        found.done = True
        found.error = response.error
        found.finish_reason = response.status
        found.usage = None if response.usage is None else response.usage.usage()
    return found


def _response_body(model: str, turn: BenchTurn, said: list[Message]) -> dict[str, Any]:
    fields = _renamed(turn.fields, {"max_tokens": "max_output_tokens"})
    wanted = fields.pop("response_format", None)
    if isinstance(wanted, dict):
        schema = wanted.get("json_schema") or {}
        fields["text"] = {"format": {"type": wanted.get("type"), **schema}}
    return {"model": model, "input": said, "store": False, **fields, "stream": True}


# Messages


class _Piece(msgspec.Struct):
    text: str | None = None
    thinking: str | None = None
    stop_reason: str | None = None


class _Started(msgspec.Struct):
    usage: _Counts | None = None


class _MessageEvent(msgspec.Struct):
    type: str
    delta: _Piece = msgspec.field(default_factory=_Piece)
    message: _Started | None = None
    usage: _Counts | None = None
    error: Any = None


_message_event = msgspec.json.Decoder(_MessageEvent).decode
_MESSAGE_TOKENS = 256  # where a request leaves open what Messages can't do without


def _read_message(data: bytes) -> StreamEvent | None:
    try:
        event = _message_event(data)
    except _FAILURES:
        return None
    counts = event.usage
    if counts is None and event.message is not None:
        counts = event.message.usage
    return StreamEvent(
        text=event.delta.text or "",
        thought=event.delta.thinking or "",
        usage=None if counts is None else counts.usage(),
        finish_reason=event.delta.stop_reason,
        error=event.error,
        done=event.type == "message_stop",
    )


def _message_body(model: str, turn: BenchTurn, said: list[Message]) -> dict[str, Any]:
    fields = _renamed(turn.fields, {"stop": "stop_sequences"})
    wanted = fields.pop("response_format", None)
    if isinstance(wanted, dict):
        schema = wanted.get("json_schema") or {}
        form = {"type": wanted.get("type"), "schema": schema.get("schema")}
        fields["output_config"] = {"format": form}
    system = [message for message in said if message.get("role") in ("system", "developer")]
    others = [message for message in said if message not in system]
    body: dict[str, Any] = {"model": model, "messages": others, "max_tokens": _MESSAGE_TOKENS}
    if system:
        body["system"] = text_of(system)
    return {**body, **fields, "stream": True}


def _renamed(fields: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in fields.items()}


# Embeddings and rankings


class _Whole(msgspec.Struct):
    data: list[msgspec.Raw] = []
    results: list[msgspec.Raw] = []
    usage: ReportedUsage | None = None


RERANK_QUERY = "What is this about?"
_OF_EMBEDDINGS = ("dimensions", "encoding_format", "input_type", "user")
_OF_RANKINGS = ("top_n", "return_documents", "max_tokens_per_doc", "user")


def _embedding_body(model: str, turn: BenchTurn, said: list[Message]) -> dict[str, Any]:
    """The turn's own words; what is asked of answers is left out."""
    fields = {name: value for name, value in turn.fields.items() if name in _OF_EMBEDDINGS}
    return {"model": model, "input": text_of(list(turn.messages)), **fields}


def _rerank_body(model: str, turn: BenchTurn, said: list[Message]) -> dict[str, Any]:
    """The turn's own words are a document, and the query is always the same."""
    fields = {name: value for name, value in turn.fields.items() if name in _OF_RANKINGS}
    document = text_of(list(turn.messages))
    return {"model": model, "query": RERANK_QUERY, "documents": [document], **fields}


def read_whole(body: bytes) -> ReportedUsage | None:
    """The usage told in a whole answer; None where it holds no embedding and no score, or tells
    of none.
    """
    try:
        found = msgspec.json.decode(body, type=_Whole)
    except _FAILURES:
        return None
    return found.usage if found.data or found.results else None


CHAT = BenchApi(
    "chat", "/v1/chat/completions", _chat_body, b'content"', _read_completion
)  # the mark is also in "reasoning_content"
COMPLETIONS = BenchApi(
    "completions", "/v1/completions", _completion_body, b'"text"', _read_completion
)
FIM = BenchApi("fim", "/v1/fim/completions", _fim_body, CHAT.mark, _read_completion)
RESPONSES = BenchApi("responses", "/v1/responses", _response_body, b'_text.delta"', _read_response)
MESSAGES = BenchApi(
    "messages",
    "/v1/messages",
    _message_body,
    b'content_block_delta"',
    _read_message,
    {"anthropic-version": "2023-06-01"},
    "x-api-key",
)
EMBEDDINGS = BenchApi("embeddings", "/v1/embeddings", _embedding_body)
RERANK = BenchApi("rerank", "/v1/rerank", _rerank_body)

APIS = {api.name: api for api in (CHAT, COMPLETIONS, FIM, RESPONSES, MESSAGES, EMBEDDINGS, RERANK)}
