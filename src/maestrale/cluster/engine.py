"""RayServeEngine: an Engine whose engines are replicas of a Ray Serve deployment.

It starts, is unloaded, and ends; `replica_pool.py` knows the replicas, `dispatcher.py` has the
ledger of the requests. When a replica is lost, by whatever means, its requests go to another one of
the same fingerprint at once: each gives again the tokens that the client has, which are compared,
and goes on. To whoever reads the tokens that is a short pause. What is above can't tell this engine
from `supervise.SupervisedEngine`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from maestrale.cluster.dispatcher import Dispatcher
from maestrale.cluster.options import ClusterOptions
from maestrale.cluster.replica_pool import ReplicaPool
from maestrale.cluster.routing_table import RoutingTable, forget_routing_table, routing_table
from maestrale.cluster.runtime import Runtime
from maestrale.engines.base import (
    EngineConfig,
    EngineHealth,
    EngineInfo,
    EngineStats,
    GenerationRequest,
    ReplicaStatus,
    TokenDelta,
)
from maestrale.errors import EngineError, MaestraleError, Unavailable
from maestrale.supervise.process import sum_stats

if TYPE_CHECKING:
    from maestrale.cluster.deployment import Deployed

TICK = 0.5
LOOK = 1.0  # seconds between two looks at what Ray Serve says while no replica is up
logger = logging.getLogger(__name__)


class RayServeEngine:
    """The Engine protocol over replicas that come, go and die."""

    def __init__(
        self,
        config: EngineConfig,
        options: ClusterOptions,
        *,
        most_failures: int = 5,
        failure_window: float = 60.0,
        expected: EngineInfo | None = None,
        label: str = "",
    ) -> None:
        """`expected`: what its replicas will be, told by `describe` till one has started. `label`
        names the model in the log, where there are several.

        Requests end with an error at `most_failures` deaths of engines within
        `failure_window` seconds, if no replica is left then; and when no replica that can go on
        with them came for so long.
        """
        self._config = config
        self._options = options
        self._runtime = Runtime(options)
        self._deployed = False  # by this process
        self._before: Deployed | None = None  # what that replaced
        self._table: RoutingTable = routing_table(options.app)
        self._api = uuid.uuid4().hex[:12]
        self._dispatcher = Dispatcher(self._api, self._table, most_failures, failure_window)
        self._pool = ReplicaPool(
            options.model, self._api, self._table, self._dispatcher, label=label
        )
        self._pool.info = expected
        self._unloaded = expected is not None
        self._loading = False
        self._joined = False
        self._dispatcher.pool = self._pool
        self._ledger = self._dispatcher.ledger
        self._starting: asyncio.Task[None] | None = None
        self._tender: asyncio.Task[None] | None = None
        self._closer: asyncio.Task[None] | None = None
        self._grace_ends = float("inf")

    # The Engine protocol

    async def start(self) -> None:
        """Start or join Ray, deploy the replicas; ready when the first one is.

        Raises: EngineError with the reason. What was deployed is taken away again; if it was to
        replace the replicas of another server, that one gets them back. It is not tried again,
        unless by another call where it is known what the replicas will be.
        """
        again, self._unloaded, self._loading = self._unloaded, False, True
        self._starting = asyncio.create_task(self._start())
        try:
            await self._starting
        except BaseException as error:
            if self._closer is not None:  # which leaves nothing behind
                raise EngineError("The server is stopping.") from error
            if again:
                await self._withdraw()
                self._unloaded = True
            else:
                self._dispatcher.gave_up = "The engine could not start; the server's log says why."
                await self._leave()
            if isinstance(error, (MaestraleError, asyncio.CancelledError)):
                raise
            raise EngineError(f"Ray Serve failed: {type(error).__name__}: {error}") from error
        finally:
            self._starting, self._loading = None, False

    async def unload(self) -> None:
        """End the replicas, and have none until `start` is called again. Ray stays joined.

        For a time without requests: those in flight end with an error.
        """
        self._unloaded = True
        self._ledger.fail_all(Unavailable("The model is being unloaded.", retry_after=1))
        await self._withdraw()
        self._dispatcher.gave_up = ""

    async def close(self, grace: float = 0.0) -> None:
        """No new requests; those in flight have `grace` seconds. Then nothing of ours is left."""
        deadline = asyncio.get_running_loop().time() + grace
        self._grace_ends = min(self._grace_ends, deadline)
        self._pool.stopping = True
        if self._closer is None:
            self._closer = asyncio.create_task(self._close())
        await asyncio.shield(self._closer)

    async def health(self) -> EngineHealth:
        if self._closer is not None:
            return EngineHealth("draining", "The server is stopping.")
        if self._dispatcher.gave_up:
            return EngineHealth("dead", self._dispatcher.gave_up)
        if self._unloaded:
            return EngineHealth("unloaded", "Replicas are started when a request asks for one.")
        if self._loading and self._pool.info is not None:
            return EngineHealth("loading", "The replicas are loading the model; requests wait.")
        if self._pool.info is None:
            return EngineHealth("starting", "The replicas are loading the model.")
        if not self._pool.usable():
            if self._pool.foreign():
                return EngineHealth("dead", self._another_model())
            return EngineHealth(
                "degraded", "All replicas stopped and are restarted; requests wait."
            )
        if self._ledger.trying_suspects:
            return EngineHealth("degraded", "Requests that may stop the engine run one by one.")
        return EngineHealth("ready")

    def describe(self) -> EngineInfo:
        """As each replica is; `max_num_seqs` is what all that are up decode at once."""
        info = self._pool.info
        if info is None:
            raise EngineError("The engine has not started yet.")
        return replace(info, max_num_seqs=info.max_num_seqs * max(1, len(self._pool.usable())))

    def stats(self) -> EngineStats:
        """Sums over all replicas, and over those that are gone; half a second old."""
        counters = self._ledger.counters
        connections = [
            connection for connection in self._pool.all() if connection.hello is not None
        ]
        total = self._pool.past
        for connection in connections:
            total = sum_stats(total, connection.stats)
        usages = [connection.stats.kv_cache_usage for connection in connections]
        return replace(
            total,
            running=sum(connection.stats.running for connection in connections),
            waiting=self._dispatcher.waiting
            + sum(connection.stats.waiting for connection in connections),
            kv_cache_usage=sum(usages) / len(usages) if usages else 0.0,
            restarts=self._pool.losses,
            replayed=counters.replayed,
            mismatched=counters.mismatched,
            refused=counters.refused,
            up=bool(self._pool.usable()) or self._unloaded or self._loading,
            loaded=not self._unloaded,
        )

    async def generate(self, request: GenerationRequest) -> AsyncIterator[TokenDelta]:
        """Generate tokens for one request, across the deaths of replicas.

        Raises: Unavailable when there is no engine for it, ReplayMismatch when the answer can't be
        completed unchanged, EngineError when this request can't run.
        """
        if self._closer is not None:
            raise Unavailable("The server is stopping.", retry_after=1)
        if self._dispatcher.gave_up:
            raise Unavailable(self._dispatcher.gave_up, retry_after=5)
        if self._pool.info is None or self._unloaded or self._loading:
            raise Unavailable("The replicas are still loading the model.", retry_after=2)
        if self._pool.foreign():
            raise Unavailable(self._another_model(), retry_after=5)
        entry = self._ledger.open(request)
        try:
            async for delta in entry.mailbox:
                yield delta
        finally:
            self._ledger.close(entry)

    async def change(self, config: EngineConfig) -> None:
        """A rolling change: Ray Serve replaces replica after replica by one of `config`.

        Requests in flight end where they began; those after it go to the old replicas while there
        are any, so each answer is of one configuration. Returns once the change has begun.
        Raises: EngineError when Ray Serve can't take it.
        """
        try:
            await self._deploy(config)
        except EngineError:
            raise
        except Exception as error:
            raise EngineError(f"Ray Serve failed: {type(error).__name__}: {error}") from error
        self._config = config

    # What else the API wants to know

    @property
    def paused(self) -> bool:
        """True while no replica is up: streams get comments instead of tokens."""
        known = self._pool.info is not None and not self._unloaded
        return known and not self._pool.usable()

    @property
    def engine_pid(self) -> int | None:
        """There is no single one: see `replicas`."""
        return None

    def on_pause(self, listener: Callable[[bool], None]) -> None:
        """Call `listener(True)` when the last replica is lost, `listener(False)` at the next."""
        self._pool.on_pause(listener)

    def replicas(self) -> list[ReplicaStatus]:
        """Those known to this process, in no order."""
        return [connection.status() for connection in self._pool.all()]

    # Within

    def _another_model(self) -> str:
        return (
            f"The replicas of this cluster serve {self._pool.foreign()} now, not "
            f"{self._options.model}."
        )

    async def _start(self) -> None:
        loop, pool, dispatcher = asyncio.get_running_loop(), self._pool, self._dispatcher
        pool.first.clear()
        pool.stopping = False
        if not self._joined:
            await asyncio.to_thread(self._runtime.join)
            self._joined = True
        from maestrale.cluster import deployment

        self._table.routing = self._options.routing
        self._table.on_replicas = lambda names: _call(loop, pool.replicas_are, names)
        self._table.on_routed = lambda wire, name: _call(loop, dispatcher.routed, wire, name)
        if self._options.owner:
            pool.awaited = self._api
            await self._deploy(self._config)
        pool.handle = await asyncio.to_thread(deployment.handle, self._options.app)
        self._tender = asyncio.create_task(self._tend())
        await self._until_first()

    async def _tend(self) -> None:
        loop = asyncio.get_running_loop()
        last = loop.time()
        while True:
            await asyncio.sleep(TICK)
            now = loop.time()
            self._pool.tick(now - last)
            last = now
            self._dispatcher.tick()

    async def _until_first(self) -> None:
        """Until a replica is up. Raises: EngineError with the reason when none can start."""
        from maestrale.cluster import deployment

        # Any call makes Ray Serve tell this process which replicas there are.
        probe = asyncio.ensure_future(_awaited(self._pool.handle.control.remote("", "*", b"\x90")))
        try:
            said = ""
            while not self._pool.first.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._pool.first.wait(), LOOK)
                    break
                reason, given_up = await asyncio.to_thread(deployment.trouble, self._options.app)
                if given_up:
                    raise EngineError(f"No replica could start: {reason or 'no reason was given.'}")
                if self._pool.foreign():
                    raise EngineError(self._another_model())
                if reason and reason != said:
                    said = reason
                    logger.warning("A replica can't start yet: %s", reason)
        finally:
            probe.cancel()
            await asyncio.gather(probe, return_exceptions=True)

    # The end

    async def _close(self) -> None:
        loop = asyncio.get_running_loop()
        # A second close may shorten the grace.
        while len(self._ledger) and loop.time() < self._grace_ends:
            self._dispatcher.ended.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._dispatcher.ended.wait(), 0.1)
        self._ledger.fail_all(Unavailable("The server is stopping.", retry_after=1))
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        await self._leave()

    async def _leave(self) -> None:
        """The replicas and Ray, for good."""
        self._table.on_replicas = lambda names: None
        self._table.on_routed = lambda wire_id, name: None
        # A Ray of our own takes them with it.
        await self._withdraw(remove=self._options.address is not None or not self._runtime.alone)
        await asyncio.to_thread(self._runtime.leave)
        forget_routing_table(self._options.app)

    async def _withdraw(self, *, remove: bool = True) -> None:
        """No replica is heard any more; those that this process deployed end."""
        if self._tender is not None:
            self._tender.cancel()
            await asyncio.gather(self._tender, return_exceptions=True)
        self._pool.stopping = True
        await self._pool.leave()
        await self._dispatcher.leave()
        if remove and self._deployed:
            await asyncio.to_thread(self._remove)
        self._deployed = False

    def _remove(self) -> None:
        from maestrale.cluster import deployment

        with contextlib.suppress(Exception):  # the cluster may be gone; so is the application
            there = deployment.deployed(self._options.app)
            if there is None or there.api != self._api:
                pass  # it is another server's by now
            elif self._before is not None and not self._pool.first.is_set():
                deployment.deploy(self._before)
            else:
                deployment.remove(self._options.app)

    async def _deploy(self, config: EngineConfig) -> None:
        from maestrale.cluster import deployment

        wanted = deployment.Deployed(self._api, config, self._options)
        self._deployed, self._before = True, None  # also where nobody waits for the end of it
        before = await asyncio.to_thread(deployment.deploy, wanted)
        if before is not None and before.api != self._api:
            self._before = before
            logger.info("The replicas of another server are replaced, one after another.")
        others = await asyncio.to_thread(deployment.others, self._options.app)
        if others:
            logger.info("The cluster also has replicas of %s.", ", ".join(others))


async def _awaited(response: Any) -> None:
    await response


def _call(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *args: Any) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody cares any more
        loop.call_soon_threadsafe(function, *args)
