"""Clients that leave, that don't read, and text that would break a stream.

`test_streaming.py` has more of the last kind, on a server with all its settings at default.
"""

from __future__ import annotations

import json
import socket
import struct
import time
from typing import Any

import pytest

from faults import CHAT
from hostile_http import read_to_end

from .conftest import MAX_NUM_SEQS, Target, good

pytestmark = pytest.mark.model

RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close with a reset, not with a FIN
LARGE = 4 << 20
"""Bytes for one client's answer by which the API process may grow."""


def connect(target: Target, small: bool = False) -> socket.socket:
    client = socket.socket()
    if small:  # the kernel takes little for a client that doesn't read
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    client.settimeout(30)
    client.connect(target.address)
    return client


def ask(client: socket.socket, body: dict[str, Any]) -> None:
    content = json.dumps(body).encode()
    client.sendall(
        f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n".encode()
        + content
    )


@pytest.mark.parametrize("reset", [False, True], ids=["FIN", "reset"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_leaving_ends_the_work_running_or_queued(target: Target, stream: bool, reset: bool) -> None:
    """Of 20 clients with two sequences each some are queued."""
    body = good("Tell a long story.", n=2, stream=stream, ignore_eos=True, max_tokens=400)
    clients = [connect(target) for _ in range(20)]
    for client in clients:
        ask(client, body)
    target.until(
        lambda: target.slots()[0] >= MAX_NUM_SEQS - 2 and target.slots()[1] > 8,
        "they don't run",
        60,
    )
    for client in clients:
        if reset:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        client.close()
    left = time.monotonic()
    target.until(lambda: target.slots() == (0, 0, 0, 0), f"work goes on: {target.slots()}")
    print(f"\nidle {time.monotonic() - left:.2f} s after they left")


def test_a_client_that_shuts_its_side_still_gets_its_answer(target: Target) -> None:
    """Half-closed is not gone, but neither is it a client that may hold a slot for ever."""
    with connect(target) as client:
        ask(client, good(stream=True, max_tokens=4))
        client.shutdown(socket.SHUT_WR)
        answer = read_to_end(client)
    assert answer == b"" or b"HTTP/1.1 200" in answer


@pytest.mark.parametrize("rate", [0, 1], ids=["never reads", "reads 1 byte a second"])
def test_slow_readers(target: Target, rate: int) -> None:
    body = good(
        "Tell a long story.",
        n=MAX_NUM_SEQS, stream=True, ignore_eos=True, max_tokens=150,
        logprobs=True, top_logprobs=20,
    )  # fmt: skip
    before = target.memory()
    with connect(target, small=True) as client:
        ask(client, body)
        began = time.monotonic()
        ended = 0
        largest = before
        while time.monotonic() - began < 90:
            largest = max(largest, target.memory())
            if rate:
                try:
                    if not client.recv(1):
                        break
                except ConnectionError:
                    break
            load = target.slots()
            if load[3] == 0:
                ended += 1
                if ended > 2:
                    break
            time.sleep(1 if rate else 0.3)
        else:
            pytest.fail("it holds its slots")
        client.setblocking(True)
        client.settimeout(20)
        received = 0
        try:
            while part := client.recv(65536):
                received += len(part)
                assert b"data: [DONE]" not in part, "all of it was buffered"
        except ConnectionError:
            pass
    print(f"\ngiven up after {time.monotonic() - began:.1f} s; {received} bytes were in buffers")
    assert largest - before < LARGE + (16 << 20)


def test_text_that_would_end_the_stream_is_escaped(target: Target) -> None:
    breakout = "x\n\ndata: [DONE]\n\ndata: {}\r\n\r\n"
    body = good(
        messages=[
            {"role": "user", "content": "Go on."},
            {"role": "assistant", "content": breakout, "prefix": True},
        ],
        stream=True,
    )
    text = target.post(body).text
    assert text.count("data: [DONE]\n\n") == 1
    assert text.endswith("data: [DONE]\n\n")
    events = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    first = json.loads(events[0].removeprefix("data: "))
    assert first["choices"][0]["delta"]["content"].startswith(breakout)


def test_an_emoji_split_over_tokens(target: Target) -> None:
    schema = {"const": "🦁🇮🇹👩‍🚀"}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    for cut in (3, 5, 100):  # cut off within a character, and not
        answer = target.post(good(stream=True, response_format=form, max_tokens=cut)).text
        assert "\N{REPLACEMENT CHARACTER}" not in answer
        assert "\\ufffd" not in answer.lower()
        assert "\\ud8" not in answer.lower()
