"""How a server takes its requests, and what owns its deployments: in this process
(`in_process.py`), or in API workers (`workers/parent.py`).
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from maestrale.api.backend import Backend
from maestrale.config.settings import Settings
from maestrale.engines.base import Engine, EngineConfig
from maestrale.errors import MaestraleError
from maestrale.logs import LOGGER
from maestrale.models.fit_cpu import SPARE, memory_to_use
from maestrale.serve.deployment import DeploymentHost
from maestrale.serve.handover.predecessors import Predecessors
from maestrale.serve.hosting import in_thread
from maestrale.serve.loader import ModelLoader
from maestrale.serve.progress import StartProgress


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
