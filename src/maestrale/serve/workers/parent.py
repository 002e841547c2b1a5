"""READ FIRST of this package. The parent of several API processes.

    parent       the port, the engine and its ledger, the queue, the vetting processes, the sums
    ├─ engine process                        as with one API process
    └─ API workers    each its share of the connections, HTTP, prompts, text, streams

The port has one socket for each worker (SO_REUSEPORT): the kernel spreads connections evenly. The
parent keeps them open, so that what waits at one whose worker died is answered by its successor.

What must be exact is in one place: the queue and its fair turns are the parent's; the levels of
the rate limits are in memory that all share. A worker that dies cuts its own streams and nothing
else: the parent ends its requests in the engine, gives its places back and starts another one.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

from maestrale.api.backend import Backend
from maestrale.api.operations.health import load_json
from maestrale.api.operations.history import Event
from maestrale.api.operations.status import status_json
from maestrale.api.shared_levels import make_levels
from maestrale.config.settings import Settings
from maestrale.engines.base import Engine, EngineHealth
from maestrale.errors import EngineError, MaestraleError, SettingsError
from maestrale.logs import LOGGER
from maestrale.metrics.merged import MergedMetrics
from maestrale.serve.hosting import EngineHost
from maestrale.serve.progress import Progress
from maestrale.serve.server import (
    BACKLOG,
    LAST_WORDS,
    Announce,
    banner,
    on_hangup,
    server_url,
    terminal_is_gone,
    uvicorn_config,
    why_not_bound,
)
from maestrale.serve.workers.handle import Desk
from maestrale.serve.workers.messages import About, Attach, Begin, State, pack_settings
from maestrale.supervise.process import Restarts

TELL_SECONDS = 0.2  # between two looks at the engine's state, for the workers
SILENCE = 30.0  # seconds without a word after which a worker counts as hung
REFRESH = 1.0  # seconds that a worker may take to report when asked
START_FAILURES = 3  # workers that die before any one answered: the server gives up


class ParentBackend(Backend):
    """The whole server's queue, metrics, history and events."""

    def __init__(self, settings: Settings, desks: Callable[[], list[Desk]]) -> None:
        super().__init__(dataclasses.replace(settings, otlp_traces_endpoint=None))
        self._desks = desks
        self.metrics = self.merged = MergedMetrics(lambda: [desk.families for desk in desks()])
        self._engine: Engine | None = None

    @property
    def engine(self) -> Engine | None:
        return self._engine

    def attach_engine(self, engine: Engine, model_name: str) -> None:
        self.names = self.settings.served_model_name or (model_name,)
        self._engine = engine
        self.metrics.watch(engine, self.names[0], lambda: self.admission.waiting)

    async def health(self) -> EngineHealth:
        if self._draining:
            return EngineHealth("draining", "The server is shutting down.")
        if self._engine is None:
            return EngineHealth("starting", self.starting)
        return await self._engine.health()

    def processes(self) -> list[dict[str, Any]]:
        now = time.monotonic()
        return [
            {
                "pid": desk.pid,
                "state": desk.state,
                "requests": desk.snapshot.requests,
                "uptime_seconds": round(now - desk.born),
            }
            for desk in self._desks()
        ]


