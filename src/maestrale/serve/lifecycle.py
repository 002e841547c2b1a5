"""A server's life, with one API process or several.

It listens at once, loads its models meanwhile, answers, and ends: at the first signal new requests
are refused and those in flight have the grace to finish, a second one ends what is left. How
requests are taken is a `Front` (`front.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from maestrale.api.deployment import Deployments
from maestrale.api.operations.node_status import ApiNodeStatus
from maestrale.errors import MaestraleError
from maestrale.logs import LOGGER
from maestrale.serve.front import Front
from maestrale.serve.handover.upgrade import Upgrade
from maestrale.serve.listening import LAST_WORDS

if TYPE_CHECKING:
    from maestrale.serve.nodes.keeper import ApiNodes


class Lifecycle:
    """One server, from its first breath to its last: `run`."""

    def __init__(
        self,
        front: Front,
        announce: Callable[[Deployments], None],
        upgrade: Upgrade | None = None,
    ) -> None:
        """`announce` is told of the models once requests for them are answered. `upgrade`: what
        SIGHUP may lead to; by default no more than a reload.
        """
        self.stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        self._front = front
        self._backend = front.backend
        self._hosts = front.hosts
        self._announce = announce
        self._upgrade = upgrade or Upgrade(front, None, ())
        self._predecessors = front.predecessors
        self._nodes: ApiNodes | None = None
        self._backend.node_status = self._node_status

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT. Raises: SettingsError, ModelError, EngineError."""
        self._take_signals()
        serving = asyncio.create_task(self._front.run())
        loading = asyncio.create_task(self._load())
        history = asyncio.create_task(self._backend.keep_history())
        tending = asyncio.create_task(self._backend.tend())
        stopping = asyncio.create_task(self.stopping.wait())
        over = asyncio.create_task(self._upgrade.over.wait())
        ends: set[asyncio.Future[Any]] = {serving, stopping, over}
        try:
            await asyncio.wait({loading, *ends}, return_when=asyncio.FIRST_COMPLETED)
            if loading.done():
                loading.result()  # raises what went wrong
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            else:
                loading.cancel()
                await asyncio.gather(loading, return_exceptions=True)
            if serving.done():
                serving.result()
            if over.done():
                left = self._backend.requests
                LOGGER.info("This server ends, as another has taken over (%d requests left)", left)
                self._backend.drain()
            await self._drain(0.0 if over.done() else self._backend.settings.grace)
        finally:
            for task in (loading, stopping, history, tending, over):
                task.cancel()
            self.stopping.set()
            await self._close()
            await asyncio.gather(serving, return_exceptions=True)
            await self._backend.accounts.close()

    def on_signal(self, number: signal.Signals) -> None:
        """The first signal drains; the second ends what is left."""
        LOGGER.info("%s received", number.name)
        self._stop()

    def on_hangup(self) -> None:
        """SIGHUP: the server's terminal is gone, and it ends; or someone changed its files."""
        if terminal_is_gone():
            LOGGER.info("SIGHUP received: the terminal is gone")
            self._stop()
        else:
            self._upgrade.hang_up()

    def _stop(self) -> None:
        if self.stopping.is_set():
            self._hurry.set()
        self._backend.drain()
        self._upgrade.stop()
        if self._predecessors is not None:
            self._predecessors.stop()
        self.stopping.set()

    def _take_signals(self) -> None:
        """In the event loop, not in the middle of whatever a signal interrupts."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.on_signal, number)
        _HAD_TERMINAL.append(_has_terminal())
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as under nohup
            loop.add_signal_handler(signal.SIGHUP, self.on_hangup)

    async def _load(self) -> None:
        """Prepare one model after the other, and let its requests in; the first, and those that
        shall stay, are loaded, or all where no loader is.

        One of several that can't be loaded keeps no other from answering.
        Raises: what went wrong, where none could be loaded.
        """
        failures: list[MaestraleError] = []
        loads, loader = [], self._front.loader
        try:
            for host in self._hosts:
                try:
                    await self._front.prepare(host)
                except MaestraleError as error:
                    failures.append(error)
                    continue
                if loader is not None and loader.at_start(host):
                    loads.append(asyncio.create_task(loader.load(host)))
            if loads:
                await asyncio.wait(loads)
            # They are told by the loader, and tried again when they are asked for.
            errors = [load.exception() for load in loads]
            failures += [error for error in errors if isinstance(error, MaestraleError)]
        finally:
            for load in loads:
                load.cancel()
        if len(failures) == len(self._hosts):
            raise failures[0]
        settings = self._backend.settings
        if loader is not None:
            loader.check_pinned(settings)
        if settings.api_nodes == "all":
            from maestrale.serve.nodes.keeper import ApiNodes

            self._nodes = ApiNodes(settings, [host.settings for host in self._hosts])
            self._nodes.start()
        self._front.may_serve.set()
        await self._front.answering()
        if self._predecessors is not None:
            self._predecessors.ready()
        if not self.stopping.is_set():
            self._announce(self._backend.deployments)

    async def _drain(self, grace: float) -> None:
        """Wait for the answers in flight, to the grace's end or a second signal; then stop the
        engines. Those of other nodes are waited for as well: they need our replicas.
        """
        await self._front.drain()
        backend = self._backend
        nodes, self._nodes = self._nodes, None
        others = asyncio.create_task(nodes.stop(grace)) if nodes is not None else None
        if backend.requests:
            LOGGER.info("%d requests have %g s to finish", backend.requests, grace)
        engines = [host.engine for host in self._hosts if host.engine is not None]
        if engines:
            # Those that still wait for their turn may have it: the engines close after them.
            idle = asyncio.create_task(backend.idle())
            hurry = asyncio.create_task(self._hurry.wait())
            either: set[asyncio.Future[Any]] = {idle, hurry}
            await asyncio.wait(either, timeout=grace, return_when=asyncio.FIRST_COMPLETED)
            if others is not None:
                either = {others, hurry}
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            idle.cancel()
            hurry.cancel()
            if self._front.loader is not None:
                self._front.loader.stop()
            await asyncio.gather(*(engine.close(0) for engine in engines))
        if others is not None:
            others.cancel()
            await asyncio.gather(others, return_exceptions=True)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(backend.idle(), LAST_WORDS)

    async def _close(self) -> None:
        """Leave nothing running, however far it came."""
        if self._nodes is not None:
            await self._nodes.stop(0)
        await self._upgrade.close()
        await self._front.end()
        if self._front.loader is not None:
            self._front.loader.stop()
        await asyncio.gather(*(host.close() for host in self._hosts))
        if self._front.loader is not None:
            await self._front.loader.close()
        if self._predecessors is not None:
            if self.stopping.is_set() and not self._upgrade.over.is_set():
                await self._predecessors.ended(self._backend.settings.grace + 2 * LAST_WORDS)
            self._predecessors.close()

    def _node_status(self) -> list[ApiNodeStatus]:
        return self._nodes.statuses() if self._nodes is not None else []


def terminal_is_gone() -> bool:
    """Whether there was a terminal at the start of the server, and is none any more."""
    return any(_HAD_TERMINAL) and not _has_terminal()


_HAD_TERMINAL: list[bool] = []


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK))
    except OSError:
        return False
    return True
