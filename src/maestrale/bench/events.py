"""Reads the server-sent events of one answer, in bulk: the load generator's inner loop.

At 20,000 tokens a second there are some 50 µs for each, the server's own included. So an event
costs one time stamp and one append; JSON is decoded only up to the first event with text, and of
what is needed once the stream has ended: its last events (usage, errors), and the whole text
only where a follow-up sends it back. Nothing else of a stream is kept, and none may go on for ever.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from maestrale.bench.apis import CHAT, BenchApi, ReportedUsage, StreamEvent
from maestrale.bounded import MOST_EVENT, MOST_STREAM, EventReader, Limit, Oversized

MOST_TIMES = 1 << 18  # arrivals of text in one answer
_ID = re.compile(rb"(?:^|\n)id: ?([^\r\n]{1,100})")


class EventLog:
    """What arrived of one stream, and when. Times are seconds of the monotonic clock."""

    def __init__(self, api: BenchApi = CHAT, *, keep_text: bool = False) -> None:
        self._api = api
        self.first_token: float | None = None
        self.times: list[float] = []
        """When text arrived: one entry for each read that brought some, the first included."""
        self._keep_text = keep_text
        self._limit = Limit(MOST_STREAM)
        self._begin = EventReader()  # before the first token
        self._parts: list[bytes] = []
        self._length = 0  # of the parts
        self._pieces = 0
        self._edge = b""  # the end of the last read, which may hold half of the mark counted
        self._opening: ReportedUsage | None = None  # what was told of the prompt before the text

    def add(self, data: bytes, now: float) -> None:
        """Take what one read brought. Raises: Oversized for a stream that has no end."""
        self._limit.take(len(data))
        seen = self._edge + data
        found = seen.count(self._api.mark)
        self._pieces += found
        self._edge = seen[-len(self._api.mark) + 1 :]
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
        # All of them: an event that is passed over would be missing from the reader's next.
        events = [event for each in self._begin.feed(data) if (event := self._api.read(each))]
        self._opening = next((each.usage for each in events if each.usage), self._opening)
        if any(event.text or event.thought for event in events):
            self.first_token = now
            self.times.append(now)

    def cut(self) -> bytes:
        """The connection was lost: what was half an event is dropped. The id of the last whole one,
        where the server numbers them.
        """
        stream = b"".join(self._parts)
        whole = max(stream.rfind(b"\n\n"), stream.rfind(b"\r\n\r\n") + 2)
        end = whole + 2 if whole > 1 else 0
        self._pieces -= stream[end:].count(self._api.mark)
        self._parts, self._length = [stream[:end]], end
        self._edge, self._begin = b"", EventReader()
        ids = _ID.findall(stream[:end])
        return bytes(ids[-1]) if ids else b""

    def _forget(self) -> None:
        """Keep the end only: what matters once it is over is there."""
        self._parts = [b"".join(self._parts)[-MOST_EVENT:]]
        self._length = len(self._parts[0])

    def close(self) -> Ending:
        """Call once the stream has ended."""
        ending = Ending(pieces=self._pieces)
        for event in self._events(reverse=True):
            ending.done = ending.done or event.done
            if event.error is not None:
                ending.error = _error_code(event.error)
            ending.usage = ending.usage or event.usage
            ending.finish_reason = ending.finish_reason or event.finish_reason
            if (event.text or event.thought) and event.finish_reason is None:
                break  # an ordinary piece: what matters comes after it
        if (
            ending.usage is not None
            and self._opening is not None
            and not ending.usage.prompt_tokens
        ):
            told = self._opening
            ending.usage = ReportedUsage(
                told.prompt_tokens, ending.usage.completion_tokens, told.prompt_tokens_details
            )
        return ending

    def text(self) -> str:
        """The whole answer, decoded now; only where it was to be kept."""
        return "".join(event.text for event in self._events())

    def _events(self, *, reverse: bool = False) -> Iterator[StreamEvent]:
        """Those of the stream that are events of this API."""
        blocks = b"".join(self._parts).replace(b"\r\n", b"\n").split(b"\n\n")
        for block in reversed(blocks) if reverse else blocks:
            lines = (line for line in block.split(b"\n") if line.startswith(b"data:"))
            data = b"\n".join(line[5:].strip() for line in lines)
            event = self._api.read(data) if data else None
            if event is not None:
                yield event


class Ending(msgspec.Struct):
    """What the last events said."""

    usage: ReportedUsage | None = None
    finish_reason: str | None = None
    error: str | None = None
    done: bool = False
    pieces: int = 0
    """Events with text, near enough: one may hold several tokens."""


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
