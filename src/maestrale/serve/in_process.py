"""HTTP in the process that has the engines: a server with one API process."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Sequence
from pathlib import Path

from maestrale.api.backend import Backend
from maestrale.api.durable.lenders import SUFFIX, Lenders
from maestrale.api.durable.lending import LentStreams
from maestrale.api.http.server import HttpServer
from maestrale.logs import LOGGER
from maestrale.serve.deployment import DeploymentHost
from maestrale.serve.front import Front
from maestrale.serve.handover.predecessors import Predecessors
from maestrale.serve.hosting import in_thread
from maestrale.serve.listening import LAST_WORDS, uvicorn_config, why
from maestrale.serve.progress import StartProgress
from maestrale.serve.text import Services, TextSource


class InProcess(Front):
    """The one API process, in here."""

    def __init__(
        self,
        backend: Backend,
        socks: Sequence[socket.socket],
        predecessors: Predecessors | None = None,
    ) -> None:
        """`socks`: those of the port. Raises: SettingsError for TLS files of no use."""
        super().__init__(backend, predecessors)
        if predecessors is not None:
            backend.streams.lenders = Lenders(predecessors.lenders)
        self._socks = list(socks)
        self._config = uvicorn_config(backend.settings, backend)
        self._lent: LentStreams | None = None
        self._passed_on = False
        self._servers: dict[asyncio.Task[None], HttpServer] = {}  # the last one takes connections
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        """See `Front.run`."""
        await self.may_serve.wait()
        if not self._over.done():
            self._serve()
        try:
            await self._over
        finally:
            for server in self._servers.values():
                server.should_exit = True
            if self._servers:
                await asyncio.wait(self._servers, timeout=2 * LAST_WORDS)
            for server in self._servers.values():
                server.force_exit = True

    def _serve(self) -> None:
        """Take connections."""
        server = HttpServer(self._config)
        # Copies: uvicorn closes what it has had.
        socks = [sock.dup() for sock in self._socks]
        task = asyncio.create_task(server.serve(sockets=socks))
        self._servers[task] = server
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        server = self._servers.pop(task)
        if self._over.done() or task.cancelled():
            return
        error = task.exception()
        if error is not None:
            self._over.set_exception(error)
        elif not server.should_exit:
            self._over.set_result(None)

    async def load(self, host: DeploymentHost, progress: StartProgress) -> None:
        """See `Front.load`."""
        deployment = host.deployment
        folder, prepared, config = await host.prepare(progress)
        self.backend.deployments.check_name(deployment, prepared.name)
        source = TextSource(folder, deployment)
        engine, text = await asyncio.gather(
            self.engine_of(host, prepared.name, config, progress), source.read()
        )
        services = Services(source, deployment, engine, host.vet(folder, prepared))
        deployment.open(engine, prepared.name, prepared.sampling, services.of(text), services)

    async def changed(self) -> None:
        """See `Front.changed`: nobody else answers."""

    async def answering(self) -> None:
        """See `Front.answering`: they are as soon as they are loaded."""

    def reload(self) -> None:
        """Take the certificate as it is now; keys are read anew by themselves."""
        context, settings = self._config.ssl, self.backend.settings
        if context is None:
            LOGGER.info("SIGHUP received: keys are read anew by themselves, and there is no more")
            return
        try:
            context.load_cert_chain(str(settings.ssl_certfile), settings.ssl_keyfile)
        except OSError as error:
            LOGGER.error("SIGHUP received: the certificate stays as it was: %s", why(error))
        else:
            LOGGER.info("SIGHUP received: new connections get the certificate as it is now")

    async def pass_on(self, grace: float) -> None:
        """See `Front.pass_on`."""
        self._passed_on = True
        self._config.timeout_graceful_shutdown = round(grace + 2 * LAST_WORDS)
        for server in self._servers.values():
            server.should_exit = True
        if self._servers:
            await asyncio.wait(self._servers, timeout=grace)

    async def take_back(self) -> None:
        """See `Front.take_back`. What was connected before is still answered."""
        await self._end_lent()
        if self._passed_on and not self._over.done():
            self._passed_on = False
            self._config.timeout_graceful_shutdown = int(LAST_WORDS)
            self._serve()

    async def lend(self, folder: Path) -> None:
        """See `Front.lend`."""
        self._lent = LentStreams(self.backend.streams, folder / f"api{SUFFIX}")
        await self._lent.start()

    async def _end_lent(self) -> None:
        lent, self._lent = self._lent, None
        if lent is not None:
            await lent.end()

    async def drain(self) -> None:
        """See `Front.drain`: the backend knows it."""

    async def end(self) -> None:
        """See `Front.end`."""
        await self._end_lent()
        if self.backend.tracer is not None:
            # A collector that doesn't answer holds the end up no longer than this.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(in_thread(self.backend.tracer.close), LAST_WORDS)
        if not self._over.done():
            self._over.set_result(None)
        self.may_serve.set()
