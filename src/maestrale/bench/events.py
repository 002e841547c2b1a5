"""Reads the server-sent events of one answer, in bulk: the load generator's inner loop.

At 20,000 tokens a second there are some 50 µs for each, the server's own included. So an event
costs one time stamp and one append; JSON is decoded only up to the first event with text, and of
what is needed once the stream has ended: its last events (usage, errors), and the whole text
only where a follow-up sends it back.
"""

from __future__ import annotations

from typing import Any

import msgspec

_CONTENT = b'content"'  # also of "reasoning_content"
_DONE = b"[DONE]"


class Usage(msgspec.Struct, frozen=True):
    """Token counts as the server gives them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: dict[str, Any] | None = None

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that the server had in its cache; 0 where it doesn't say."""
        return int((self.prompt_tokens_details or {}).get("cached_tokens") or 0)


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: Usage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Chunk).decode


class EventLog:
    """What arrived of one stream, and when. Times are seconds of the monotonic clock."""

    def __init__(self) -> None:
        self.first_token: float | None = None
        self.times: list[float] = []
        """When text arrived: one entry for each read that brought some, the first included."""
        self._parts: list[bytes] = []
        self._pending = b""  # before the first token: an event that is not complete yet

    def add(self, data: bytes, now: float) -> None:
        """Take what one read brought."""
        self._parts.append(data)
        if self.first_token is not None:
            # One read, several pieces of it: one arrival.
            if _CONTENT in data and self.times[-1] != now:
                self.times.append(now)
            return
        *events, self._pending = (self._pending + data).replace(b"\r\n", b"\n").split(b"\n\n")
        if any(_text(chunk) for chunk in map(_chunk, events) if chunk is not None):
            self.first_token = now
            self.times.append(now)

    def close(self) -> Ending:
        """Call once the stream has ended."""
        stream = b"".join(self._parts)
        ending = Ending(pieces=stream.count(_CONTENT))
        blocks = stream.replace(b"\r\n", b"\n").split(b"\n\n")
        for block in reversed(blocks):
            if not block.strip():
                continue
            if block.endswith(_DONE):
                ending.done = True
                continue
            chunk = _chunk(block)
            if chunk is None:
                continue
            if chunk.error is not None:
                ending.error = _error_code(chunk.error)
            if chunk.usage is not None and ending.usage is None:
                ending.usage = chunk.usage
            if chunk.choices and not ending.finish_reason:
                ending.finish_reason = chunk.choices[0].finish_reason
            if chunk.choices and chunk.choices[0].finish_reason is None:
                break  # an ordinary piece: what matters comes after it
        return ending

    def text(self) -> str:
        """The whole answer, decoded now."""
        blocks = b"".join(self._parts).replace(b"\r\n", b"\n").split(b"\n\n")
        chunks = (chunk for chunk in map(_chunk, blocks) if chunk is not None)
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


class Ending(msgspec.Struct):
    """What the last events said."""

    usage: Usage | None = None
    finish_reason: str | None = None
    error: str | None = None
    done: bool = False
    pieces: int = 0
    """Events with text, near enough: one may hold several tokens."""


def _chunk(block: bytes) -> _Chunk | None:
    """The event in a block of lines; None for comments and what is no JSON of a chunk."""
    data = b"\n".join(line[5:].strip() for line in block.split(b"\n") if line.startswith(b"data:"))
    if not data or data == _DONE:
        return None
    try:
        return _decode(data)
    except msgspec.MsgspecError:
        return None


def _text(chunk: _Chunk) -> bool:
    return any(one.delta.content or one.delta.reasoning_content for one in chunk.choices)


def _error_code(error: Any) -> str:
    """A short name for a decoded error: its code, its type, or its text."""
    if isinstance(error, dict):
        named = error.get("code") or error.get("type") or error.get("message")
        return str(named)[:80] if named else "unnamed"
    return str(error)[:80]


def error_of_body(body: bytes) -> str:
    """The same of an error's whole body; "" where it has none of our kind."""
    try:
        decoded = msgspec.json.decode(body)
    except msgspec.MsgspecError:
        return ""
    return _error_code(decoded.get("error") or decoded) if isinstance(decoded, dict) else ""
