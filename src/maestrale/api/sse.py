"""Answers on the wire: the whole JSON at once, or server-sent events as tokens come.

Both watch the connection: when the client is gone, leaving `Answer.pieces` aborts the engine's
work. The stream is written with plain ASGI sends; each piece is one event, sent at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, Protocol, TypeVar

import msgspec
from starlette.types import Receive, Scope, Send

from maestrale.api.admission import RETRY_AFTER
from maestrale.api.backend import Backend
from maestrale.api.context import RequestContext, context_of
from maestrale.api.errors import ClientDisconnected, as_api_error
from maestrale.chat.answer import Answer, Piece
from maestrale.errors import MaestraleError, Unavailable
from maestrale.logs import LOGGER

KEEP_ALIVE = 10.0  # seconds of silence after which a comment is sent
PAUSE_KEEP_ALIVE = 1.0  # the same while the engine is being replaced
DONE = b"data: [DONE]\n\n"
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
encode = msgspec.json.encode


class Shape(Protocol):
    """How one route spells an answer: chat completions, or plain completions."""

    def whole(self, pieces: list[Piece]) -> dict[str, Any]:
        """The whole answer; `pieces` has one for each choice, in order."""

    def event(self, piece: Piece, *, is_last: bool) -> bytes:
        """One event of the stream; `is_last` for the piece that ends the last choice."""

    def closing(self) -> bytes:
        """What is sent between the last piece and [DONE]: a usage event, or nothing."""


class AnswerResponse:
    """An ASGI response that generates while it sends."""

    def __init__(self, backend: Backend, answer: Answer, shape: Shape, *, stream: bool) -> None:
        self._backend = backend
        self._answer = answer
        self._shape = shape
        self._stream = stream
        self._key = "-"
        self._settled = False
        self._texts: list[list[str]] = []  # of each choice, where the log is to show them

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises: ApiError before anything was sent, ClientDisconnected."""
        answer, backend = self._answer, self._backend
        context = context_of(scope)
        most = answer.usage.prompt_tokens + sum(each.max_tokens for each in answer.requests)
        context.reserved = backend.rates.reserve(context.owner, most)
        context.answer = answer
        self._key = context.key
        if backend.settings.log_prompts:
            self._texts = context.texts = [[] for _ in answer.requests]
        backend.metrics.begin(answer)
        try:
            if self._stream:
                events = EventStream(send, headers_of(answer), backend.paused)
                await while_connected(receive, self._send_events(events), events.tend())
            else:
                pieces = await while_connected(receive, self._collect())
                self._settle(context)  # so that the headers tell what is left now
                await _send_json(send, self._shape.whole(pieces), headers_of(answer))
        except MaestraleError as error:
            answer.failure = error
            raise
        finally:
            self._settle(context)
            backend.metrics.observe(answer)

    def _settle(self, context: RequestContext) -> None:
        """Give back what was reserved and not used, once."""
        if not self._settled:
            self._settled = True
            usage = self._answer.usage
            used = usage.prompt_tokens + usage.completion_tokens
            self._backend.rates.settle(context.owner, context.reserved, used)

    async def _pieces(self) -> AsyncGenerator[Piece, None]:
        """The answer's pieces, once it is this key's turn. Raises: Unavailable, EngineError."""
        answer, admission = self._answer, self._backend.admission
        async with (
            admission.slot(self._key, len(answer.requests), answer.max_num_seqs),
            contextlib.aclosing(answer.pieces()) as pieces,
        ):
            answer.timings.granted = time.perf_counter()
            async for piece in pieces:
                if self._texts:
                    calls = [f"{call.name}({call.arguments})" for call in piece.calls]
                    self._texts[piece.index] += [piece.text, *calls]
                yield piece

    async def _collect(self) -> list[Piece]:
        """All pieces of each choice joined into one, by index."""
        texts: list[list[str]] = [[] for _ in self._answer.requests]
        merged = [Piece(index, "", [], None) for index in range(len(texts))]
        async with contextlib.aclosing(self._pieces()) as pieces:
            first = await self._first(anext(pieces))
            async for piece in _chain(first, pieces):
                texts[piece.index].append(piece.text)
                merged[piece.index].logprobs += piece.logprobs
                merged[piece.index].calls += piece.calls
                merged[piece.index].finish_reason = piece.finish_reason
        for piece in merged:
            piece.text = "".join(texts[piece.index])
        return merged

    async def _send_events(self, events: EventStream) -> None:
        async with contextlib.aclosing(self._pieces()) as pieces:
            # Errors before the first token still get their HTTP status, if they come soon.
            first = asyncio.ensure_future(self._first(anext(pieces)))
            try:
                await asyncio.wait({first}, timeout=KEEP_ALIVE)
                if not first.done():
                    await events.open()
                    await events.write(COMMENT)
                await first
            except MaestraleError as error:
                if not events.is_open:
                    raise
                await self._fail(events, error)
                return
            finally:
                first.cancel()  # of no effect once it is done
                await asyncio.gather(first, return_exceptions=True)  # and its error was seen
            await events.open()
            try:
                await self._write_pieces(events, _chain(first.result(), pieces))
            except Exception as error:
                if not isinstance(error, MaestraleError):
                    LOGGER.exception("A stream failed")
                await self._fail(events, error)
                return
        await events.write(self._shape.closing() + DONE)
        await events.close()

    async def _write_pieces(self, events: EventStream, pieces: AsyncIterator[Piece]) -> None:
        left = len(self._answer.requests)
        event, write = self._shape.event, events.write
        async for piece in pieces:
            if piece.finish_reason is not None:
                left -= 1
            await write(event(piece, is_last=left == 0))

    async def _fail(self, events: EventStream, error: Exception) -> None:
        """The 200 is out: the error goes into the stream, which then ends without [DONE]."""
        self._answer.failure = error
        await events.write(b"data: " + encode(as_api_error(error).body()) + b"\n\n")
        await events.close()

    async def _first(self, piece: Awaitable[Piece]) -> Piece:
        """The first piece, within the queue's time limit. Raises: Unavailable."""
        limit = self._backend.settings.queue_timeout
        try:
            async with asyncio.timeout(limit):
                return await piece
        except TimeoutError as error:
            raise Unavailable(
                f"No token came within {limit:g} seconds (--queue-timeout).",
                code="queue_timeout",
                retry_after=RETRY_AFTER,
            ) from error


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


async def _chain(first: Piece, rest: AsyncIterator[Piece]) -> AsyncIterator[Piece]:
    yield first
    async for piece in rest:
        yield piece


def headers_of(answer: Answer) -> Headers:
    """The seed used, given or drawn: with it the request can be run again exactly. The most
    tokens that a choice may have: as asked for, or what the prompt leaves room for.
    """
    most = min(request.max_tokens for request in answer.requests)
    return [(b"x-seed", b"%d" % answer.seed), (b"x-max-tokens", b"%d" % most)]


async def _send_json(send: Send, body: dict[str, Any], headers: Headers) -> None:
    data = encode(body)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(data)).encode()),
        *headers,
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": data})
