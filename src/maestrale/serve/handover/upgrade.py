"""The old server's side: SIGHUP, where the program or its settings are others than at its start."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from maestrale.config.settings import Settings
from maestrale.errors import MaestraleError
from maestrale.logs import LOGGER
from maestrale.processes import private_folder
from maestrale.serve.handover import systemd
from maestrale.serve.handover.channel import Channel, Hello, greet
from maestrale.serve.handover.predecessors import Predecessors
from maestrale.serve.handover.program import VARIABLE, Program
from maestrale.serve.hosting import in_thread

if TYPE_CHECKING:
    from maestrale.serve.front import Front

END_SECONDS = 5.0  # that a server has to end by itself, and then when it is told to
PAGE = os.sysconf("SC_PAGE_SIZE")


class Upgrade:
    """At most one at a time. `over` is set when the successor has all, and this server may end."""

    def __init__(
        self,
        front: Front,
        program: Program | None,
        listeners: Sequence[socket.socket],
        *,
        predecessors: Predecessors | None = None,
        api_key: str = "",
    ) -> None:
        """`listeners`: the sockets of the port. `api_key`: the one that this server made itself and
        that is kept nowhere else.
        """
        self.over = asyncio.Event()
        self.handed_over = False
        """The successor takes the connections."""
        self._front = front
        self._program = program
        self._listeners = list(listeners)
        self._predecessors = predecessors
        self._api_key = api_key
        self._settings: Settings = front.backend.settings
        self._successor: _Successor | None = None
        self._folder: Path | None = None
        self._task: asyncio.Task[None] | None = None
        self._unloaded = False
        self._stopping = False

    def hang_up(self) -> None:
        """SIGHUP came."""
        if self._stopping:
            return
        if self._task is not None and not self._task.done():
            if self.handed_over and self._successor is not None:
                LOGGER.info("SIGHUP received: it is passed on to the server that took over")
                self._successor.signal(signal.SIGHUP)
            else:
                LOGGER.info("SIGHUP received: another server is about to take over already")
            return
        self._task = asyncio.create_task(self._begin())

    def stop(self) -> None:
        """This server is told to stop: one that has not taken over ends as well."""
        self._stopping = True
        if self._successor is not None and not self.handed_over:
            self._successor.signal(signal.SIGTERM)

    async def close(self) -> None:
        """Leave nothing of it, whatever became of it."""
        self._stopping = True
        if self._successor is not None:
            if not self.handed_over:
                self._successor.signal(signal.SIGTERM)
                await self._successor.end()
            self._successor.channel.close()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._remove_folder()

    async def _begin(self) -> None:
        change = "" if self._program is None else await in_thread(self._program.change)
        if not change:
            self._front.reload()
        elif why := self._unable():
            LOGGER.error("SIGHUP received: %s, but %s. Start the server anew.", change, why)
            self._front.reload()
        else:
            LOGGER.info("SIGHUP received: %s; a new server is started, to take over", change)
            await self._hand_over()

    def _unable(self) -> str:
        """Why no other server can take over from this one; "": it can."""
        if any(each.settings.replica_range is not None for each in self._front.hosts):
            return "with replicas on Ray (--replicas, --ray-join) none can take over"
        if self._settings.api_nodes == "all":
            return "with --api-nodes all none can take over"
        if os.getpid() == 1:
            return "this is the first process of its container, which ends with it"
        return ""

    async def _hand_over(self) -> None:
        assert self._program is not None
        self._folder = private_folder("maestrale-handover")
        older = {} if self._predecessors is None else self._predecessors.handed_on
        hello = Hello(
            host=self._settings.host,
            port=self._settings.port,
            listeners=len(self._listeners),
            lenders=(str(self._folder), *older.values()),
            memory=self._memory(),
            api_key=self._api_key,
        )
        try:
            successor = _Successor(self._program.command)
            greet(successor.channel.sock, hello, [*self._listeners, *older])
            await successor.channel.open()
        except OSError as error:
            LOGGER.error("No new server can be started (%s): this one goes on as before.", error)
            self._remove_folder()
            return
        self._successor = successor
        if await self._is_ready(successor):
            await self._leave(successor)
        else:
            await self._go_on(successor)

    async def _is_ready(self, successor: _Successor) -> bool:
        while word := await successor.channel.hear():
            if word == "room":
                await self._make_room()
                successor.channel.say("go")
            elif word == "ready":
                return True
        return False

    async def _make_room(self) -> None:
        grace = self._settings.grace
        LOGGER.info(
            "The memory doesn't hold the engines of both servers: this one's end first. Requests "
            "in flight (%d) have %g s to finish; new ones wait.",
            *(self._front.backend.requests, grace),
        )
        self._unloaded = True
        await self._front.pass_on(grace)
        await self._front.unload_all()

    async def _go_on(self, successor: _Successor) -> None:
        """It did not come up."""
        ended = await successor.end()
        self._successor = None
        successor.channel.close()
        self._remove_folder()
        if self._stopping:
            return
        LOGGER.error(
            "The new server did not come up (%s; what it said is above): this one goes on as "
            "before.",
            ended,
        )
        await self._take_back()

    async def _take_back(self) -> None:
        if self._unloaded:
            self._unloaded = False
            try:
                await self._front.load_again()
            except MaestraleError as error:
                LOGGER.error("The engine could not be started again: %s", error)
        await self._front.take_back()

    async def _leave(self, successor: _Successor) -> None:
        """The successor takes the connections: finish what is there."""
        assert self._folder is not None
        await self._front.lend(self._folder)
        self.handed_over = True
        systemd.main_process(successor.pid)
        grace = self._settings.handover_grace
        LOGGER.info(
            "Process %d has taken over. Requests in flight (%d) have %g s to finish here.",
            *(successor.pid, self._front.backend.requests, grace),
        )
        leaving = asyncio.create_task(self._finish(0.0 if self._unloaded else grace))
        try:
            if await self._is_left(successor, leaving):
                self.over.set()
                return
        finally:
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)
        self.handed_over = False
        ended = await successor.end()
        self._successor = None
        successor.channel.close()
        LOGGER.error("The server that took over is gone (%s): this one is back.", ended)
        await self._take_back()
        self._remove_folder()
        systemd.main_process(os.getpid())

    async def _finish(self, grace: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await self._front.pass_on(grace)
                await self._front.backend.idle()

    async def _is_left(self, successor: _Successor, leaving: asyncio.Task[None]) -> bool:
        """Wait for the end of what is in flight. False: it is for us again to take connections."""
        hearing = asyncio.create_task(successor.channel.hear())
        timeout: float | None = None
        stopping = False
        while True:
            either: set[asyncio.Future[object]] = {leaving, hearing}  # type: ignore[arg-type]
            done, _ = await asyncio.wait(
                either, timeout=timeout, return_when=asyncio.FIRST_COMPLETED
            )
            if leaving in done or not done or hearing.result() == "":
                hearing.cancel()
                return leaving in done or stopping
            if hearing.result() == "stop":
                stopping, timeout = True, self._settings.grace
            hearing = asyncio.create_task(successor.channel.hear())

    def _memory(self) -> int:
        """Bytes that the engines hold."""
        pids = [getattr(each.engine, "engine_pid", None) for each in self._front.hosts]
        return sum(resident(pid) for pid in pids if pid is not None)

    def _remove_folder(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


class _Successor:
    """The process that is to take over."""

    def __init__(self, command: Sequence[str]) -> None:
        """Start it. Raises: OSError."""
        ours, theirs = socket.socketpair()
        self.channel = Channel(ours)
        with theirs:
            fd = theirs.fileno()
            try:
                self._popen = subprocess.Popen(  # noqa: S603 - as this one was started
                    command,
                    env={**os.environ, VARIABLE: str(fd)},
                    pass_fds=[fd],
                    stdin=subprocess.DEVNULL,
                )
            except OSError:
                ours.close()
                raise
        self.pid = self._popen.pid

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it is there."""
        if self._popen.poll() is None:
            self._popen.send_signal(number)

    async def end(self) -> str:
        """Have it end, where it doesn't by itself, and say how it did."""
        code: int | None = None
        for number in (0, signal.SIGTERM, signal.SIGKILL):
            if number:
                self.signal(signal.Signals(number))
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = await asyncio.to_thread(self._popen.wait, END_SECONDS)
                break
        if code is None:
            return "it can't be ended by the system"
        if code < 0:
            return f"ended by {signal.Signals(-code).name}"
        return f"exit code {code}"


def resident(pid: int) -> int:
    """Bytes of memory that a process holds."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    except (OSError, ValueError, IndexError):
        return 0
