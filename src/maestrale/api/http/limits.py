"""The bounds on one connection, and on how many there are."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class HttpLimits:
    """Bounds on one connection, and on how many there are. Times in seconds, sizes in bytes."""

    head_timeout: float = 10.0
    """From the connection, or a request's first byte, to the end of its headers."""
    body_idle_timeout: float = 15.0
    """Between two pieces of a body, while the application is reading it."""
    body_timeout: float = 120.0
    """For a whole body, while the application is reading it."""
    max_url_bytes: int = 8 * 1024
    max_head_bytes: int = 64 * 1024
    """For the request line and headers, and apart from them for trailers."""
    max_headers: int = 100
    max_connections: int = 1024
    """Fewer where the limit of open files is too low for it."""
    write_high_water: int = 64 * 1024
    """Unsent output above which the application waits."""
    send_buffer: int = 128 * 1024
    """What the kernel may hold besides; left alone, it grows to megabytes a connection."""
    stall_timeout: float = 30.0
    """With output unsent: the longest time in which the client reads nothing."""
    min_write_rate: float = 64.0
    """With output unsent: bytes a second that a client reads at least, over `write_window`."""
    write_window: float = 120.0
    linger: float = 2.0
    """After an early answer: how long the rest of the request is waited for and thrown away."""
    linger_total: float = 30.0
    """The same for one that goes on sending: many clients read nothing before they have sent all,
    and a reset would take the answer from them."""
    linger_bytes: int = 64 * 1024 * 1024
    """The same, in bytes."""
    still_there: float = 1.2
    """A client that has ended its side may have left, or wait for its answer: how long until it
    is asked for the first time, by a line that only one who is there takes."""
    last_request: float = 0.5
    """When the server ends: how long a connection that is owed nothing may still bring a request.
    One is often on its way, and closing at once would reset it unread."""
