"""A server that runs from a copy of the program, which is changed under it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from serving import ROOT, Server, serving

CHAT = "/v1/chat/completions"
TAKEN_OVER = re.compile(r"Process (\d+) has taken over")
TINY = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
COMING_UP = "a new server is started"
_VERSION = re.compile(r'__version__ = ".*"')


class Upgradable:
    """The server, whichever process it is just now."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server = server
        self.url = server.url
        self.first = server.process.pid
        self.package = folder / "maestrale"
        self._script = folder / "script.json"
        self._version = 0

    @property
    def pid(self) -> int:
        """Of the main process: the last that has taken over."""
        taken = TAKEN_OVER.findall(self.server.log())
        return int(taken[-1]) if taken else self.first

    def change(self, **script: str) -> str:
        """Put a new version in the place of the program, and `script` in that of the engine's;
        what the new version is called.
        """
        self._version += 1
        name = f"9.9.{self._version}"
        init = self.package / "__init__.py"
        init.write_text(_VERSION.sub(f'__version__ = "{name}"', init.read_text()))
        if script:
            self._script.write_text(json.dumps(script))
        return name

    def hang_up(self) -> None:
        os.kill(self.pid, signal.SIGHUP)

    async def upgraded(self, **script: str) -> None:
        """Change it, and wait until the new version has taken over."""
        old = self.pid
        self.change(**script)
        self.hang_up()
        await self.until(lambda: self.pid != old)
        if "fingerprint" in script:  # for a moment both take connections
            new = script["fingerprint"]
            await self.until(lambda: self.ask(TINY).json()["system_fingerprint"] == new)

    async def until(self, condition: Any, seconds: float = 60.0) -> None:
        ends = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < ends, self.server.log()
            await asyncio.sleep(0.02)

    async def logs(self, text: str, times: int = 1) -> None:
        await self.until(lambda: self.server.log().count(text) >= times)

    async def gone(self, pid: int) -> None:
        await self.until(lambda: pid not in self.server.pids())

    def ask(self, body: dict[str, Any], **headers: str) -> httpx.Response:
        return httpx.post(self.url + CHAT, json=body, headers=headers, timeout=60)

    def stop(self) -> None:
        """End whatever runs; `serving` checks that nothing is left."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)
        ends = time.monotonic() + 20
        while self.server.pids() and time.monotonic() < ends:
            self.server.process.poll()
            time.sleep(0.05)


@contextlib.contextmanager
def upgradable(
    folder: Path,
    cache_dir: Path,
    *flags: str,
    script: dict[str, str] | None = None,
    **environment: str,
) -> Iterator[Upgradable]:
    """It is healthy. `script`: of a scripted engine; None: the real model."""
    shutil.copytree(
        ROOT / "src" / "maestrale",
        folder / "maestrale",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    if script is not None:
        (folder / "script.json").write_text(json.dumps(script))
        flags = ("--engine", "scripted", *flags)
    environment = {
        "PYTHONPATH": f"{folder}:{ROOT}/tests/support",
        "SCRIPT_FILE": str(folder / "script.json"),
        **environment,
    }
    module = "scripted_server" if script is not None else "maestrale"
    with serving(*flags, cache_dir=cache_dir, environment=environment, module=module) as server:
        upgradable = Upgradable(server, folder)
        try:
            for _ in range(20):  # each API worker is there by itself
                while httpx.get(f"{server.url}/v1/models").status_code != 200:
                    time.sleep(0.1)
            yield upgradable
        finally:
            upgradable.stop()


class Reading:
    """One stream, as far as it was read."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.id = self.fingerprint = self.text = self.raw = ""
        self.error = ""
        self.done = False
        self.cut = False
        self.last = 0.0  # when it ended

    async def read(self, url: str, body: dict[str, Any], **headers: str) -> Reading:
        """On a connection of its own."""
        body = {**body, "stream": True}
        async with httpx.AsyncClient(timeout=120) as client:
            try:
                async with client.stream("POST", url + CHAT, json=body, headers=headers) as answer:
                    assert answer.status_code == 200, await answer.aread()
                    self.id = answer.headers.get("x-stream-id", "")
                    async for part in answer.aiter_text():
                        self._take(part)
            except httpx.TransportError:
                self.cut = True
        self.last = time.monotonic()
        return self

    def _take(self, part: str) -> None:
        before = self.raw.rfind("\n\n") + 2 if "\n\n" in self.raw else 0
        self.raw += part
        for event in self.raw[before : self.raw.rfind("\n\n") + 2].split("\n\n"):
            data = event.partition("data: ")[2]
            if data == "[DONE]":
                self.done = True
            elif data:
                chunk = json.loads(data)
                self.error = str(chunk.get("error", "")) or self.error
                self.fingerprint = chunk.get("system_fingerprint") or self.fingerprint
                for choice in chunk.get("choices", []):
                    self.text += choice["delta"].get("content") or ""
                self.begun.set()


def events_of(raw: str) -> str:
    """A stream without comments, which are each connection's own."""
    blocks = raw.split("\n\n")
    return "".join(f"{each}\n\n" for each in blocks if each and not each.startswith(":"))
