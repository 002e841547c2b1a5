"""The reader of other servers' answers: nothing is taken that has no end."""

from __future__ import annotations

import gzip
import itertools
import zlib
from collections.abc import Iterator

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maestrale.bounded import EventReader, Oversized, Undecodable, Unpacker, read_body

ZEROS = 64 << 20


def answer(body: Iterator[bytes], encoding: str = "") -> httpx.Response:
    headers = {"content-encoding": encoding} if encoding else {}
    return httpx.Response(200, headers=headers, content=body)


def test_a_body_within_its_bound_is_read_whole() -> None:
    assert read_body(answer(iter([b"ab", b"", b"c"])), 3) == b"abc"
    assert read_body(httpx.Response(200, content=b"abc"), 3) == b"abc"


def test_an_endless_body_is_left() -> None:
    pieces = itertools.repeat(b"x" * 1000)
    with pytest.raises(Oversized, match=r"longer than 0\.5 MiB"):
        read_body(answer(pieces), 1 << 19)


def test_a_body_that_only_drips_is_left() -> None:
    with pytest.raises(Oversized, match="within 0 seconds"):
        read_body(answer(itertools.repeat(b" ")), 1 << 20, seconds=0)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "GZIP"])
def test_what_is_compressed_unasked_can_be_read(encoding: str) -> None:
    text = b"hello " * 1000
    packed = gzip.compress(text) if encoding.lower() == "gzip" else zlib.compress(text)
    for size in (1, 7, len(packed)):
        pieces = [packed[at : at + size] for at in range(0, len(packed), size)]
        assert read_body(answer(iter(pieces), encoding), 10_000) == text


def test_a_bomb_is_left_before_it_is_unpacked() -> None:
    bomb = gzip.compress(b"\0" * ZEROS)
    assert len(bomb) < 100_000
    assert all(len(part) <= 1 << 16 for part in Unpacker("gzip").parts(bomb))
    with pytest.raises(Oversized):
        read_body(answer(iter([bomb]), "gzip"), 1 << 20)


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "x\x1b[2J"])
def test_other_compressions_are_named_and_not_tried(encoding: str) -> None:
    with pytest.raises(Undecodable, match="asked not to be"):
        Unpacker(encoding)


def test_a_lie_about_the_compression() -> None:
    with pytest.raises(Undecodable, match="incorrect header"):
        read_body(answer(iter([b"nope"]), "gzip"), 100)


STREAM = b': hi\n\ndata: {"a": 1}\n\nevent: x\ndata:two\ndata: lines\n\n\n\ndata: [DONE]\n\n'
DATA = [b'{"a": 1}', b"two\nlines", b"[DONE]"]


@given(st.lists(st.integers(1, len(STREAM) - 1), max_size=12), st.booleans())
def test_events_however_they_are_cut(cuts: list[int], crlf: bool) -> None:
    stream = STREAM.replace(b"\n", b"\r\n") if crlf else STREAM
    events = EventReader()
    edges = [0, *sorted(set(cuts)), len(stream)]
    found = [
        data for one, two in itertools.pairwise(edges) for data in events.feed(stream[one:two])
    ]
    assert found == DATA
    assert list(events.rest()) == []


def test_the_last_event_may_lack_its_blank_line() -> None:
    events = EventReader()
    assert list(events.feed(b"data: [DONE]\n")) == []
    assert list(events.rest()) == [b"[DONE]"]
    events = EventReader()
    assert list(events.feed(b"data: [DONE]")) == []
    assert list(events.rest()) == [b"[DONE]"]


@pytest.mark.parametrize("line", [b"x", b"data: x", b"data: x\n", b"data:\n", b": x", b"\xff"])
def test_an_event_without_an_end_is_left(line: bytes) -> None:
    events = EventReader(most=10_000)

    def feed() -> list[bytes]:
        return [data for _ in range(100_000) for data in events.feed(line)]

    with pytest.raises(Oversized, match="one event"):
        feed()


def test_many_short_events_are_no_long_one() -> None:
    events = EventReader(most=1000)
    assert sum(len(list(events.feed(b"data: x\n\n: comment\n\n"))) for _ in range(10_000)) == 10_000
