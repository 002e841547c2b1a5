"""Frames: any messages in any pieces arrive whole; anything else ends the channel."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maestrale.engines.base import TokenDelta
from maestrale.errors import EngineError
from maestrale.supervise import channel
from maestrale.supervise.channel import Channel, FrameReader, blocking_messages, frames, pack
from maestrale.supervise.messages import Abort, Delta, Failed, FromWorker

DECODER = msgspec.msgpack.Decoder(list[FromWorker])

texts = st.text(st.characters(exclude_categories=["Cs"]))
messages = st.one_of(
    st.builds(Failed, texts),
    st.builds(
        lambda name, tokens: Delta(name, TokenDelta(tuple(tokens))),
        texts,
        st.lists(st.integers(0, 2**31)),
    ),
)


@given(st.lists(messages), st.lists(st.integers(1, 40)))
def test_messages_arrive_in_order_whatever_the_pieces(
    sent: list[FromWorker], cuts: list[int]
) -> None:
    stream = b"".join(frames([pack(message) for message in sent]))
    reader = FrameReader()
    received: list[FromWorker] = []
    for cut in [*cuts, len(stream)]:
        piece, stream = stream[:cut], stream[cut:]
        for body in reader.feed(piece):
            received += DECODER.decode(body)
    assert received == sent


@given(st.binary(max_size=4096))
def test_garbage_is_refused_or_waited_for_and_nothing_else(garbage: bytes) -> None:
    reader = FrameReader()
    with suppress(EngineError, msgspec.DecodeError):
        for body in reader.feed(garbage):
            for message in DECODER.decode(body):
                assert isinstance(message, FromWorker)


def test_a_frame_that_is_too_long_is_refused_before_it_is_read() -> None:
    with pytest.raises(EngineError, match="was announced"):
        list(FrameReader().feed((channel.MAX_FRAME + 1).to_bytes(4, "big")))


def test_a_message_that_is_too_long_is_refused_by_its_sender(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(channel, "MAX_FRAME", 1000)
    pack(Failed("x" * 900))
    with pytest.raises(EngineError, match="Make it shorter"):
        pack(Failed("x" * 1000))


def test_many_messages_are_spread_over_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "ENOUGH_FOR_A_FRAME", 1000)
    packed = [pack(Failed("x" * 300))] * 10 + [pack(Failed("y" * 5000))]
    sizes = [len(frame) for frame in frames(packed)]
    assert len(sizes) == 5
    assert max(sizes[:4]) < 1100


def test_the_child_s_end_stops_at_end_of_file() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(b"".join(frames([pack(Abort("a")), pack(Abort("b"))])))
        ours.sendall(b"\0\0")  # half a frame
        ours.close()
        assert list(blocking_messages(theirs, Abort)) == [[Abort("a"), Abort("b")]]


@pytest.mark.parametrize(
    "nonsense",
    [b"\xff\xff\xff\xff", b"\0\0\0\x01\xc1", b"\0\0\0\x03\x91\x81\xa0", b"\0\0\0\x02\x91\x01"],
)
def test_nonsense_closes_the_channel_with_a_reason(nonsense: bytes) -> None:
    async def main() -> str:
        lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            end = Channel(FromWorker, lambda message: None, lost.set_result)
            await end.open(ours)
            theirs.sendall(nonsense)
            reason = await asyncio.wait_for(lost, 10)
            end.send(Abort("nobody hears this"))
            await asyncio.sleep(0)
            return reason

    assert "no message" in asyncio.run(main())
