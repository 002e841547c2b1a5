"""Reads the server-sent events of one answer, in bulk: the load generator's inner loop.

At 20,000 tokens a second there are some 50 µs for each, the server's own included. So an event
costs one time stamp and one append; JSON is decoded only up to the first event with text, and of
what is needed once the stream has ended: its last events (usage, errors), and the whole text
only where a follow-up sends it back. Nothing else of a stream is kept, and none may go on for ever.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from maestrale.bounded import MOST_EVENT, MOST_STREAM, EventReader, Limit, Oversized

MOST_TIMES = 1 << 18  # arrivals of text in one answer
_TAIL = 1 << 16  # bytes at the end of a stream that hold its last events
_CONTENT = b'content"'  # also of "reasoning_content"
_DONE = b"[DONE]"


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


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: ReportedUsage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Chunk).decode


class EventLog:
    """What arrived of one stream, and when. Times are seconds of the monotonic clock."""

    def __init__(self, *, keep_text: bool = False) -> None:
        self.first_token: float | None = None
        self.times: list[float] = []
        """When text arrived: one entry for each read that brought some, the first included."""
        self._keep_text = keep_text
        self._limit = Limit(MOST_STREAM)
        self._begin = EventReader()  # before the first token
        self._parts: list[bytes] = []
        self._length = 0  # of the parts
        self._pieces = 0
        self._edge = b""  # the end of the last read, which may hold half of the word counted

    def add(self, data: bytes, now: float) -> None:
        """Take what one read brought. Raises: Oversized for a stream that has no end."""
        self._limit.take(len(data))
        seen = self._edge + data
        found = seen.count(_CONTENT)
        self._pieces += found
        self._edge = seen[-len(_CONTENT) + 1 :]
        self._parts.append(data)
        self._length += len(data)
        if not self._keep_text and self._length > 2 * MOST_EVENT:
            self._forget()
        if self.first_token is not None:
            # One read, several pieces of it: one arrival.
            if found and self.times[-1] != now:
                if len(self.times) >= MOST_TIMES:
                    raise Oversized(f"more than {MOST_TIMES} pieces")
                self.times.append(now)
            return
        if any(_text(chunk) for chunk in map(_decoded, self._begin.feed(data)) if chunk):
            self.first_token = now
            self.times.append(now)

    def _forget(self) -> None:
        """Keep the end only: what matters once it is over is there."""
        self._parts = [b"".join(self._parts)[-_TAIL:]]
        self._length = len(self._parts[0])

    def close(self) -> Ending:
        """Call once the stream has ended."""
        stream = b"".join(self._parts)
        ending = Ending(pieces=self._pieces)
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
        """The whole answer, decoded now; only where it was to be kept."""
        blocks = b"".join(self._parts).replace(b"\r\n", b"\n").split(b"\n\n")
        chunks = (chunk for chunk in map(_chunk, blocks) if chunk is not None)
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


class Ending(msgspec.Struct):
    """What the last events said."""

    usage: ReportedUsage | None = None
    finish_reason: str | None = None
    error: str | None = None
    done: bool = False
    pieces: int = 0
    """Events with text, near enough: one may hold several tokens."""


def _chunk(block: bytes) -> _Chunk | None:
    """The event in a block of lines; None for comments and what is no JSON of a chunk."""
    data = b"\n".join(line[5:].strip() for line in block.split(b"\n") if line.startswith(b"data:"))
    return _decoded(data)


def _decoded(data: bytes) -> _Chunk | None:
    """An event's data, where it is JSON of a chunk."""
    if not data or data.strip() == _DONE:
        return None
    try:
        return _decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
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
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""
    return _error_code(decoded.get("error") or decoded) if isinstance(decoded, dict) else ""
