"""Reading a stream in bulk: whatever way it is cut, the same counts."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maestrale.bench.apis import MESSAGES, RESPONSES, BenchApi
from maestrale.bench.events import EventLog, error_of_body
from maestrale.bounded import Oversized


def event(delta: dict[str, object] | None, finish: str | None = None, **more: object) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    return b"data: " + json.dumps({"id": "x", "choices": choices, **more}).encode() + b"\n\n"


USAGE = {"prompt_tokens": 5, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}}
STREAM = (
    b": keep-alive\n\n"
    + event({"role": "assistant", "content": ""})
    + event({"content": "Héllo"})
    + event({"content": " you"})
    + event({}, "stop")
    + event(None, usage=USAGE)
    + b"data: [DONE]\n\n"
)


@given(st.lists(st.integers(1, len(STREAM) - 1), max_size=12), st.booleans())
def test_however_it_is_cut(cuts: list[int], crlf: bool) -> None:
    stream = STREAM.replace(b"\n", b"\r\n") if crlf else STREAM
    log = EventLog(keep_text=True)
    edges = [0, *sorted(set(cuts)), len(stream)]
    for number, (begin, end) in enumerate(itertools.pairwise(edges)):
        log.add(stream[begin:end], float(number))
    ending = log.close()
    assert ending.done
    assert ending.finish_reason == "stop"
    assert ending.usage is not None
    assert ending.usage.completion_tokens == 3
    assert ending.usage.cached_tokens == 4
    assert log.text() == "Héllo you"
    assert log.first_token is not None


def test_the_first_token_is_the_first_text_and_the_end_is_no_token() -> None:
    log = EventLog()
    for now, part in enumerate(STREAM.split(b"\n\n")[:-1]):
        log.add(part + b"\n\n", float(now))
    assert log.first_token == 2.0
    assert log.times == [2.0, 3.0]


def test_several_pieces_in_one_read_are_one_arrival() -> None:
    log = EventLog()
    log.add(event({"content": "a"}), 1.0)
    log.add(event({"content": "b"}) + event({"content": "c"}), 2.0)
    log.add(event({"content": "d"}), 2.0)
    assert log.times == [1.0, 2.0]


def test_reasoning_is_text_too() -> None:
    log = EventLog()
    log.add(event({"reasoning_content": "hm"}), 1.0)
    log.add(event({"content": "yes"}), 2.0)
    assert log.first_token == 1.0
    assert log.times == [1.0, 2.0]


def named(*events: dict[str, object]) -> bytes:
    return b"".join(
        f"event: {each['type']}\ndata: {json.dumps(each)}\n\n".encode() for each in events
    )


MESSAGE = named(
    {"type": "message_start", "message": {"usage": {
        "input_tokens": 7, "cache_read_input_tokens": 5, "output_tokens": 1}}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "ping"},
    {"type": "content_block_delta", "delta": {"type": "thinking_delta", "thinking": "hm"}},
    {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "Hi"}},
    {"type": "content_block_delta", "delta": {"type": "text_delta", "text": " you"}},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 3}},
)  # fmt: skip
MESSAGE_END = named({"type": "message_stop"})
COUNTS = {"input_tokens": 12, "output_tokens": 3, "input_tokens_details": {"cached_tokens": 5}}
RESPONSE = named(
    {"type": "response.created", "response": {"status": "in_progress", "usage": None}},
    {"type": "response.reasoning_text.delta", "delta": "hm"},
    {"type": "response.output_text.delta", "delta": "Hi"},
    {"type": "response.output_text.delta", "delta": " you"},
    {"type": "response.output_text.done", "text": "Hi you"},
)
RESPONSE_END = named(
    {"type": "response.completed", "response": {"status": "completed", "usage": COUNTS}}
)
OTHERS = {
    "messages": (MESSAGES, MESSAGE, MESSAGE_END, "end_turn"),
    "responses": (RESPONSES, RESPONSE, RESPONSE_END, "completed"),
}


@pytest.mark.parametrize(("api", "pieces", "end", "finish"), OTHERS.values(), ids=OTHERS)
def test_other_apis_say_the_same_in_their_words(
    api: BenchApi, pieces: bytes, end: bytes, finish: str
) -> None:
    log = EventLog(api, keep_text=True)
    for now, block in enumerate((pieces + end).split(b"\n\n")[:-1]):
        log.add(block + b"\n\n", float(now))
    ending = log.close()
    assert ending.done
    assert ending.error is None
    assert ending.finish_reason == finish
    assert ending.pieces == len(log.times) == 3
    assert log.text() == "Hi you"
    assert ending.usage is not None
    assert (ending.usage.prompt_tokens, ending.usage.completion_tokens) == (12, 3)
    assert ending.usage.cached_tokens == 5


@pytest.mark.parametrize(("api", "pieces", "end", "finish"), OTHERS.values(), ids=OTHERS)
def test_other_apis_errors_and_cuts(api: BenchApi, pieces: bytes, end: bytes, finish: str) -> None:
    overloaded = {"type": "overloaded_error", "message": "m"}
    failed = {"error": {"code": "server_error"}}
    failures: tuple[tuple[dict[str, object], str], ...] = (
        ({"type": "error", "error": overloaded}, "overloaded_error"),
        ({"type": "error", "code": "engine_died", "message": "m"}, "engine_died"),
        ({"type": "response.failed", "response": failed}, "server_error"),
    )
    for failure, name in failures[:1] if api is MESSAGES else failures:
        log = EventLog(api)
        log.add(pieces + named(failure), 1.0)
        assert log.close().error == name
    log = EventLog(api)
    log.add(pieces + b'data: {"type": 5}\n\ndata: {\n\n', 1.0)
    assert not log.close().done


def test_an_error_in_the_stream() -> None:
    log = EventLog()
    log.add(event({"content": "a"}) + b'data: {"error": {"code": "engine_died"}}\n\n', 1.0)
    ending = log.close()
    assert ending.error == "engine_died"
    assert not ending.done


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b'{"error": {"message": "m", "type": "t", "code": "c"}}', "c"),
        (b'{"error": {"message": "m", "type": "t", "code": null}}', "t"),
        (b'{"error": "text"}', "text"),
        (b'{"object": "error", "message": "m"}', "m"),
        (b"<html>", ""),
        (b"[]", ""),
        (b'{"error": "\xff"}', ""),
        (b'{"error": ' + b"[" * 100_000, ""),
    ],
)
def test_errors_have_a_short_name(body: bytes, name: str) -> None:
    assert error_of_body(body) == name


@pytest.mark.parametrize(
    "bad",
    [b'data: {"choices": "\xff"}', b'data: {"error": ' + b"[" * 100_000, b"data: \xff", b"data: {",
     b'data: {"usage": {"completion_tokens": 1e99}}', b'data: {"usage": {"prompt_tokens": -5}}',
     b'data: {"usage": {"completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": []}}}'],
)  # fmt: skip
def test_what_no_server_should_send_breaks_nothing(bad: bytes) -> None:
    log = EventLog(keep_text=True)
    log.add(bad + b"\n\n" + event({"content": "a"}) + bad + b"\n\n", 1.0)
    ending = log.close()
    assert log.text() == "a"
    assert ending.usage is None or ending.usage.cached_tokens == 0
    assert not ending.done


def test_a_long_stream_keeps_its_end_only() -> None:
    log = EventLog()
    piece = event({"content": "word " * 50})
    for now in range(40_000):
        log.add(piece, float(now))
    log.add(event({}, "stop") + event(None, usage=USAGE) + b"data: [DONE]\n\n", 5e4)
    assert sum(map(len, log._parts)) < 10 << 20
    ending = log.close()
    assert ending.done
    assert ending.usage is not None
    assert ending.finish_reason == "stop"
    assert ending.pieces == 40_000


def test_a_stream_without_an_end_is_left() -> None:
    log = EventLog()

    def feed() -> None:
        for now in range(10_000):
            log.add(b": comment\n\n" * 1000, float(now))

    with pytest.raises(Oversized, match="64 MiB"):
        feed()


@given(st.integers(1, 20))
def test_pieces_are_counted_across_reads(size: int) -> None:
    log = EventLog()
    stream = event({"content": "a"}) * 5
    for at in range(0, len(stream), size):
        log.add(stream[at : at + size], float(at))
    assert log.close().pieces == 5
