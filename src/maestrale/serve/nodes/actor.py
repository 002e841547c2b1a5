"""The actor on a node: it keeps one API process there, and tells how that stands."""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import shutil
import sys
import time
from pathlib import Path

import msgspec

import maestrale
from maestrale.cluster.runtime import ray_folder
from maestrale.keys import write_keys
from maestrale.serve.nodes.messages import ChildSpec, NodeSpec, NodeState, Word, unpack_keys
from maestrale.supervise.process import Restarts

PATIENCE = 10.0  # seconds for which `state` waits for news
ATTEMPTS = 3  # starts in a row that fail before it is given up
PAUSE = 1.0  # seconds after one that failed
LAST_WORDS = 10.0  # seconds beyond the grace that an API process has to end


class ApiOnNode:
    """Called by the first server only. It is single-threaded: an asyncio actor."""

    def __init__(self, version: str, spec: bytes, keys: bytes) -> None:
        self._state = NodeState(0, "starting", host=platform.node())
        self._news = asyncio.Event()
        self._keeping: asyncio.Task[None] | None = None
        self._child: asyncio.subprocess.Process | None = None
        self._stopping = False
        self._folder = Path(ray_folder())
        self._spec = spec
        self._other_version = version if version != maestrale.__version__ else ""
        self._write(keys)

    async def state(self, seen: int) -> bytes:
        """A `NodeState` newer than `seen`, or the same one after a while."""
        if self._keeping is None:
            self._keeping = asyncio.get_running_loop().create_task(self._keep())
        if self._state.version <= seen:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), PATIENCE)
        return msgspec.msgpack.encode(self._state)

    async def take_keys(self, keys: bytes) -> None:
        """These hold from now on; the API process sees it within a second of a request."""
        self._write(keys)

    async def stop(self, grace: float) -> None:
        """Let its answers end, for `grace` seconds; nothing is left when this returns."""
        self._stopping = True
        child = self._child
        if child is not None and child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.terminate()
            try:
                await asyncio.wait_for(child.wait(), grace + LAST_WORDS)
            except TimeoutError:
                child.kill()
                await child.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    # Within

    def _write(self, keys: bytes) -> None:
        """As a file of digests, which its API process watches; none where no key is asked for."""
        known = unpack_keys(keys)
        if known is not None:
            write_keys(self._folder / "keys.json", known)

    def _tell(self, state: str, detail: str = "", **more: object) -> None:
        now = msgspec.structs.replace(
            self._state, version=self._state.version + 1, state=state, detail=detail, **more
        )
        self._state = now
        self._news.set()
        self._news = asyncio.Event()

    async def _keep(self) -> None:
        if self._other_version:
            self._tell(
                "failed",
                f"it has maestrale {maestrale.__version__}, the first server "
                f"{self._other_version}. Install the same version on every node.",
            )
            return
        restarts, deaths, failures = Restarts(), list[float](), 0
        while not self._stopping:
            was_ready, reason = await self._run_one()
            if self._stopping:
                return
            failures = 0 if was_ready else failures + 1
            if failures >= ATTEMPTS:
                self._tell("failed", reason, url="", pid=0)
                return
            now = time.monotonic()
            deaths = [at for at in deaths if now - at < restarts.window] + [now]
            count = self._state.restarts + 1
            self._tell("restarting", reason, url="", pid=0, restarts=count)
            await asyncio.sleep(restarts.pause_after(len(deaths)) if was_ready else PAUSE)

    async def _run_one(self) -> tuple[bool, str]:
        """One API process, to its end: whether it ever answered, and why it ended."""
        import ray

        context = ray.get_runtime_context()
        spec = ChildSpec(
            msgspec.msgpack.decode(self._spec, type=NodeSpec),
            os.getpid(),
            context.gcs_address,
            ray.util.get_node_ip_address(),
            str(self._folder / "keys.json"),
        )
        child = self._child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "maestrale.serve.nodes.child"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert child.stdin is not None
        assert child.stdout is not None
        with contextlib.suppress(OSError):  # it ended at once: told below
            child.stdin.write(msgspec.msgpack.encode(spec))
            child.stdin.write_eof()
        ready, failed = False, ""
        async for line in child.stdout:
            word = msgspec.json.decode(line, type=Word)
            failed = word.failed
            if word.url:
                ready = True
                self._tell("ready", url=word.url, pid=child.pid)
        code = await child.wait()
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return ready, failed or f"Process {child.pid} {how}."
