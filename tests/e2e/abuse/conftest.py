"""A server with the real model for hostile clients, and what must hold after each of them.

The shared server's queues and context are small and its patience with slow clients is short:
otherwise it is the one that `maestrale serve` starts.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from faults import CHAT, TIMEOUT, engine_pid
from hostile_http import read_to_end
from serving import ROOT, Server, serving

CONTEXT = 1024
MAX_NUM_SEQS = 16
MAX_WAITING = 32
FLAGS = (
    *("--max-model-len", str(CONTEXT), "--kv-cache-memory", "192MiB"),
    *("--max-num-seqs", str(MAX_NUM_SEQS), "--max-waiting", str(MAX_WAITING)),
)
GROWTH = 100 * 1024 * 1024
"""Bytes by which the API process may have grown since the first test: the allocator keeps some."""

HANDLES = 8
"""Handles that come and go by themselves: the processes that vet schemas have some."""


@dataclass
class Target:
    """A server under attack."""

    server: Server
    client: httpx.Client
    headers: dict[str, str]
    resident: int = 0

    @property
    def port(self) -> int:
        return int(self.server.url.rpartition(":")[2])

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    def post(self, body: Any, path: str = CHAT, **headers: str) -> httpx.Response:
        """Send a body: bytes as they are, anything else as JSON."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"content-type": "application/json", **self.headers, **headers}
        return self.client.post(path, content=content, headers=headers)

    def exchange(self, *pieces: bytes, timeout: float = 30.0) -> bytes:
        """Send raw bytes; everything that comes up to the close."""
        with socket.create_connection(self.address, timeout=timeout) as raw:
            for piece in pieces:
                with contextlib.suppress(ConnectionError):  # answered and closed already
                    raw.sendall(piece)
            return read_to_end(raw)

    def asks_well(self) -> None:
        """A normal request gets its answer."""
        answer = self.post(good(max_tokens=2))
        assert answer.status_code == 200, answer.text
        assert answer.json()["usage"]["completion_tokens"] <= 2

    def slots(self) -> tuple[float, float, float, float]:
        """Sequences running and waiting, share of the KV cache in use, requests."""
        text = self.client.get("/metrics", headers=self.headers).text
        load = self.client.get("/load", headers=self.headers).json()["server_load"]
        running, waiting, usage = (
            float(re.findall(rf"^vllm:{name}{{[^}}]*}} (\S+)$", text, re.MULTILINE)[0])
            for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
        )
        return running, waiting, usage, load

    def handles(self) -> int:
        return len(os.listdir(f"/proc/{self.server.process.pid}/fd"))

    def memory(self) -> int:
        """Resident bytes of the API process."""
        status = Path(f"/proc/{self.server.process.pid}/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1]) * 1024

    def until(self, condition: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, what
            time.sleep(0.05)


def good(text: str = "Hello", **fields: Any) -> dict[str, Any]:
    """A request in which nothing is wrong."""
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 8, **fields}


@contextlib.contextmanager
def unharmed(target: Target, *, same_engine: bool = True) -> Iterator[None]:
    """What must hold after a test: nothing is stuck, nothing is left, nothing was given away."""
    engine, handles = engine_pid(target.server), target.handles()
    log = len(target.server.log())
    yield
    if same_engine:
        assert engine_pid(target.server) == engine, "the engine died"
    target.asks_well()
    target.until(lambda: target.slots() == (0, 0, 0, 0), f"slots stay taken: {target.slots()}")
    target.until(
        lambda: target.handles() <= handles + HANDLES,
        f"{target.handles()} handles are open, and {handles} were",
    )
    grown = target.memory() - target.resident
    assert grown < GROWTH, f"the API process has grown by {grown >> 20} MiB"
    assert "Traceback" not in target.server.log()[log:]


@contextlib.contextmanager
def attacked(
    server: Server, headers: dict[str, str] | None = None, timeout: float = TIMEOUT
) -> Iterator[Target]:
    limits = httpx.Limits(max_connections=None)
    with httpx.Client(base_url=server.url, timeout=timeout, limits=limits) as client:
        target = Target(server, client, headers or {})
        target.asks_well()
        schema = {"type": "json_object"}
        assert target.post(good(response_format=schema)).status_code == 200  # vetting has begun
        target.resident = target.memory()
        yield target


@pytest.fixture(scope="session")
def hostile_server(cache_dir: Path, prepared_model: Path) -> Iterator[Target]:
    with (
        serving(
            *FLAGS,
            cache_dir=cache_dir,
            module="impatient_server",
            environment={"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT / 'tests' / 'support'}"},
        ) as server,
        attacked(server) as target,
    ):
        yield target


@pytest.fixture
def target(hostile_server: Target) -> Iterator[Target]:
    """The server; when the test is over, it must be as it was."""
    with unharmed(hostile_server):
        yield hostile_server
