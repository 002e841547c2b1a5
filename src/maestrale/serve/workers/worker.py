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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn
import uvloop

from maestrale import logs
from maestrale.api.admission import RETRY_AFTER
from maestrale.api.http.body import BUDGET, BodyReader
from maestrale.api.http.connections import raise_file_limit
from maestrale.api.rate import RateLimiter
from maestrale.api.shared_levels import SharedLevels
from maestrale.chat.service import ChatService
from maestrale.config.settings import Settings
from maestrale.errors import MaestraleError, Unavailable
from maestrale.logs import LOGGER
from maestrale.metrics.merged import families
from maestrale.serve.hosting import in_thread
from maestrale.serve.memory import return_large_buffers
from maestrale.serve.server import uvicorn_config
from maestrale.serve.workers.messages import (
    SNAPSHOT_SECONDS,
    Attach,
    Attached,
    Begin,
    Report,
    Retire,
    Snapshot,
    State,
    unpack_settings,
)
from maestrale.serve.workers.remote import ParentLink, RemoteEngine, RemoteVetter, WorkerBackend
from maestrale.supervise.leash import take_leash
from maestrale.supervise.messages import Failed

# When memory runs out the engine goes before an API process, and that before the parent: an
# engine's death is a pause, a worker's cuts its streams.
OOM_SCORE = 250
LAST_WORDS = 0.2  # seconds for the last messages to reach the parent
LAST_EVENTS = 1  # second for the ends of streams to reach their clients


class _Server(uvicorn.Server):
    """uvicorn, but signals are the parent's business."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Worker:
    """One API process, from its first message to its end."""

    def __init__(self) -> None:
        self._link = ParentLink(self._take)
        self._begun: asyncio.Future[Begin] = asyncio.get_running_loop().create_future()
        self._attached: asyncio.Task[None] | None = None
        self._backend: WorkerBackend | None = None
        self._server: _Server | None = None
        self._state: State | None = None
        self._made = asyncio.Event()
        self._ready = asyncio.Event()

    async def run(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        await self._link.open(sock)
        begin = await self._begun
        settings = unpack_settings(begin.settings)
        logs.configure(settings.log_level, settings.log_format)
        try:
            backend = self._backend = self._make_backend(settings, begin)
            server = self._server = _Server(uvicorn_config(settings, backend))
        except MaestraleError as error:
            self._link.send(Failed(str(error)))
            await asyncio.sleep(LAST_WORDS)
            return
        if self._state is not None:
            backend.told(self._state)
        self._made.set()
        reporting = asyncio.create_task(self._go_on_reporting())
        if begin.late:
            await self._ready.wait()
        await server.serve(sockets=[socket.socket(fileno=begin.listener)])
        reporting.cancel()
        if backend.tracer is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(in_thread(backend.tracer.close), 2.0)
        self._report()
        await asyncio.sleep(LAST_WORDS)

    def _make_backend(self, settings: Settings, begin: Begin) -> WorkerBackend:
        rates = RateLimiter(shared=SharedLevels(begin.levels))
        backend = WorkerBackend(settings, self._link, rates)
        # All workers together hold as much of large bodies as one would.
        backend.bodies = BodyReader(settings.max_body_bytes, BUDGET // begin.workers)
        return backend

    def _take(self, message: Any) -> None:
        match message:
            case Begin():
                self._begun.set_result(message)
            case State():
                self._state = message
                if self._backend is not None:
                    self._backend.told(message)
            case Attach():
                self._attached = asyncio.create_task(self._attach(message))
            case Report():
                self._report()
            case Retire(grace):
                self._retire(grace)

    async def _attach(self, message: Attach) -> None:
        """Load what text needs, and answer requests from then on."""
        from maestrale.models.vocabulary import load_vocabulary
        from maestrale.prompt.encode import encoder_for, read_template

        await self._made.wait()
        assert self._backend is not None
        settings, folder = self._backend.settings, Path(message.folder)
        try:
            template = read_template(settings.chat_template)
            encoder, vocabulary = await asyncio.gather(
                in_thread(lambda: encoder_for(folder, template, settings.tool_call_parser)),
                in_thread(lambda: load_vocabulary(folder)),
            )
        except (MaestraleError, OSError) as error:
            self._link.send(Failed(str(error)))
            return
        service = ChatService(
            RemoteEngine(self._link, message.info),
            encoder,
            vocabulary,
            RemoteVetter(self._link),
            on_gap=self._backend.metrics.observe_gap,
        )
        self._backend.attach(service, message.model_name, message.sampling)
        if self._state is not None:
            self._backend.told(self._state)
        self._link.send(Attached())
        self._ready.set()

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
            self._link.send(Snapshot(every, self._backend.admission.requests))

    def _retire(self, grace: float) -> None:
        if self._server is None or not self._server.started:
            os._exit(0)  # it has let nobody in
        # uvicorn's own end: no new connections, idle ones closed, the others after their answer.
        self._server.config.timeout_graceful_shutdown = max(1, round(grace)) + LAST_EVENTS
        self._server.should_exit = True
        error = Unavailable(
            "The API process that gave this answer was replaced, and the time for it to finish "
            "(--grace) is over. Send the request again.",
            code="draining",
            retry_after=RETRY_AFTER,
        )
        asyncio.get_running_loop().call_later(grace, self._link.end_all, error)


async def _main(sock: socket.socket) -> None:
    await Worker().run(sock)


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
