"""What tests do to a running server's engine, and how they read its answers meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from serving import Server

CHAT = "/v1/chat/completions"
TIMEOUT = 120.0
WORKER = b"maestrale.supervise.worker"


def engine_pid(server: Server) -> int | None:
    """The server's engine process; None while there is none."""
    for pid in server.pids():
        with contextlib.suppress(OSError):  # gone meanwhile
            if WORKER in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
    return None


def hit(server: Server, how: signal.Signals) -> None:
    """Send a signal to the engine."""
    pid = engine_pid(server)
    assert pid is not None
    os.kill(pid, how)


def kill(server: Server) -> None:
    """Kill the engine that serves, and see that the server knows.

    So that a second call never meets an engine that is dead, or not ready yet.
    """
    until_ready(server)
    hit(server, signal.SIGKILL)
    until(lambda: health(server)[1] != "ready")


def suspend(server: Server) -> None:
    hit(server, signal.SIGSTOP)


def metric(server: Server, name: str) -> float:
    text = httpx.get(f"{server.url}/metrics", timeout=TIMEOUT).text
    found = re.search(rf"^{re.escape(name)}(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE)
    assert found is not None, name
    return float(found.group(1))


def restarts(server: Server) -> int:
    return int(metric(server, "maestrale_engine_restarts_total"))


def health(server: Server) -> tuple[int, str]:
    """Status code and state of /health."""
    answer = httpx.get(f"{server.url}/health", timeout=TIMEOUT)
    return answer.status_code, answer.json()["status"]


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for a condition; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)


async def killed_in_work(server: Server) -> None:
    """Kill the engine once it works on something, and see that this was replayed."""
    replayed = metric(server, "maestrale_replayed_requests_total")
    await asyncio.to_thread(until, lambda: metric(server, "vllm:num_requests_running") > 0)
    await asyncio.to_thread(kill, server)
    await asyncio.to_thread(
        until, lambda: metric(server, "maestrale_replayed_requests_total") > replayed
    )


def until_ready(server: Server) -> None:
    until(lambda: health(server) == (200, "ready"))


@dataclass
class Choice:
    """What a client has of one choice at the end."""

    text: str = ""
    finish_reason: str | None = None
    logprobs: list[Any] = field(default_factory=list)


@dataclass
class Reply:
    """One answer, streamed or not. `same_as` compares what must not depend on a crash.

    How many tokens of the prompt were found in the prefix cache may: a new engine's is empty.
    """

    seed: int
    choices: dict[int, Choice] = field(default_factory=dict)
    usage: dict[str, Any] = field(default_factory=dict)
    frames: set[tuple[Any, ...]] = field(default_factory=set)  # id, created, model, fingerprint
    comments: int = 0
    events: int = 0
    done: bool = False

    def content(self) -> tuple[Any, ...]:
        counts = [self.usage[f"{name}_tokens"] for name in ("prompt", "completion", "total")]
        ((_, _, *frame),) = self.frames  # one id, one time
        return dict(sorted(self.choices.items())), counts, frame

    def add(self, frame: dict[str, Any]) -> None:
        self.frames.add(
            (frame["id"], frame["created"], frame["model"], frame["system_fingerprint"])
        )
        self.usage = frame.get("usage") or self.usage
        for choice in frame["choices"]:
            kept = self.choices.setdefault(choice["index"], Choice())
            said = choice["delta"] if "delta" in choice else choice["message"]
            assert kept.finish_reason is None, "more after the end of a choice"
            kept.text += said.get("content") or ""
            kept.finish_reason = choice["finish_reason"]
            kept.logprobs += (choice["logprobs"] or {"content": []})["content"]


async def ask(
    client: httpx.AsyncClient,
    body: dict[str, Any],
    on_event: Callable[[Reply], None] = lambda reply: None,
) -> Reply:
    """The whole answer. Of a stream, `on_event` sees what has come after each event."""
    if not body.get("stream"):
        answer = await client.post(CHAT, json=body)
        assert answer.status_code == 200, answer.text
        reply = Reply(int(answer.headers["x-seed"]), done=True)
        reply.add(answer.json())
        return reply
    async with client.stream("POST", CHAT, json=body) as answer:
        assert answer.status_code == 200, await answer.aread()
        reply = Reply(int(answer.headers["x-seed"]))
        async for line in answer.aiter_lines():
            assert not reply.done or not line, "more after [DONE]"
            if line.startswith(":"):
                reply.comments += 1
            elif line == "data: [DONE]":
                reply.done = True
            elif line:
                event = json.loads(line.removeprefix("data: "))
                assert "error" not in event, event
                reply.add(event)
                reply.events += 1
                on_event(reply)
    return reply
