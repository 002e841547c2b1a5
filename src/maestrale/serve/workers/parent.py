"""READ FIRST of this package. The parent of several API processes.

    parent       the port, the engines and their ledgers, queues and vetting processes, the sums
    ├─ engine process of each model          as with one API process
    └─ API workers    each its share of the connections, HTTP, prompts, text, streams

The port has one socket for each worker (SO_REUSEPORT): the kernel spreads connections evenly. The
parent keeps them open, so that what waits at one whose worker died is answered by its successor.

What must be exact is in one place: the queues and their fair turns, and the
levels of the rate limits, are the parent's. A worker that dies cuts its own streams and nothing
else: the parent ends its requests in the engines, gives its places back and starts another one.
"""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from maestrale.api.accounts import KeyAccounts
from maestrale.api.backend import About, Backend, Steering
from maestrale.api.operations.health import load_json
from maestrale.api.operations.history import Event
from maestrale.api.operations.status import status_json
from maestrale.config.settings import Settings
from maestrale.durable.database import CannotKeep
from maestrale.durable.ledger import entry_id
from maestrale.errors import EngineError, MaestraleError
from maestrale.logs import LOGGER
from maestrale.metrics.merged import MergedMetrics
from maestrale.serve.deployment import DeploymentHost
from maestrale.serve.front import Front
from maestrale.serve.handover.predecessors import Predecessors
from maestrale.serve.listening import BACKLOG, LAST_WORDS, uvicorn_config
from maestrale.serve.progress import StartProgress
from maestrale.serve.workers.handle import WorkerHandle
from maestrale.serve.workers.messages import Attach, Begin, ServerState, pack_settings
from maestrale.supervise.process import Restarts

TELL_SECONDS = 0.2  # between two looks at the engines' states, for the workers
SILENCE = 30.0  # seconds without a word after which a worker counts as hung
REFRESH = 1.0  # seconds that a worker may take to report when asked
START_FAILURES = 3  # workers that die before any one answered: the server gives up

T = TypeVar("T")


def part_of(socks: Sequence[T], place: int, settings: Settings) -> Sequence[T]:
    """The sockets of the worker at this place. Where there are as many as workers, each has one;
    a predecessor may have had more of them, or fewer, which are shared then.
    """
    own = socks[place :: settings.api_workers]
    return own or [socks[place % len(socks)]]


class ParentBackend(Backend):
    """The whole server's queues, metrics, histories and events."""

    def __init__(
        self,
        settings: Settings,
        models: Sequence[Settings],
        handles: Callable[[], list[WorkerHandle]],
    ) -> None:
        self.merged = MergedMetrics(lambda: [handle.families for handle in handles()])
        self._handles = handles
        super().__init__(
            dataclasses.replace(settings, otlp_traces_endpoint=None), models, metrics=self.merged
        )

    def processes(self) -> list[dict[str, Any]]:
        """The API processes, for the status page."""
        now = time.monotonic()
        return [
            {
                "pid": handle.pid,
                "state": handle.state,
                "requests": handle.snapshot.requests,
                "uptime_seconds": round(now - handle.born),
            }
            for handle in self._handles()
        ]


