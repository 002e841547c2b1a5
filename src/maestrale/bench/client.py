"""A lean HTTP/1.1 client for one thing: POST a request, and time what streams back.

General clients spend more on a token than a quick server does; this one hands the bytes from the
event loop to llhttp (httptools) and on to `EventLog`, with nothing in between.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

import httptools

from maestrale.bench.apis import CHAT, BenchApi, ReportedUsage, read_whole
from maestrale.bench.events import EventLog, error_of_body
from maestrale.bounded import MOST_BODY, Oversized
from maestrale.config.addresses import server_url
from maestrale.errors import CannotBench

RESUME_PAUSE = 0.5  # seconds between two attempts to go on with a stream
CUT_OFF = "cut off before its end"
_SANE_ID = re.compile(rb"[A-Za-z0-9_-]{1,100}")
_MOST_ERROR_BYTES = 64 * 1024
_MOST_HEAD_BYTES = 256 * 1024


@dataclass
class Exchange:
    """One request and its answer. Times are seconds of the monotonic clock."""

    started: float
    ended: float = 0.0
    first_token: float | None = None
    times: list[float] = field(default_factory=list)
    """When text arrived, read by read."""
    pieces: int = 0
    """Events with text."""
    usage: ReportedUsage | None = None
    finish_reason: str | None = None
    error: str | None = None
    """A short name of what went wrong; None: nothing."""
    text: str = ""
    """The answer's text, where it was asked for."""


class BenchTarget:
    """Where requests go: the server's address, the API, what every request's head says."""

    def __init__(
        self, url: str, headers: Mapping[str, str] | None = None, api: BenchApi = CHAT
    ) -> None:
        """`url` is the server's, with or without /v1. Raises: CannotBench."""
        self.api = api
        url = server_url(url)
        parts = urlsplit(url)
        try:
            self.port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError as error:
            raise CannotBench(f"{url}: {error}.") from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise CannotBench(f"{url} is no URL of a server; give one like http://127.0.0.1:8000.")
        self.url = url
        self.host = parts.hostname
        self.tls = ssl.create_default_context() if parts.scheme == "https" else None
        lines = [
            f"Host: {parts.netloc.rpartition('@')[2]}",
            "Content-Type: application/json",
            f"Accept: {'text/event-stream' if api.streams else 'application/json'}",
            "Accept-Encoding: identity",
            "User-Agent: maestrale-bench",
            *(f"{name}: {value}" for name, value in {**api.headers, **(headers or {})}.items()),
        ]
        try:
            self._head = ("\r\n".join(lines) + "\r\n").encode("latin-1")
            self._base, self._path = (
                each.encode("latin-1") for each in (parts.path, f"{parts.path}{api.path}")
            )
        except UnicodeEncodeError as error:
            raise CannotBench("The key has a character that no HTTP header can hold.") from error

    def request(self, body: bytes) -> bytes:
        """A request with this body."""
        line = b"POST %b HTTP/1.1\r\n" % self._path
        return line + self._head + b"Content-Length: %d\r\n\r\n" % len(body) + body

    def rest(self, stream: bytes, last: bytes) -> bytes:
        """A request for what comes after the event `last` of a stream."""
        line = b"GET %b/v1/streams/%b HTTP/1.1\r\n" % (self._base, stream)
        after = b"Last-Event-ID: %b\r\n" % last if last else b""
        return line + self._head + after + b"\r\n"


