"""uvicorn's httptools protocol, with bounds on what a hostile client can make it do.

llhttp, beneath it, already refuses bad framing: a second Content-Length, Content-Length with
Transfer-Encoding, bad numbers and chunk sizes, folded headers, control bytes, bare line feeds.
uvicorn itself sends `100 Continue` only when the application reads. What neither does, and this
does: bound the time and the size of a request, its headers and its trailers; cap connections
(`connections.py`); give up on clients that don't read; keep answers of pipelined requests whole
when a later one is malformed; refuse what llhttp lets through (no Host, two Hosts, chunked in
HTTP/1.0, other codings, HTTP/0.9 and 2.0, upgrades). Errors have the body of every other error.
"""

from __future__ import annotations

import asyncio
import enum
import socket
from typing import Any, ClassVar

import httptools
from uvicorn._types import ASGI3Application, ASGISendEvent
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from maestrale.api.dialect import Dialects
from maestrale.api.http.connections import ConnectionTable, Outlet, connections_that_fit, is_reset
from maestrale.api.http.head import check_head, malformed, refusal
from maestrale.api.http.limits import HttpLimits
from maestrale.errors import (
    ApiError,
    HeadersTooLarge,
    RequestTimeout,
    Unavailable,
)

_ANSWERS_WITHIN = 0.2
_ASK_EVERY = 10.0
"""Seconds: until a reset has come back from near, and at last between two questions."""

_SLICE = 4096
"""Bytes parsed at once. Small, so that limits hold however much one read brings."""


class _Phase(enum.Enum):
    BETWEEN = enum.auto()
    """No byte of a next request is here."""
    HEAD = enum.auto()
    BODY = enum.auto()


def protocol_class(
    limits: HttpLimits | None = None, *, dialects: Dialects
) -> type[HttpToolsProtocol]:
    """The class to give to `uvicorn.Config(http=...)`. Each has its own cap: one a server.

    What it refuses itself, it refuses in the words of the path's dialect, of `dialects`.

    Call `raise_file_limit()` before: the cap is lowered to what the limit of open files allows.
    """
    limits = limits if limits is not None else HttpLimits()
    members = {
        "limits": limits,
        "dialects": dialects,
        "table": ConnectionTable(connections_that_fit(limits.max_connections)),
    }
    return type("LimitedProtocol", (BoundedProtocol,), members)


