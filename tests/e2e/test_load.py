"""Many streams at once: all end, all say what they say alone, and the server stays responsive."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from typing import Any

import httpx
import pytest

from e2e_clients import TIMEOUT
from serving import Server

pytestmark = [pytest.mark.model, pytest.mark.anyio]

STREAMS = 32
TOKENS = 24


async def stream(client: httpx.AsyncClient, seed: int) -> tuple[str, dict[str, Any]]:
    """(text, usage) of one stream."""
    body = {
        "messages": [{"role": "user", "content": f"Tell story number {seed}."}],
        "stream": True,
        "seed": seed,
        "max_tokens": TOKENS,
        "ignore_eos": True,
    }
    usage: dict[str, Any] = {}
    text, done = "", False
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.status_code == 200
        async for line in answer.aiter_lines():
            if line == "data: [DONE]":
                done = True
            elif line.startswith("data: "):
                chunk = json.loads(line.removeprefix("data: "))
                text += chunk["choices"][0]["delta"].get("content") or ""
                usage = chunk.get("usage") or usage
    assert done
    return text, usage


async def test_32_streams_and_health(server: Server) -> None:
    limits = httpx.Limits(max_connections=STREAMS + 1)
    async with httpx.AsyncClient(base_url=server.url, timeout=2 * TIMEOUT, limits=limits) as client:
        alone = [await stream(client, seed) for seed in (0, 1)]
        began = time.monotonic()
        streams = asyncio.gather(*(stream(client, seed) for seed in range(STREAMS)))
        health: list[float] = []
        while not streams.done():
            asked = time.monotonic()
            answer = await client.get("/health")
            health.append(time.monotonic() - asked)
            assert answer.status_code == 200
            await asyncio.sleep(0.05)
        answers = await streams
        seconds = time.monotonic() - began
    for _, usage in answers:
        assert usage["completion_tokens"] == TOKENS
    assert [text for text, _ in answers[:2]] == [text for text, _ in alone]
    assert len(health) > 3
    health.sort()
    print(
        f"\n{STREAMS} streams of {TOKENS} tokens: {STREAMS * TOKENS / seconds:.0f} tok/s; "
        f"/health: median {1000 * statistics.median(health):.1f} ms, "
        f"95 % {1000 * health[int(0.95 * len(health))]:.1f} ms, "
        f"longest {1000 * health[-1]:.1f} ms of {len(health)}"
    )
