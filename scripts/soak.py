"""Soak the server: good, bad and aborted requests, and a dead engine each minute.

A server with the bundled model is started. Each good request's answer is first taken alone,
from an undisturbed engine; later the same request must get the same again, whatever happens
meanwhile. A third of the good requests have no seed: they are sent again with the seed that
was reported, and the two answers must be equal. Bad requests must be refused with their status
and code. The engine is killed each minute, and every fifth time suspended instead.

Exit code 1 if an answer was lost (none, an error, or an end cut off) or changed, if a bad
request was not refused as expected, if something is still in work at the end, or if there is
a leak. A leak is:

    API process     more than 32 MiB above its memory at the first kill
    engine process  more than 64 MiB above what its predecessors held at the same age: the mean
                    of the last three kills against the first three
    file handles    more than 8 above those at the start, of either process, idle both times
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

CHAT = "/v1/chat/completions"
MIB = 1 << 20
API_GROWTH = 32 * MIB
ENGINE_GROWTH = 64 * MIB
HANDLES_GROWTH = 8
SUSPEND_EVERY = 5
LINE_SECONDS = 10.0
READ_SECONDS = 180.0

SCHEMA = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 24},
        "year": {"type": "integer", "minimum": 1900, "maximum": 2030},
    },
    "required": ["title", "year"],
    "additionalProperties": False,
}
TOPICS = ("Rome", "the sea", "bread", "chess", "rain", "tea", "music", "volcanoes")


def good_bodies() -> list[dict[str, Any]]:
    """Forty different requests: greedy, sampled, JSON, logprobs, penalties, two choices, long."""
    bodies: list[dict[str, Any]] = []
    for number, topic in enumerate(TOPICS):
        ask = {"messages": [{"role": "user", "content": f"Tell me about {topic}."}]}
        seed = {"seed": 1000 + number, "max_tokens": 24 + number}
        form = {"type": "json_schema", "json_schema": {"name": "film", "schema": SCHEMA}}
        long = f"Here is a list: {(topic + ', ') * 150} What is it about?"
        bodies += [
            {**ask, **seed, "temperature": 0},
            {**ask, **seed, "temperature": 0.9, "top_p": 0.9, "n": 1 + number % 2},
            {**ask, **seed, "response_format": form, "max_tokens": 80},
            {**ask, **seed, "logprobs": True, "top_logprobs": 2, "frequency_penalty": 0.5},
            {**seed, "messages": [{"role": "user", "content": long}], "max_tokens": 12},
        ]
    return bodies


HELLO = {"messages": [{"role": "user", "content": "Hello"}]}
LONE_SURROGATE = b'{"messages":[{"role":"user","content":"\\ud800"}]}'
BAD_SCHEMA = {"type": "object", "properties": {"a": {"type": "string", "pattern": "(["}}}
# (name, body or bytes, status, code; None: any)
BAD: list[tuple[str, dict[str, Any] | bytes, int, str | None]] = [
    ("empty body", b"", 400, None),
    ("truncated JSON", b'{"messages": [', 400, None),
    ("lone surrogate", LONE_SURROGATE, 400, None),
    ("nested JSON", b"[" * 100_000, 400, None),
    ("not a number", b'{"temperature": NaN}', 400, None),
    ("no messages", {}, 400, "missing_field"),
    ("temperature", {**HELLO, "temperature": -1}, 400, "invalid_value"),
    ("top_p", {**HELLO, "top_p": 0}, 400, "invalid_value"),
    ("n", {**HELLO, "n": 1_000_000}, 400, "invalid_value"),
    ("max_tokens", {**HELLO, "max_tokens": 2**63}, 400, "invalid_value"),
    ("logit_bias", {**HELLO, "logit_bias": {"99999999": 1}}, 400, "invalid_value"),
    ("unknown field", {**HELLO, "zork": 1}, 400, "unknown_field"),
    ("unknown model", {**HELLO, "model": "gpt-5"}, 404, "model_not_found"),
    (
        "long prompt",
        {"messages": [{"role": "user", "content": "word " * 20_000}]},
        400,
        "context_length_exceeded",
    ),
    (
        "bad schema",
        {
            **HELLO,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": BAD_SCHEMA},
            },
        },
        400,
        "invalid_value",
    ),
]


@dataclass
class Tally:
    """What happened; `faults` keeps the first few of what should not have."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def fault(self, kind: str, text: str) -> None:
        self.counts[kind] += 1
        if len(self.faults) < 20:
            self.faults.append(f"{time.strftime('%H:%M:%S')} {kind}: {text}")


class Lost(Exception):
    """No complete answer came."""


