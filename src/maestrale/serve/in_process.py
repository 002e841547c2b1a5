"""HTTP in the process that has the engines: a server with one API process."""

from __future__ import annotations

import asyncio
import contextlib
import socket

from maestrale.api.backend import Backend
from maestrale.logs import LOGGER
from maestrale.serve.deployment import DeploymentHost
from maestrale.serve.hosting import in_thread
from maestrale.serve.lifecycle import Front
from maestrale.serve.listening import LAST_WORDS, HttpServer, uvicorn_config, why
from maestrale.serve.progress import StartProgress
from maestrale.serve.text import Services, TextSource


class InProcess(Front):
    """The one API process, in here."""

    def __init__(self, backend: Backend, sock: socket.socket) -> None:
        """Raises: SettingsError for TLS files of no use."""
        super().__init__(backend)
        self._sock = sock
        self._config = uvicorn_config(backend.settings, backend)
        self._server = HttpServer(self._config)

    async def run(self) -> None:
        """See `Front.run`."""
        await self._server.serve(sockets=[self._sock])

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

    async def drain(self) -> None:
        """See `Front.drain`: the backend knows it."""

    async def end(self) -> None:
        """See `Front.end`."""
        if self.backend.tracer is not None:
            # A collector that doesn't answer holds the end up no longer than this.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(in_thread(self.backend.tracer.close), LAST_WORDS)
        self._server.should_exit = True
