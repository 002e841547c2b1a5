"""A server's life, with one API process or several.

It listens at once, loads its models meanwhile, answers, and ends: at the first signal new requests
are refused and those in flight have the grace to finish, a second one ends what is left. How
requests are taken is a `Front`: HTTP in this process (`in_process.py`), or API workers
(`workers/parent.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maestrale.api.backend import Backend
from maestrale.api.deployment import Deployments
from maestrale.api.operations.node_status import ApiNodeStatus
from maestrale.config.settings import Settings
from maestrale.engines.base import Engine, EngineConfig
from maestrale.errors import MaestraleError
from maestrale.logs import LOGGER
from maestrale.models.fit_cpu import SPARE, memory_to_use
from maestrale.serve.deployment import DeploymentHost
from maestrale.serve.handover.predecessors import Predecessors
from maestrale.serve.handover.upgrade import Upgrade
from maestrale.serve.hosting import in_thread
from maestrale.serve.listening import LAST_WORDS
from maestrale.serve.loader import ModelLoader
from maestrale.serve.progress import StartProgress

if TYPE_CHECKING:
    from maestrale.serve.nodes.keeper import ApiNodes


class Front(ABC):
    """How a server takes its requests, and what owns its deployments."""

    def __init__(self, backend: Backend, predecessors: Predecessors | None = None) -> None:
        """`predecessors`: the servers that this one takes over from."""
        self.backend = backend
        self.predecessors = predecessors
        self.hosts = [DeploymentHost(deployment) for deployment in backend.deployments]
        self._reload_hosts: list[DeploymentHost] = []
        self.may_serve = asyncio.Event()
        """Connections may be taken. Before that they are the predecessor's."""
        if predecessors is None:
            self.may_serve.set()
        else:
            for host in self.hosts:
                host.alone = partial(predecessors.make_room, None)
        self.loader: ModelLoader | None = None
        """Where models are loaded when they are asked for; None: the one is, and stays."""
        if loads_on_demand([host.settings for host in self.hosts]):
            self.loader = ModelLoader(backend.settings, len(self.hosts), self.changed, self.prepare)
            backend.steering = self.loader.steer
        if len(self.hosts) > 1:
            tell_apart(self.hosts)

    @abstractmethod
    async def run(self) -> None:
        """Listen at once, and take requests until `end`. Raises: what ends the server."""

    async def engine_of(
        self, host: DeploymentHost, name: str, config: EngineConfig, progress: StartProgress
    ) -> Engine:
        """The engine of a prepared model, which is called `name` by itself: started, or known and
        loaded later. Raises: ModelError, EngineError.
        """
        if self.loader is not None:
            return await self.loader.adopt(host, name, config, progress)
        if self.predecessors is not None:
            # As much as it would take if the predecessor's were gone.
            room = memory_to_use() - SPARE + self.predecessors.hello.memory
            foreseen = await in_thread(lambda: host.forecast(config, room))
            await self.predecessors.make_room(foreseen.memory if foreseen is not None else None)
        progress.update("Starting the engine", None)
        return await host.start(config)

    async def prepare(self, host: DeploymentHost) -> None:
        """Prepare this deployment, and let its requests in. Where it is one of several, what keeps
        it from that is logged, and kept for who asks for it.

        Raises: ModelError, EngineError, SettingsError.
        """
        try:
            with StartProgress(host.tell) as progress:
                await self.load(host, progress)
        except MaestraleError as error:
            if len(self.hosts) > 1:
                LOGGER.error("The model %s can't be served: %s", host.deployment.id, error)
                if self.loader is not None:
                    self.loader.forget(host)
                await host.fail(error)
                await self.changed()
            raise

    @abstractmethod
    async def changed(self) -> None:
        """A model was loaded or unloaded: tell who must know before any request does."""

    @abstractmethod
    async def load(self, host: DeploymentHost, progress: StartProgress) -> None:
        """Prepare this deployment, and let its requests in. Raises: ModelError, EngineError, ..."""

    @abstractmethod
    async def answering(self) -> None:
        """Wait until requests for all that is loaded are answered."""

    @abstractmethod
    def reload(self) -> None:
        """SIGHUP: someone changed the server's files."""

    @abstractmethod
    async def pass_on(self, grace: float) -> None:
        """Take no more connections; wait for the answers on those that there are, `grace` seconds
        at most. The sockets stay open, and what connects to them waits.
        """

    @abstractmethod
    async def take_back(self) -> None:
        """Take connections again after `pass_on`."""

    @abstractmethod
    async def lend(self, folder: Path) -> None:
        """Let the successor have the streams that are made here, at sockets in this folder."""

    async def unload_all(self) -> None:
        """End all engines, so that another server's have their memory."""
        if self.loader is not None:
            self.loader.pause()
        for host in self.hosts:
            if host.engine is not None and host.engine.stats().loaded:
                self._reload_hosts.append(host)
                await host.unload()

    async def load_again(self) -> None:
        """Start the engines that `unload_all` ended. Raises: EngineError, ModelError."""
        while self._reload_hosts:
            await self._reload_hosts.pop().load()
        if self.loader is not None:
            self.loader.resume()

    @abstractmethod
    async def drain(self) -> None:
        """New requests are refused from now on: tell who must know."""

    @abstractmethod
    async def end(self) -> None:
        """Leave nothing of it running, however far it came."""


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


def loads_on_demand(models: Sequence[Settings]) -> bool:
    """Whether a server of these models loads and unloads them as requests ask for them."""
    return len(models) > 1 or may_go(models[0])


def may_go(settings: Settings) -> bool:
    """Whether a model that is the only one may be unloaded, or has a budget to keep to."""
    given = settings.keep_alive_seconds, settings.budget_bytes
    from_zero = settings.replica_range is not None and settings.replica_range[0] == 0
    return bool(settings.pinned) or from_zero or given != (None, None)


def tell_apart(hosts: Sequence[DeploymentHost]) -> None:
    """Let the log name each of several engines, and each have an application of its own on Ray."""
    seen: set[tuple[str, str | None]] = set()
    for host in hosts:
        host.label = host.deployment.id
        model = host.settings.model, host.settings.revision
        if model in seen:
            host.variant = host.deployment.id
        seen.add(model)


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