class BoundedProtocol(HttpToolsProtocol):
    """One connection. Use it through `protocol_class`."""

    limits: ClassVar[HttpLimits]
    dialects: ClassVar[Dialects]
    table: ClassVar[ConnectionTable]

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._phase = _Phase.BETWEEN
        self._active: RequestResponseCycle | None = None
        self._failed = False
        self._pending_error: ApiError | None = None
        self._held = bytearray()
        self._shutting_down = False
        self._timer: asyncio.TimerHandle | None = None
        # Of the request that is arriving:
        self._head_bytes = 0
        self._field_bytes = 0
        self._fields = 0
        self._framing_bytes = 0
        self._body_came = False
        self._body_started_at = 0.0
        self._body_last_at = 0.0
        self._wants_keep_alive = True
        self._ask_again = self.limits.still_there

    # Connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        limits = self.limits
        raw_socket = transport.get_extra_info("socket")
        raw_socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, limits.send_buffer)
        outlet = Outlet(
            transport,
            loop=self.loop,
            high_water=limits.write_high_water,
            stall_timeout=limits.stall_timeout,
            min_rate=limits.min_write_rate,
            window=limits.write_window,
            linger=limits.linger,
            linger_total=limits.linger_total,
            linger_bytes=limits.linger_bytes,
            request_is_complete=lambda: self._phase is _Phase.BETWEEN and not self._failed,
        )
        super().connection_made(outlet)
        if not self.table.admit(self):
            self._refuse(Unavailable("Too many connections. Try again shortly.", retry_after=1))
            self._failed = True
            return
        self._start_timer(limits.head_timeout, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self.table.discard(self)
        self._stop_timer()
        self._unset_keepalive_if_required()
        self._outlet.forget()
        self._held.clear()
        # uvicorn tells only the request received last; with pipelining another is at work.
        if self._active is not None and self._active is not self.cycle:
            self._active.disconnected = True
            self._active.message_event.set()
        super().connection_lost(exc)

    def evict(self) -> None:
        self._outlet.abort()

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client sends no more. Where its request is whole, it may wait for the answer."""
        super().eof_received()
        self._outlet.watch_writes()
        waits = self._phase is _Phase.BETWEEN and not self._failed and not self._owes_no_answer()
        if not waits or self._held or self.transport.get_extra_info("ssl_object") is not None:
            return False  # and with TLS there is no half of a connection
        self._wants_keep_alive = self.cycle.keep_alive = False
        if not self.transport.is_closing():
            self._start_timer(self.limits.still_there, self._ask_if_there)
        return True

    def _ask_if_there(self) -> None:
        """To one who has closed its socket whole, whatever is sent comes back as a reset."""
        self._timer = None
        if self._owes_no_answer() or self.transport.is_closing():
            return
        if is_reset(self.transport):
            self._outlet.abort()
            return
        active = self._active
        assert active is not None
        if not active.response_started and active.scope["http_version"] == "1.1":
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._start_timer(_ANSWERS_WITHIN, self._look_if_there)

    def _look_if_there(self) -> None:
        self._timer = None
        if not self._owes_no_answer() and is_reset(self.transport):
            self._outlet.abort()
        else:
            self._ask_again = min(2 * self._ask_again, _ASK_EVERY)
            self._start_timer(self._ask_again, self._ask_if_there)

    def shutdown(self) -> None:
        self._shutting_down = True
        if not self._owes_no_answer() or self._failed or self.transport.is_closing():
            super().shutdown()
        elif self._phase is _Phase.BETWEEN:
            self._unset_keepalive_if_required()
            self._start_timer(self.limits.last_request, self._head_is_late)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._outlet.watch_writes()

    @property
    def _outlet(self) -> Outlet:
        assert isinstance(self.transport, Outlet)
        return self.transport

    # Input

    def data_received(self, data: bytes) -> None:
        if self._failed or self.transport.is_closing():
            self._outlet.throw_away(len(data))
            return
        self._unset_keepalive_if_required()
        self._held += data
        self._feed()

    def _feed(self) -> None:
        """Parse what is held; stop, and stop reading, while a pipelined request waits."""
        data = bytes(self._held)
        self._held.clear()
        position = 0
        while position < len(data) and not self.pipeline and not self._failed:
            if self.transport.is_closing():
                self._outlet.throw_away(len(data) - position)
                return
            position += self._parse(data[position : position + _SLICE])
        if not self._failed:
            self._held += data[position:]
            self._outlet.hold(bool(self._held))
            self._time_head()

    def _parse(self, piece: bytes) -> int:
        """Parse one slice; give the number of bytes used."""
        before = self._phase
        self._body_came = False
        used = len(piece)
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade as upgrade:
            # An upgrade is never taken, so what follows is HTTP/1.1 as before.
            used = int(upgrade.args[0])
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            self._fail(cause if isinstance(cause, ApiError) else malformed())
        except httptools.HttpParserError:
            self._fail(malformed())
        if not self._failed:
            self._count_framing(before, used)
        return used

    def _count_framing(self, before: _Phase, size: int) -> None:
        """Bound what the parser keeps to itself: a header, trailer or chunk size with no end."""
        if self._phase is _Phase.BODY:
            self._framing_bytes = 0 if self._body_came else self._framing_bytes + size
            if self._framing_bytes > self.limits.max_head_bytes:
                self._fail(malformed())
        else:
            self._head_bytes = 0 if before is _Phase.BODY else self._head_bytes + size
            if self._head_bytes > self.limits.max_head_bytes + _SLICE:
                self._fail(self._headers_too_large())

    # Parser callbacks. What they raise, `_parse` finds as the context of the parser's error.

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._phase = _Phase.HEAD
        self._field_bytes = self._fields = self._framing_bytes = 0
        if self._owes_no_answer():
            self.table.set_receiving(self)
            self._start_timer(self.limits.head_timeout, self._head_is_late)

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > self.limits.max_url_bytes:
            raise HeadersTooLarge(
                f"The URL is longer than {self.limits.max_url_bytes} bytes.", code="url_too_long"
            )

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields += 1
        self._field_bytes += len(name) + len(value) + 4
        if self._fields > self.limits.max_headers or self._field_bytes > self.limits.max_head_bytes:
            raise self._headers_too_large()
        # uvicorn would add a trailer to the headers of a request already at work.
        if self._phase is _Phase.HEAD:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        upgrade = (self._get_upgrade() or b"") if self.parser.should_upgrade() else None
        check_head(self.parser.get_http_version(), self.headers, upgrade)
        super().on_headers_complete()
        # An answer that begins before the whole request is here ends the connection. Reading on
        # for the next request would let the client make us read a refused body of any length.
        self._wants_keep_alive = self.cycle.keep_alive
        self.cycle.keep_alive = False
        if self.parser.get_http_version() == "1.0":
            self.cycle.__class__ = _UntilClose
        self._phase = _Phase.BODY
        self._head_bytes = self._field_bytes = self._fields = 0
        self._body_started_at = self._body_last_at = self.loop.time()
        self._start_timer(self.limits.body_idle_timeout, self._check_body)

    def on_body(self, body: bytes) -> None:
        self._body_came = True
        self._body_last_at = self.loop.time()
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._phase = _Phase.BETWEEN
        self._stop_timer()
        if not self.cycle.response_started and not self._shutting_down:
            self.cycle.keep_alive = self._wants_keep_alive
        if not self.cycle.response_complete:
            self.table.set_working(self)

    def _should_upgrade(self) -> bool:
        return False

    # Answers

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._active = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        if self._pending_error is not None and not self.pipeline:
            self.server_state.total_requests += 1
            self._refuse(self._pending_error)
            return
        super().on_response_complete()
        self._outlet.watch_writes()
        if self.transport.is_closing():
            self.table.set_receiving(self)
            return
        if not self.pipeline and self._held:
            self._unset_keepalive_if_required()
            self._feed()
        elif self._phase is _Phase.HEAD:
            self._unset_keepalive_if_required()
            self._time_head()
        if self._owes_no_answer():
            if self._phase is _Phase.BETWEEN:
                self.table.set_idle(self)
            else:
                self.table.set_receiving(self)

    def _owes_no_answer(self) -> bool:
        return not self.pipeline and (self._active is None or self._active.response_complete)

    def _fail(self, error: ApiError) -> None:
        """Read no more; answer `error` after the answers that are owed, and close."""
        if self._failed or self.transport.is_closing():
            return
        self._failed = True
        self._stop_timer()
        self._unset_keepalive_if_required()
        if self._phase is _Phase.BODY:
            cycle = self.cycle
            cycle.disconnected = True
            cycle.message_event.set()
            self.pipeline = type(self.pipeline)(
                entry for entry in self.pipeline if entry[0] is not cycle
            )
            if cycle is self._active:
                if cycle.response_started:
                    self._outlet.abort()
                else:
                    self._refuse(error)
                return
        if self._owes_no_answer():
            self._refuse(error)
        else:
            self._pending_error = error

    def _refuse(self, error: ApiError) -> None:
        dialect = self.dialects.at(self._path())
        answer = refusal(error, dialect, self.server_state.default_headers)
        self._pending_error = None
        self.table.set_receiving(self)
        self.transport.write(answer)
        self.transport.close()

    def _path(self) -> str:
        """Of the request that is arriving, as far as it is here."""
        url = getattr(self, "url", b"").partition(b"?")[0]
        return str(url.decode("latin-1"))

    def _headers_too_large(self) -> HeadersTooLarge:
        return HeadersTooLarge(
            f"The request has more than {self.limits.max_headers} headers, or headers of more than "
            f"{self.limits.max_head_bytes} bytes."
        )

    # Time

    def _start_timer(self, delay: float, callback: Any) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(delay, callback)

    def _time_head(self) -> None:
        if self._phase is not _Phase.BODY and self._timer is None and self._owes_no_answer():
            self._start_timer(self.limits.head_timeout, self._head_is_late)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _head_is_late(self) -> None:
        self._timer = None
        if self._phase is _Phase.BETWEEN and self._owes_no_answer():
            # Nothing of a request came: there is nobody to tell.
            self.transport.close()
            return
        self._fail(
            RequestTimeout(f"The headers weren't complete within {self.limits.head_timeout:g} s.")
        )

    def _check_body(self) -> None:
        self._timer = None
        limits, now = self.limits, self.loop.time()
        if self.flow.read_paused or self.cycle is not self._active:
            # The application, or an earlier request, keeps the client from sending.
            self._body_started_at = self._body_last_at = now
        if now - self._body_started_at >= limits.body_timeout:
            self._fail(
                RequestTimeout(f"The body wasn't complete within {limits.body_timeout:g} s.")
            )
        elif now - self._body_last_at >= limits.body_idle_timeout:
            self._fail(
                RequestTimeout(f"No byte of the body came for {limits.body_idle_timeout:g} s.")
            )
        else:
            idle_at = self._body_last_at + limits.body_idle_timeout
            total_at = self._body_started_at + limits.body_timeout
            self._start_timer(min(idle_at, total_at) - now, self._check_body)


class _UntilClose(RequestResponseCycle):
    """An answer to HTTP/1.0: chunks are unknown there, so one of unknown length ends with the
    connection.
    """

    _open_ended = False

    async def send(self, message: ASGISendEvent) -> None:
        if message["type"] == "http.response.start":
            names = [name.lower() for name, _ in message.get("headers", [])]
            if b"content-length" not in names:
                self._open_ended, self.chunked_encoding = True, False
        elif self._open_ended and message["type"] == "http.response.body":
            self.expected_content_length = len(message.get("body", b""))
        await super().send(message)
