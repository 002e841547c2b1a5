"""One connection that reads a run: a stream from any of its events on, or a whole answer."""

from __future__ import annotations

import asyncio
import contextlib
import time

from starlette.types import Receive, Scope, Send

from maestrale.api import sse
from maestrale.api.auth import check_model
from maestrale.api.context import RequestContext, context_of
from maestrale.api.durable.run import Headers, Run
from maestrale.api.durable.streams import Streams
from maestrale.api.http.connections import ClientDisconnected
from maestrale.api.sse import EVENT_HEADERS, EventStream, while_connected
from maestrale.errors import InvalidRequest, Sent

REPLAYED: Headers = [(b"idempotent-replayed", b"true")]
AFTER = Sent("starting_after")
_OF_STREAMS = {name for name, _ in EVENT_HEADERS}


class RunReader:
    """An ASGI response: what a run sends after its event number `after`. Leaving it ends no run
    that somebody may come back to.
    """

    def __init__(
        self, streams: Streams, run: Run, after: int = -1, headers: Headers | None = None
    ) -> None:
        """`headers`: further ones."""
        self._streams = streams
        self._run = run
        self._next = after + 1
        self._headers = list(headers or ())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises: what the run raised before its first byte, InvalidRequest, ClientDisconnected,
        PermissionDenied where the key may not ask the model any more.
        """
        run, context = self._run, context_of(scope)
        if run.context.deployment is not None:
            check_model(context.owner, run.context.deployment)
        events = EventStream(send, self._headers, self._paused)
        run.readers += 1
        try:
            await while_connected(receive, self._read(events, send, context), events.tend())
        finally:
            run.readers -= 1
            context.read_from(run.context)
            await self._streams.leave(run)

    async def _paused(self) -> bool:
        deployment = self._run.context.deployment
        return deployment is not None and await deployment.paused()

    async def _read(self, events: EventStream, send: Send, context: RequestContext) -> None:
        run = self._run
        opens = time.monotonic() + sse.KEEP_ALIVE
        while True:
            has_head = run.status and run.is_stream
            if has_head:
                if self._next < len(run.parts):
                    data = b"".join(run.parts[self._next :])
                    self._next = len(run.parts)
                    await self._open(events, context)
                    await events.write(data)
                    continue
                if time.monotonic() >= opens:
                    await self._open(events, context)
            if run.ended:
                break
            if has_head and not events.is_open:
                await _news(run, opens - time.monotonic())
            else:
                await run.news()
        if run.error is not None:
            # Of an error that is no answer there is nothing to read; and where the server ends, the
            # connection is cut, so that its client comes again.
            cut = isinstance(run.error, asyncio.CancelledError)
            raise ClientDisconnected if cut else run.error
        if events.is_open:
            await events.close()
        elif run.is_stream:
            await self._nothing(send)
        else:
            context.read_from(run.context)
            await _send_whole(send, run.status, [*run.headers, *self._headers], run.parts)

    async def _open(self, events: EventStream, context: RequestContext) -> None:
        if not events.is_open:
            context.read_from(self._run.context)  # its headers tell of limits
            self._headers += [each for each in self._run.headers if each[0] not in _OF_STREAMS]
            await events.open()

    async def _nothing(self, send: Send) -> None:
        """All of it was read before: 204, on which an EventSource comes no more."""
        last = len(self._run.parts) - 1
        if self._next > last + 1:
            raise past_the_end(self._next - 1, last)
        await send({"type": "http.response.start", "status": 204, "headers": self._headers})
        await send({"type": "http.response.body", "body": b""})


def past_the_end(after: int, last: int) -> InvalidRequest:
    """The error for who has read more than there is."""
    return InvalidRequest(
        f"There is no event {after} of this stream: its last one is {last}.",
        at=AFTER,
        code="past_the_end",
    )


async def _news(run: Run, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(max(0.0, seconds)):
            await run.news()


async def _send_whole(send: Send, status: int, headers: Headers, parts: list[bytes]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"".join(parts)})
