"""What two servers say to each other while one takes over from the other: lines of JSON.

The two may be of different versions: a field that one doesn't know is passed over, and none that
stands here may ever change its meaning.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Literal

import msgspec
from msgspec import Struct

HELLO_SECONDS = 10.0
MOST_FDS = 250  # of one message: the system's SCM_MAX_FD
_LONGEST = 1 << 16


class Hello(Struct, frozen=True, omit_defaults=True):
    """The first words, old to new. With them come the sockets: `listeners` of them, then the
    channels to servers that still finish what they had begun before the old one took over.

    `lenders`: folders of those servers' sockets, and the old one's (api/durable/lending.py).
    `memory`: bytes that the old one's engines hold.
    """

    host: str
    port: int
    listeners: int
    lenders: tuple[str, ...]
    memory: int = 0
    api_key: str = ""


class Word(Struct, frozen=True):
    """What one says later. New to old: `room` (your engines have to end before mine start),
    `ready` (I take connections), `stop` (we are to end: finish within your grace). Old to new:
    `go` (there is room).
    """

    say: Literal["room", "ready", "stop", "go"] | str


def greet(sock: socket.socket, hello: Hello, socks: list[socket.socket]) -> None:
    """Send the first words. Raises: OSError."""
    fds = [each.fileno() for each in socks]
    socket.send_fds(sock, [msgspec.json.encode(hello) + b"\n"], fds)


def greeted(sock: socket.socket) -> tuple[Hello, list[socket.socket]]:
    """Wait for the first words. Raises: OSError, msgspec.MsgspecError where none come."""
    sock.settimeout(HELLO_SECONDS)
    said, fds, _, _ = socket.recv_fds(sock, _LONGEST, MOST_FDS, socket.MSG_CMSG_CLOEXEC)
    socks = [socket.socket(fileno=fd) for fd in fds]
    while not said.endswith(b"\n"):
        more = sock.recv(_LONGEST)
        if not more:
            raise ConnectionResetError("it ended before it said anything")
        said += more
    for each in (sock, *socks):
        each.setblocking(False)
    return msgspec.json.decode(said, type=Hello), socks


class Channel:
    """One end, once the first words are said."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def open(self) -> None:
        """Listen to it. Raises: OSError."""
        self.sock.setblocking(False)
        # A copy: the socket itself may be handed on.
        self._reader, self._writer = await asyncio.open_unix_connection(sock=self.sock.dup())

    def say(self, what: str) -> None:
        """Say it, if anybody still listens."""
        if self._writer is not None and not self._writer.is_closing():
            with contextlib.suppress(OSError):
                self._writer.write(msgspec.json.encode(Word(what)) + b"\n")

    async def hear(self) -> str:
        """The next word; "" at the other's end."""
        assert self._reader is not None
        try:
            line = await self._reader.readline()
            return msgspec.json.decode(line, type=Word).say if line else ""
        except (OSError, ValueError, msgspec.MsgspecError):  # it is of no use any more
            return ""

    def close(self) -> None:
        """The other learns that this end is gone, unless it was handed on."""
        if self._writer is not None:
            self._writer.close()
        self.sock.close()
