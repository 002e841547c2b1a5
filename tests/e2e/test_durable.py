"""`--durable` where whole servers and API workers are killed: the same bytes, from the next one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.durable import CHAT, all_of, answered, json_body
from benchmarks.resuming import without_own
from benchmarks.served import Served
from maestrale.usage import UsageFile
from serving import ROOT, serving

pytestmark = [pytest.mark.model, pytest.mark.anyio]


@pytest.fixture
def served(cache_dir: Path, prepared_model: Path, tmp_path: Path) -> Iterator[Served]:
    served = Served(tmp_path, "--durable", "--cache-dir", str(cache_dir))
    served.start()
    yield served
    served.stop()


async def test_the_whole_server_is_killed_in_the_middle_of_json(served: Served) -> None:
    """`scripts/bench-durable --kills 100` does it a hundred times."""
    body = json_body(3)
    calm = await answered(served, body)
    got = await answered(served, body, [2, 9, 20])
    assert without_own(got.whole) == without_own(calm.whole)
    assert got.whole == await all_of(served, got.id)
    chunks = [
        json.loads(each[6:]) for each in got.whole.decode().splitlines() if each[:7] == "data: {"
    ]
    text = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks)
    assert set(json.loads(text)) == {"title", "year", "cast"}


async def test_a_worker_dies_and_the_other_goes_on(
    cache_dir: Path, prepared_model: Path, tmp_path: Path
) -> None:
    script = {"text": "All the winds of the sea. " * 4, "tokens_per_second": "20"}
    environment = {
        "PYTHONPATH": f"{ROOT}/src:{ROOT}/tests/support",
        "SCRIPT": json.dumps(script),
    }
    usage = tmp_path / "usage.db"
    flags = ("--engine", "scripted", "--api-workers", "2", "--durable", "--usage-file", str(usage))
    with serving(
        *flags, cache_dir=cache_dir, environment=environment, module="scripted_server"
    ) as server:
        body = {
            "messages": [{"role": "user", "content": "Speak."}],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        got, stream, killed = "", "", 0
        # Each worker is there by itself, and /health is only one's word.
        for _ in range(20):
            while httpx.get(f"{server.url}/v1/models").status_code != 200:
                await asyncio.sleep(0.1)
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            with contextlib.suppress(httpx.TransportError):
                async with client.stream("POST", CHAT, json=body) as answer:
                    assert answer.status_code == 200, await answer.aread()
                    assert "x-stream-id" in answer.headers, server.log()
                    stream = answer.headers["x-stream-id"]
                    async for part in answer.aiter_text():
                        got += part
                        if not killed and got.count("\n\n") >= 4:
                            killed = await _busy(server.url)
                            os.kill(killed, signal.SIGKILL)
        got = got[: got.rindex("\n\n") + 2]
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            last = {"last-event-id": str(got.count("\n\n") - 1)}
            rest = await client.get(f"/v1/streams/{stream}", headers=last)
            assert rest.status_code == 200, rest.text
            everything = await client.get(f"/v1/streams/{stream}")
            # As another connection, and so perhaps the other worker, has it.
            assert got + rest.text == everything.text
            assert everything.text.endswith("data: [DONE]\n\n")
        assert killed
        assert "[DONE]" not in got
    told = chunks_of(everything.text)[-1]["usage"]
    [row] = UsageFile(usage).read(["key"])  # once, whoever made which part of it
    assert row.requests == 1
    assert row.prompt_tokens == told["prompt_tokens"]
    assert row.completion_tokens == told["completion_tokens"]


def chunks_of(events: str) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in events.splitlines() if line.startswith("data: {")]


async def _busy(url: str) -> int:
    """The worker that answers."""
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        for _ in range(50):
            found = (await client.get("/status.json")).json()["api_processes"]
            busy = [each["pid"] for each in found if each["requests"]]
            if busy:
                return int(busy[0])
            await asyncio.sleep(0.1)
    raise AssertionError("nobody answers")
