"""The one reader of what another server sends: nothing is taken that has no end.

The user named the server, and it may still be broken, hostile, or no server of the kind that was
meant. So its answers are bounded in bytes as they come off the wire and as they are unpacked, in
the length of one event, and in time.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx

MOST_LIST = 4 << 20  # bytes of a list of models, or an error
MOST_BODY = 4 << 20  # bytes of a whole answer
MOST_EVENT = 4 << 20  # bytes of one event of a stream
MOST_ID = 200  # characters of an event's id
MOST_STREAM = 64 << 20  # bytes of a whole stream
UNCOMPRESSED = {"Accept-Encoding": "identity"}  # what requests ask for; not all servers obey
_PART = 1 << 16


class Oversized(Exception):
    """It is longer than it may be, or took longer. The message says which, for a person."""


class Undecodable(Exception):
    """It came compressed, and not as it says."""


class Unpacker:
    """Undoes the compression of a body, a small part at a time."""

    def __init__(self, encoding: str) -> None:
        """`encoding`: the Content-Encoding. Raises: Undecodable for one that isn't known."""
        name = encoding.strip().lower()
        if name not in ("", "identity", "gzip", "x-gzip", "deflate"):
            raise Undecodable(f"it came as {name[:40]!r}, though it was asked not to be compressed")
        # 32: a header of gzip or zlib, whichever it has.
        self._zlib = None if name in ("", "identity") else zlib.decompressobj(32 + zlib.MAX_WBITS)

    def parts(self, raw: bytes) -> Iterator[bytes]:
        """What `raw` holds, in parts: whoever takes them can stop. Raises: Undecodable."""
        if self._zlib is None:
            yield raw
            return
        try:
            while raw:
                yield self._zlib.decompress(raw, _PART)
                raw = self._zlib.unconsumed_tail
        except zlib.error as error:
            raise Undecodable(str(error)) from error


class Limit:
    """Counts the bytes of one answer, and its time."""

    def __init__(self, most: int, seconds: float | None = None) -> None:
        self._most = most
        self._left = most
        self._seconds = seconds
        self._ends = None if seconds is None else time.monotonic() + seconds

    def take(self, count: int) -> None:
        """Raises: Oversized."""
        self._left -= count
        if self._left < 0:
            raise Oversized(f"the answer is longer than {_mib(self._most)} and has no end")
        if self._ends is not None and time.monotonic() > self._ends:
            raise Oversized(f"the answer did not end within {self._seconds:g} seconds")


class EventReader:
    """The data of server-sent events, from bytes that are cut anywhere."""

    def __init__(self, most: int = MOST_EVENT) -> None:
        self.last_id = ""
        """Of the event that was given out last, where the server numbers them."""
        self._id = ""
        self._most = most
        self._line = bytearray()  # one that has not ended yet
        self._data: list[bytes] = []
        self._length = 0

    def feed(self, part: bytes) -> Iterator[bytes]:
        """The data of each event that `part` ends. Raises: Oversized for one without an end."""
        *ended, rest = part.split(b"\n")
        for piece in ended:
            line = bytes(self._line + piece).removesuffix(b"\r")
            self._line.clear()
            if line.startswith(b"data:"):
                self._take(len(line))
                self._data.append(line[5:].removeprefix(b" "))
            elif line.startswith(b"id:") and len(line) < MOST_ID:
                self._id = line[3:].strip().decode("latin-1")
            elif not line and self._data:
                self.last_id = self._id
                yield b"\n".join(self._data)
                self._data, self._length = [], 0
        self._line += rest
        if self._length + len(self._line) > self._most:
            raise self._endless()

    def rest(self) -> Iterator[bytes]:
        """Once the stream has ended: the event that no blank line ended, if there is one."""
        yield from self.feed(b"\n\n")

    def _take(self, count: int) -> None:
        self._length += count
        if self._length > self._most:
            raise self._endless()

    def _endless(self) -> Oversized:
        return Oversized(f"one event of the answer is longer than {_mib(self._most)}")


def read_body(response: httpx.Response, most: int, *, seconds: float | None = None) -> bytes:
    """The whole body of a response that is being streamed. Raises: Oversized, Undecodable."""
    body = bytearray()
    for part in read_parts(response, most, seconds=seconds):
        body += part
    return bytes(body)


def read_parts(
    response: httpx.Response, most: int, *, seconds: float | None = None
) -> Iterator[bytes]:
    """The body as it comes, `most` bytes in all. Raises: Oversized, Undecodable."""
    if response.is_stream_consumed:  # it is in memory already
        yield response.content
        return
    limit = Limit(most, seconds)
    unpacker = Unpacker(response.headers.get("content-encoding", ""))
    for raw in response.iter_raw():
        for part in unpacker.parts(raw):
            limit.take(len(part))
            yield part


async def read_parts_async(response: httpx.Response, most: int) -> AsyncIterator[bytes]:
    """The same of an asynchronous client, which bounds the time by itself."""
    limit = Limit(most)
    unpacker = Unpacker(response.headers.get("content-encoding", ""))
    async for raw in response.aiter_raw():
        for part in unpacker.parts(raw):
            limit.take(len(part))
            yield part


def _mib(count: int) -> str:
    return f"{count / 2**20:g} MiB"
