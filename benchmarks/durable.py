"""What `--durable` costs, and what it gives: streams that outlive their server.

    scripts/bench-durable                    the costs, with and without in turns, in one run
    scripts/bench-durable --kills 100        SIGKILL of the whole server, each time in mid-answer

The costs are those of 32 streams at once from the bundled model: throughput as a ratio, the
difference in the time to the first token, the API process's CPU time for a token, the bytes on disk
for a request, and the time from a restart to the first byte that is gone on with. With --kills a
stream of JSON is begun, its server is killed at an event drawn by chance, started anew and asked
for the rest, until so many kills are done; each answer must be the same, byte for byte, as the one
that nobody disturbed. Exit code 1 where one is not.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import signal
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from benchmarks.resuming import Client, Got, Lost, without_own
from benchmarks.served import Served, cpu_seconds

CHAT = "/v1/chat/completions"
STREAMS = 32
SCHEMA = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "minLength": 10, "maxLength": 60},
        "year": {"type": "integer", "minimum": 1900, "maximum": 2030},
        "cast": {"type": "array", "items": {"type": "string"}, "minItems": 2, "maxItems": 4},
    },
    "required": ["title", "year", "cast"],
    "additionalProperties": False,
}


def json_body(seed: int) -> dict[str, Any]:
    """A stream of JSON by a schema."""
    form = {"type": "json_schema", "json_schema": {"name": "film", "schema": SCHEMA}}
    return {
        "messages": [{"role": "user", "content": f"Describe film {seed} as JSON."}],
        "seed": seed,
        "max_tokens": 150,
        "temperature": 1.0,
        "response_format": form,
    }


async def answered(
    served: Served,
    body: dict[str, Any],
    kills: Sequence[int] = (),
    waited: list[float] | None = None,
) -> Got:
    """A stream. At each event of `kills` the server is killed and started anew, and the rest asked
    for; `waited` is told how long it took from there to the next event. Raises: Lost.
    """
    pending, restarted = list(kills), 0.0

    async def heard(count: int) -> bool:
        nonlocal restarted
        if restarted and waited is not None:
            waited.append(time.monotonic() - restarted)
        restarted = 0.0
        if not pending or count < pending[0]:
            return False
        pending.pop(0)
        await asyncio.to_thread(served.kill)
        restarted = time.monotonic()
        await asyncio.to_thread(served.start)
        return True

    async with Client(served.url) as client:
        return await client.streamed(CHAT, body, heard=heard)


async def all_of(served: Served, stream: str) -> bytes:
    """A whole stream, as the server gives it now. Raises: Lost."""
    async with Client(served.url) as client:
        return await client.all_of(stream)


async def kill_again_and_again(served: Served, count: int, seed: int) -> int:
    """So many kills; how many answers were lost or changed."""
    draw = random.Random(seed)
    wrong = done = number = 0
    waited: list[float] = []
    while done < count:
        number += 1
        calm = await answered(served, json_body(number))
        events = range(1, len(calm.parts))
        kills = sorted(draw.sample(events, min(draw.randint(1, 4), count - done)))
        try:
            got = await answered(served, json_body(number), kills, waited)
            same = without_own(got.whole) == without_own(calm.whole)
            same = same and got.whole == await all_of(served, got.id)
        except Lost as error:
            print(f"answer {number}: {error}", flush=True)
            same = False
        wrong += not same
        done += len(kills)
        print(f"{done} kills, {number} answers, {wrong} lost or changed", flush=True)
    print(f"From a restart to the next event: {statistics.median(waited):.2f} s (median)")
    return wrong


class Load:
    """What came of several rounds at one server."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.tokens = 0
        self.seconds = self.cpu = 0.0
        self.first: list[float] = []

    async def round(self, number: int, tokens: int) -> None:
        """So many streams at once, of so many tokens each."""
        cpu, begun = cpu_seconds(self.served.pid), time.monotonic()
        limits = httpx.Limits(max_connections=STREAMS)
        async with httpx.AsyncClient(timeout=300, limits=limits) as client:
            await asyncio.gather(
                *(self._one(client, number * STREAMS + place, tokens) for place in range(STREAMS))
            )
        self.seconds += time.monotonic() - begun
        self.cpu += cpu_seconds(self.served.pid) - cpu
        self.tokens += STREAMS * tokens

    async def _one(self, client: httpx.AsyncClient, seed: int, tokens: int) -> None:
        body = {
            "messages": [{"role": "user", "content": f"Tell me story {seed} about the sea."}],
            "seed": seed,
            "max_tokens": tokens,
            "ignore_eos": True,
            "stream": True,
        }
        begun, first = time.monotonic(), 0.0
        async with client.stream("POST", self.served.url + CHAT, json=body) as answer:
            answer.raise_for_status()
            async for part in answer.aiter_raw():
                if not first and b"content" in part:
                    first = time.monotonic() - begun
        self.first.append(first)


def _on_disk(folder: Path) -> tuple[int, int]:
    """Requests in the ledger, and the bytes of its file once the log of writes is in it."""
    [file] = folder.glob("maestrale/*.ledger.db")
    with contextlib.closing(sqlite3.connect(file)) as db:
        [count] = db.execute("SELECT count(*) FROM answers").fetchone()
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return count, file.stat().st_size


async def costs(plain: Served, durable: Served, rounds: int, tokens: int) -> dict[str, Any]:
    """Both servers in turns; the first round of each is not counted."""
    without, with_it = Load(plain), Load(durable)
    for load in (without, with_it):
        await load.round(0, 8)
        load.__init__(load.served)  # type: ignore[misc]
    for number in range(1, rounds + 1):
        for load in (without, with_it) if number % 2 else (with_it, without):
            await load.round(number, tokens)
    speed = [load.tokens / load.seconds for load in (without, with_it)]
    first = [statistics.median(load.first) for load in (without, with_it)]
    cpu = [load.cpu / load.tokens * 1e6 for load in (without, with_it)]
    count, size = _on_disk(durable.folder)
    waited: list[float] = []
    await answered(durable, json_body(1), [10], waited)
    return {
        "streams": STREAMS,
        "tokens/s without": round(speed[0], 1),
        "tokens/s with": round(speed[1], 1),
        "ratio": round(speed[1] / speed[0], 4),
        "TTFT without, ms": round(first[0] * 1000, 1),
        "TTFT with, ms": round(first[1] * 1000, 1),
        "API process, µs of CPU a token, without": round(cpu[0], 1),
        "API process, µs of CPU a token, with": round(cpu[1], 1),
        "bytes on disk a request": round(size / count),
        "restart to the next event, s": round(waited[0], 2),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=0, metavar="N")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=6, help="of each, for the costs")
    parser.add_argument("--tokens", type=int, default=64, help="of each stream, for the costs")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # and no server is left behind
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as running:
        durable = Served(Path(folder), "--durable")
        running.callback(durable.stop)
        durable.start()
        if options.kills:
            return asyncio.run(kill_again_and_again(durable, options.kills, options.seed)) > 0
        plain = Served(Path(folder) / "plain")
        running.callback(plain.stop)
        plain.start()
        found = asyncio.run(costs(plain, durable, options.rounds, options.tokens))
        print(json.dumps(found, indent=1, ensure_ascii=False))
        return 0


if __name__ == "__main__":
    sys.exit(main())
