"""One engine process from its start to its death, under the watchdog's eye."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from maestrale.engines.base import EngineConfig, EngineInfo, EngineStats, GenerationRequest
from maestrale.errors import EngineError
from maestrale.supervise.child import Child
from maestrale.supervise.messages import (
    Abort,
    Delta,
    Failed,
    FromWorker,
    Heartbeat,
    Ready,
    RequestFailed,
    Shutdown,
    Submit,
)
from maestrale.supervise.prespawn import WORKER, take_engine
from maestrale.supervise.watchdog import Patience, Watchdog

engine_log = logging.getLogger("maestrale.engine")


class EngineProcess:
    """A worker and the engine in it. Once `dead` is done, make another one."""

    def __init__(
        self,
        config: EngineConfig,
        patience: Patience,
        on_message: Callable[[Delta | RequestFailed], None],
        busy: Callable[[], bool],
    ) -> None:
        """`busy` says whether requests are in flight: only then must steps complete."""
        self._config = config
        self._patience = patience
        self._on_message = on_message
        self._busy = busy
        self._watchdog = Watchdog(patience)
        begun = take_engine(config.engine)
        self._child = Child(WORKER, FromWorker, self._take, engine_log, begun=begun)
        self._ready: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        self._watch: asyncio.Task[None] | None = None
        self._failed = ""
        self.info: EngineInfo | None = None
        self.stats = EngineStats()

    @property
    def pid(self) -> int:
        return self._child.pid

    async def start(self) -> EngineInfo:
        """Spawn it and wait until its engine is ready.

        Raises: EngineError with the reason; the process is gone then.
        """
        await self._child.spawn()
        self._child.send(self._config)
        self._watch = asyncio.create_task(self._watch_over())
        try:
            either: set[asyncio.Future[Any]] = {self._ready, self._child.dead}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await self.kill("the server is stopping")
            raise
        if not self._ready.done():
            reason = await self.died()
            lines = "" if self._failed else self._child.last_lines
            raise EngineError(f"The engine could not start: {reason}.{lines and chr(10)}{lines}")
        ready = self._ready.result()
        self.info = ready.info
        return ready.info

    @property
    def killed_from_outside(self) -> bool:
        """Once it is dead: by somebody's SIGKILL, so that no request had a part in it."""
        return self._child.killed_from_outside and not self._failed

    async def died(self) -> str:
        """Wait for its death; returns the reason, as the end of a sentence."""
        how = await asyncio.shield(self._child.dead)
        if self._watch is not None:
            self._watch.cancel()
        return self._failed.rstrip(".") or how

    def submit(self, request: GenerationRequest) -> None:
        """Raises: EngineError when the request is too long to be sent."""
        self._child.send(Submit(request))

    def abort(self, request_id: str) -> None:
        self._child.send(Abort(request_id))

    async def close(self, patience: float) -> None:
        """Ask it to leave, and kill it after `patience` seconds."""
        self._child.send(Shutdown(0.0))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._child.dead), patience)
        await self.kill("the server is stopping")

    async def kill(self, cause: str) -> None:
        self._child.kill(cause)
        await self.died()

    def _take(self, message: FromWorker) -> None:
        match message:
            case Heartbeat(stats):
                self._watchdog.heartbeat(stats.steps)
                self.stats = stats
            case Delta() | RequestFailed():
                self._on_message(message)
            case Failed(reason):
                self._failed = reason
            case Ready(_, step_seconds, stats):
                self._watchdog.ready(step_seconds, stats.steps)
                self.stats = stats
                if not self._ready.done():
                    self._ready.set_result(message)

    async def _watch_over(self) -> None:
        loop = asyncio.get_running_loop()
        last, waited = loop.time(), 0.0
        while not self._child.dead.done():
            await asyncio.sleep(self._patience.tick)
            now, waits = loop.time(), _waited_for_cpu(self._child.pid)
            cause = self._watchdog.tick(
                now - last,
                busy=self._busy(),
                stopped=_is_stopped(self._child.pid),
                starved=max(0.0, waits - waited),
            )
            last, waited = now, waits
            if cause is not None:
                self._child.kill(cause)
                return


def _is_stopped(pid: int) -> bool:
    """Whether the process is suspended; False where the system doesn't tell."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] in "Tt"


def _waited_for_cpu(pid: int) -> float:
    """Seconds in which the thread that waited most could have run, and others did; 0 where the
    system doesn't tell.
    """
    waited = 0
    with contextlib.suppress(OSError, ValueError, IndexError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):  # this thread has ended
                waited = max(waited, int((task / "schedstat").read_text().split()[1]))
    return waited / 1e9
