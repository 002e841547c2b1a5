"""How many connections there are, which one goes first, and how long a client may not read.

`ConnectionTable` keeps the cap: an idle socket costs a client nothing, so at the cap the oldest
one that waits for its client makes room for the new one. `Outlet` is the transport that the
protocol writes to; it ends connections whose client doesn't read, and closes without losing the
answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
from collections.abc import Callable
from typing import Any, Protocol

_TCP_CLOSE = 7  # the kernel's number of the state

_FILES_IN_RESERVE = 128
"""File handles kept back from connections: the engine's socket, logs, key file, library files."""


def raise_file_limit() -> int:
    """Raise the soft limit of open files to the hard one; give the limit that now holds."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # macOS reports a hard limit that it won't accept as a soft one; hence the further tries.
    for wanted in (hard, 65_536, 10_240):
        if wanted != resource.RLIM_INFINITY and wanted > soft:
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
                return wanted
    return soft


def connections_that_fit(wanted: int) -> int:
    """`wanted`, or fewer where the process may not open that many files."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    return max(1, min(wanted, soft - _FILES_IN_RESERVE))


def is_reset(transport: asyncio.Transport) -> bool:
    """Whether the other side has answered with a reset, which nobody reads any more."""
    raw = transport.get_extra_info("socket")
    if raw is None or not hasattr(socket, "TCP_INFO"):
        return False
    try:
        return bool(raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_CLOSE)
    except OSError:
        return False


class ClientDisconnected(Exception):
    """The client is gone, or reads nothing: whatever ran for it is aborted; nobody is answered."""


class Evictable(Protocol):
    def evict(self) -> None:
        """Close at once: another connection needs the place."""
        ...


class ConnectionTable:
    """All connections of one server. Those that wait for their client are in order of age."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._all: set[Evictable] = set()
        # dicts keep the order of insertion: the first key has waited longest.
        self._idle: dict[Evictable, None] = {}
        self._receiving: dict[Evictable, None] = {}

    def __len__(self) -> int:
        return len(self._all)

    def admit(self, connection: Evictable) -> bool:
        """Take a new connection in, as idle. False: every place is held by a request at work."""
        if len(self._all) >= self.most:
            # The larger group gives way: it is where a flood is, be it of silent or slow clients.
            group = max(self._idle, self._receiving, key=len)
            oldest = next(iter(group), None)
            if oldest is None:
                return False
            # Counted off now, since the event loop tells of the loss only in its next round.
            self.discard(oldest)
            oldest.evict()
        self._all.add(connection)
        self._idle[connection] = None
        return True

    def discard(self, connection: Evictable) -> None:
        self._all.discard(connection)
        self._idle.pop(connection, None)
        self._receiving.pop(connection, None)

    def set_idle(self, connection: Evictable) -> None:
        self._move(connection, self._idle)

    def set_receiving(self, connection: Evictable) -> None:
        """A request is arriving, or a closed connection lingers. It keeps its age."""
        self._move(connection, self._receiving)

    def set_working(self, connection: Evictable) -> None:
        """The whole request is here and its answer isn't: never evicted."""
        self._move(connection, None)

    def _move(self, connection: Evictable, to: dict[Evictable, None] | None) -> None:
        if connection not in self._all or (to is not None and connection in to):
            return
        self._idle.pop(connection, None)
        self._receiving.pop(connection, None)
        if to is not None:
            to[connection] = None


