"""Server-sent events on the wire, and work that ends when its client has left.

A stream is written with plain ASGI sends; what is written is sent at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from starlette.types import Receive, Send

from maestrale.api.http.connections import ClientDisconnected

KEEP_ALIVE = 10.0  # seconds of silence after which a comment is sent
PAUSE_KEEP_ALIVE = 1.0  # the same while the engine is being replaced
COMMENT = b": keep-alive\n\n"
EVENT_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx must not hold tokens back
]

# Beside \n and \r, which JSON always escapes, `str.splitlines` ends lines at these (U+0085, U+2028,
# U+2029), and many clients read their lines with it. They only occur within JSON's strings.
LINE_ENDS = (
    (b"\xc2\x85", rb"\u0085"),
    (b"\xe2\x80\xa8", rb"\u2028"),
    (b"\xe2\x80\xa9", rb"\u2029"),
)

T = TypeVar("T")
Headers = list[tuple[bytes, bytes]]


class EventStream:
    """An open event stream: writes events, and comments into silence."""

    def __init__(self, send: Send, headers: Headers, paused: Callable[[], Awaitable[bool]]) -> None:
        """`paused` says whether the engine is being replaced."""
        self.is_open = False
        self._paused = paused
        self._send = send
        self._headers = headers
        self._wrote = time.monotonic()
        self._writing = False

    async def open(self) -> None:
        if not self.is_open:
            self.is_open = True
            headers = [*EVENT_HEADERS, *self._headers]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def write(self, data: bytes) -> None:
        for line_end, escaped in LINE_ENDS:
            data = data.replace(line_end, escaped)
        self._writing = True
        await self._send({"type": "http.response.body", "body": data, "more_body": True})
        self._writing = False
        self._wrote = time.monotonic()

    async def close(self) -> None:
        self._writing = True  # nothing may follow
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def tend(self) -> None:
        """Runs beside the writer and keeps a silent stream alive.

        Who doesn't read is disconnected by api/http/protocol.py, not here.
        """
        while True:
            await asyncio.sleep(min(KEEP_ALIVE, PAUSE_KEEP_ALIVE))
            if not self.is_open or self._writing:
                continue
            silence = time.monotonic() - self._wrote
            if silence >= KEEP_ALIVE or (silence >= PAUSE_KEEP_ALIVE and await self._paused()):
                await self.write(COMMENT)


async def while_connected(
    receive: Receive, work: Coroutine[Any, Any, T], *others: Coroutine[Any, Any, None]
) -> T:
    """Run `work` to its end, with `others` beside it, unless the client leaves.

    Raises: ClientDisconnected, and whatever `work` raises.
    """
    task = asyncio.ensure_future(work)
    watchers = [asyncio.ensure_future(other) for other in (_disconnected(receive), *others)]
    try:
        await asyncio.wait({task, *watchers}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnected
    finally:
        for each in (task, *watchers):
            each.cancel()
        await asyncio.gather(task, *watchers, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
