"""More than the queue holds, and crowds that leave: the admitted are answered, nothing stays."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import struct

import httpx
import pytest

from api_app import check_error
from faults import CHAT, TIMEOUT

from .conftest import MAX_NUM_SEQS, MAX_WAITING, Target, good

pytestmark = pytest.mark.model

QUEUE = MAX_NUM_SEQS + MAX_WAITING
CROWD = 1000
RESET = struct.pack("ii", 1, 0)


def test_ten_times_the_queue_at_once(target: Target) -> None:
    async def run() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(
            base_url=target.server.url, timeout=3 * TIMEOUT, limits=limits
        ) as client:
            # Of the same length and seed: what is answered under load must not differ.
            body = good(max_tokens=6, ignore_eos=True, seed=7)
            return await asyncio.gather(*(client.post(CHAT, json=body) for _ in range(10 * QUEUE)))

    answers = asyncio.run(run())
    alone = target.post(good(max_tokens=6, ignore_eos=True, seed=7)).json()["choices"]
    admitted = [answer for answer in answers if answer.status_code == 200]
    refused = [answer for answer in answers if answer.status_code != 200]
    assert len(admitted) >= QUEUE
    assert len(refused) > QUEUE
    for answer in admitted:
        assert answer.json()["choices"] == alone
    for answer in refused:
        check_error(answer, 503)
        assert 1 <= int(answer.headers["retry-after"]) <= 30


def test_1_000_connects_and_aborts(target: Target) -> None:
    """Each leaves at a moment of its own: before, within and after its request, and its answer."""
    chance = random.Random(4)
    body = json.dumps(good("Tell a story.", stream=True, max_tokens=200, ignore_eos=True)).encode()
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"maxLength": 1}}}

    def request(number: int) -> bytes:
        content = body
        if number % 5 == 0:
            schema["json_schema"]["schema"] = {"type": "string", "maxLength": number}  # type: ignore[index]
            content = json.dumps(good(response_format=schema)).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content

    async def one(number: int, gate: asyncio.Semaphore) -> None:
        async with gate:
            raw = request(number)
            with contextlib.suppress(OSError):
                _reader, writer = await asyncio.open_connection(*target.address)
                cut = chance.choice([0, 20, len(raw) - 5, len(raw), len(raw)])
                writer.write(raw[:cut])
                await asyncio.sleep(chance.choice([0, 0, 0.01, 0.1, 0.5]))
                if chance.random() < 0.5:
                    writer.get_extra_info("socket").setsockopt(
                        socket.SOL_SOCKET, socket.SO_LINGER, RESET
                    )
                writer.close()
                await writer.wait_closed()

    async def run() -> None:
        gate = asyncio.Semaphore(200)
        await asyncio.gather(*(one(number, gate) for number in range(CROWD)))

    asyncio.run(run())
    target.until(lambda: target.slots() == (0, 0, 0, 0), f"slots stay taken: {target.slots()}")


def test_the_largest_requests_at_once(target: Target) -> None:
    """All that one request may ask for, by as many as may run: it is slow, and it ends."""

    async def run() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=target.server.url, timeout=3 * TIMEOUT) as client:
            body = good(
                "x " * 300, n=16, logprobs=True, top_logprobs=20, max_tokens=12,
                stop=[f"never {number}" for number in range(16)], ignore_eos=True,
                logit_bias={str(token): -1 for token in range(1024)},
            )  # fmt: skip
            return await asyncio.gather(*(client.post(CHAT, json=body) for _ in range(6)))

    for answer in asyncio.run(run()):
        if answer.status_code == 200:
            assert len(answer.json()["choices"]) == 16
        else:
            check_error(answer, 503)