class Outlet(asyncio.Transport):
    """A transport that gives up on clients that don't read, and lingers when it closes early.

    Closing a socket with unread input makes the kernel reset the connection, which can destroy
    the answer just sent. So after an early answer this side is shut, and what still arrives is
    thrown away until nothing has come for `linger` seconds (`linger_total` at most, and
    `linger_bytes`); only then the socket goes.

    Unsent output must shrink within every `stall_timeout` seconds, and by `min_rate` bytes a
    second over every `window` seconds, from when it passes the high-water mark, the answer is
    complete, or the connection closes.
    """

    def __init__(
        self,
        raw: asyncio.Transport,
        *,
        loop: asyncio.AbstractEventLoop,
        high_water: int,
        stall_timeout: float,
        min_rate: float,
        window: float,
        linger: float,
        linger_total: float,
        linger_bytes: int,
        request_is_complete: Callable[[], bool],
    ) -> None:
        super().__init__()
        self._raw = raw
        self._loop = loop
        self._stall_timeout = stall_timeout
        self._min_rate = min_rate
        self._window = window
        self._linger = linger
        self._linger_total = linger_total
        self._linger_bytes = linger_bytes
        self._request_is_complete = request_is_complete
        self._closing = False
        self._held = False
        self._paused = False
        self._drained = self._drained_before = 0
        self._linger_until = 0.0
        self._written = 0
        self._watch: asyncio.TimerHandle | None = None
        self._linger_timer: asyncio.TimerHandle | None = None
        raw.set_write_buffer_limits(high=high_water)

    # What uvicorn calls.

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        if not self._closing:
            self._written += len(data)
            self._raw.write(data)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._raw.get_extra_info(name, default)

    def is_closing(self) -> bool:
        return self._closing or self._raw.is_closing()

    def pause_reading(self) -> None:
        self._paused = True
        self._apply_reading()

    def resume_reading(self) -> None:
        self._paused = False
        self._apply_reading()

    def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        self.watch_writes()
        if self._request_is_complete() or self._raw.is_closing() or not self._raw.can_write_eof():
            self._raw.close()
            return
        try:
            self._raw.write_eof()
        except OSError:  # the peer is gone already
            self._raw.abort()
            return
        self._held = self._paused = False
        self._apply_reading()
        self._linger_until = self._loop.time() + self._linger_total
        self._linger_timer = self._loop.call_later(self._linger, self._end_linger)

    def abort(self) -> None:
        self._closing = True
        self._raw.abort()

    # What the protocol calls besides.

    def hold(self, held: bool) -> None:
        """Stop reading, whatever `resume_reading` says, until called with False."""
        self._held = held
        self._apply_reading()

    def throw_away(self, size: int) -> None:
        """`size` bytes arrived on a closing connection."""
        self._drained += size
        if self._drained > self._linger_bytes:
            self.hold(True)

    def forget(self) -> None:
        """The connection is lost: stop the timers."""
        for timer in (self._watch, self._linger_timer):
            if timer is not None:
                timer.cancel()
        self._watch = self._linger_timer = None

    def watch_writes(self) -> None:
        """From now on, until nothing is unsent, the client must read."""
        unsent = self._raw.get_write_buffer_size()
        if self._watch is None and unsent:
            self._sent = self._window_sent = self._written - unsent
            self._sent_at = self._window_at = self._loop.time()
            self._arm_watch()

    def _arm_watch(self) -> None:
        self._watch = self._loop.call_later(min(self._stall_timeout, self._window) / 4, self._check)

    def _check(self) -> None:
        self._watch = None
        unsent, now = self._raw.get_write_buffer_size(), self._loop.time()
        if not unsent:
            return
        sent = self._written - unsent
        if sent != self._sent:
            self._sent, self._sent_at = sent, now
        if now - self._window_at >= self._window:
            too_slow = sent - self._window_sent < self._min_rate * self._window
            self._window_sent, self._window_at = sent, now
        else:
            too_slow = now - self._sent_at >= self._stall_timeout
        if too_slow:
            self.abort()
        else:
            self._arm_watch()

    def _end_linger(self) -> None:
        goes_on = self._drained != self._drained_before and self._loop.time() < self._linger_until
        self._drained_before = self._drained
        if goes_on or self._raw.get_write_buffer_size():
            # The client still sends; or the answer is on its way, and `_check` ends that.
            self._linger_timer = self._loop.call_later(self._linger, self._end_linger)
        else:
            self._raw.abort()

    def _apply_reading(self) -> None:
        if self._raw.is_closing():
            return
        if self._held or self._paused:
            self._raw.pause_reading()
        else:
            self._raw.resume_reading()