class Parent:
    """One server's life with several API processes."""

    def __init__(
        self, settings: Settings, socks: list[socket.socket], made_key: str, announce: Announce
    ) -> None:
        self.settings = settings
        self.host = EngineHost(settings)
        self.desks: list[Desk] = []
        self.backend = ParentBackend(settings, lambda: self.desks)
        self.backend.elsewhere = self.host.elsewhere
        self.stopping = asyncio.Event()
        self.hurry = asyncio.Event()
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Gets an error when no worker can be had at start."""
        self._socks = socks
        self._levels = make_levels()
        self._made_key = made_key
        self._announce = announce
        self._restarts = Restarts()
        self._deaths: list[float] = []
        self._answered = False  # a worker has come so far
        self._attach: Attach | None = None
        self._state: State | None = None
        self._keepers: set[asyncio.Task[None]] = set()
        self._reloading: asyncio.Task[None] | None = None
        self.url = server_url(settings, socks[0])

    # What the desks share

    @property
    def admission(self) -> Any:
        return self.backend.admission

    @property
    def engine(self) -> Engine | None:
        return self.backend.engine

    @property
    def vetter(self) -> Any:
        return self.host.vetter

    @property
    def max_num_seqs(self) -> int:
        engine = self.backend.engine  # it may grow and shrink
        return engine.describe().max_num_seqs if engine is not None else 1

    def note(self, event: Event) -> None:
        self.backend.events.add(event)

    async def answer(self, about: About) -> bytes:
        """What is said for all workers together."""
        if about == "load":
            return load_json(self.backend)
        # Of this moment: what a client sees answered is counted in its next scrape.
        await asyncio.gather(*(desk.refresh(REFRESH) for desk in self.desks))
        if about == "status":
            return await status_json(self.backend)
        return self.backend.merged.render()

    # Its life

    async def load(self) -> None:
        """Start the workers and, meanwhile, prepare the model and start its engine."""
        uvicorn_config(self.settings, self.backend)  # a wrong certificate is told once, here
        for place, sock in enumerate(self._socks):
            sock.listen(BACKLOG)
            await self._hire(place)
        with Progress(self._tell) as progress:
            folder, prepared, config = await self.host.prepare(progress)
            progress.update("Starting the engine", None)
            engine = await self.host.start(config)
        self.host.vet(folder, prepared)
        self._attach = Attach(str(folder), prepared.name, engine.describe(), prepared.sampling)
        self.backend.attach_engine(engine, prepared.name)
        await self._tell_state()
        for desk in self.desks:
            desk.send(self._attach)
        while sum(desk.attached.done() for desk in self.desks) < self.settings.api_workers:
            # One that dies meanwhile has a successor, which the next round waits for.
            coming = [desk.attached for desk in self.desks if not desk.attached.done()]
            await asyncio.wait([*coming, self.lost], timeout=TELL_SECONDS)
        self._answered = True
        if not self.stopping.is_set():
            names = self.backend.names
            text = banner(self.settings, self.url, names, self._made_key)
            self._announce(self.url, text)

    async def watch(self) -> None:
        """Tell the workers how the engine is, and replace those that are hung."""
        last = time.monotonic()
        while True:
            await asyncio.sleep(TELL_SECONDS)
            await self._tell_state()
            now = time.monotonic()
            # Asleep or stopped ourselves, we have heard nobody: that is no worker's fault.
            missed = max(0.0, now - last - 2 * TELL_SECONDS)
            last = now
            for desk in self.desks:
                desk.heard += missed
                if now - desk.heard > SILENCE:
                    desk.kill(f"it gave no sign of life for {SILENCE:.0f} seconds")

    def on_signal(self) -> None:
        """The first signal drains; the second ends what is left."""
        if self.stopping.is_set():
            self.hurry.set()
        self.backend.drain()
        self.stopping.set()

    def on_reload(self) -> None:
        """SIGHUP: new workers in the place of the old, one by one; nothing in flight is cut.

        Or the server's terminal is gone, and it ends.
        """
        if terminal_is_gone():
            LOGGER.info("SIGHUP received: the terminal is gone")
            self.on_signal()
            return
        if self._reloading is not None and not self._reloading.done():
            return
        if self._attach is not None and not self.stopping.is_set():
            self._reloading = asyncio.create_task(self._reload())

    async def drain(self) -> None:
        """Let answers in flight end, up to the grace; then the engine, then the workers."""
        if self._reloading is not None:
            self._reloading.cancel()
        await self._tell_state()
        await self.host.drain(self.backend.admission, self.hurry)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.backend.admission.idle.wait(), LAST_WORDS)

    async def close(self) -> None:
        """Leave nothing running, however far it came."""
        self.stopping.set()
        if self._reloading is not None:
            self._reloading.cancel()
        desks = tuple(self.desks)
        for desk in desks:
            desk.retire(LAST_WORDS)
        if desks:
            await asyncio.wait([desk.dead for desk in desks], timeout=2 * LAST_WORDS)
        for desk in desks:
            desk.kill("the server is stopping")
        for keeper in tuple(self._keepers):
            keeper.cancel()
        await asyncio.gather(*(asyncio.shield(desk.dead) for desk in desks))
        await self.host.close()
        os.close(self._levels)

    # Within

    async def _hire(self, place: int) -> Desk:
        """A worker at this socket. Raises: EngineError when the system has no room for it."""
        listener = self._socks[place].fileno()
        desk = Desk(self, place, (listener, self._levels))
        late = self._attach is not None
        packed = pack_settings(self.settings)
        await desk.spawn(Begin(packed, self.settings.api_workers, listener, self._levels, late))
        if self._state is not None:
            desk.send(self._state)
        if self._attach is not None:
            desk.send(self._attach)
        self.desks.append(desk)
        keeper = asyncio.create_task(self._keep(desk))
        self._keepers.add(keeper)
        keeper.add_done_callback(self._keepers.discard)
        return desk

    async def _keep(self, desk: Desk) -> None:
        """Wait for its end; if nobody asked for that, start another one."""
        reason = await asyncio.shield(desk.dead)
        self.desks.remove(desk)
        self.backend.merged.leave(desk.families)
        cut = desk.clear()
        if desk.retiring or self.stopping.is_set():
            return
        reason = desk.failed or reason
        LOGGER.error(
            "API process %d stopped: %s. Its connections are cut, %d requests ended; "
            "another one is started.",
            *(desk.pid, reason.rstrip("."), cut),
        )
        now = time.monotonic()
        self._deaths = [at for at in self._deaths if now - at < self._restarts.window] + [now]
        if not self._answered and (desk.failed or len(self._deaths) >= START_FAILURES):
            if not self.lost.done():
                self.lost.set_exception(MaestraleError(f"No API process can start: {reason}."))
            return
        self.backend.events.add(Event("restart", "api_process_restarted", time.time()))
        self.backend.merged.restarts += 1
        while True:
            await asyncio.sleep(self._restarts.pause_after(len(self._deaths)))
            if self.stopping.is_set():
                return
            try:
                await self._hire(desk.place)
                return
            except EngineError as error:
                LOGGER.error("%s", error)
                self._deaths.append(time.monotonic())

    async def _reload(self) -> None:
        LOGGER.info("SIGHUP received: the API processes are replaced one by one")
        for old in tuple(self.desks):
            if old.retiring or old.dead.done():
                continue
            try:
                new = await self._hire(old.place)
            except EngineError as error:
                LOGGER.error("The reload ends here: %s", error)
                return
            either: set[asyncio.Future[Any]] = {new.attached, new.dead}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not new.attached.done():
                LOGGER.error("The reload ends here: the new API process did not come up.")
                return
            old.retire(self.settings.grace)
        LOGGER.info("All API processes are new; those that still answer end after that")

    async def _tell_state(self) -> None:
        health = await self.backend.health()
        engine = self.backend.engine
        info = engine.describe() if engine is not None else None
        state = State(health.state, health.detail, info)
        if state != self._state:
            self._state = state
            for desk in self.desks:
                desk.send(state)

    def _tell(self, text: str) -> None:
        self.backend.starting = text


def share(sock: socket.socket, settings: Settings) -> list[socket.socket]:
    """Sockets at the address of `sock`, which is closed: nobody else listens there.

    Raises: SettingsError when somebody else took it at this moment.
    """
    address, family = sock.getsockname(), sock.family
    sock.close()
    socks = []
    try:
        for _ in range(settings.api_workers):
            socks.append(socket.socket(family, socket.SOCK_STREAM))
            socks[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            socks[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            socks[-1].bind(address)
    except OSError as error:
        for each in socks:
            each.close()
        raise SettingsError(why_not_bound(settings.host, address[1], error)) from error
    return socks


async def serve(
    settings: Settings, socks: list[socket.socket], made_key: str, announce: Announce
) -> None:
    """Serve until SIGTERM or SIGINT. Raises: SettingsError, ModelError, EngineError."""
    parent = Parent(settings, socks, made_key, announce)
    loop = asyncio.get_running_loop()

    def on_signal(number: signal.Signals) -> None:
        LOGGER.info("%s received", number.name)
        parent.on_signal()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal, number)
    on_hangup(parent.on_reload)
    loading = asyncio.create_task(parent.load())
    watching = asyncio.create_task(parent.watch())
    sampling = asyncio.create_task(parent.backend.history.run())
    stopping = asyncio.create_task(parent.stopping.wait())
    ends: set[asyncio.Future[Any]] = {stopping, parent.lost, watching}
    try:
        await asyncio.wait({loading, *ends}, return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            loading.result()  # raises what went wrong
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        else:
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
        for end in (parent.lost, watching):
            if end.done():
                end.result()
        await parent.drain()
    finally:
        for task in (loading, stopping, watching, sampling):
            task.cancel()
        parent.lost.cancel()
        await parent.close()