def resident(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    return int(found.group(1)) * 1024 if found else 0


def handles(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


class Server:
    """`maestrale serve` in a process of its own."""

    def __init__(self, flags: list[str], folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.log = folder / "server.log"
        command = [sys.executable, "-m", "maestrale", "serve", "--port", str(port), *flags]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )

    @property
    def engine_pid(self) -> int | None:
        """The engine process; None while there is none."""
        pid = self.process.pid
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                with contextlib.suppress(OSError):
                    if b"maestrale.supervise.worker" in Path(f"/proc/{child}/cmdline").read_bytes():
                        return int(child)
        return None

    def health(self) -> str:
        try:
            return str(httpx.get(f"{self.url}/health", timeout=10).json()["status"])
        except (httpx.HTTPError, ValueError):
            return ""

    async def ready(self, seconds: float = 600) -> None:
        deadline = time.monotonic() + seconds
        while await asyncio.to_thread(self.health) != "ready":
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"The server is not ready:\n{self.log.read_text()[-3000:]}")
            await asyncio.sleep(0.1)

    def metric(self, name: str) -> float:
        text = httpx.get(f"{self.url}/metrics", timeout=10).text
        found = re.search(rf"^{re.escape(name)}(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE)
        return float(found.group(1)) if found else 0.0

    def stop(self) -> int:
        """Returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


class Client:
    """Sends requests and reduces each answer to what must be the same again."""

    def __init__(self, url: str) -> None:
        limits = httpx.Limits(max_connections=None)
        timeout = httpx.Timeout(READ_SECONDS)
        self.http = httpx.AsyncClient(base_url=url, limits=limits, timeout=timeout)

    async def answer(self, body: dict[str, Any], *, stream: bool) -> tuple[dict[str, Any], int]:
        """The answer in comparable form, and the seed it was made with. Raises: Lost."""
        try:
            if stream:
                return await self._streamed(body)
            reply = await self.http.post(CHAT, json=body)
        except httpx.HTTPError as error:
            raise Lost(f"{type(error).__name__}: {error}") from error
        if reply.status_code != 200:
            raise Lost(f"status {reply.status_code}: {reply.text[:300]}")
        whole = reply.json()
        choices = {
            choice["index"]: {
                "text": choice["message"]["content"],
                "finish": choice["finish_reason"],
                "logprobs": (choice["logprobs"] or {"content": []})["content"],
            }
            for choice in whole["choices"]
        }
        return comparable(choices, whole), int(reply.headers["x-seed"])

    async def _streamed(self, body: dict[str, Any]) -> tuple[dict[str, Any], int]:
        choices: dict[int, dict[str, Any]] = {}
        last: dict[str, Any] = {}
        done = False
        async with self.http.stream("POST", CHAT, json={**body, "stream": True}) as reply:
            if reply.status_code != 200:
                raise Lost(f"status {reply.status_code}: {(await reply.aread())[:300]!r}")
            seed = int(reply.headers["x-seed"])
            async for line in reply.aiter_lines():
                if not line.startswith("data: "):
                    continue
                if line == "data: [DONE]":
                    done = True
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    raise Lost(f"error in the stream: {event['error']['message']}")
                if last and (event["id"], event["created"]) != (last["id"], last["created"]):
                    raise Lost("id or created changed within a stream")
                last = event
                for choice in event["choices"]:
                    kept = choices.setdefault(
                        choice["index"], {"text": "", "finish": None, "logprobs": []}
                    )
                    kept["text"] += choice["delta"].get("content") or ""
                    kept["finish"] = choice["finish_reason"] or kept["finish"]
                    kept["logprobs"] += (choice["logprobs"] or {"content": []})["content"]
        if not done:
            raise Lost("the stream ended without [DONE]")
        return comparable(choices, last), seed

    async def refused(self, body: dict[str, Any] | bytes) -> tuple[int, str | None]:
        """Status and error code of a bad request."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"content-type": "application/json"}
        reply = await self.http.post(CHAT, content=content, headers=headers)
        code = reply.json()["error"]["code"] if reply.status_code >= 400 else None
        return reply.status_code, code

    async def abort(self, body: dict[str, Any], events: int) -> None:
        """Begin a long stream and leave after some events; 0: while the prompt is read."""
        seen = 0
        body = {**body, "stream": True, "max_tokens": 400}
        with contextlib.suppress(httpx.HTTPError, TimeoutError):
            async with (
                asyncio.timeout(0.05 if not events else 30),
                self.http.stream("POST", CHAT, json=body) as reply,
            ):
                async for _ in reply.aiter_lines():
                    seen += 1
                    if seen >= events:
                        return


def comparable(choices: dict[int, dict[str, Any]], frame: dict[str, Any]) -> dict[str, Any]:
    """What must be the same again. Which part of a prompt was cached may differ."""
    usage = frame["usage"]
    return {
        "choices": dict(sorted(choices.items())),
        "fingerprint": frame["system_fingerprint"],
        "prompt_tokens": usage["prompt_tokens"],
        "completion_tokens": usage["completion_tokens"],
        "total_tokens": usage["total_tokens"],
    }


class Soak:
    def __init__(self, server: Server, client: Client, options: argparse.Namespace) -> None:
        self.server, self.client, self.options = server, client, options
        self.tally = Tally()
        self.bodies = good_bodies()
        self.expected: list[dict[str, Any]] = []
        self.api_bytes: list[int] = []  # at each kill
        self.engine_bytes: list[int] = []
        self.begun = 0.0

    async def take_baselines(self) -> None:
        print(f"Taking {len(self.bodies)} answers alone, to compare with ...", flush=True)
        for body in self.bodies:
            self.expected.append((await self.client.answer(body, stream=False))[0])

    async def good(self, draw: random.Random) -> None:
        number = draw.randrange(len(self.bodies))
        body, stream = self.bodies[number], draw.random() < 0.7
        seedless = draw.random() < 1 / 3
        self.tally.counts["sent"] += 1
        try:
            if seedless:
                free = {name: value for name, value in body.items() if name != "seed"}
                got, seed = await self.client.answer(free, stream=stream)
                self.tally.counts["sent"] += 1
                self.tally.counts["answered"] += 1
                wanted, _ = await self.client.answer({**free, "seed": seed}, stream=not stream)
            else:
                got, _ = await self.client.answer(body, stream=stream)
                wanted = self.expected[number]
        except Lost as error:
            self.tally.fault("lost", f"request {number}: {error}")
            return
        self.tally.counts["answered"] += 1
        if got != wanted:
            self.tally.fault("changed", f"request {number}: {got} for {wanted}")

    async def bad(self, draw: random.Random) -> None:
        name, body, status, code = draw.choice(BAD)
        self.tally.counts["bad"] += 1
        try:
            got = await self.client.refused(body)
        except (httpx.HTTPError, ValueError, KeyError) as error:
            self.tally.fault("not refused", f"{name}: {type(error).__name__}: {error}")
            return
        if got[0] == status and code in (None, got[1]):
            self.tally.counts["refused"] += 1
        else:
            self.tally.fault("not refused", f"{name}: {got}, expected {(status, code)}")

    async def aborted(self, draw: random.Random) -> None:
        self.tally.counts["aborted"] += 1
        await self.client.abort(draw.choice(self.bodies), draw.choice((0, 1, 3, 10)))

    async def work(self, number: int, until: float) -> None:
        draw = random.Random(self.options.seed * 1000 + number)
        while time.monotonic() < until:
            share = draw.random()
            act = self.good if share < 0.7 else self.bad if share < 0.85 else self.aborted
            await act(draw)

    async def kill(self, until: float) -> None:
        while time.monotonic() + self.options.kill_every < until:
            await asyncio.sleep(self.options.kill_every)
            await self.server.ready()
            pid = self.server.engine_pid
            if pid is None:
                self.tally.fault("no engine", "there was none to kill")
                continue
            self.api_bytes.append(resident(self.server.process.pid))
            self.engine_bytes.append(resident(pid))
            self.tally.counts["faults"] += 1
            suspend = self.tally.counts["faults"] % SUSPEND_EVERY == 0
            self.tally.counts["suspended" if suspend else "killed"] += 1
            os.kill(pid, signal.SIGSTOP if suspend else signal.SIGKILL)

    async def report_live(self) -> None:
        while True:
            await asyncio.sleep(LINE_SECONDS)
            count = self.tally.counts
            elapsed = int(time.monotonic() - self.begun)
            pid = self.server.engine_pid
            with contextlib.suppress(OSError):
                engine = f"{resident(pid) // MIB} MiB" if pid else "restarting"
                api = resident(self.server.process.pid) // MIB
                print(
                    f"{elapsed // 60:3}:{elapsed % 60:02}  sent {count['sent']}  answered "
                    f"{count['answered']}  lost {count['lost']}  changed {count['changed']}  "
                    f"bad {count['bad']}  aborted {count['aborted']}  killed {count['killed']}"
                    f"+{count['suspended']}  api {api} MiB  engine {engine}",
                    flush=True,
                )

    async def run(self) -> bool:
        """Returns whether all went well."""
        await self.server.ready()
        await self.take_baselines()
        await self._idle()
        start = self._handles()
        self.begun = time.monotonic()
        until = self.begun + self.options.minutes * 60
        live = asyncio.create_task(self.report_live())
        async with asyncio.TaskGroup() as group:
            group.create_task(self.kill(until))
            for number in range(self.options.concurrency):
                group.create_task(self.work(number, until))
        live.cancel()
        minutes = (time.monotonic() - self.begun) / 60
        await self.client.http.aclose()
        left = await self._idle()
        return self._table(minutes, start, self._handles(), left)

    async def _idle(self) -> int:
        """Wait until nothing is in work; returns what still is after half a minute."""
        left = 0
        for _ in range(60):
            await asyncio.sleep(0.5)
            left = int(
                self.server.metric("vllm:num_requests_running")
                + self.server.metric("vllm:num_requests_waiting")
            )
            if not left and self.server.health() == "ready":
                break
        return left

    def _handles(self) -> tuple[int, int]:
        pid = self.server.engine_pid
        return handles(self.server.process.pid), handles(pid) if pid is not None else 0

    def _table(
        self, minutes: float, start: tuple[int, int], end: tuple[int, int], left: int
    ) -> bool:
        count = self.tally.counts
        pid = self.server.engine_pid
        api_end = resident(self.server.process.pid)
        api_start = self.api_bytes[0] if self.api_bytes else api_end
        few = max(1, min(3, len(self.engine_bytes) // 2))
        engines = self.engine_bytes or [resident(pid) if pid is not None else 0]
        engine_start = statistics.mean(engines[:few])
        engine_end = statistics.mean(engines[-few:])
        leaks = [
            name
            for name, grown, bound in (
                ("API memory", api_end - api_start, API_GROWTH),
                ("engine memory", engine_end - engine_start, ENGINE_GROWTH),
                ("API handles", end[0] - start[0], HANDLES_GROWTH),
                ("engine handles", end[1] - start[1], HANDLES_GROWTH),
            )
            if grown > bound
        ]
        metric = self.server.metric
        rows: list[tuple[str, object]] = [
            ("minutes", f"{minutes:.1f}"),
            ("requests sent", count["sent"]),
            ("answered", count["answered"]),
            ("lost", count["lost"]),
            ("changed", count["changed"]),
            ("bad requests", count["bad"]),
            ("refused as expected", count["refused"]),
            ("aborted by the client", count["aborted"]),
            ("engines killed", count["killed"]),
            ("engines suspended", count["suspended"]),
            ("engine restarts, by the metric", int(metric("maestrale_engine_restarts_total"))),
            ("requests replayed", int(metric("maestrale_replayed_requests_total"))),
            ("tokens generated", int(metric("vllm:generation_tokens_total"))),
            ("still in work at the end", left),
            ("API memory at start, end", f"{api_start // MIB}, {api_end // MIB} MiB"),
            (
                "engine memory at start, end",
                f"{engine_start / MIB:.0f}, {engine_end / MIB:.0f} MiB",
            ),
            ("API file handles at start, end", f"{start[0]}, {end[0]}"),
            ("engine file handles at start, end", f"{start[1]}, {end[1]}"),
            ("leaks", ", ".join(leaks) or "none"),
        ]
        print()
        for name, value in rows:
            print(f"{name:36}{value}")
        for fault in self.tally.faults:
            print(fault)
        wrong = ("lost", "changed", "not refused", "no engine")
        return not leaks and not left and not any(count[kind] for kind in wrong)


async def soak(options: argparse.Namespace) -> bool:
    folder = Path(tempfile.mkdtemp(prefix="maestrale-soak-"))
    server = Server(options.serve_flags, folder)
    client = Client(server.url)
    try:
        well = await Soak(server, client, options).run()
    finally:
        code = server.stop()
        if options.keep_log:
            shutil.copy(server.log, options.keep_log)
        shutil.rmtree(folder)
    if code:
        print(f"the server's exit code was {code}")
    return well and not code


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("minutes", type=float, metavar="MINUTES")
    parser.add_argument("--concurrency", type=int, default=8, help="clients at once (8)")
    parser.add_argument("--kill-every", type=float, default=60.0, metavar="SECONDS")
    parser.add_argument("--seed", type=int, default=0, help="of the mix's order (0)")
    parser.add_argument("--keep-log", metavar="FILE", help="copy the server's log there at the end")
    parser.add_argument("serve_flags", nargs="*", help="more flags for the server, after --")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and so through `finally`
    well = asyncio.run(soak(options))
    print("passed" if well else "FAILED")
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    main()