class _Connection(asyncio.Protocol):
    """One connection, one exchange at a time."""

    def __init__(self, api: BenchApi) -> None:
        self.usable = False
        self.stream = b""  # its id, where the server keeps it
        self._api = api
        self._transport: asyncio.WriteTransport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self.log = EventLog(api)
        self._answer: asyncio.Future[None] | None = None
        self._now = 0.0
        self._is_stream = False
        self._body = bytearray()
        self._content_type = b""
        self._compression = b""
        self._ends_with_connection = True
        self._head_left: int | None = _MOST_HEAD_BYTES
        self.answered = False  # a byte of the present answer is here

    async def ask(
        self, request: bytes, *, keep_text: bool, started: float, log: EventLog
    ) -> Exchange:
        """Send; read the answer to its end into `log`. Raises: ConnectionError, TimeoutError."""
        assert self._transport is not None
        self.log, self.stream = log, b""
        self._parser = httptools.HttpResponseParser(self)
        self._answer = asyncio.get_running_loop().create_future()
        self._body, self._is_stream, self._content_type = bytearray(), False, b""
        self._compression = b""
        self._ends_with_connection = True
        self._head_left = _MOST_HEAD_BYTES
        self.answered = False
        self.usable = False
        self._transport.write(request)
        await self._answer
        if not self._transport.is_closing():
            self.usable = self._parser.should_keep_alive()
        return self._exchange(started, keep_text)

    def close(self) -> None:
        self.usable = False
        if self._transport is not None:
            self._transport.abort()

    def _exchange(self, started: float, keep_text: bool) -> Exchange:
        log = self.log
        exchange = Exchange(started, self._now, log.first_token, log.times)
        status = self._parser.get_status_code()
        if status != 200:
            named = error_of_body(bytes(self._body))
            exchange.error = f"HTTP {status} {named}".rstrip()
        elif not self._api.streams:
            exchange.usage, exchange.first_token = read_whole(bytes(self._body)), self._now
            if exchange.usage is None:
                exchange.error = "no embedding or score with usage"
        elif not self._is_stream:
            exchange.error = "no event stream"
        elif self._compression not in (b"", b"identity"):
            exchange.error = "a compressed stream"
        else:
            ending = log.close()
            exchange.usage, exchange.finish_reason = ending.usage, ending.finish_reason
            exchange.pieces = ending.pieces
            if ending.error is not None:
                exchange.error = f"in the stream: {ending.error}"
            elif not ending.done:
                exchange.error = CUT_OFF
            elif exchange.usage is None:
                exchange.error = "no usage"
            elif exchange.first_token is None:
                # An answer whose only token is the end of it has no text.
                exchange.first_token = exchange.ended
            if keep_text:
                exchange.text = log.text()
        return exchange

    # asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)
        self.usable = True

    def data_received(self, data: bytes) -> None:
        if self._answer is None or self._answer.done():  # nothing was asked
            self.close()
            return
        self._now = time.perf_counter()
        self.answered = True
        if self._head_left is not None:
            self._head_left -= len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            # What a callback raises is the error's context.
            cause = error.__context__
            self._fail(cause if isinstance(cause, Oversized) else _no_http(error))
        if self._head_left is not None and self._head_left < 0:
            self._fail(_no_http("the head of the answer has no end"))

    def connection_lost(self, exc: Exception | None) -> None:
        self.usable = False
        if self.answered and self._ends_with_connection and self._parser.get_status_code():
            self.on_message_complete()
        self._fail(ConnectionError("connection lost"))

    def _fail(self, error: Exception) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
        if self._transport is not None:
            self._transport.abort()

    # httptools

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"content-type":
            self._content_type = value.lower()
        elif name == b"content-encoding":
            self._compression = value.strip().lower()
        elif name == b"x-stream-id" and _SANE_ID.fullmatch(value):
            self.stream = value
        elif name in (b"content-length", b"transfer-encoding"):
            self._ends_with_connection = False

    def on_headers_complete(self) -> None:
        self._head_left = None
        self._is_stream = self._content_type.startswith(b"text/event-stream")

    def on_body(self, body: bytes) -> None:
        if self._is_stream:
            self.log.add(body, self._now)
            return
        most = _MOST_ERROR_BYTES if self._api.streams else MOST_BODY
        self._body += body[: most - len(self._body)]
        if len(self._body) >= most:  # enough to name the error: it is left
            self.on_message_complete()
            self.close()

    def on_message_complete(self) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(None)


def _no_http(why: object) -> ConnectionError:
    return ConnectionError(f"no HTTP: {why}")


class Client:
    """Asks one server; keeps as many connections as are used at once."""

    def __init__(self, target: BenchTarget, *, timeout: float) -> None:
        """`timeout`: for one request and its whole answer, in seconds."""
        self._target = target
        self.api = target.api
        self._timeout = timeout
        self._idle: list[_Connection] = []

    async def ask(
        self, body: bytes, *, keep_text: bool = False, due: float | None = None
    ) -> Exchange:
        """POST `body`. Whatever goes wrong is told in the Exchange.

        `due`: when it should have been sent; the times count from there, so that a late
        generator shows as latency, not as a kinder server.
        """
        started = due if due is not None else time.perf_counter()
        request = self._target.request(body)
        try:
            async with asyncio.timeout(self._timeout):
                return await self._ask(request, keep_text=keep_text, started=started)
        except TimeoutError:
            error = f"no end within {self._timeout:g} s"
        except ssl.SSLError as problem:
            error = f"TLS: {problem.reason}"
        except ConnectionRefusedError:
            error = "connection refused"
        except Oversized as problem:
            error = str(problem)
        except OSError as problem:
            error = str(problem) if isinstance(problem, ConnectionError) else type(problem).__name__
        return Exchange(started, time.perf_counter(), error=error)

    async def _ask(self, request: bytes, *, keep_text: bool, started: float) -> Exchange:
        """Raises: OSError. Where a server that keeps its streams is lost, it is asked for the rest
        until it is there again, or the time is up.
        """
        log, stream = EventLog(self.api, keep_text=keep_text), b""
        while True:
            reused = self._take()
            connection = reused
            try:
                connection = reused or await self._connect()
                exchange = await connection.ask(
                    request, keep_text=keep_text, started=started, log=log
                )
            except ConnectionError:
                stream = (connection.stream if connection is not None else b"") or stream
                # The server may close a connection that it has kept just as it is used again.
                if reused is not None and not reused.answered:
                    continue
                if not stream:
                    raise
            except BaseException:
                if connection is not None:
                    connection.close()
                raise
            else:
                if connection.usable:
                    self._idle.append(connection)
                else:
                    connection.close()
                stream = connection.stream or stream
                lost = exchange.error == CUT_OFF or (exchange.error or "").startswith("HTTP 503")
                if not (stream and lost):
                    return exchange
            request = self._target.rest(stream, log.cut())
            await asyncio.sleep(RESUME_PAUSE)

    def _take(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
        return None

    async def _connect(self) -> _Connection:
        target = self._target
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: _Connection(target.api), target.host, target.port, ssl=target.tls
        )
        return connection

    def close(self) -> None:
        for connection in self._idle:
            connection.close()
        self._idle.clear()
