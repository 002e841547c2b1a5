"""One API process of several: `python -m maestrale.serve.workers.worker --fd N`.

`N` is its end of the socket pair with the parent; the first message tells all it needs. It takes
connections from the socket that all workers share, and ends when told to, or with the parent.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import socket
import time
from pathlib import Path
from typing import Any

import uvloop

from maestrale import logs
from maestrale.api.admission import RETRY_AFTER
from maestrale.api.durable.lenders import SUFFIX, Lenders
from maestrale.api.durable.lending import LentStreams
from maestrale.api.http.body import BUDGET, BodyReader
from maestrale.api.http.connections import raise_file_limit
from maestrale.api.http.server import HttpServer
from maestrale.config.settings import Settings
from maestrale.errors import MaestraleError, Unavailable
from maestrale.logs import LOGGER
from maestrale.metrics.merged import families
from maestrale.serve.hosting import in_thread
from maestrale.serve.listening import uvicorn_config
from maestrale.serve.memory import return_large_buffers
from maestrale.serve.text import Services, TextSource
from maestrale.serve.workers.messages import (
    SNAPSHOT_SECONDS,
    Attach,
    Attached,
    Begin,
    Lend,
    Lending,
    Report,
    Retire,
    ServerState,
    Snapshot,
    unpack_settings,
)
from maestrale.serve.workers.remote import (
    ParentConnection,
    RemoteEngine,
    RemoteVetter,
    WorkerBackend,
)
from maestrale.supervise.leash import take_leash
from maestrale.supervise.messages import Failed

# When memory runs out the engine goes before an API process, and that before the parent: an
# engine's death is a pause, a worker's cuts its streams.
OOM_SCORE = 250
LAST_WORDS = 0.2  # seconds for the last messages to reach the parent
LAST_EVENTS = 1  # second for the ends of streams to reach their clients


class ApiWorker:
    """One API process, from its first message to its end."""

    def __init__(self) -> None:
        self._connection = ParentConnection(self._take)
        self._begun: asyncio.Future[Begin] = asyncio.get_running_loop().create_future()
        self._attaching: set[asyncio.Task[None]] = set()
        self._attached: set[str] = set()  # deployments that it answers for
        self._loaded: set[str] = set()  # those that it must answer for before it lets anybody in
        self._backend: WorkerBackend | None = None
        self._server: HttpServer | None = None
        self._states: dict[str, ServerState] = {}
        self._made = asyncio.Event()
        self._ready = asyncio.Event()
        self._lent: LentStreams | None = None
        self._lending: asyncio.Task[None] | None = None
        self._retires_at = 0.0

    async def run(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        await self._connection.open(sock)
        begin = await self._begun
        settings = unpack_settings(begin.settings)
        logs.configure(settings.log_level, settings.log_format)
        try:
            backend = self._backend = self._make_backend(settings, begin)
            server = self._server = HttpServer(uvicorn_config(settings, backend))
        except MaestraleError as error:
            self._connection.send(Failed(str(error)))
            await asyncio.sleep(LAST_WORDS)
            return
        for state in self._states.values():
            backend.take(state)
        self._loaded = set(begin.loaded)
        self._made.set()
        reporting = asyncio.create_task(self._go_on_reporting())
        tending = asyncio.create_task(backend.tend())
        if begin.loaded:
            await self._ready.wait()
        await server.serve(sockets=[socket.socket(fileno=fd) for fd in begin.listeners])
        # What nobody reads any more, and may be asked for again.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(backend.idle(), max(0.0, self._retires_at - time.monotonic()))
        if self._lent is not None:
            await self._lent.end()
        reporting.cancel()
        tending.cancel()
        if backend.tracer is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(in_thread(backend.tracer.close), 2.0)
        self._report()
        await asyncio.sleep(LAST_WORDS)

    def _make_backend(self, settings: Settings, begin: Begin) -> WorkerBackend:
        models = [unpack_settings(each) for each in begin.models]
        backend = WorkerBackend(settings, models, self._connection)
        # All workers together hold as much of large bodies as one would.
        backend.bodies = BodyReader(settings.max_body_bytes, BUDGET // begin.workers)
        backend.streams.lenders = Lenders(begin.lenders)
        return backend

    def _take(self, message: Any) -> None:
        match message:
            case Begin():
                self._begun.set_result(message)
            case ServerState():
                self._states[message.model] = message
                if self._backend is not None:
                    self._backend.take(message)
            case Attach():
                task = asyncio.create_task(self._attach(message))
                self._attaching.add(task)
                task.add_done_callback(self._attaching.discard)
            case Report():
                self._report()
            case Lend(folder):
                if self._backend is not None and self._lent is None:
                    place = Path(folder) / f"{os.getpid()}{SUFFIX}"
                    self._lent = LentStreams(self._backend.streams, place)
                    self._lending = asyncio.create_task(self._lend(self._lent))
            case Retire(grace):
                self._retire(grace)

    async def _attach(self, message: Attach) -> None:
        """Load what text needs, and answer this deployment's requests from then on."""
        await self._made.wait()
        backend = self._backend
        assert backend is not None
        deployment = backend.deployments[message.model]
        try:
            source = TextSource(Path(message.folder), deployment)
            text = await source.read()
        except MaestraleError as error:
            self._connection.send(Failed(str(error)))
            return
        engine = RemoteEngine(self._connection, message.model, message.info)
        vetter = RemoteVetter(self._connection, message.model)
        services = Services(source, deployment, engine, vetter)
        deployment.open(engine, message.model_name, message.sampling, services.of(text), services)
        if message.model in self._states:
            backend.take(self._states[message.model])
        self._connection.send(Attached(message.model))
        self._attached.add(message.model)
        if self._attached >= self._loaded:
            self._ready.set()

    async def _lend(self, lent: LentStreams) -> None:
        await lent.start()
        self._connection.send(Lending())

    async def _go_on_reporting(self) -> None:
        while True:
            try:
                self._report()
            except Exception:
                LOGGER.exception("The metrics could not be reported")
            await asyncio.sleep(SNAPSHOT_SECONDS)

    def _report(self) -> None:
        if self._backend is not None:
            every = families(self._backend.metrics.everything())
            self._connection.send(Snapshot(every, self._backend.requests))

    def _retire(self, grace: float) -> None:
        if self._server is None or not self._server.started:
            os._exit(0)  # it has let nobody in
        # uvicorn's own end: no new connections, idle ones closed, the others after their answer.
        self._retires_at = time.monotonic() + grace
        self._server.config.timeout_graceful_shutdown = max(1, round(grace)) + LAST_EVENTS
        self._server.should_exit = True
        error = Unavailable(
            "The API process that gave this answer was replaced, and the time for it to finish "
            "(--grace) is over. Send the request again.",
            code="draining",
            retry_after=RETRY_AFTER,
        )
        asyncio.get_running_loop().call_later(grace, self._connection.end_all, error)


async def _main(sock: socket.socket) -> None:
    await ApiWorker().run(sock)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    sock = take_leash(parser.parse_args().fd, "maestrale-api", OOM_SCORE)
    raise_file_limit()
    return_large_buffers()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_main(sock))
    logs.WRITER.flush()
    os._exit(0)  # whatever thread still reads a file


if __name__ == "__main__":
    main()