class Parent(Front):
    """The API workers, and what they ask for."""

    backend: ParentBackend

    def __init__(
        self,
        settings: Settings,
        models: Sequence[Settings],
        socks: Sequence[socket.socket],
        predecessors: Predecessors | None = None,
    ) -> None:
        """`socks`: one for each worker, at one address, or as many as a predecessor had."""
        self.handles: list[WorkerHandle] = []
        super().__init__(ParentBackend(settings, models, lambda: self.handles), predecessors)
        self._settings = settings
        self._socks = socks
        self._restarts = Restarts()
        self._deaths: list[float] = []
        self._answered = False  # a worker has come so far
        self._attaches: dict[str, Attach] = {}  # of the deployments that are loaded
        self._states: dict[str, ServerState] = {}  # as the workers were told
        self._keepers: set[asyncio.Task[None]] = set()
        self._reloading: asyncio.Task[None] | None = None
        self._draining = False
        self._passed_on = False  # a successor takes the connections
        self._running: asyncio.Task[None] | None = None
        self._hired = asyncio.Event()  # all workers are there
        self._lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Gets an error when no worker can be had at start."""

    # What the workers ask for

    def host(self, model: str) -> DeploymentHost:
        """What owns the deployment with this id."""
        return next(each for each in self.hosts if each.deployment.id == model)

    @property
    def accounts(self) -> KeyAccounts:
        """The limits of all keys, and what they have used."""
        return self.backend.accounts.kept

    async def charge(self, answer: str, tokens: int) -> int | None:
        """For how many tokens of an answer its key was charged before it now is for so many; None:
        for none, or it isn't one that can be asked for again.
        """
        ledger = self.backend.streams.ledger
        try:
            return await ledger.charge(entry_id(answer), tokens)
        except CannotKeep as error:
            ledger.database.warn(error)
            return None

    def note(self, event: Event) -> None:
        """Something went wrong, for the status page."""
        self.backend.events.add(event)

    async def answer(self, about: About, model: str) -> bytes:
        """What is said for all workers together."""
        if about == "load":
            return load_json(self.backend)
        # Of this moment: what a client sees answered is counted in its next scrape.
        await asyncio.gather(*(handle.refresh(REFRESH) for handle in self.handles))
        if about == "status":
            return await status_json(self.backend, self.backend.deployments[model])
        return self.backend.merged.render()

    # Its life

    async def run(self) -> None:
        """See `Front.run`: start the workers, tell them how the engines are, replace the hung."""
        self._running = asyncio.current_task()
        uvicorn_config(self._settings, self.backend)  # a wrong certificate is told once, here
        await self.may_serve.wait()
        for sock in self._socks:
            sock.listen(BACKLOG)
        await self._hire_all()
        watching = asyncio.create_task(self._watch())
        ends: set[asyncio.Future[Any]] = {watching, self._lost}
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for each in ends:
                if each.done():
                    each.result()
        finally:
            watching.cancel()

    async def load(self, host: DeploymentHost, progress: StartProgress) -> None:
        """See `Front.load`."""
        if self.may_serve.is_set():  # else they are hired once all is loaded
            await self._hired.wait()
        deployment = host.deployment
        folder, prepared, config = await host.prepare(progress)
        self.backend.deployments.check_name(deployment, prepared.name)
        engine = await self.engine_of(host, prepared.name, config, progress)
        host.vet(folder, prepared)
        attach = self._attaches[deployment.id] = Attach(
            deployment.id, str(folder), prepared.name, engine.describe(), prepared.sampling
        )
        deployment.open(engine, prepared.name, prepared.sampling)
        await self._tell_states()
        for handle in self.handles:
            handle.attach(attach)

    async def changed(self) -> None:
        """See `Front.changed`."""
        await self._tell_states()

    async def steer(self, model: str, steering: Steering) -> None:
        """Begin to load or unload a model. Raises: Conflict."""
        await self.backend.steer(model, steering)
        await self._tell_states()

    async def answering(self) -> None:
        """See `Front.answering`."""
        while sum(each.attached.done() for each in self.handles) < self._settings.api_workers:
            # One that dies meanwhile has a successor, which the next round waits for.
            coming = [each.attached for each in self.handles if not each.attached.done()]
            await asyncio.wait([*coming, self._lost], timeout=TELL_SECONDS)
        self._answered = True

    def reload(self) -> None:
        """New workers in the place of the old, one by one; nothing in flight is cut."""
        if self._reloading is not None and not self._reloading.done():
            return
        if self._attaches and not (self._draining or self._passed_on):
            self._reloading = asyncio.create_task(self._reload())

    async def pass_on(self, grace: float) -> None:
        """See `Front.pass_on`."""
        self._passed_on = True
        if self._reloading is not None:
            self._reloading.cancel()
        leaving = tuple(self.handles)
        for handle in leaving:
            if not handle.retiring:
                handle.retire(grace)
        if leaving:
            await asyncio.wait([each.dead for each in leaving], timeout=grace)

    async def take_back(self) -> None:
        """See `Front.take_back`."""
        if self._passed_on:
            self._passed_on = False
            await self._hire_all()

    async def lend(self, folder: Path) -> None:
        """See `Front.lend`."""
        await asyncio.gather(*(handle.lend(str(folder), REFRESH) for handle in self.handles))

    async def drain(self) -> None:
        """See `Front.drain`."""
        self._draining = True
        if self._reloading is not None:
            self._reloading.cancel()
        await self._tell_states()

    async def end(self) -> None:
        """See `Front.end`."""
        self._draining = True
        tasks = [task for task in (self._running, self._reloading) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._lost.cancel()
        handles = tuple(self.handles)
        for handle in handles:
            handle.retire(LAST_WORDS)
        if handles:
            await asyncio.wait([handle.dead for handle in handles], timeout=2 * LAST_WORDS)
        for handle in handles:
            handle.kill("the server is stopping")
        for keeper in tuple(self._keepers):
            keeper.cancel()
        await asyncio.gather(*(asyncio.shield(handle.dead) for handle in handles))

    # Within

    async def _watch(self) -> None:
        last = time.monotonic()
        while True:
            await asyncio.sleep(TELL_SECONDS)
            await self._tell_states()
            now = time.monotonic()
            # Asleep or stopped ourselves, we have heard nobody: that is no worker's fault.
            missed = max(0.0, now - last - 2 * TELL_SECONDS)
            last = now
            for handle in self.handles:
                handle.heard += missed
                if now - handle.heard > SILENCE:
                    handle.kill(f"it gave no sign of life for {SILENCE:.0f} seconds")

    async def _hire_all(self) -> None:
        for place in range(self._settings.api_workers):
            await self._hire(place)
        self._hired.set()

    async def _hire(self, place: int) -> WorkerHandle:
        """A worker at its part of the sockets. Raises: EngineError when the system has no room for
        it.
        """
        listeners = tuple(each.fileno() for each in part_of(self._socks, place, self._settings))
        handle = WorkerHandle(self, place, listeners)
        settings = self._settings
        begin = Begin(
            pack_settings(settings),
            tuple(pack_settings(each.deployment.settings) for each in self.hosts),
            settings.api_workers,
            listeners,
            tuple(self._attaches),
            () if self.predecessors is None else self.predecessors.lenders,
        )
        await handle.spawn(begin)
        for state in self._states.values():
            handle.send(state)
        for attach in self._attaches.values():
            handle.attach(attach)
        self.handles.append(handle)
        keeper = asyncio.create_task(self._keep(handle))
        self._keepers.add(keeper)
        keeper.add_done_callback(self._keepers.discard)
        return handle

    async def _keep(self, handle: WorkerHandle) -> None:
        """Wait for its end; if nobody asked for that, start another one."""
        reason = await asyncio.shield(handle.dead)
        self.handles.remove(handle)
        self.backend.merged.leave(handle.families)
        cut = await handle.clear()
        if handle.retiring or self._draining or self._passed_on:
            return
        reason = handle.failed or reason
        LOGGER.error(
            "API process %d stopped: %s. Its connections are cut, %d requests ended; "
            "another one is started.",
            *(handle.pid, reason.rstrip("."), cut),
        )
        now = time.monotonic()
        self._deaths = [at for at in self._deaths if now - at < self._restarts.window] + [now]
        if not self._answered and (handle.failed or len(self._deaths) >= START_FAILURES):
            if not self._lost.done():
                self._lost.set_exception(MaestraleError(f"No API process can start: {reason}."))
            return
        self.backend.events.add(Event("restart", "api_process_restarted", time.time()))
        self.backend.merged.restarts += 1
        while True:
            await asyncio.sleep(self._restarts.pause_after(len(self._deaths)))
            if self._draining or self._passed_on:
                return
            try:
                await self._hire(handle.place)
                return
            except EngineError as error:
                LOGGER.error("%s", error)
                self._deaths.append(time.monotonic())

    async def _reload(self) -> None:
        LOGGER.info("SIGHUP received: the API processes are replaced one by one")
        for old in tuple(self.handles):
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
            old.retire(self.backend.settings.grace)
        LOGGER.info("All API processes are new; those that still answer end after that")

    async def _tell_states(self) -> None:
        for deployment in self.backend.deployments:
            health = await deployment.health()
            engine = deployment.engine
            info = engine.describe() if engine is not None else None
            state = ServerState(
                deployment.id, health.state, health.detail, info, deployment.retry_at
            )
            if state != self._states.get(deployment.id):
                self._states[deployment.id] = state
                for handle in self.handles:
                    handle.send(state)
