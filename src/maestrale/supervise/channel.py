"""Frames over the private socket pair between the API process and one of its children.

A frame is its length (4 bytes, big-endian) and a msgpack array of messages. Many small messages
share a frame (all that one turn of the event loop produced), and no frame is longer than
`MAX_FRAME`, whichever side wrote it.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import msgspec

from maestrale.errors import EngineError

MAX_FRAME = 64 * 1024 * 1024
ENOUGH_FOR_A_FRAME = 1024 * 1024
_LENGTH = struct.Struct(">I")
_ARRAY32 = b"\xdd"  # msgpack: an array whose length follows in 4 bytes
_OVERHEAD = 5

_encoder = msgspec.msgpack.Encoder()


def pack(message: msgspec.Struct) -> bytes:
    """One message, ready for `frames`.

    Raises: EngineError when it can't fit in a frame.
    """
    packed = _encoder.encode(message)
    if len(packed) + _OVERHEAD > MAX_FRAME:
        raise EngineError(
            f"This request takes {len(packed)} bytes on its way to the engine; "
            f"{MAX_FRAME - _OVERHEAD} is the most. Make it shorter."
        )
    return packed


def frames(packed: Sequence[bytes]) -> Iterator[bytes]:
    """Packed messages as frames of about a megabyte at most, or one message if it is longer."""
    batch: list[bytes] = []
    size = 0
    for message in packed:
        if batch and size + len(message) > ENOUGH_FOR_A_FRAME:
            yield _frame(batch, size)
            batch, size = [], 0
        batch.append(message)
        size += len(message)
    if batch:
        yield _frame(batch, size)


def _frame(batch: list[bytes], size: int) -> bytes:
    head = _LENGTH.pack(size + _OVERHEAD) + _ARRAY32 + _LENGTH.pack(len(batch))
    return head + b"".join(batch)


class FrameReader:
    """Cuts a stream of bytes, in pieces of any size, into the bodies of its frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The frames that are complete now.

        Raises: EngineError when the stream announces a frame over `MAX_FRAME`.
        """
        self._buffer += data
        start = 0
        while len(self._buffer) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer, start)
            if length > MAX_FRAME:
                raise EngineError(f"A frame of {length} bytes was announced; {MAX_FRAME} is most.")
            end = start + _LENGTH.size + length
            if len(self._buffer) < end:
                break
            yield bytes(self._buffer[start + _LENGTH.size : end])
            start = end
        del self._buffer[:start]


def blocking_messages(sock: socket.socket, kind: Any) -> Iterator[list[Any]]:
    """For the child: the messages of each frame as it arrives, until the other side is gone.

    Raises: EngineError, msgspec.DecodeError for what is not a frame of ours.
    """
    decoder = msgspec.msgpack.Decoder(list[kind])
    reader = FrameReader()
    while True:
        try:
            data = sock.recv(1 << 18)
        except ConnectionResetError:
            return
        if not data:
            return
        for body in reader.feed(data):
            yield decoder.decode(body)


class Channel(asyncio.Protocol):
    """The API process's end: messages out, in batches; messages in, one callback for each."""

    def __init__(
        self,
        kind: Any,
        on_message: Callable[[Any], None],
        on_lost: Callable[[str], None],
    ) -> None:
        """`kind`: the union of messages expected. `on_lost` is called once, with a reason
        where the stream itself was at fault and "" at a plain end of file.
        """
        self._decoder = msgspec.msgpack.Decoder(list[kind])
        self._reader = FrameReader()
        self._on_message = on_message
        self._on_lost = on_lost
        self._outbox: list[bytes] = []
        self._transport: asyncio.WriteTransport | None = None
        self._fault = ""

    async def open(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        await loop.create_unix_connection(lambda: self, sock=sock)

    def send(self, message: msgspec.Struct) -> None:
        """Send with all else that this turn of the event loop sends. Nothing, once closed.

        Raises: EngineError when the message can't fit in a frame.
        """
        packed = pack(message)
        if not self._outbox:
            asyncio.get_running_loop().call_soon(self._flush)
        self._outbox.append(packed)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are none by class; a stream's always can write.
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            for body in self._reader.feed(data):
                for message in self._decoder.decode(body):
                    self._on_message(message)
        except (EngineError, msgspec.DecodeError) as error:
            self._fault = f"it sent what is no message ({error})"
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._on_lost(self._fault)

    def _flush(self) -> None:
        outbox, self._outbox = self._outbox, []
        if self._transport is not None:
            for frame in frames(outbox):
                self._transport.write(frame)
